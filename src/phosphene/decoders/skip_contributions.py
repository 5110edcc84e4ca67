r"""Where on the brain Skip-LoRA finds what a linear path cannot say.

At one place, the skip of a person is :math:`S(x) = \varphi(c\, B A x)`. Part of it is linear in its r inputs
:math:`u = A x`, and a LoRA or an input layer could say that as well; with :math:`W u + w` the least-squares fit to
:math:`S` over trials, the **non-linear part** is :math:`N(x) = S(x) - W u - w`. A voxel contributes

.. math:: \Big(\sum_\text{places} \overline{\|J_N(u)\, A_{\cdot v}\, x_v\|^2}\Big)^{1/2},

a mean over trials with the Jacobian :math:`J_N`, and a region what of :math:`N` changes when all its voxels are held at
their mean (root mean square, as a share of all of :math:`N`). Held-out trials of an adapted person are to be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from phosphene.decoders.importance import Importance
from phosphene.errors import InputError
from phosphene.nn.lora import SkipLoRA

if TYPE_CHECKING:
    from phosphene.decoders.mindtuner import MindTuner
    from phosphene.recordings import StudyView

__all__ = ["has_skips", "skip_contributions"]

_BLOCK = 64


def has_skips(decoder: object, subject: str) -> bool:
    """Whether a decoder has a Skip-LoRA of this person."""
    return bool(_skips(decoder, subject))


def _skips(decoder: object, subject: str) -> list[SkipLoRA]:
    banks = getattr(decoder, "skips", ())
    person = getattr(decoder, "person", None)
    if person is None:
        return []
    with person.using(subject):
        found = [bank.current() for bank in banks]
    return [each for each in found if isinstance(each, SkipLoRA)]


@torch.no_grad()
def skip_contributions(decoder: MindTuner, view: StudyView, subject: str, most: int = 400) -> Importance:
    """Contributions of voxels and regions to the non-linear part of a person's skips.

    Parameters
    ----------
    decoder : MindTuner
    view : StudyView
        Held-out part; responses are averaged over repeats.
    subject : str
        Somebody with Skip-LoRA.
    most : int
        Stimuli, evenly spread over the view.

    Returns
    -------
    Importance
        `margin` is the root mean square of the non-linear part over all places, which is what there is to lose; `rois`
        the root mean square of what changes without a region.

    Raises
    ------
    InputError
        For a person without skips, or with fewer stimuli than the skips have inputs.
    """
    skips = _skips(decoder, subject)
    if not skips:
        raise InputError(f"{subject} has no Skip-LoRA in this decoder; arms with: skip-lora, both")
    ids, averaged = view.averaged(subject)
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(int))
    rank = max(len(skip.path.a) for skip in skips)
    if len(chosen) <= rank + 1:
        raise InputError(f"{len(chosen)} stimuli of {subject} are too few for skips of rank {rank}")
    training = decoder.training
    decoder.eval()
    try:
        return _measured(decoder, view, subject, skips, averaged[chosen])
    finally:
        decoder.train(training)


def _measured(
    decoder: MindTuner, view: StudyView, subject: str, skips: list[SkipLoRA], averaged: np.ndarray
) -> Importance:
    device = next(decoder.parameters()).device
    x = decoder._standardised(torch.from_numpy(averaged).to(device), subject)
    # behind an aligner the skips start at the places of its template
    regions = view.rois(subject) if decoder.aligner is None else decoder.aligner.template.rois
    rois = {name: torch.from_numpy(mask).to(device) for name, mask in regions.items()}
    voxels, whole = torch.zeros(x.shape[1], device=device), 0.0
    lost = dict.fromkeys(rois, 0.0)
    for skip in skips:
        part = _NonLinear(skip, x)
        voxels += part.of_voxels(x)
        whole += part.power(x, None)
        for name, mask in rois.items():
            lost[name] += part.power(x, mask)
    found = {name: value**0.5 for name, value in lost.items()}
    drawn = voxels.sqrt().cpu().numpy()
    if decoder.aligner is not None:
        drawn = np.nan_to_num(decoder.aligner.inverse(subject, drawn))
    return Importance(subject, "skip-lora", drawn, found, whole**0.5, len(averaged))


class _NonLinear:
    """The non-linear part of one skip, over some trials."""

    def __init__(self, skip: SkipLoRA, x: Tensor) -> None:
        self.skip, self.centre = skip, x.mean(dim=0)
        self.inputs = skip.path.a.float()
        self.outputs = skip.path.scale * skip.path.b.float()
        u = x @ self.inputs.T
        design = torch.cat([u, torch.ones_like(u[:, :1])], dim=1)
        # few inputs, many trials: the normal equations with a little ridge stand even where inputs coincide
        gram = design.T @ design
        gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), device=x.device)
        self.linear = torch.linalg.solve(gram, design.T @ skip(x).float())

    def value(self, x: Tensor) -> Tensor:
        """``(n, V)`` to ``(n, out)``."""
        u = x @ self.inputs.T
        return self.skip(x).float() - u @ self.linear[:-1] - self.linear[-1]

    def power(self, x: Tensor, silenced: Tensor | None) -> float:
        """Mean square of the part (without its mean), or of its change when some voxels are held at their mean."""
        value = self.value(x)
        if silenced is None:
            return float((value - value.mean(dim=0)).square().sum(dim=1).mean())
        held = torch.where(silenced, self.centre, x)
        return float((value - self.value(held)).square().sum(dim=1).mean())

    def of_voxels(self, x: Tensor) -> Tensor:
        """Mean square of each voxel's contribution, ``(V,)``."""
        total = torch.zeros(x.shape[1], device=x.device)
        for block in x.split(_BLOCK):
            slope = self._slope(block)
            jacobian = slope[:, :, None] * self.outputs - self.linear[:-1].T
            gram = jacobian.transpose(1, 2) @ jacobian
            total += (torch.einsum("nrs,rv,sv->nv", gram, self.inputs, self.inputs) * block.square()).sum(dim=0)
        return total.clamp_min(0) / len(x)

    def _slope(self, x: Tensor) -> Tensor:
        """Derivative of the activation at every output, ``(n, out)``."""
        with torch.enable_grad():
            before = (x @ self.inputs.T @ self.outputs.T).requires_grad_(True)
            return torch.autograd.grad(self.skip.activation(before).sum(), before)[0]
