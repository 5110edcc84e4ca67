"""The attacks of `audit` on what one site sent in a round: weights and prototypes, against its own held-out trials."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from phosphene.errors import InputError
from phosphene.federation.adapter import adapted_trials, with_adapters
from phosphene.federation.audit import (
    Attack,
    confidence_scores,
    distance_scores,
    loss_scores,
    membership,
    prototype_inversion,
)
from phosphene.federation.client import site_model
from phosphene.federation.library import FUSION, PARTS, Prototypes
from phosphene.federation.model import PmcmModel
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Contribution, GlobalState, SiteState
from phosphene.federation.trials import Trials

__all__ = ["audit_site"]

_LEAST = 2  # trials of which there is an AUC


def audit_site(
    site: SiteState,
    sent: Contribution | GlobalState,
    others: Trials,
    shared: GlobalState,
    settings: FederationSettings,
    min_count: float = 0.0,
    pool: int = 20,
    seed: int = 0,
) -> list[Attack]:
    """Attack what a site sent, as somebody who also has its adapters and the trials: the strongest reader there is.

    Adapters in closed form fit their own trials better than others, which is no leak of what was sent: trials that were
    trained on are seen as adapters foretell them out of fold, like the others.

    Membership by loss and by confidence where the network classifies; by distance to the released prototypes, and their
    inversion, for every part (fMRI, image, text, fusion) that has enough of them.

    Parameters
    ----------
    site : SiteState
        After the round, with the trials that were trained on.
    sent : Contribution or GlobalState
        What the server saw, with protection or without: the site's own part, or a sum.
    others : Trials
        Of the same people and the same distribution, not trained on; with labels.
    shared : GlobalState
        The one that was trained from.
    settings : FederationSettings
    min_count : float
        Cells of fewer trials, as they were sent, are not read; see `Protection.least_count`.
    pool : int
        Of `audit.prototype_inversion`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of Attack

    Raises
    ------
    InputError
        For trials without labels, and where there is nothing to attack.
    """
    if site.trials.labels is None or others.labels is None:
        raise InputError(f"{site.site} cannot be audited without labels of its trials")
    site = with_adapters(site, settings)
    model = site_model(site, replace(shared, weights=sent.weights), settings)
    inside, outside = (_Seen(model, trials) for trials in (adapted_trials(site, settings), others))
    found = _of_network(inside, outside, settings.objective.task == "bce", seed)
    prototypes = sent.library.release(min_count)
    for part in range(len(PARTS)):
        found += _of_part(part, inside, outside, prototypes, pool, seed)
    if not found:
        raise InputError(f"{site.site}: there is nothing to attack, neither a classifier nor enough prototypes")
    return found


class _Seen:
    """What the network makes of trials: features of all parts (n, 4, d), which of them are there, logits, labels."""

    def __init__(self, model: PmcmModel, trials: Trials) -> None:
        assert trials.labels is not None
        model.eval()
        with torch.no_grad():
            features = model.encode(trials.inputs)
            fused = model.fuse(features, trials.present, model.tokens.expand_as(features))
        self.features = torch.cat([features, fused.z[:, None]], dim=1)
        self.held = torch.cat([trials.present, trials.present.all(dim=1, keepdim=True)], dim=1)
        self.logits, self.labels = fused.logits, trials.labels

    def of(self, part: int, prototypes: Prototypes) -> tuple[Tensor, Tensor]:
        """Features of the trials whose strongest class has a prototype, and the nearest of its centres: a flat row."""
        available, vectors = prototypes.available[part], prototypes.vectors[part]
        strongest = self.labels.argmax(dim=1)
        used = self.held[:, part] & available[strongest].any(dim=1) & (self.labels.amax(dim=1) > 0)
        rows, classes = self.features[used, part], strongest[used]
        near = torch.nn.functional.cosine_similarity(rows[:, None], vectors[classes], dim=-1)
        centre = near.masked_fill(~available[classes], -torch.inf).argmax(dim=1)
        return rows, classes * available.shape[1] + centre


def _of_network(inside: _Seen, outside: _Seen, several: bool, seed: int) -> list[Attack]:
    scores: dict[str, list[Tensor]] = {"membership by loss": [], "membership by confidence": []}
    for each in (inside, outside):
        if each.logits is None or len(each.labels) < _LEAST:
            return []
        labels = each.labels if several else each.labels.argmax(dim=1)
        scores["membership by loss"].append(loss_scores(each.logits, labels))
        scores["membership by confidence"].append(confidence_scores(each.logits, several))
    return [membership(name, pair[0], pair[1], seed=seed) for name, pair in scores.items()]


def _of_part(part: int, inside: _Seen, outside: _Seen, prototypes: Prototypes, pool: int, seed: int) -> list[Attack]:
    vectors = prototypes.vectors[part].flatten(0, 1)
    (members, member_of), (others, other_of) = inside.of(part, prototypes), outside.of(part, prototypes)
    if min(len(members), len(others)) < _LEAST:
        return []
    name = "the fusion" if part == FUSION else PARTS[part]
    distances = [distance_scores(*each) for each in ((members, vectors, member_of), (others, vectors, other_of))]
    found = [membership(f"membership by distance, {name}", distances[0], distances[1], seed=seed)]
    counts, left = (torch.bincount(rows, minlength=len(vectors)) for rows in (member_of, other_of))
    if bool(((counts > 0) & (left >= pool - 1)).any()):
        inverted = prototype_inversion(vectors, counts, members, member_of, others, other_of, pool, seed=seed)
        found += [replace(each, name=f"{each.name}, {name}") for each in inverted]
    return found
