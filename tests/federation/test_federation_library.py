"""Prototype sums and counts: exact in any order, silent about absent classes, released above a threshold only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phosphene.errors import InputError
from phosphene.federation.library import FUSION, GRID, NEVER, PrototypeLibrary, clip_rows
from phosphene.federation.settings import LibrarySettings

N, C, D = 60, 5, 7


@pytest.fixture
def trials():
    """Features over four orders of size, soft labels, some modalities missing; nobody has class 4."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(N, 4, D, generator=rng) * 10.0 ** torch.randint(-3, 2, (N, 4, 1), generator=rng)
    held = torch.rand(N, 4, generator=rng) > 0.4
    labels = torch.rand(N, C, generator=rng) * (torch.rand(N, C, generator=rng) > 0.5)
    labels[:, 4] = 0
    return features, held, labels


def same(one: PrototypeLibrary, other: PrototypeLibrary) -> bool:
    tensors, others = one.to_tensors(), other.to_tensors()
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


def part(trials, rows) -> PrototypeLibrary:
    return PrototypeLibrary.of(*[each[rows] for each in trials])


@pytest.mark.parametrize("seed", range(4))
def test_parts_add_up_to_the_library_of_all_in_any_order_and_grouping(trials, seed):
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(N))
    cuts = sorted(rng.choice(np.arange(1, N), size=4, replace=False).tolist())
    parts = [part(trials, rows) for rows in torch.tensor_split(order, cuts)]
    whole = part(trials, torch.arange(N))
    assert same(PrototypeLibrary.total(parts), whole)
    assert same((parts[3] + parts[0]) + (parts[4] + (parts[1] + parts[2])), whole)


def test_plain_float_sums_would_not_have_added_up(trials):
    """The premise of the grid: without it, the order shows."""
    features = trials[0].double() * (1 / 3)
    assert not torch.equal(features.sum(dim=0), features.flip(0).sum(dim=0))


def test_means_are_those_of_a_slow_loop(trials):
    features, held, labels = trials
    released = part(trials, torch.arange(N)).release()
    for m in range(4):
        for c in range(C):
            weights = labels[held[:, m], c].double()
            assert bool(released.available[m, c, 0]) == bool(weights.sum() > 0)
            if weights.sum() > 0:
                mean = (weights[:, None] * features[held[:, m], m].double()).sum(dim=0) / weights.sum()
                torch.testing.assert_close(released.vectors[m, c, 0].double(), mean, rtol=2e-3, atol=2e-3)


def test_an_absent_class_and_an_empty_library_add_nothing(trials):
    whole = part(trials, torch.arange(N))
    assert whole.counts[:, 4].sum() == 0
    assert not whole.sums[:, 4].any()
    assert (whole.age[:, 4] == NEVER).all()
    assert same(whole + PrototypeLibrary.empty(C, D), whole)
    assert not whole.release().vectors[:, 4].any()


def test_what_is_not_held_is_not_looked_at(trials):
    features, held, labels = trials
    spoilt = torch.where(held[..., None], features, torch.nan)
    assert same(PrototypeLibrary.of(spoilt, held, labels), PrototypeLibrary.of(features, held, labels))
    with pytest.raises(InputError, match="not finite"):
        PrototypeLibrary.of(torch.where(held[..., None], torch.nan, features), held, labels)


def test_features_too_large_to_add_exactly_are_refused(trials):
    features, held, labels = trials
    with pytest.raises(InputError, match="would not be exact"):
        PrototypeLibrary.of(features * 1e8, held, labels)


def test_sums_lie_on_the_grid(trials):
    sums = part(trials, torch.arange(N)).sums
    assert torch.equal(torch.round(sums / GRID) * GRID, sums)
    assert sums.abs().max() > 1


def test_cells_of_few_trials_are_not_released():
    features, held = torch.ones(5, 4, D), torch.ones(5, 4).bool()
    held[3:, FUSION] = False
    labels = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1]])
    library = PrototypeLibrary.of(features, held, labels)
    released = library.release(min_count=4)
    assert released.available[:, :, 0].tolist() == [[True, False]] * 3 + [[False, False]]
    assert not released.vectors[FUSION].any()
    assert released.counts[:, 1].sum() == 0
    kept = library.suppressed(4)
    assert kept.sums[0, 1].abs().sum() == 0
    assert kept.age[0].tolist() == [0, NEVER]


