"""How much of each voxel's variance repeats can explain: the noise ceiling, from repeated stimuli."""

from __future__ import annotations

import numpy as np

from phosphene.recordings.recording import Recording
from phosphene.recordings.scaling import SessionScaler

__all__ = ["estimate_ncsnr", "noise_ceiling", "repeats_of"]

_BLOCK_BYTES = 32 * 2**20


def repeats_of(recording: Recording) -> tuple[np.ndarray, list[np.ndarray]]:
    """Stimulus ids a person saw, and for each the rows of its trials."""
    ids, where = np.unique(recording.trials["stimulus_id"], return_inverse=True)
    order = np.argsort(where, kind="stable")
    return ids, np.split(order, np.cumsum(np.bincount(where, minlength=len(ids)))[:-1])


def estimate_ncsnr(recording: Recording) -> np.ndarray | None:
    r"""Noise-ceiling signal-to-noise ratio of every voxel, ``(voxels,)``; None where no stimulus was repeated.

    Responses are z-scored within sessions, so their variance is one. With :math:`\sigma_n^2` the variance over repeats
    of a stimulus (:math:`n - 1` in the denominator, pooled over stimuli),

    .. math:: \mathrm{ncsnr} = \sqrt{\max(0, 1 - \sigma_n^2)} / \sigma_n

    as in Allen et al. 2022, there with stimuli shown three times, here with all that were shown more than once.
    Constant voxels get zero. At most 32 MB of responses are in memory at a time.
    """
    repeated = [rows for rows in repeats_of(recording)[1] if len(rows) > 1]
    if not repeated:
        return None
    scaler = SessionScaler.fit(recording, np.arange(recording.n_trials))
    session = recording.trials["session"]
    scatter = np.zeros(recording.n_voxels)
    room = max(2, _BLOCK_BYTES // (4 * max(1, recording.n_voxels)))
    for group in _groups(repeated, room):
        rows = np.concatenate(group)
        z = scaler.transform(recording.read(rows), session[rows]).astype(np.float64)
        starts = np.cumsum([0, *(len(part) for part in group[:-1])])
        counts = np.array([len(part) for part in group])[:, None]
        scatter += np.square(z).sum(axis=0) - (np.square(np.add.reduceat(z, starts, axis=0)) / counts).sum(axis=0)
    noise = scatter / sum(len(rows) - 1 for rows in repeated)
    signal = np.maximum(0, 1 - noise)
    ncsnr = np.sqrt(np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 1e-12))
    return ncsnr.astype(np.float32)


def _groups(parts: list[np.ndarray], room: int) -> list[list[np.ndarray]]:
    """Put parts together as long as their lengths sum to at most `room`."""
    groups: list[list[np.ndarray]] = []
    filled = room
    for part in parts:
        if filled + len(part) > room:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += len(part)
    return groups


def noise_ceiling(ncsnr: np.ndarray, n: float = 1) -> np.ndarray:
    """Share of variance that can be explained in the mean of `n` repeats, 0 to 1: ncsnr^2 / (ncsnr^2 + 1/n).

    Examples
    --------
    >>> noise_ceiling(np.array([1.0]), n=3).tolist()
    [0.75]
    """
    power = np.square(np.asarray(ncsnr, dtype=np.float64))
    return power / (power + 1 / n)
