"""What was recorded: people, their responses and trials, splits by stimulus, and one HDF5 store for all of it."""

from __future__ import annotations

from phosphene.recordings.recording import Recording
from phosphene.recordings.store import StudyWriter
from phosphene.recordings.study import Study
from phosphene.recordings.view import StudyView

__all__ = ["Recording", "Study", "StudyView", "StudyWriter"]
