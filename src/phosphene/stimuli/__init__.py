"""What was shown: pictures, clips, captions and labels by stimulus id."""

from __future__ import annotations

from phosphene.stimuli.bands import band_limited
from phosphene.stimuli.coco import read_coco
from phosphene.stimuli.folder import ImageFiles, read_folder
from phosphene.stimuli.labelled import PROMPTS, check_captions, fill_prompts, labelled, read_class_folders
from phosphene.stimuli.pictures import check_pictures_apart, picture_hashes
from phosphene.stimuli.stimulus_set import PixelSource, StimulusSet

__all__ = [
    "PROMPTS",
    "ImageFiles",
    "PixelSource",
    "StimulusSet",
    "band_limited",
    "check_captions",
    "check_pictures_apart",
    "fill_prompts",
    "labelled",
    "picture_hashes",
    "read_class_folders",
    "read_coco",
    "read_folder",
]
