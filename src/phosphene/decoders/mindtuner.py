r"""MindTuner: one network for many people, and a new person from little data by low-rank and skip adapters.

.. math:: h_0 = W_s x + b_s + S_0(x), \quad h_l = h_{l-1} + F_l(h_{l-1}) + S_l(x), \quad
          T = W_o h_L + b_o\ (+ S_{out}(x)), \quad C = T + \mathrm{proj}(T)

`W_s` (the ridge layer) belongs to person s, the skips `S` and the low-rank changes of the shared layers to people who
were added later. `T` is the predicted target, `C` is compared with targets. What the paper states and what is our
choice is listed in ``docs/mindtuner.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from phosphene.decoders.adaptable import AdaptableDecoder, AdapterConfig
from phosphene.decoders.base import DecoderConfig, Prediction
from phosphene.decoders.borrowed import Borrowed, borrow
from phosphene.decoders.ridge_layer import RidgeLayer, principal_components
from phosphene.errors import InputError
from phosphene.nn.adapter import AdapterBank
from phosphene.nn.lora import SkipLoRA, decorrelation
from phosphene.nn.residual import ChannelMixer, TokenProjector

if TYPE_CHECKING:
    from phosphene.alignment import Aligner
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["MindTuner", "MindTunerConfig"]


class MindTunerConfig(DecoderConfig):
    """Settings of mindtuner.

    Attributes
    ----------
    width : int
        Units into which everybody's voxels are mapped, and of the backbone.
    blocks : int
        Residual blocks.
    hidden_ratio : float
        Hidden width of a block, in widths.
    dropout : float
        In the blocks.
    voxel_dropout : float
        Of voxels at the input.
    projector : int
        Hidden width of the retrieval projector; 0 has none, then the predicted target itself is compared.
    branch_scale : float
        Size at the start of what blocks and projector add, relative to torch's own first weights.
    start : {"ridge", "random"}
        How pre-training starts: at the ridge solution carried through the network, or at random.
    start_rank : int
        Principal components of the targets in which the ridge solutions are found, at most the width.
    """

    width: int = Field(4096, ge=1)
    blocks: int = Field(4, ge=0)
    hidden_ratio: float = Field(1.0, gt=0)
    dropout: float = Field(0.15, ge=0, lt=1)
    voxel_dropout: float = Field(0.0, ge=0, lt=1)
    projector: int = Field(1664, ge=0)
    branch_scale: float = Field(0.3, gt=0)
    start: Literal["ridge", "random"] = "ridge"
    start_rank: int = Field(512, ge=1)

    def without_use(self) -> dict[str, str]:
        """Settings of blocks and branches, where there are none."""
        idle = {} if self.blocks else dict.fromkeys(("hidden_ratio", "dropout"), "blocks = 0")
        return idle if self.blocks or self.projector else {**idle, "branch_scale": "blocks = 0 and projector = 0"}


class MindTuner(AdaptableDecoder):
    """Ridge layers by person, a residual backbone shared by all, heads for target and retrieval, adapters by person."""

    name = "mindtuner"
    Config = MindTunerConfig

    def __init__(self, config: MindTunerConfig, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        self.voxel_dropout.p = config.voxel_dropout
        self.blocks = nn.ModuleList(
            [ChannelMixer(config.width, config.hidden_ratio, config.dropout) for _ in range(config.blocks)]
        )
        self.out = nn.Linear(config.width, self.n_outputs)
        width = self.target_shape[-1]
        self.projector = TokenProjector(width, config.projector) if config.projector else None
        with torch.no_grad():
            for module in [*self.blocks, *([] if self.projector is None else [self.projector])]:
                last = [each for each in module.modules() if isinstance(each, nn.Linear)][-1]
                last.weight.mul_(config.branch_scale)
        self.ridge = RidgeLayer(self.n_outputs)
        # at the input, after each block, at the target
        self.skips = nn.ModuleList(
            [AdapterBank(self.person, partial(SkipLoRA, 1, 1, 1)) for _ in range(config.blocks + 2)]
        )
        self._terms: list[Tensor] = []
        self.inputs = nn.ModuleList()
        for subject, n_voxels in list(self.subjects.items())[: 1 if self.subject_free else None]:
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        config: Any = self.config
        self.inputs.append(nn.Linear(n_voxels, config.width).to(self.out.weight.device))

    def _add_skips(self, subject: str, n_voxels: int, adapter: AdapterConfig) -> None:
        for place, bank in enumerate(self.skips):
            to_target = place == len(self.skips) - 1
            if to_target and not adapter.skip_tokens:
                continue
            n_out = self.out.out_features if to_target else self.out.in_features
            sizes = (n_voxels, n_out, adapter.skip_rank, adapter.skip_alpha, adapter.activation)
            assert isinstance(bank, AdapterBank)
            self._give(bank, subject, partial(SkipLoRA, *sizes), self.out.weight)

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        self.ridge.make_room({n.removeprefix("ridge."): t for n, t in tensors.items() if n.startswith("ridge.")})

    # -- computing ----------------------------------------------------------------------------------------------

    def _input(self, subject: str | None) -> Any:
        return self.inputs[0 if self.subject_free else self.index(str(subject))]

    def _decode(self, responses: Tensor, subject: str | None) -> Prediction:
        terms: list[Tensor] = []
        responses = self.voxel_dropout(responses)
        with self.person.using(subject):
            hidden = self._skipped(0, self._input(subject)(responses), responses, terms)
            for place, block in enumerate(self.blocks, 1):
                hidden = self._skipped(place, block(hidden), responses, terms)
            target = self._skipped(-1, self.out(hidden), responses, None)
            prediction = Prediction.of(target, self.target_shape)
            if self.projector is not None:
                shaped = prediction.pooled if prediction.tokens is None else prediction.tokens
                prediction = replace(prediction, retrieval=shaped + self.projector(shaped))
        weight = self._decorrelation(subject)
        if self.training and terms and weight:
            self._terms.append(weight * torch.stack(terms).mean())
        return prediction

    def _skipped(self, place: int, linear: Tensor, responses: Tensor, terms: list[Tensor] | None) -> Tensor:
        """A layer's output and what the skip of the person of the moment adds to it, if there is one."""
        skip = self.skips[place](responses)
        if skip is None:
            return linear
        if terms is not None and self.training:
            terms.append(decorrelation(linear, skip))
        return linear + skip.to(linear.dtype)

    def _decorrelation(self, subject: str | None) -> float:
        facts = self.apart.get(str(subject))
        return float(facts["adapter"]["decorrelation"]) if facts else 0.0

    def begin(self, stage: str) -> None:
        """Forget the passes that were no step of this stage."""
        self._terms.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_terms": []}  # copies know nothing of passes, whose graphs cannot be copied

    def penalties(self) -> dict[str, Tensor]:
        """Decorrelation of skips and linear paths, mean over the places where both meet, as weighted by the settings.

        The skip at the target has no part in it.
        """
        terms, self._terms = self._terms, []
        return {"decorrelation": torch.stack(terms).mean()} if terms else {}

    # -- closed forms -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def warm_start(
        self, view: StudyView, targets: Targets, kind: str, progress: bool = True, stage: str = "training"
    ) -> bool:
        """Start at the ridge solution: voxels to scores of the targets' components, into the width, and out again.

        With P the components (rows), sigma their deviations, and orthonormal columns L (width, k) out of the first
        random weights, scores ``z = P (y - mean) / sigma``; then ``W_s = c L A_s'`` for the ridge weights A_s of z, and
        ``W_o = P' sigma L' / c`` with ``c = sqrt(width / k)``: the network is ridge, up to what blocks and projector
        add.
        """
        config: Any = self.config
        if config.start == "random":
            return False
        basis = self._basis(view, targets, kind)
        rank = len(basis.deviation)
        lift = torch.linalg.qr(self.out.weight[:rank].double().T).Q.float() * (config.width / rank) ** 0.5
        self.ridge.set(basis, lift, torch.zeros(config.width))
        back = (self.ridge.components * self.ridge.deviation[:, None]).T @ lift.T * (rank / config.width)
        self.out.weight.copy_(back)
        self.out.bias.copy_(self.ridge.centre)
        for subject in list(self.subjects)[: 1 if self.subject_free else None]:
            self.start_person(subject, view, targets, kind)
        return True

    def _basis(self, view: StudyView, targets: Targets, kind: str) -> Any:
        config: Any = self.config
        return principal_components(view, targets, kind, min(config.start_rank, config.width))

    @torch.no_grad()
    def start_person(
        self, subject: str, view: StudyView, targets: Targets, kind: str, borrowed: Borrowed | None = None
    ) -> None:
        """Ridge from the person's voxels to scores of the targets, lifted into the width as pre-training left it."""
        if not len(self.ridge.lift):
            raise InputError(f"this {self.name} decoder has not been trained yet; fit it before somebody is added")
        people = list(self.subjects) if self.subject_free else [subject]
        ids, x = zip(*(self._averaged(view, each) for each in people), strict=True)
        weight, bias = self.ridge.solve(ids, torch.cat(x), view, targets, kind, subject, borrowed)
        layer = self._input(subject)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)

    @torch.no_grad()
    def borrow(
        self, aligner: Aligner, others: StudyView, view: StudyView, subject: str, targets: Targets, kind: str
    ) -> Borrowed:
        """Ridge over other people in the template, to the scores of this decoder's ridge layers."""
        voxels: Any = self.standardisers[self.index(subject)]
        scores = partial(self.ridge.scores, targets=targets, kind=kind)
        return borrow(aligner, others, view, subject, (voxels.mean, voxels.deviation), scores)

    def _averaged(self, view: StudyView, subject: str) -> tuple[Any, Tensor]:
        ids, responses = view.averaged(subject)
        if not len(ids):
            raise InputError(f"{subject} has no trials in the {view.role} part of split {view.split_name!r}")
        return ids, self._standardised(torch.from_numpy(responses), subject)

    @torch.no_grad()
    def conclude(self, view: StudyView, targets: Targets, kind: str) -> None:
        """Learn how the trained backbone wants its input, for the closed form of people who come later.

        The scores that are linear in the width's activations are found by ridge, and the activations regressed on what
        this readout says: a new person's predicted scores then become activations like those of everybody else.
        """
        if not len(self.ridge.lift):
            self.ridge.set(self._basis(view, targets, kind), *[torch.zeros(1)] * 2)
        pairs = [self._averaged(view, subject) for subject in self.subjects]
        hidden = [
            self._input(subject)(x[: self.ridge.most]) for subject, (_, x) in zip(self.subjects, pairs, strict=True)
        ]
        self.ridge.learn_lift([ids[: self.ridge.most] for ids, _ in pairs], torch.cat(hidden), view, targets, kind)
