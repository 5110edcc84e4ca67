"""phosphene: decode what a person saw from recordings of their brain, and say how far to believe it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from phosphene._version import __version__

if TYPE_CHECKING:
    from phosphene import virtual as virtual
    from phosphene.decoders import Decoder as Decoder
    from phosphene.decoders import make_decoder as make_decoder
    from phosphene.encoders import Targets as Targets
    from phosphene.encoders import encode as encode
    from phosphene.encoders import make_encoder as make_encoder
    from phosphene.evaluation import Scorecard as Scorecard
    from phosphene.evaluation import evaluate as evaluate
    from phosphene.recordings import Recording as Recording
    from phosphene.recordings import Study as Study
    from phosphene.reporting import report as report
    from phosphene.stimuli import StimulusSet as StimulusSet
    from phosphene.training import DecoderRegressor as DecoderRegressor
    from phosphene.training import adapt as adapt
    from phosphene.training import fit as fit

# name -> the room it lives in; imported on first use, so that `import phosphene` is instant
_DOORS = {
    "Decoder": "decoders",
    "DecoderRegressor": "training",
    "Recording": "recordings",
    "Scorecard": "evaluation",
    "StimulusSet": "stimuli",
    "Study": "recordings",
    "Targets": "encoders",
    "adapt": "training",
    "encode": "encoders",
    "evaluate": "evaluation",
    "fit": "training",
    "make_decoder": "decoders",
    "make_encoder": "encoders",
    "report": "reporting",
    "virtual": "virtual",
}

__all__ = ["__version__", *_DOORS]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'phosphene' has no attribute {name!r}; it has {', '.join(sorted(_DOORS))}")
    room = importlib.import_module(f"phosphene.{_DOORS[name]}")
    return room if name == "virtual" else getattr(room, name)


def __dir__() -> list[str]:
    return sorted(__all__)
