"""MLIP's objective for brain decoders: predicted tokens against those of stimuli, in both domains and at both levels.

The whole prediction against the whole target is what `losses.infonce` compares. Here are the other three perspectives:
token by token, the whole in the frequency domain, and token by token there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from phosphene.errors import InputError
from phosphene.nn.late_interaction import late_interaction
from phosphene.nn.spectral import FourierAxis
from phosphene.training.contrast import cosines
from phosphene.training.losses import weighted

__all__ = ["TokenAlignment", "equalised", "require_tokens"]

_FLOOR = 1e-4  # of the mean energy of a frequency: what has none of it is not blown up
_SHORTEST = 3  # tokens below which there is no spectrum


def equalised(tokens: Tensor, transform: FourierAxis) -> Tensor:
    r"""Bring all frequencies of a sequence of tokens to the same energy.

    With :math:`X_k` the spectrum over tokens and :math:`p_k = |X_k|^2`, summed over channels,

    .. math:: X_k \leftarrow X_k \Big/ \sqrt{p_k + 10^{-4}\, \overline{p}}

    and back. What all tokens share, and slow changes among them, hold nearly all energy of most targets; here the
    quick changes count as much.

    Parameters
    ----------
    tokens : Tensor (B, T, W)
    transform : FourierAxis
        Over T tokens.

    Returns
    -------
    Tensor (B, T, W)
    """
    spectrum = transform(tokens.transpose(0, 1))  # (2, bins, B, W)
    power = spectrum.square().sum(dim=(0, 3), keepdim=True)
    floor = _FLOOR * power.mean(dim=1, keepdim=True)
    # the constant only matters for tokens that are all zero
    return transform.inverse(spectrum * (power + floor + 1e-20).rsqrt()).transpose(0, 1)


def require_tokens(parts: Iterable[str], target_shape: Sequence[int]) -> None:
    """Refuse parts of the objective that compare tokens for targets that have none, or too few."""
    names = [f"training.{part}_weight" for part in parts]
    if len(target_shape) != 2:
        raise InputError(
            f"{', '.join(names)} above 0: tokens are compared, but these targets are one embedding a stimulus "
            f"(shape {tuple(target_shape)}); fit with kind='tokens', on targets that have tokens"
        )
    if target_shape[0] < _SHORTEST and any("frequency" in name for name in names):
        raise InputError(
            f"{', '.join(names)} above 0: the frequency domain needs at least {_SHORTEST} tokens, "
            f"these targets have {target_shape[0]}"
        )


class TokenAlignment(nn.Module):
    r"""Contrast of predicted tokens with those of the distinct stimuli of a batch.

    ==================== =================================================================
    ``token``            late interaction of the tokens (`late_interaction`)
    ``frequency``        cosine of the whole, after `equalised`
    ``frequency_token``  late interaction of the tokens, after `equalised`
    ==================== =================================================================

    Each over the temperature is a logit of InfoNCE with the positives and mixed positives of `losses.bimixco`.

    Parameters
    ----------
    parts : iterable of str
        Those to compute.
    target_shape : (tokens, width)

    Raises
    ------
    InputError
        Where targets have no tokens, or too few for a spectrum.
    """

    def __init__(self, parts: Iterable[str], target_shape: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.shape = tuple(parts), tuple(target_shape)
        require_tokens(self.parts, self.shape)
        spectral = any(part != "token" for part in self.parts)
        self.transform = FourierAxis(self.shape[0]) if spectral else None

    def forward(
        self, predictions: Tensor, targets: Tensor, weights: Tensor, temperature: Tensor | float
    ) -> Mapping[str, Tensor]:
        """Value of each part.

        Parameters
        ----------
        predictions, targets : Tensor (B, T * W), (U, T * W)
            Flattened, as the other parts of the objective take them.
        weights : Tensor (B, U)
            See `losses.pair_weights`.
        temperature : Tensor or float
        """
        found, true = predictions.unflatten(1, self.shape), targets.unflatten(1, self.shape)
        values = {}
        if "token" in self.parts:
            values["token"] = _by_token(found, true, weights, temperature)
        if self.transform is not None:
            found, true = equalised(found, self.transform), equalised(true, self.transform)
        if "frequency" in self.parts:
            logits = cosines(found.flatten(1), true.flatten(1)) / temperature
            values["frequency"] = weighted(logits, logits, weights)
        if "frequency_token" in self.parts:
            values["frequency_token"] = _by_token(found, true, weights, temperature)
        return values


def _by_token(found: Tensor, true: Tensor, weights: Tensor, temperature: Tensor | float) -> Tensor:
    every = torch.ones(true.shape[:2], dtype=torch.bool, device=true.device)
    to_image, to_brain = late_interaction(found, true, every)
    return weighted(to_image / temperature, to_brain / temperature, weights)
