"""Which samples make up which step: pure functions of (seed, step), so that resuming needs no saved state."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from phosphene.errors import InputError

__all__ = ["BatchSampler", "check_seed", "episode_generator", "split_validation", "step_seed"]

# streams of random numbers that must not meet: order of samples, mixing, dropout, validation split, episodes
_ORDER, _MIXING, _MODULES, _VALIDATION, _EPISODES = range(5)


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises
    ------
    InputError
        For anything but an integer from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be an integer from 0 to {2**32 - 1}, found {seed!r}")


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generators for one step of one process: dropout and the like, independent between ranks."""
    return int(np.random.SeedSequence((_MODULES, seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def episode_generator(seed: int, person: int, step: int) -> np.random.Generator:
    """What draws the episode of one person in one step."""
    return _generator(_EPISODES, seed, person, step)


class BatchSampler:
    """Global batches with equal shares for all people.

    Every person has an endless stream of samples, one shuffled pass after the other; step `s` takes the next share of
    each stream. All batches have the same size, and in the long run every sample of a person is used equally often.

    Parameters
    ----------
    counts : mapping of str to int
        Number of samples of each person.
    batch_size : int
        Samples a step over all people; a person gives ``batch_size // people`` or, having fewer, all.
    seed : int
    processes : int
        Number of processes a batch is dealt out to.

    Raises
    ------
    InputError
        When the batch is too small for the number of people and processes, or a person has no sample.

    Examples
    --------
    >>> sampler = BatchSampler({"a": 10, "b": 4}, batch_size=4, seed=0)
    >>> sampler.steps_per_epoch, {name: len(rows) for name, rows in sampler.draw(0).items()}
    (4, {'a': 2, 'b': 2})
    """

    def __init__(self, counts: Mapping[str, int], batch_size: int, seed: int, processes: int = 1) -> None:
        empty = [name for name, count in counts.items() if count == 0]
        if empty or not counts:
            raise InputError(f"no training trials for {', '.join(empty) or 'anybody'}")
        self.counts, self.seed = dict(counts), seed
        self.shares = {name: min(batch_size // len(counts), count) for name, count in counts.items()}
        short = [name for name, share in self.shares.items() if share < processes]
        if short:
            raise InputError(
                f"batch_size = {batch_size} over {len(counts)} people leaves {self.shares[short[0]]} samples for "
                f"{short[0]} ({self.counts[short[0]]} in all) and {processes} processes; each needs at least one"
            )
        self.steps_per_epoch = math.ceil(sum(counts.values()) / sum(self.shares.values()))
        self._passes: dict[str, tuple[int, np.ndarray]] = {}

    def draw(self, step: int) -> dict[str, np.ndarray]:
        """Sample numbers of each person in global step `step`, in the order of their global index."""
        return {name: self._take(person, name, step) for person, name in enumerate(self.counts)}

    def _take(self, person: int, name: str, step: int) -> np.ndarray:
        count, share = self.counts[name], self.shares[name]
        position, parts, missing = step * share, [], share
        while missing:
            number, offset = divmod(position, count)
            part = self._pass(person, name, number)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return np.concatenate(parts)

    def _pass(self, person: int, name: str, number: int) -> np.ndarray:
        known = self._passes.get(name)
        if known is None or known[0] != number:
            known = (number, _generator(_ORDER, self.seed, person, number).permutation(self.counts[name]))
            self._passes[name] = known
        return known[1]

    def mixing(self, step: int, probability: float, beta: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Partners and mixing weights of each person's samples in this step.

        Returns
        -------
        dict of str to (partner, share)
            `partner` (n,) positions within the person's samples of the step, `share` (n,) float32 weight of the own
            response: Beta distributed for a random `probability` of the samples, 1 for the others.
        """
        drawn = {}
        for person, (name, n) in enumerate(self.shares.items()):
            generator = _generator(_MIXING, self.seed, person, step)
            share = generator.beta(beta, beta, n).astype(np.float32)
            share[generator.random(n) >= probability] = 1.0
            drawn[name] = generator.permutation(n), share
        return drawn


def split_validation(units: np.ndarray, fraction: float, seed: int, among: np.ndarray | None = None) -> np.ndarray:
    """Which stimuli are set aside for validation: whole units, drawn at random.

    Parameters
    ----------
    units : (n,) ndarray
        Unit of each stimulus: its id, or the value of a label column.
    fraction : float
        Share of the units to set aside; at least two (one has nothing to be told apart from), at least one stays.
    seed : int
    among : (n,) bool ndarray, optional
        Stimuli of which whole units may be set aside (default: all); where they are too few, fewer are.

    Returns
    -------
    (n,) bool ndarray
    """
    names = np.unique(units)
    if fraction == 0:
        return np.zeros(len(units), dtype=bool)
    if len(names) < 3:
        raise InputError(
            f"a validation split needs three units or more, found {len(names)}; set validation_fraction = 0"
        )
    allowed = names if among is None else np.unique(units[among])
    count = min(max(2, round(fraction * len(names))), len(names) - 1, len(allowed))
    chosen = _generator(_VALIDATION, seed).choice(allowed, count, replace=False)
    return np.isin(units, chosen)
