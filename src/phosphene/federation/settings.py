"""Settings of PmcmFL, by what they belong to: model, masks, objective, library, training at a site, and the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field as Option
from pydantic import model_validator

from phosphene.errors import InputError
from phosphene.federation.aggregation import FedAdamSettings
from phosphene.settings import Settings, flattened, load_preset, merge

__all__ = [
    "ClientSettings",
    "FederationModelConfig",
    "FederationSettings",
    "InferenceSettings",
    "LibrarySettings",
    "MaskSettings",
    "ObjectiveSettings",
    "Rule",
    "ServerSettings",
]

Rule = Literal["nearest", "soft", "match", "token", "zero", "mean"]


class FederationModelConfig(Settings):
    """Settings of the network; what depends on the data (widths of embeddings, classes) is agreed on by the sites."""

    width: int = Option(default=64, ge=2, description="channels of a modality's feature, and of the fusion")
    trunk: Literal["linear", "mlp", "lite-mind"] = Option(default="mlp", description="shared part behind the adapters")
    adapter: Literal["ridge", "learned"] = Option(
        default="ridge", description="of a person: closed form, then fixed; or trained with the rest"
    )
    blocks: int = Option(default=1, ge=1, description="blocks of the trunk")
    patches: int = Option(default=16, ge=3, description="latent tokens of the lite-mind trunk")
    filters: int = Option(default=4, ge=2, description="filters of the lite-mind trunk")
    input_dropout: float = Option(
        default=0.3,
        ge=0,
        lt=1,
        description="behind (lite-mind: before) the layer of voxels, or of what adapters say",
    )
    dropout: float = Option(
        default=0.1, ge=0, lt=1, description="inside the trunk's blocks and the classification head"
    )
    projector: Literal["linear", "mlp"] = Option(default="mlp", description="from frozen embeddings to features")
    heads: tuple[Literal["classification", "retrieval"], ...] = ("classification", "retrieval")

    @model_validator(mode="after")
    def _some_head(self) -> Self:
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError("heads are classification, retrieval, or both, each once")
        return self

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        idle: dict[str, str] = {}
        if self.trunk != "lite-mind":
            idle |= dict.fromkeys(("patches", "filters"), f"the trunk is {self.trunk}")
        if self.trunk == "linear":
            idle |= {"blocks": "a linear trunk has no blocks"}
        return idle


class MaskSettings(Settings):
    """What stands in for a missing modality in training."""

    label: float = Option(default=0.0, ge=0, description="share of trials: prototype of the true class (the paper's)")
    retrieval: float = Option(default=0.0, ge=0, description="share: prototypes by similarity of what is observed")
    token: float = Option(default=1.0, ge=0, description="share: a learned vector a modality")
    zero: float = Option(default=0.0, ge=0, description="share: zeros")
    random: float = Option(default=0.0, ge=0, description="share: fresh N(0, 1) numbers, a rival")
    fallback: Literal["token", "zero"] = Option(default="token", description="where there is no prototype yet")
    temperature: float = Option(default=0.1, gt=0, description="of retrieval's softmax over cosines")
    stop_gradient: bool = Option(default=True, description="no gradient through the weights of retrieval")
    dropout: float = Option(default=0.0, ge=0, lt=1, description="probability of hiding a modality that is there")

    @property
    def mixture(self) -> dict[str, float]:
        """Share of each kind that has one; they add up to 1."""
        shares = {kind: getattr(self, kind) for kind in ("label", "retrieval", "token", "zero", "random")}
        total = sum(shares.values())
        return {kind: share / total for kind, share in shares.items() if share > 0}

    @model_validator(mode="after")
    def _some_mask(self) -> Self:
        if not self.label + self.retrieval + self.token + self.zero + self.random > 0:
            raise ValueError("one of label, retrieval, token, zero and random must be above 0")
        return self

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        idle: dict[str, str] = {}
        if not self.retrieval:
            idle |= dict.fromkeys(("temperature", "stop_gradient"), "no mask is retrieved")
        if not (self.label or self.retrieval):
            idle["fallback"] = "no mask needs prototypes"
        return idle


class ObjectiveSettings(Settings):
    """What training minimises."""

    task: Literal["bce", "ce"] = Option(default="ce", description="several labels a trial, or one")
    class_weight: float = Option(default=1.0, ge=0, description="of the task loss on masked inputs")
    full_view: float = Option(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the task loss on all that a trial has, beside what dropout leaves",
    )
    retrieval_weight: float = Option(default=0.5, ge=0, description="of InfoNCE to image embeddings, the image hidden")
    retrieval_temperature: float = Option(default=0.1, gt=0)
    contrast_fmri: float = Option(default=0.1, ge=0, description="weight of the prototype contrast of fMRI features")
    contrast_image: float = Option(default=0.1, ge=0)
    contrast_text: float = Option(default=0.1, ge=0)
    contrast_fusion: float = Option(default=0.1, ge=0)
    contrast_temperature: float = Option(default=0.1, gt=0)
    contrast_from: int = Option(default=2, ge=1, description="round, counted from 1, from which there is contrast")
    normalise: bool = Option(default=True, description="contrast of directions; the published code has raw products")
    candidates: Literal["classes", "batch"] = Option(
        default="classes", description="all classes, or those of the batch as in the published code"
    )
    proximal: float = Option(default=0.0, ge=0, description="FedProx: mu of mu/2 |w - w_global|^2, shared part")
    model_contrast: float = Option(
        default=0.0, ge=0, description="MOON: mu of the contrast of fusions, server's network against the site's last"
    )
    model_temperature: float = Option(default=0.5, gt=0, description="of MOON's contrast")

    @property
    def contrast(self) -> tuple[float, float, float, float]:
        """Weights of the contrast of fMRI, image, text and fusion."""
        return self.contrast_fmri, self.contrast_image, self.contrast_text, self.contrast_fusion

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        names = ("contrast_temperature", "contrast_from", "normalise", "candidates")
        idle = {} if any(self.contrast) else dict.fromkeys(names, "no contrast has a weight")
        if not self.retrieval_weight:
            idle["retrieval_temperature"] = "retrieval has no weight"
        if not self.model_contrast:
            idle["model_temperature"] = "model_contrast has no weight"
        return idle


class LibrarySettings(Settings):
    """How prototypes are made and kept."""

    centres: int = Option(default=1, ge=1, description="prototypes of a class and modality")
    min_count: float = Option(default=2.0, ge=0, description="the server releases no mean of fewer trials than this")
    site_min_count: float = Option(default=0.0, ge=0, description="a site sends no sum of fewer trials than this")
    feature_limit: float | None = Option(default=None, gt=0, description="L2 norm to which a trial's features are cut")
    weighting: Literal["counts", "sites"] = Option(
        default="counts", description="mean over all trials; or of sites' means, by trials of any class, as published"
    )
    complete_only: bool = Option(default=False, description="from complete trials alone, as published; for ablation")
    fusion_from: Literal["complete", "all"] = Option(
        default="complete", description="trials whose fusion counts: all uses the learned token for what is missing"
    )
    memory: float = Option(default=0.0, ge=0, lt=1, description="share of old sums and counts that is kept")
    max_age: int | None = Option(default=None, ge=0, description="rounds after which a class nobody sends is forgotten")

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        if self.complete_only and self.fusion_from == "all":
            return {"fusion_from": "complete_only leaves no other trials"}
        return {}


class ClientSettings(Settings):
    """Training at a site, in one round."""

    epochs: int = Option(default=2, ge=1)
    batch_size: int = Option(default=64, ge=1)
    learning_rate: float = Option(default=1e-3, gt=0)
    head_rate: float = Option(default=1.0, gt=0, description="learning rate of fusion's heads, in learning rates")
    weight_decay: float = Option(default=1e-2, ge=0)
    beta2: float = Option(default=0.999, ge=0, lt=1)
    clip: float | None = Option(default=None, gt=0, description="norm to which gradients are cut")
    optimiser: Literal["fresh", "kept"] = Option(default="fresh", description="moments of AdamW in the next round")


class ServerSettings(Settings):
    """What the server does with contributions."""

    aggregator: Literal["fedavg", "fedadam", "median", "trimmed-mean"] = "fedavg"
    weighting: Literal["trials", "modality", "equal"] = Option(
        default="trials", description="modality: an encoder is weighted by the trials that have its modality"
    )
    trim: float = Option(default=0.2, gt=0, lt=0.5, description="share left out at each end by trimmed-mean")
    fedadam: FedAdamSettings = FedAdamSettings()
    update_limit: float | None = Option(default=None, gt=0, description="norm to which updates are cut")
    max_norm: float | None = Option(default=None, gt=0, description="updates of a larger norm are refused")
    max_ratio: float | None = Option(
        default=10.0, gt=1, description="refused: norms beyond so many medians of all sites (from three sites)"
    )
    quorum: int = Option(default=1, ge=1, description="usable contributions without which a round fails")

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        idle: dict[str, str] = {}
        if self.aggregator != "trimmed-mean":
            idle["trim"] = f"the aggregator is {self.aggregator}"
        if self.aggregator != "fedadam":
            idle["fedadam"] = f"the aggregator is {self.aggregator}"
        return idle


class InferenceSettings(Settings):
    """What stands in for a missing modality when trials are predicted; no rule sees a label."""

    rule: Rule = "soft"
    temperature: float = Option(default=0.1, gt=0, description="of soft retrieval")

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        return {} if self.rule == "soft" else {"temperature": f"the rule is {self.rule}"}


class FederationSettings(Settings):
    """Everything that all sites and the server must have alike."""

    model: FederationModelConfig = FederationModelConfig()
    masks: MaskSettings = MaskSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    library: LibrarySettings = LibrarySettings()
    client: ClientSettings = ClientSettings()
    server: ServerSettings = ServerSettings()
    inference: InferenceSettings = InferenceSettings()
    seed: int = Option(default=0, ge=0)

    @property
    def reads_prototypes(self) -> bool:
        """Whether training or inference looks at the library; where neither does, sites send none."""
        masked = self.masks.label + self.masks.retrieval > 0
        return masked or any(self.objective.contrast) or self.inference.rule not in ("token", "zero")

    @classmethod
    def preset(cls, name: str = "default", **changes: Any) -> Self:
        """A preset of ``presets/federation/pmcmfl`` with changes; such that have no use are refused.

        Examples
        --------
        >>> FederationSettings.preset(client={"epochs": 1}).client.epochs
        1
        """
        base = load_preset("federation", "pmcmfl", name)
        if "masks" in changes and set(changes["masks"]) & {"label", "retrieval", "token", "zero", "random"}:
            kinds = dict.fromkeys(("label", "retrieval", "token", "zero", "random"), 0.0)
            base = merge(base, {"masks": kinds})  # a mixture that is asked for stands alone
        built = cls.build(base, changes)
        built.check_given(f"{part}.{key}" for part, inner in changes.items() if part != "seed" for key in inner)
        return built

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why: names with their part, as ``masks.temperature``."""
        idle: dict[str, str] = {}
        for part in type(self).model_fields:
            inner = getattr(self, part)
            if isinstance(inner, Settings):
                idle |= {f"{part}.{name}": why for name, why in inner.without_use().items()}
        if "retrieval" not in self.model.heads:
            idle |= dict.fromkeys(("objective.retrieval_weight", "objective.retrieval_temperature"), "no such head")
        if "classification" not in self.model.heads:
            names = ["objective.task", "objective.class_weight", "objective.full_view"]
            idle |= dict.fromkeys(names, "no such head")
        elif not self.objective.class_weight:
            idle |= dict.fromkeys(("objective.task", "objective.full_view"), "class_weight is 0")
        if not self.reads_prototypes:
            names = [f"library.{name}" for name in LibrarySettings.model_fields]
            idle |= dict.fromkeys(names, "neither training nor inference reads prototypes")
        if not self.masks.dropout:
            idle["objective.full_view"] = "masks.dropout hides nothing"
        return idle

    def check_given(self, given: Iterable[str]) -> None:
        """Refuse settings that were asked for and have no use (`idle`).

        Raises
        ------
        InputError
        """
        if idle := self.idle(given):
            raise InputError("; ".join(f"{name} has no use: {why}" for name, why in idle.items()))

    def differences(self, other: FederationSettings) -> list[str]:
        """What differs, in words: ``masks.dropout is 0.5, was 0.3`` (this one's first)."""
        here, there = flattened(self.model_dump()), flattened(other.model_dump())
        return [f"{name} is {here.get(name)!r}, was {there.get(name)!r}" for name in here if here[name] != there[name]]
