"""Adapters in closed form: ridge from a person's responses to all that their site knows of the stimuli.

An adapter that is learned from a few hundred trials overfits them long before what is shared has learned anything.
Ridge does not: it says of a response what image embedding, text embedding and classes go with it, and what is shared
begins where all people speak of the same things. Nothing of it leaves the site.

The network does not train on what an adapter says of the trials that it was fitted to, which is better than it will
ever be again, but on what it says of them out of fold: as well as of any new trial.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from phosphene.decoders.ridge import RidgeConfig, fit_ridge, inner_folds, ridge_penalties, ridge_weights
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import SiteState
from phosphene.federation.trials import FMRI, IMAGE, TEXT, Trials

__all__ = ["adapted_trials", "with_adapters"]

_FEWEST = 10  # units of stimuli with both, below which inner folds say nothing
_RIDGE = RidgeConfig(penalty="shared", penalties=tuple(float(f"{p:.3g}") for p in np.logspace(-3, 2, 11)))


def with_adapters(site: SiteState, settings: FederationSettings) -> SiteState:
    """The site with its people's adapters, where settings have them in closed form and it has none yet.

    What a person has no trials of (text, say, where a site has only images) stays at zero: what is shared sees nothing
    there.

    Parameters
    ----------
    site : SiteState
    settings : FederationSettings

    Returns
    -------
    SiteState
        With `private` weights ``person/weight`` (D_i + D_t + C, voxels) and ``person/bias``, and what they say of the
        site's own trials out of fold as `foretold`.
    """
    if settings.model.adapter != "ridge" or site.foretold:
        return site
    private: dict[str, Tensor] = {}
    foretold: dict[str, Tensor] = {}
    for person in site.trials.inputs.people:
        weight, bias, said = _fitted(site.trials, person, len(site.agreement.classes))
        private |= {f"{person}/weight": weight.T.contiguous(), f"{person}/bias": bias}
        foretold[person] = said
    return replace(site, private=private, foretold=foretold)


def adapted_trials(site: SiteState, settings: FederationSettings) -> Trials:
    """The site's trials as the network learns from them: with closed-form adapters, what they say out of fold."""
    if settings.model.adapter != "ridge":
        return site.trials
    inputs = replace(site.trials.inputs, responses=site.foretold, adapted=True)
    return replace(site.trials, inputs=inputs)


def _fitted(trials: Trials, person: str, n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (voxels, D), intercepts (D,), and what is foretold of the person's trials (n_s, D)."""
    inputs, own = trials.inputs, torch.from_numpy(trials.inputs.subjects == person)
    responses, present, units = inputs.responses[person].double(), inputs.present[own], trials.units[own.numpy()]
    labelled = torch.full((len(units),), trials.labels is not None)
    labels = torch.zeros(len(units), n_classes) if trials.labels is None else trials.labels[own]
    targets = ((inputs.image[own], present[:, IMAGE]), (inputs.text[own], present[:, TEXT]), (labels, labelled))
    parts = [_part(responses, target.double(), present[:, FMRI] & held, units, person) for target, held in targets]
    return tuple(torch.cat(columns, dim=-1).float() for columns in zip(*parts, strict=True))  # type: ignore[return-value]


def _part(x: Tensor, y: Tensor, held: Tensor, units: np.ndarray, person: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge to one thing where it is there, and what it says of every trial without the trial's unit."""
    if len(np.unique(units[held.numpy()])) < _FEWEST:
        return x.new_zeros(x.shape[1], y.shape[1]), y.new_zeros(y.shape[1]), torch.zeros_like(y)
    weight, bias, middle = fit_ridge(x[held], y[held], units[held.numpy()], _RIDGE, person)
    (penalty,) = ridge_penalties(x[held], RidgeConfig(penalties=(middle,)), person)
    said = torch.zeros_like(y)
    for train, out in inner_folds(units, _RIDGE.folds):
        if len(rows := train[held[train].numpy()]):
            fold, offset = ridge_weights(x[rows], y[rows], torch.full_like(bias, penalty))
            said[out] = x[out] @ fold + offset
    return weight, bias, said
