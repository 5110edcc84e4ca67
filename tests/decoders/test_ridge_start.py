"""Closed forms of what is individual: found where a person is unlike the others, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from phosphene.decoders.ridge_start import class_slopes, start_individually
from phosphene.nn.adapter import AdaptedLinear, AdapterBank, LowRank, Person
from phosphene.nn.readout import LinearPath

VOXELS, SCORES, ROWS = 30, 4, 120


def path_with_banks(person: Person, people: list[str], rank: int, common: Tensor) -> LinearPath:
    """A linear path that computes `common` (SCORES, VOXELS), with private experts."""
    path = LinearPath(SCORES, SCORES)
    path.add(VOXELS)
    path.start(torch.eye(SCORES), [common.T])
    bank = AdapterBank(person, lambda: LowRank(VOXELS, SCORES, rank, alpha=2.0 * rank))
    for subject in people:
        bank.add(subject)
    path.people[0] = AdaptedLinear(path.people[0], own=bank)
    return path


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("rank", [SCORES, 1])
def test_private_experts_start_at_what_is_individual(known: bool, rank: int) -> None:
    rng = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    common, person = draw(SCORES, VOXELS), Person()
    own = {"alike-1": common, "alike-2": common, "alike-3": common, "other": common.clone()}
    own["other"][0] = draw(VOXELS)  # of one score this person's tuning is another
    path = path_with_banks(person, list(own), rank, common)
    before = path.people[0].weight.clone()
    ids = np.arange(ROWS).astype(str)
    responses = {subject: draw(ROWS, VOXELS) for subject in own}
    said = {subject: responses[subject] @ own[subject].T + 0.1 * draw(ROWS, SCORES) for subject in own}
    for subject in own:
        # wanted scores are of stimuli; here each person's responses are their own, so are the stimuli
        people = {subject: (ids, ids, responses[subject])}
        if known:
            names = {each: np.char.add(each, ids) for each in own}
            people = {each: (names[each], names[each], responses[each]) for each in own}
            truth = dict(zip(np.concatenate(list(names.values())), torch.cat(list(said.values())), strict=True))
            start_individually(path, people, lambda wanted, t=truth: torch.stack([t[n] for n in wanted]), known=True)
            break
        start_individually(path, people, lambda wanted, s=subject: said[s][wanted.astype(int)], known=False)
    new = draw(ROWS, VOXELS)
    for subject in own:
        with person.using(subject):
            error = (path(new, 0) - new @ own[subject].T).square().mean(dim=0)
        assert (error < 0.05 * (new @ own[subject].T).square().mean(dim=0)).all(), subject
    with person.using("other"):
        assert (path(new, 0) - new @ common.T)[:, 0].square().mean() > 1.0
    assert torch.equal(path.people[0].weight, before)


def test_slopes_of_classes_stay_finite_where_all_or_none_have_them() -> None:
    labels = {str(at): torch.tensor([1.0, 0.0, float(at % 2)]) for at in range(10)}
    share, slope = class_slopes(labels)
    torch.testing.assert_close(share, torch.tensor([0.95, 0.05, 0.5]))
    torch.testing.assert_close(slope, torch.tensor([1 / (0.95 * 0.05), 1 / (0.95 * 0.05), 4.0]))
