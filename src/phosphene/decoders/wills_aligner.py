"""Wills Aligner: people brought onto one template, one shared trunk, and a mixture of brain experts for what differs.

The three parts (anatomical alignment, mixture of brain experts, training in two stages) are those of Bao et al. (AAAI
2025, arXiv 2404.13282). No code and no settings of theirs were at hand: docs/wills_aligner.md tells what is stated by
the paper, and what is our choice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from phosphene.decoders.base import Decoder, Episodes, Prediction
from phosphene.decoders.brain_experts import Anatomies, anatomy_vector, attach_experts, expert_places, use_of_experts
from phosphene.decoders.common_ridge import CommonRidge
from phosphene.decoders.ridge_start import (
    class_slopes,
    start_at_mean,
    start_at_ridge,
    start_by_counting,
    start_classes,
    start_individually,
)
from phosphene.decoders.trunks import TRUNKS
from phosphene.decoders.wills_aligner_config import WillsAlignerConfig
from phosphene.errors import InputError
from phosphene.nn.adapter import AdapterBank, Person
from phosphene.nn.adapter_file import base_digest
from phosphene.nn.attach import add_person, batch_axes, detach
from phosphene.nn.experts import Gates
from phosphene.nn.freezing import train_only
from phosphene.nn.readout import LinearPath, TokenReadout
from phosphene.nn.residual import TokenProjector
from phosphene.nn.router import Router, balance
from phosphene.recordings.recording import named_regions
from phosphene.stimuli.multilabel import label_matrix
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.encoders import Targets
    from phosphene.recordings import StudyView

__all__ = ["WillsAligner", "WillsAlignerConfig"]

LOOKED_AT = 256  # trials of each person from which the use of experts is told


class WillsAligner(Decoder):
    """One trunk for all people, heads for tokens, retrieval and classes, and experts for what is individual.

    A new decoder is the shared model alone. `begin` of the second stage attaches experts and router.
    """

    name = "wills-aligner"
    Config = WillsAlignerConfig

    def __init__(self, config: WillsAlignerConfig, subjects: Mapping[str, int], target_shape: Sequence[int]) -> None:
        super().__init__(config, subjects, target_shape)
        self.trunk = TRUNKS[config.trunk](config)
        rank = min(config.linear_rank, self.n_outputs)
        self.linear = LinearPath(rank, self.n_outputs) if rank else None
        self.out = self.trunk.head(self.target_shape)
        self.projector = TokenProjector(self.target_shape[-1], config.projector) if config.projector else None
        n_classes = len(config.classes)
        self.class_head = self.trunk.head((n_classes,)) if n_classes else None
        self.class_path = LinearPath(n_classes, n_classes) if n_classes and rank else None
        for subject, n_voxels in list(self.subjects.items())[: 1 if self.subject_free else None]:
            self._add_input(subject, n_voxels)
        self.shared_ridge = CommonRidge() if self.linear is not None and config.own_weight else None
        self.embeddings = nn.ParameterList([self._embedding() for _ in self.subjects if config.person_embedding])
        self.register_parameter("fill", None)
        self.anatomies: Anatomies | None = None
        self.person, self.gates = Person(), Gates()
        self.router: Router | None = None
        self.individual = True
        self._anatomies: dict[str, np.ndarray] = {}
        self._routed: list[tuple[int | None, Tensor]] = []
        self._base: str | None = None
        # experts are drawn when the second stage begins; what they are is decided here, with the other weights
        self._draw = int(torch.randint(2**31, ()))

    # -- people -------------------------------------------------------------------------------------------------

    def _add_input(self, subject: str, n_voxels: int) -> None:
        self.trunk.add(n_voxels)
        for path in self._paths:
            path.add(n_voxels)

    def _embedding(self) -> nn.Parameter:
        return nn.Parameter(torch.zeros(self.trunk.width, device=next(self.parameters()).device))

    @property
    def _paths(self) -> list[LinearPath]:
        return [path for path in (self.linear, self.class_path) if path is not None]

    def add_subject(self, subject: str, n_voxels: int) -> None:
        """Add a person: gates begin as those of somebody without an id, a private expert at nothing."""
        super().add_subject(subject, n_voxels)
        if self.config.person_embedding:
            self.embeddings.append(self._embedding())
        if self.anatomies is not None:
            self.anatomies.add()
        if self.router is None:
            return
        if self.router.of_person is not None:
            self.router.people[self.router.add_subject()].data.zero_()
        if self.config.private:
            add_person(self, subject)

    def own(self, subject: str) -> list[str]:
        """Names of the parameters that belong to one person alone, once there are experts."""
        if self.router is None:
            return []
        place = f"router.people.{self.index(subject)}"
        banks = [(n, each) for n, each in self.named_modules() if isinstance(each, AdapterBank)]
        private = tuple(f"{name}.{bank.keys[subject]}." for name, bank in banks if subject in bank.keys)
        names = [name for name, _ in self.named_parameters()]
        return [name for name in names if name == place or (private and name.startswith(private))]

    def meet(self, subject: str, voxels: Table) -> None:
        """Look at the anatomy of a person's own voxels, where the router is to know it."""
        if "anatomy" not in self.config.router:
            return
        try:
            found = anatomy_vector(voxels, self.config.anatomy)
        except InputError as error:
            raise InputError(f"{subject}: {error}") from error
        regions, known = sorted(named_regions(voxels)), self.provenance.get("regions")
        width = len(next(iter(self._anatomies.values()), found)) if self.anatomies is None else self.anatomies.width
        if len(found) != width or regions != (regions if known is None else known):
            raise InputError(
                f"{subject} has other named regions than the others: their anatomies cannot be compared; found "
                f"{_listed(regions)}, the others have {'another number' if known is None else _listed(known)}"
            )
        if self.anatomies is None:
            self.provenance["regions"] = regions
        self._anatomies[subject] = found
        if self.anatomies is not None:
            self.anatomies.set(self.index(subject), found)

    def arrange_voxels(self, subject: str, voxels: Table, space: Mapping[str, Any] | None = None) -> None:
        """Keep the voxel table, and which of its places the person covers (column ``covered``)."""
        super().arrange_voxels(subject, voxels, space)
        covered = None
        if "covered" in voxels and not voxels["covered"].all():
            covered = torch.from_numpy(voxels["covered"].astype(bool))
        self.register_buffer(f"covered_{self.index(subject)}", covered, persistent=False)

    # -- computing ----------------------------------------------------------------------------------------------

    def _decode(self, responses: Tensor, subject: str | None) -> Prediction:
        known = self.index(subject) if subject in self.subjects else None
        responses = self._filled(responses, known)
        at = 0 if self.subject_free else int(known or 0)
        gates = self._route(responses, known, at)
        if gates is not None and self.training and torch.is_grad_enabled():
            self._routed.append((known, gates))
        with self.person.using(subject if self.individual else None), self.gates.using(gates):
            beside = self.embeddings[known] if self.config.person_embedding and known is not None else None
            return self._heads(responses, at, beside)

    def _heads(self, responses: Tensor, at: int, beside: Tensor | None = None) -> Prediction:
        hidden = self.trunk(responses, at, beside)
        output: Tensor = self.out(hidden).view(len(responses), *self.target_shape)
        logits = None if self.class_head is None else self.class_head(hidden)
        if self.linear is not None:
            output = output + self.linear(responses, at).view_as(output)
        if self.class_path is not None:
            logits = logits + self.class_path(responses, at)
        found = Prediction.of(output, self.target_shape)
        retrieval = None if self.projector is None else self.projector(output)
        return Prediction(found.tokens, found.pooled, retrieval, logits)

    def _filled(self, responses: Tensor, known: int | None) -> Tensor:
        covered = None if known is None else getattr(self, f"covered_{known}", None)
        return responses if covered is None or self.fill is None else torch.where(covered, responses, self.fill)

    def _route(self, responses: Tensor, known: int | None, at: int) -> Tensor | None:
        """Gates of a batch, ``(b, K)``, ``(1, K)`` where nothing tells its trials apart, or for each latent token."""
        if self.router is None or not self.individual:
            return None
        config: Any = self.config
        data = None
        if "data" in config.router:
            with torch.no_grad(), self.person.using(None), self.gates.using(None):
                hidden = self.trunk(responses, at)
                data = (self.trunk.tokens if config.gate == "per-token" else self.trunk.summary)(hidden)
        rows = len(responses) if self.training and config.id_dropout else 1
        subject = torch.full((rows,), -1 if known is None else known, device=responses.device)
        gates: Tensor = self.router(subject, data, None if self.anatomies is None else self.anatomies(known))
        return gates

    def routing(self, responses: Tensor, subject: str | None = None) -> Tensor:
        """Gates of trials in evaluation: ``(b, K)``, ``(b, tokens, K)``, or ``(1, K)`` where they are one for all."""
        if self.router is None:
            raise InputError(f"this {self.name} decoder has no experts (yet): its second stage attaches them")
        known = self.index(str(subject)) if subject in self.subjects else None
        training = self.training
        self.eval()
        with torch.no_grad():
            filled = self._filled(self._standardised(responses, subject), known)
            gates = self._route(filled, known, 0 if self.subject_free else int(known or 0))
        self.train(training)
        assert gates is not None
        return gates

    @contextmanager
    def commonality(self) -> Iterator[None]:
        """What the first stage learned, and nothing individual: experts are off inside the ``with`` block."""
        before, self.individual = self.individual, False
        try:
            yield
        finally:
            self.individual = before

    @property
    def common(self) -> str:
        """Digest of what people share and the first stage learned: no second stage changes it."""
        return base_digest(self, apart=["anatomies.*", "shared_ridge.*"])

    # -- stages -------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[str, ...]:
        """``"training"``, of what is common; ``"stage2"``, of what is individual."""
        return ("training",) if self.config.stage2 == "none" else ("training", "stage2")

    def check_stages(self) -> None:
        """Refuse places for experts that are not there or not reached, and a router without everybody's anatomy.

        Raises
        ------
        InputError
        """
        if "stage2" in self.stages() and self.router is None:
            self._known_anatomies()
            batch_axes(self, self._places(), self._reach)

    def begin(self, stage: str) -> None:
        """First stage: everything there is, with a value for places that somebody does not cover. Second: experts."""
        self._routed.clear()  # of passes that were no step of this stage
        if stage == "training":
            if any(getattr(self, f"covered_{at}", None) is not None for at in range(len(self.subjects))):
                self.fill = nn.Parameter(torch.zeros(next(iter(self.subjects.values()))))
            return
        if self.router is None:
            with torch.random.fork_rng([]):
                torch.manual_seed(self._draw)
                self._attach(len(self.subjects))
        train_only(self, own=["*.parts.own.*"] if self.config.private else [])
        self._base = self.common

    def _attach(self, n_people: int) -> None:
        config: Any = self.config
        if config.anatomy and self.anatomies is None:
            self.anatomies = self._known_anatomies()
        attach_experts(self, self._places(), config, self.gates, self.person if config.private else None, self._reach)
        if config.private:
            for subject in self.subjects:
                add_person(self, subject)
        if isinstance(self.out, TokenReadout):
            self.out.piece = 2**31  # gates of a batch are for the whole of it
        self.router = Router(
            n_people if "person" in config.router else 0,
            config.experts,
            data=self.trunk.width if "data" in config.router else None,
            anatomy=None if self.anatomies is None else self.anatomies.width,
            temperature=config.temperature,
            kind=config.gate,
            top=config.top,
            id_dropout=config.id_dropout,
        ).train(self.training)

    def _known_anatomies(self) -> Anatomies | None:
        return Anatomies.of([self._anatomies.get(each) for each in self.subjects]) if self.config.anatomy else None

    def _places(self) -> list[str]:
        config: Any = self.config
        return expert_places(self, config.insert, "trunk.blocks.*.mixer.*" if config.gate == "per-token" else "*")

    def _reach(self, count: int) -> None:
        """Come by every layer once."""
        for at, n_voxels in enumerate(list(self.subjects.values())[: 1 if self.subject_free else None]):
            self._heads(torch.zeros(count, n_voxels), at)

    def episodes(self, stage: str) -> Episodes | None:
        """The variant "meta" trains the second stage in episodes of sessions."""
        config: Any = self.config
        if stage != "stage2" or config.stage2 != "meta":
            return None
        return Episodes(self.own, config.inner_steps, config.inner_rate)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_routed": []}  # copies know nothing of passes, whose graphs cannot be copied

    def penalties(self) -> dict[str, Tensor]:
        """The balance term, over the gates of all people since the last call; one person alone has no balance."""
        routed, self._routed = self._routed, []
        if len({known for known, _ in routed}) < 2 or not self.config.balance_weight:
            return {}
        gates = torch.cat([each.flatten(0, -2) for _, each in routed])
        return {"balance": self.config.balance_weight * balance(gates, self.config.balance_sharpness)}

    def warm_start(
        self, view: StudyView, targets: Targets, kind: str, progress: bool = True, stage: str = "training"
    ) -> bool:
        """Start at the targets' mean, or with ridge in the linear paths; later at what ridge finds individual."""
        if stage != "training":
            self.start_individuals(view, targets, kind, view.subjects, known=True)
            return True
        if self.linear is None:
            start_at_mean(self.out, view, targets, kind)
            return True
        scale = self.config.branch_scale
        start_at_ridge(self, self.linear, self.out, scale, view, targets, kind, progress)
        if self.class_path is not None and self.class_head is not None:
            start_classes(self, self.class_path, self.class_head, scale, view, self._labels(view))
        return True

    def start_individuals(
        self, view: StudyView, targets: Targets, kind: str, subjects: Sequence[str], known: bool
    ) -> None:
        """Start private experts on linear paths where ridge finds these people unlike the others.

        Parameters
        ----------
        view, targets, kind
            As in `warm_start`.
        subjects : sequence of str
        known : bool
            Whether the paths were trained on these people.
        """
        if not self.config.private or self.config.private_start == "zero" or not self.subject_free:
            return  # inputs of one's own are individual already
        responses = {}
        for subject in subjects:
            ids, mean = view.averaged(subject)
            seen = self._filled(self._standardised(torch.from_numpy(mean), subject), self.index(subject))
            responses[subject] = (ids, view.units_of(ids), seen.detach())
        if self.linear is not None:
            readout: Any = self.out
            mean = readout.bias.detach().flatten()

            def target(ids: np.ndarray) -> Tensor:
                return torch.from_numpy(targets.of(ids, kind)).flatten(1) - mean.cpu()

            if self.shared_ridge is None:
                start_individually(self.linear, responses, target, known)
            else:
                start_by_counting(self.linear, responses, target, known, self.shared_ridge, self.config.own_weight)
        if self.class_path is not None:
            labels = self._labels(view)
            share, slope = class_slopes(labels)

            def logit(ids: np.ndarray) -> Tensor:
                return (torch.stack([labels[name] for name in ids]) - share) * slope

            start_individually(self.class_path, responses, logit, known)

    def _labels(self, view: StudyView) -> dict[str, Tensor]:
        """Which classes each stimulus of a view has, 0 or 1."""
        config: Any = self.config
        rows = label_matrix(view.stimuli.labels, config.class_columns, config.classes)
        return dict(zip(view.stimulus_ids.tolist(), torch.from_numpy(rows).float(), strict=True))

    def conclude(self, view: StudyView, targets: Targets, kind: str) -> None:
        """Tell how experts are used, warn of a collapse by name, and make sure that the trunk is as it was."""
        if self.router is None:
            return
        if self.common != self._base:
            raise RuntimeError("the second stage changed weights of the first, which are frozen in it")
        gates = {}
        for subject in view.subjects:
            n_trials = view.n_trials(subject)
            rows = np.unique(np.linspace(0, n_trials - 1, min(n_trials, LOOKED_AT)).astype(int))
            found = self.routing(torch.from_numpy(view.responses(subject, rows)), subject)
            gates[subject] = found.reshape(len(found), -1, found.shape[-1]).mean(dim=1).expand(len(rows), -1)
        self.provenance["experts"] = {**use_of_experts(gates, self.name), "base": self._base}

    # -- one person ---------------------------------------------------------------------------------------------

    def merged(self, subject: str) -> WillsAligner:
        """A plain decoder of one person, without experts: what they add is added to the weights.

        Raises
        ------
        InputError
            Where gates depend on the trial and not on the person alone, or for somebody unknown.
        """
        place = self.index(subject)
        if self.router is not None and "data" in self.config.router:
            raise InputError(
                "the gates of this decoder depend on every trial (router with 'data'): no single set of weights is one "
                "person's; train it with router = ('person',) or ('person', 'anatomy')"
            )
        whole = copy.deepcopy(self).eval()
        whole.individual = True  # also within `commonality`
        with whole.person.using(subject), whole.gates.using(whole._route(torch.zeros(1, 1), place, 0)):
            detach(whole, merge=True)
        whole.router = None
        settings = {
            "stage2": "none",
            "private": False,
            "private_rank": 0,
            "private_start": "ridge",
            "own_weight": 0.0,
            "router": ("person",),
            "anatomy": (),
            "gate": "dense",
        }
        config = WillsAlignerConfig.build(self.config.model_dump(), settings)
        alone = WillsAligner(config, {subject: self.subjects[subject]}, self.target_shape)
        if (table := self.voxel_tables.get(subject)) is not None:
            alone.arrange_voxels(subject, table, self.spaces[subject])
        state = _of_one(whole.state_dict(), place, self.subject_free)
        alone._make_room(state)
        alone.load_state_dict(state)
        alone.encoder = self.encoder
        alone.provenance = {**copy.deepcopy(self.provenance), "merged": subject}
        if self.aligner is not None:
            front = copy.copy(self.aligner)
            front.people = {subject: self.aligner.person(subject)}
            alone.align(front)
        return alone.eval()

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Take on what the stages of the saved decoder added, and this one has not yet."""
        if self.anatomies is None and "anatomies.vectors" in tensors:
            self.anatomies = Anatomies(tensors["anatomies.vectors"])
        if self.shared_ridge is not None:
            lead = "shared_ridge."
            self.shared_ridge.make_room({n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)})
        if self.fill is None and "fill" in tensors:
            self.fill = nn.Parameter(torch.zeros_like(tensors["fill"]))
        if self.router is None and any(name.startswith("router.") for name in tensors):
            self._attach(len(self.subjects))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _of_one(state: Mapping[str, Tensor], place: int, shared: bool) -> dict[str, Tensor]:
    """The entries that one person needs, as those of the only person."""
    kept = {}
    for name, tensor in state.items():
        for lead in ("standardisers.", "embeddings.", "trunk.inputs.", "linear.people.", "class_path.people."):
            if name.startswith(lead):
                number, _, rest = name[len(lead) :].partition(".")
                wanted = 0 if shared and lead not in ("standardisers.", "embeddings.") else place
                if int(number) == wanted:
                    kept[f"{lead}0.{rest}".removesuffix(".")] = tensor
                break
        else:
            if not name.startswith(("anatomies.", "shared_ridge.")):
                kept[name] = tensor
    return kept
