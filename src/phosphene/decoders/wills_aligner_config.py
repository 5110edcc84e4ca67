"""Settings of wills-aligner."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from phosphene.decoders.base import ClassesConfig
from phosphene.decoders.lite_mind import LiteMindConfig
from phosphene.nn.router import RouterKind

__all__ = ["OF_STAGE2", "WillsAlignerConfig"]

_SPECTRAL = ("patches", "filters", "hidden", "heads", "queries")
OF_STAGE2 = (
    *(
        "experts",
        "rank",
        "alpha",
        "insert",
        "private",
        "private_rank",
        "private_start",
        "own_weight",
        "router",
        "anatomy",
        "gate",
        "top",
        "temperature",
    ),
    *("id_dropout", "balance_weight", "balance_sharpness", "inner_steps", "inner_rate"),
)


class WillsAlignerConfig(ClassesConfig):
    """Settings of wills-aligner.

    Attributes
    ----------
    trunk : {"mlp", "lite-mind"}
        What people share: the MindEye input and residual blocks, or Lite-Mind's way through the spectrum.
    width, blocks : int
        Of the trunk.
    input_dropout, dropout : float
        After the input layer ("mlp") or of voxels ("lite-mind"); in the blocks.
    patches, filters, hidden, heads, queries : int
        Of the trunk "lite-mind", see `LiteMindConfig`.
    projector : int
        Hidden width of the projector whose output is compared with targets; 0 compares the predicted targets.
    linear_rank : int
        Rank of a linear path beside the trunk, which starts at the ridge solution of all people; 0 has none.
    branch_scale : float
        Size of the trunk's output beside that path when training starts.
    person_embedding : bool
        A learned vector of each person is added where the trunk begins, zero for somebody unknown: a plainer way to
        be individual than experts, and instead of them (``stage2 = "none"``, one input for all).
    stage2 : {"plain", "meta", "none"}
        How experts are trained: as the trunk was; in episodes of sessions; there are none.
    experts, rank : int
    alpha : float
        An expert's change is multiplied by ``alpha / rank``.
    insert : tuple of str
        Linear layers that get experts, see `phosphene.decoders.brain_experts.expert_places`.
    private : bool
        Give each person an expert of their own beside the shared ones. On linear paths it starts where ridge finds
        this person unlike the others, elsewhere at nothing.
    private_rank : int
        Rank of private experts on linear paths; 0: `rank`.
    private_start : {"ridge", "zero"}
        "zero" starts them at nothing on linear paths too.
    own_weight : float
        Above 0, private experts on the linear path of targets start where the ridge of all people would be, had the
        person's own responses counted so many times more (`CommonRidge`): for few stimuli.
    router : tuple of {"person", "data", "anatomy"}
        What the gates depend on, summed: an embedding of the person, the trunk's feature of the trial, and the
        columns `anatomy`.
    anatomy : tuple of str
        Columns of people's own voxel tables, e.g. ``("curvature", "sulc")``.
    gate : {"dense", "top-k", "per-token"}
        All experts; the `top` strongest; all, anew for each latent token (trunk "lite-mind", router with "data";
        experts then stand in the blocks).
    top : int
    temperature : float
        Of the gates.
    id_dropout : float
        Share of samples whose person the router is not told in training.
    balance_weight, balance_sharpness : float
        Of the balance term, see `phosphene.nn.router.balance`.
    inner_steps : int
        For "meta": gradient steps on what is a person's own, on the support sessions.
    inner_rate : float
        Their learning rate.
    """

    pool_subjects: bool = True
    trunk: Literal["mlp", "lite-mind"] = "mlp"
    width: int = Field(2048, ge=1)
    blocks: int = Field(4, ge=1)
    input_dropout: float = Field(0.5, ge=0, lt=1)
    dropout: float = Field(0.15, ge=0, lt=1)
    patches: int = Field(16, ge=3)
    filters: int = Field(4, ge=2)
    hidden: int = Field(128, ge=1)
    heads: int = Field(16, ge=1)
    queries: int = Field(4, ge=1)
    projector: int = Field(2048, ge=0)
    linear_rank: int = Field(0, ge=0)
    branch_scale: float = Field(0.1, gt=0)
    person_embedding: bool = False
    stage2: Literal["plain", "meta", "none"] = "plain"
    experts: int = Field(8, ge=1)
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    insert: tuple[str, ...] = Field(("all",), min_length=1)
    private: bool = False
    private_rank: int = Field(0, ge=0)
    private_start: Literal["ridge", "zero"] = "ridge"
    own_weight: float = Field(0.0, ge=0)
    router: tuple[Literal["person", "data", "anatomy"], ...] = Field(("person",), min_length=1)
    anatomy: tuple[str, ...] = ()
    gate: RouterKind = "dense"
    top: int = Field(2, ge=1)
    temperature: float = Field(1.0, gt=0)
    id_dropout: float = Field(0.2, ge=0, lt=1)
    balance_weight: float = Field(0.01, ge=0)
    balance_sharpness: float = Field(0.5, ge=0, le=1)
    inner_steps: int = Field(3, ge=1)
    inner_rate: float = Field(0.05, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.trunk == "lite-mind":
            LiteMindConfig.build({key: getattr(self, key) for key in ("width", *_SPECTRAL)})
        else:
            strange = self.changed(_SPECTRAL)
            if strange:
                raise ValueError(f"{', '.join(strange)} belong to the trunk lite-mind, found trunk 'mlp'")
        if ("anatomy" in self.router) != bool(self.anatomy):
            raise ValueError("anatomy names the columns for a router with 'anatomy': give both or neither")
        if self.gate == "per-token" and (self.trunk != "lite-mind" or "data" not in self.router):
            raise ValueError("gate 'per-token' needs latent tokens (trunk 'lite-mind') and a router with 'data'")
        if self.gate == "top-k" and self.top > self.experts:
            raise ValueError(f"top must be at most the number of experts {self.experts}, found {self.top}")
        if self.person_embedding and self.stage2 != "none":
            raise ValueError(
                f"person_embedding stands instead of a second stage: give it with stage2 'none', found {self.stage2!r}"
            )
        if self.person_embedding and not self.pool_subjects:
            raise ValueError("person_embedding is for one input of all people, found pool_subjects = False")
        if self.stage2 == "meta" and "person" not in self.router and not self.private:
            raise ValueError("stage2 'meta' adapts what is a person's own: a router with 'person', or private = true")
        return self

    def without_use(self) -> dict[str, str]:
        """Settings of a linear path or of a second stage that is not there, or that is another one."""
        idle = {} if self.linear_rank else {"branch_scale": "linear_rank = 0 has no linear path"}
        if self.stage2 == "none":
            return idle | dict.fromkeys(OF_STAGE2, "stage2 = 'none' has no experts")
        if not (self.private and self.linear_rank):
            words = "for private experts on a linear path (private = true, linear_rank > 0)"
            idle |= dict.fromkeys(("private_rank", "private_start", "own_weight"), words)
        elif self.private_start == "zero":
            idle["own_weight"] = "for private experts that start at ridge (private_start = 'ridge')"
        if self.stage2 != "meta":
            idle |= dict.fromkeys(("inner_steps", "inner_rate"), f"for stage2 = 'meta', found {self.stage2!r}")
        if self.gate != "top-k":
            idle["top"] = f"for gate = 'top-k', found {self.gate!r}"
        if "person" not in self.router:
            idle["id_dropout"] = "for a router with 'person'"
        if not self.balance_weight:
            idle["balance_sharpness"] = "balance_weight = 0"
        return idle
