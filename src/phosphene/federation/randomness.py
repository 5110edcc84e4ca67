"""Seeds from names: the same numbers whatever the order in which sites are served, the engine, or the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from phosphene.files import digest

__all__ = ["drawn", "generator", "n_drawn", "seed_of", "seeded"]


def seed_of(seed: int, *names: str | int) -> int:
    """A seed of 63 bits from a seed and names.

    Examples
    --------
    >>> seed_of(0, "site-a", 1) == seed_of(0, "site-a", 1), seed_of(0, "site-a", 1) == seed_of(0, "site-a", 2)
    (True, False)
    """
    return int(digest(str(seed), *map(str, names))[:16], 16) >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A generator on the CPU that starts at `seed_of` these."""
    return torch.Generator().manual_seed(seed_of(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Inside the block torch's own generator (initial weights, dropout) starts here; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, *names))
        yield


def n_drawn(n_sites: int, participation: float) -> int:
    """Sites that are asked in a round: a share of them, rounded up."""
    return min(n_sites, math.ceil(participation * n_sites - 1e-9))


def drawn(names: Sequence[str], participation: float, seed: int, round_: int) -> list[str]:
    """Which ones: from the seed, the names and the round.

    Examples
    --------
    >>> drawn(["b", "a"], 1.0, 0, 1)
    ['a', 'b']
    """
    names = sorted(names)
    if (asked := n_drawn(len(names), participation)) == len(names):
        return names
    order = torch.randperm(len(names), generator=generator(seed, "participation", *names, round_))
    return sorted(names[place] for place in order[:asked].tolist())
