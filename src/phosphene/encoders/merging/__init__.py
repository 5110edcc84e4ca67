"""Token merging: fold alike tokens of a transformer together while it runs, with guides and schedules.

Pure functions on tensors, after the published description of bipartite soft matching (Bolya et al., ToMe, ICLR 2023);
the guides by image domains follow the reconstruction of MLIP (Zhang et al., ICML 2024). A host calls `begin` once and
`merge_step` in every block; what was merged lies in the state that is passed along, never in a module. Attention over
tokens of different sizes is in `merging.attention`, rates and what they cost in `merging.schedule`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phosphene.encoders.merging.guides import attention_cue as attention_cue
    from phosphene.encoders.merging.guides import combine as combine
    from phosphene.encoders.merging.guides import embedding_cue as embedding_cue
    from phosphene.encoders.merging.guides import highpass_cue as highpass_cue
    from phosphene.encoders.merging.guides import zscore as zscore
    from phosphene.encoders.merging.matching import Matching as Matching
    from phosphene.encoders.merging.matching import Merged as Merged
    from phosphene.encoders.merging.matching import match as match
    from phosphene.encoders.merging.matching import merge as merge
    from phosphene.encoders.merging.matching import unmerge as unmerge
    from phosphene.encoders.merging.matching import unmerged as unmerged
    from phosphene.encoders.merging.settings import MergeSettings as MergeSettings
    from phosphene.encoders.merging.step import attention_sizes as attention_sizes
    from phosphene.encoders.merging.step import begin as begin
    from phosphene.encoders.merging.step import merge_step as merge_step

# name -> the file it lives in; imported on first use, as settings are read where torch must not be loaded
_HOMES = {
    "MergeSettings": "settings",
    "Matching": "matching",
    "Merged": "matching",
    "attention_cue": "guides",
    "attention_sizes": "step",
    "begin": "step",
    "combine": "guides",
    "embedding_cue": "guides",
    "highpass_cue": "guides",
    "match": "matching",
    "merge": "matching",
    "merge_step": "step",
    "unmerge": "matching",
    "unmerged": "matching",
    "zscore": "guides",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