def test_several_centres_part_the_trials_of_a_class():
    features = torch.tensor([1.0, 3.0, 10.0])[:, None, None].expand(3, 4, D)
    centre = torch.tensor([[0], [0], [1]])
    library = PrototypeLibrary.of(features, torch.ones(3, 4).bool(), torch.ones(3, 1), centre, centres=2)
    assert library.release().vectors[0, 0, :, 0].tolist() == [2.0, 10.0]
    assert library.counts[0, 0].tolist() == [2.0, 1.0]


def sent(*classes: int, value: float = 1.0) -> PrototypeLibrary:
    labels = torch.zeros(len(classes), 3)
    labels[range(len(classes)), list(classes)] = 1
    return PrototypeLibrary.of(torch.full((len(classes), 4, 2), value), torch.ones(len(classes), 4).bool(), labels)


def test_the_server_keeps_what_was_not_sent_and_its_age():
    own = LibrarySettings(min_count=2)
    library = PrototypeLibrary.empty(3, 2).renewed(sent(0, 0, 1, 1, 2), own)
    assert library.age[0].tolist() == [0, 0, NEVER]  # one trial of class 2: as if not sent
    library = library.renewed(sent(0, 0, 0, value=5.0), own)
    assert library.age[0].tolist() == [0, 1, NEVER]
    assert library.release().vectors[0, :, 0, 0].tolist() == [5.0, 1.0, 0.0]
    assert library.counts[0, :, 0].tolist() == [3.0, 2.0, 0.0]


def test_old_prototypes_are_forgotten_or_remembered_in_part():
    first = PrototypeLibrary.empty(3, 2).renewed(sent(0, 0, 1, 1), LibrarySettings(min_count=0))
    forgetful = LibrarySettings(min_count=0, max_age=1)
    once = first.renewed(sent(0), forgetful)
    assert once.counts[0, 1, 0] == 2
    assert once.renewed(sent(0), forgetful).counts[0, 1, 0] == 0
    remembered = first.renewed(sent(0, value=4.0), LibrarySettings(min_count=0, memory=0.5))
    assert remembered.counts[0, :2, 0].tolist() == [2.0, 2.0]  # half of 2 and 1 new; class 1 untouched
    assert remembered.release().vectors[0, 0, 0, 0] == 2.5


def test_as_tensors_and_back(trials):
    library = part(trials, torch.arange(N))
    assert same(PrototypeLibrary.from_tensors(library.to_tensors()), library)
    with pytest.raises(InputError, match="lacks age"):
        PrototypeLibrary.from_tensors({"sums": library.sums, "counts": library.counts})
    with pytest.raises(InputError, match="float64"):
        PrototypeLibrary(library.sums.float(), library.counts, library.age)
    with pytest.raises(InputError, match="do not add up"):
        library + PrototypeLibrary.empty(C + 1, D)


def test_rows_are_clipped_to_a_norm():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clip_rows(rows, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_sites_means_are_weighted_by_their_trials_where_asked():
    one = PrototypeLibrary.of(torch.ones(4, 4, 2), torch.ones(4, 4).bool(), torch.eye(2)[[0, 1, 1, 1]])
    other = PrototypeLibrary.of(torch.full((2, 4, 2), 3.0), torch.ones(2, 4).bool(), torch.eye(2)[[0, 0]])
    by_sites, by_counts = PrototypeLibrary.of_sites([one, other]), PrototypeLibrary.total([one, other])
    # class 0: a site of 4 trials says 1, one of 2 says 3; one trial and two trials are of the class
    assert by_sites.release().vectors[0, 0, 0].tolist() == pytest.approx([(4 * 1 + 2 * 3) / 6] * 2, abs=1e-6)
    assert by_counts.release().vectors[0, 0, 0].tolist() == pytest.approx([(1 * 1 + 2 * 3) / 3] * 2, abs=1e-6)
    assert by_sites.release().vectors[0, 1, 0].tolist() == [1.0, 1.0], (
        "the other site does not have it, and adds nothing"
    )
    assert torch.equal(by_sites.counts, by_counts.counts)
    assert same(PrototypeLibrary.of_sites([one]), one)
