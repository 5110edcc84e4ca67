"""What was shown: pictures, clips, captions and labels by stimulus id."""

from __future__ import annotations

from phosphene.stimuli.folder import ImageFiles, read_folder
from phosphene.stimuli.stimulus_set import PixelSource, StimulusSet

__all__ = ["ImageFiles", "PixelSource", "StimulusSet", "read_folder"]
