"""The objective of a run: parts and weights from the settings, phases and temperature from the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phosphene.decoders import Decoder
from phosphene.training import losses
from phosphene.training.data import StepBatch
from phosphene.training.gather import gather
from phosphene.training.settings import TrainingConfig
from phosphene.training.token_alignment import TokenAlignment

__all__ = ["Objective", "TrainingStep"]

# 1 / temperature is kept within this range while it is learned
_LOGIT_SCALE = (1.0, 1000.0)


class Objective(nn.Module):
    """Weighted sum of a contrastive, a squared-error and a cosine part, and of those that compare tokens.

    Parameters
    ----------
    config : TrainingConfig
    variance : float
        Mean variance of a target dimension over the training stimuli: the unit of the squared error.
    target_shape : sequence of int
        (tokens, width) of a target; needed for the parts that compare tokens.
    """

    def __init__(self, config: TrainingConfig, variance: float = 1.0, target_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.alignment = TokenAlignment(config.alignment, target_shape) if config.alignment else None
        self.config, self.variance = config, variance
        self.log_scale: nn.Parameter | None = None
        if config.learn_temperature:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def temperature(self, scheduled: float) -> Tensor | float:
        """Temperature in force: the learned one, else `scheduled`."""
        if self.log_scale is None:
            return scheduled
        return self.log_scale.clamp(math.log(_LOGIT_SCALE[0]), math.log(_LOGIT_SCALE[1])).neg().exp()

    def forward(self, predictions: Tensor, batch: StepBatch, scheduled: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all predictions (B, D) of a batch, and its unweighted parts by name."""
        predictions, targets, config = predictions.float(), batch.targets.float(), self.config
        temperature = self.temperature(scheduled)
        parts: dict[str, Tensor] = {}
        weights = {"contrastive": config.contrastive_weight, "mse": config.mse_weight, "cosine": config.cosine_weight}
        if config.contrastive != "none" and config.contrastive_weight:
            parts["contrastive"] = self._contrastive(predictions, targets, batch, temperature)
        if config.mse_weight or config.cosine_weight:
            aligned = targets[batch.stimulus]
            if batch.partner is not None and batch.share is not None:
                aligned = losses.mixed_targets(targets, batch.stimulus, batch.partner, batch.share)
            if config.mse_weight:
                parts["mse"] = losses.mse(predictions, aligned, self.variance)
            if config.cosine_weight:
                parts["cosine"] = losses.cosine(predictions, aligned)
        if self.alignment is not None:
            pairs = losses.pair_weights(batch.stimulus, len(targets), batch.partner, batch.share)
            parts |= self.alignment(predictions, targets, pairs.to(predictions.dtype), temperature)
            weights |= config.alignment
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _contrastive(
        self, predictions: Tensor, targets: Tensor, batch: StepBatch, temperature: Tensor | float
    ) -> Tensor:
        if batch.partner is not None and batch.share is not None:
            return losses.bimixco(predictions, targets, batch.stimulus, temperature, batch.partner, batch.share)
        function = losses.infonce if self.config.contrastive == "infonce" else losses.softclip
        return function(predictions, targets, batch.stimulus, temperature)


class TrainingStep(nn.Module):
    """Decoder and objective as one module, so that a step is one forward pass for DDP.

    Parameters
    ----------
    decoder : Decoder
    objective : Objective
    compile : bool
        Run the decoder through ``torch.compile``; its parameters keep their names.
    """

    def __init__(self, decoder: Decoder, objective: Objective, compile: bool = False) -> None:
        super().__init__()
        self.decoder, self.objective = decoder, objective
        # in a list, or the compiled wrapper would be registered as a second module with the same parameters
        self._call = [torch.compile(decoder) if compile else decoder]

    def forward(self, batch: StepBatch, scheduled: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch and its parts."""
        rows = [self._call[0](responses, subject).embedding for subject, responses in batch.calls]
        with torch.autocast(rows[0].device.type, enabled=False):
            predictions = gather(torch.cat(rows).float(), batch.sizes)
            loss, parts = self.objective(predictions, batch, scheduled)
        return loss, parts
