"""The objective of a run: parts and weights from the settings, phases and temperature from the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from phosphene.decoders import Decoder, Prediction
from phosphene.training import losses
from phosphene.training.data import StepBatch
from phosphene.training.gather import gather
from phosphene.training.settings import TrainingConfig
from phosphene.training.token_alignment import TokenAlignment

__all__ = ["Objective", "Outputs", "TrainingStep"]

# 1 / temperature is kept within this range while it is learned
_LOGIT_SCALE = (1.0, 1000.0)


class Outputs(NamedTuple):
    """What the predictions of a batch are scored by, row by row.

    Attributes
    ----------
    embedding : Tensor (B, D)
        Compared with targets.
    target : Tensor (B, D)
        Predicted targets; the same tensor where the decoder has one head for both.
    classes : Tensor (B, classes) or None
        Logits.
    """

    embedding: Tensor
    target: Tensor
    classes: Tensor | None = None

    @classmethod
    def of(cls, predictions: Sequence[Prediction], sizes: Sequence[int]) -> Outputs:
        """Join the predictions of this process's calls, and those of all processes, in float32."""

        def joined(rows: Sequence[Tensor]) -> Tensor:
            return gather(torch.cat(list(rows)).float(), sizes)

        target = joined([one.target for one in predictions])
        projected = any(one.retrieval is not None for one in predictions)
        embedding = joined([one.embedding for one in predictions]) if projected else target
        logits = [one.classes for one in predictions if one.classes is not None]
        return cls(embedding, target, joined(logits) if logits else None)


class Objective(nn.Module):
    """Weighted sum of contrastive, squared-error and cosine parts, of those that compare tokens, labels, relations.

    The contrastive part and relations are of the embedding that is compared, the others of the predicted target.

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

    def forward(self, outputs: Outputs, batch: StepBatch, scheduled: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all predictions of a batch, and its unweighted parts by name."""
        targets, config = batch.targets.float(), self.config
        temperature = self.temperature(scheduled)
        pairs = losses.pair_weights(batch.stimulus, len(targets), batch.partner, batch.share).to(targets.dtype)
        weights = self._weights()
        parts: dict[str, Tensor] = {}
        if "contrastive" in weights:
            parts["contrastive"] = self._contrastive(outputs.embedding, targets, batch, temperature)
        if weights.keys() & {"mse", "cosine", "semantic"}:
            aligned = targets[batch.stimulus]
            if batch.partner is not None and batch.share is not None:
                aligned = losses.mixed_targets(targets, batch.stimulus, batch.partner, batch.share)
        if "mse" in weights:
            parts["mse"] = losses.mse(outputs.target, aligned, self.variance)
        if "cosine" in weights:
            parts["cosine"] = losses.cosine(outputs.target, aligned)
        if "semantic" in weights:
            relations = (config.semantic_temperature, config.semantic_form)
            parts["semantic"] = losses.semantic_relations(outputs.embedding, aligned, *relations)
        if "classes" in weights and outputs.classes is not None and batch.labels is not None:
            parts["classes"] = losses.multilabel(outputs.classes, pairs @ batch.labels.float())
        if self.alignment is not None:
            parts |= self.alignment(outputs.target, targets, pairs, temperature)
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _weights(self) -> dict[str, float]:
        """Weights above 0, by part."""
        config = self.config
        weights = {
            "contrastive": config.contrastive_weight if config.contrastive != "none" else 0.0,
            "mse": config.mse_weight,
            "cosine": config.cosine_weight,
            "semantic": config.semantic_weight,
            "classes": config.class_weight,
            **config.alignment,
        }
        return {name: weight for name, weight in weights.items() if weight}

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
        self.decoder.penalties()  # those of passes that were no part of this step do not count
        predictions = [self._call[0](responses, subject) for subject, responses in batch.calls]
        return self._scored(predictions, batch, scheduled)

    def _scored(
        self, predictions: Sequence[Prediction], batch: StepBatch, scheduled: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(batch.targets.device.type, enabled=False):
            loss, parts = self.objective(Outputs.of(predictions, batch.sizes), batch, scheduled)
            for name, penalty in self.decoder.penalties().items():
                loss, parts[name] = loss + penalty, penalty.detach()
        return loss, parts
