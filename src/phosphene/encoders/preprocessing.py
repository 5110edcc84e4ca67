"""Pictures as a CLIP or SigLIP tower wants them, from its ``preprocessor_config.json``, with Pillow alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phosphene.errors import InputError
from phosphene.files import read_json
from phosphene.settings import Settings

__all__ = ["Preprocessing", "read_preprocessing"]

_FILES = ("preprocessor_config.json", "processor_config.json")


class Preprocessing(Settings):
    """Resize, centre crop, rescale, normalise.

    Attributes
    ----------
    shortest_edge : int or None
        Side to which the shorter edge is brought, keeping the aspect; None where `size` is given.
    size : (int, int) or None
        Height and width to which the picture is stretched.
    crop : (int, int) or None
        Height and width of the central crop.
    resample : int
        Pillow's code of the resampling filter; 3 is bicubic.
    rescale : float
        Factor on the 0 to 255 values.
    mean, std : three floats
        Normalisation of the channels after rescaling.
    """

    shortest_edge: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    resample: int = 3
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Prepare pictures.

        Parameters
        ----------
        frames : uint8 array of shape (n, height, width, 3)

        Returns
        -------
        float32 array of shape (n, 3, height', width')
        """
        fitting = np.stack([self._crop(self._resize(frame)) for frame in frames])
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        ready = (fitting.astype(np.float32) * np.float32(self.rescale) - mean) / std
        return np.ascontiguousarray(ready.transpose(0, 3, 1, 2))

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        if self.size is not None:
            height, width = self.size
        elif self.shortest_edge is not None:
            short = min(height, width)
            height, width = (int(self.shortest_edge * side / short) for side in (height, width))
        if (height, width) == frame.shape[:2]:
            return frame
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling(self.resample)))

    def _crop(self, frame: np.ndarray) -> np.ndarray:
        if self.crop is None:
            return frame
        height, width = self.crop
        top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
        if top < 0 or left < 0:
            raise InputError(f"a crop of {self.crop} does not fit into pictures of {frame.shape[:2]} after resizing")
        return frame[top : top + height, left : left + width]


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read a model folder's image preprocessing.

    Raises
    ------
    InputError
        When the file is missing, or asks for something that is not known here.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} has no preprocessor_config.json, which says how pictures must be prepared")
    raw = read_json(file)
    raw = raw.get("image_processor", raw)
    if raw.get("do_pad"):
        raise InputError(f"{file}: do_pad is not supported (resize, centre crop, rescale and normalise are)")
    settings: dict[str, Any] = {"resample": raw.get("resample", 3)}
    try:
        if raw.get("do_resize", True):
            settings |= _size(raw["size"])
        if raw.get("do_center_crop", "crop_size" in raw):
            settings["crop"] = _pair(raw["crop_size"])
        settings["rescale"] = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0
        if raw.get("do_normalize", True):
            settings |= {"mean": raw["image_mean"], "std": raw["image_std"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} does not say {error}") from error
    return Preprocessing.build(settings)


def _size(size: Any) -> dict[str, Any]:
    if isinstance(size, int):
        return {"shortest_edge": size}
    if set(size) == {"shortest_edge"}:
        return {"shortest_edge": size["shortest_edge"]}
    return {"size": _pair(size)}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])
