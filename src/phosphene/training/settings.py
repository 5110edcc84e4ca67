"""Settings of a training run: the keys of the ``[training]`` table of a preset."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from phosphene.settings import Settings

__all__ = ["MACHINE_KEYS", "StepSettings", "TrainingConfig"]

MACHINE_KEYS = frozenset({"accelerator", "compile", "memory_gb", "checkpoint_seconds", "checkpoint_steps", "log_steps"})
"""Keys that say where and how a run is carried out, not what it computes; they may change when a run is resumed."""


class StepSettings(Settings):
    """What every kind of training has: how a step changes the weights, where it runs, what is kept of it.

    The keys are described in `TrainingConfig`.
    """

    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)
    final_learning_rate: float = Field(0.01, ge=0, le=1)
    gradient_clip: float = Field(1.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)

    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    checkpoint_seconds: float = Field(300.0, gt=0)
    checkpoint_steps: int = Field(0, ge=0)
    log_steps: int = Field(50, ge=1)


class TrainingConfig(StepSettings):
    """What one training run does; every key may stand in a preset, a ``--config`` file or ``--set training.KEY=``.

    Attributes
    ----------
    epochs : int
        Passes over the training samples. One epoch is ``ceil(samples / batch_size)`` optimiser steps.
    batch_size : int
        Samples of one optimiser step, over all people and all processes; every person gives the same share.
    repeats : {"single", "average"}
        A sample is a single trial, or the mean of all trials of a stimulus in one person.
    learning_rate, weight_decay : float
        Of AdamW. Biases, norms, vectors and the temperature are not decayed.
    schedule : {"cosine", "one-cycle", "constant"}
        Course of the learning rate after (one-cycle: including) the warm-up.
    warmup : float
        Share of all steps in which the learning rate rises.
    final_learning_rate : float
        Learning rate at the last step, as a share of `learning_rate`; not used by ``"constant"``.
    input_rate : float, optional
        Learning rate of the input layers that belong to single people, as a share of `learning_rate`. These are wide,
        and a step of AdamW changes every weight alike: from a closed form a small one is needed (default: the same).
    gradient_clip : float
        Largest norm of the gradient over all parameters; 0 does not clip.
    ema : float
        Decay of the exponential moving average of the weights, e.g. 0.999; 0 keeps none. Where it is kept, it is
        what is validated and returned.
    contrastive : {"infonce", "softclip", "none"}
        Contrastive part of the objective, both directions. After the mixing phase, if there is one.
    contrastive_weight, mse_weight, cosine_weight : float
        Weights of the parts. The squared error is measured in units of the targets' variance.
    token_weight, frequency_weight, frequency_token_weight : float
        Weights of the parts that MLIP's objective adds to the contrast of whole targets: token by token, in the
        frequency domain of the tokens, and both (see `token_alignment`). They need targets with tokens. The first
        and the last do not know the order of tokens and stand beside another part.
    class_weight : float
        Weight of the cross-entropy of several labels, for decoders with a head for them.
    semantic_weight : float
        Weight of the guidance by relations between stimuli, across the people of a batch.
    semantic_temperature, semantic_form : float, {"kl", "frobenius"}
        How relations are compared, see `losses.semantic_relations`.
    temperature : float
        Of the softmax over cosine similarities.
    temperature_end : float, optional
        Where given, the temperature goes there along half a cosine, from the end of the mixing phase to the last step.
    learn_temperature : bool
        Train the temperature, starting from `temperature`.
    mixing_fraction : float
        First share of all steps, in which responses of one person are mixed (BiMixCo); 0 never mixes.
    mixing_probability, mixing_beta : float
        Share of the samples that are mixed; both parameters of the Beta law of the mixing weight.
    mixing_temperature : float, optional
        Temperature of the mixing phase; `temperature` where it is not given.
    validation_fraction : float
        Share of the training stimuli (or groups of them) set aside for validation; 0 sets none aside.
    validation_unit : str, optional
        Label column whose values are kept whole on one side of the validation split, e.g. ``"action"``.
        Without it the unit is the stimulus.
    validate_every : int
        Epochs between validations.
    monitor : {"two-way", "top-1", "loss"}
        Validation figure by which the best weights are chosen; the first two are means of both directions.
    patience : int
        Validations without improvement after which training stops; 0 never stops early.
    precision : {"auto", "32-true", "bf16-mixed"}
        ``"auto"`` is bf16-mixed on a GPU that has it, else 32-true.
    accelerator : {"auto", "cpu", "cuda"}
        Where to train.
    compile : bool
        Compile the decoder with ``torch.compile``.
    memory_gb : float
        Largest memory, in GB, for keeping responses and targets; what does not fit is read from disk step by step,
        up to two steps ahead where there is room for them. Each process has its own.
    checkpoint_seconds : float
        Longest time between two checkpoints; there is one after every epoch as well.
    checkpoint_steps : int
        Steps between two checkpoints within an epoch; 0 leaves it to the time.
    log_steps : int
        Steps between two lines of the log; there is one after every epoch as well.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=2)
    repeats: Literal["single", "average"] = "single"
    input_rate: float | None = Field(None, ge=0)

    contrastive: Literal["infonce", "softclip", "none"] = "infonce"
    contrastive_weight: float = Field(1.0, ge=0)
    mse_weight: float = Field(0.0, ge=0)
    cosine_weight: float = Field(0.0, ge=0)
    token_weight: float = Field(0.0, ge=0)
    frequency_weight: float = Field(0.0, ge=0)
    frequency_token_weight: float = Field(0.0, ge=0)
    class_weight: float = Field(0.0, ge=0)
    semantic_weight: float = Field(0.0, ge=0)
    semantic_temperature: float = Field(0.1, gt=0, le=10)
    semantic_form: Literal["kl", "frobenius"] = "kl"
    temperature: float = Field(0.05, gt=0, le=10)
    temperature_end: float | None = Field(None, gt=0, le=10)
    learn_temperature: bool = False
    mixing_fraction: float = Field(0.0, ge=0, le=1)
    mixing_probability: float = Field(0.5, gt=0, le=1)
    mixing_beta: float = Field(0.15, gt=0)
    mixing_temperature: float | None = Field(None, gt=0, le=10)

    validation_fraction: float = Field(0.1, ge=0, le=0.5)
    validation_unit: str | None = None
    validate_every: int = Field(1, ge=1)
    monitor: Literal["two-way", "top-1", "loss"] = "two-way"
    patience: int = Field(0, ge=0)

    memory_gb: float = Field(0.5, ge=0)

    @property
    def alignment(self) -> dict[str, float]:
        """Weights above 0 of the parts that compare tokens, by name."""
        weights = {
            "token": self.token_weight,
            "frequency": self.frequency_weight,
            "frequency_token": self.frequency_token_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def contrasts(self) -> bool:
        """Whether a part of the objective has a temperature."""
        return (self.contrastive != "none" and self.contrastive_weight > 0) or bool(self.alignment)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        ordered = self.mse_weight + self.cosine_weight + self.frequency_weight > 0
        contrastive = self.contrastive != "none" and self.contrastive_weight > 0
        if self.alignment and not ordered and not contrastive:
            raise ValueError(
                "token_weight and frequency_token_weight leave the order of tokens open: "
                "a contrastive, mse, cosine or frequency weight must be above 0 beside them"
            )
        if self.contrastive == "none" and not ordered:
            raise ValueError("contrastive = 'none' needs mse_weight or cosine_weight above 0 (or frequency_weight)")
        if not contrastive and not ordered:
            raise ValueError("one of contrastive_weight, mse_weight and cosine_weight must be above 0")
        if self.learn_temperature and (self.temperature_end is not None or self.mixing_temperature is not None):
            raise ValueError("learn_temperature excludes temperature_end and mixing_temperature")
        if self.learn_temperature and not self.contrasts:
            raise ValueError("learn_temperature needs a contrastive part of the objective")
        if self.patience and not self.validation_fraction:
            raise ValueError("patience needs validation_fraction above 0")
        return self
