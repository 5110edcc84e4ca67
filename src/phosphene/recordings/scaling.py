"""z-scoring of each voxel within each session, with mean and deviation taken from training trials only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phosphene.recordings.recording import Recording

__all__ = ["SCALINGS", "SessionScaler"]

SCALINGS = ("none", "session")
_FEW = 10  # a session with fewer training trials has no deviation worth trusting


@dataclass(frozen=True)
class SessionScaler:
    """Mean and standard deviation of every voxel in every session.

    Attributes
    ----------
    sessions : (S,) ndarray of int
        The sessions known; any other one uses the last row.
    mean, deviation : (S + 1, voxels) ndarray of float32
        One row a session; the last row is taken over all training trials of the person.
    source : str
        What they were taken from, in words.
    """

    sessions: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    source: str

    @classmethod
    def fit(cls, recording: Recording, train: np.ndarray) -> SessionScaler:
        """Take mean and deviation from the trials `train` (row numbers).

        A session with fewer than ten of them uses the person's mean over all training trials. A person without any
        training trial (a new person, met at test) is scaled by the person's own responses, without use of what was
        shown, and `source` says so.
        """
        source = "training trials of each session"
        if len(train) == 0:
            train, source = (
                np.arange(recording.n_trials),
                "all own trials of each session: the person has no training trials",
            )
        session_of = recording.trials["session"]
        sessions = np.unique(session_of[train])
        size = (len(sessions) + 1, recording.n_voxels)
        count, total, square = np.zeros((size[0], 1)), np.zeros(size), np.zeros(size)
        shift = recording.read(train[:1])[0].astype(np.float64)  # keeps the sum of squares well conditioned
        for rows, block in recording.blocks(train):
            centred = block - shift
            for where in np.unique(session_of[rows]):
                part = centred[session_of[rows] == where].astype(np.float64)
                at = int(np.searchsorted(sessions, where))
                count[at] += len(part)
                total[at] += part.sum(axis=0)
                square[at] += np.square(part).sum(axis=0)
        count[-1], total[-1], square[-1] = count.sum(), total.sum(axis=0), square.sum(axis=0)
        mean = total / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(square / np.maximum(count, 1) - np.square(mean), 0))
        mean, deviation = np.where(count < _FEW, mean[-1:], mean), np.where(count < _FEW, deviation[-1:], deviation)
        # a constant voxel stays at zero instead of becoming infinite
        deviation = np.where(deviation > 1e-6 * np.maximum(1.0, np.abs(mean + shift)), deviation, 1.0)
        return cls(sessions, (mean + shift).astype(np.float32), deviation.astype(np.float32), source)

    def transform(self, responses: np.ndarray, sessions: np.ndarray) -> np.ndarray:
        """z-score responses ``(n, voxels)`` of trials in `sessions` ``(n,)``."""
        at = np.searchsorted(self.sessions, sessions)
        known = np.isin(sessions, self.sessions)
        at = np.where(known, np.minimum(at, len(self.sessions) - 1), len(self.sessions))
        scaled = np.empty_like(responses, dtype=np.float32)
        for row in np.unique(at):
            here = at == row
            scaled[here] = (responses[here] - self.mean[row]) / self.deviation[row]
        return scaled
