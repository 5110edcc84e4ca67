"""States and contributions as Flower's records: arrays by name, and plain facts as one text of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from phosphene.errors import InputError

__all__ = ["packed", "unpacked"]

_FACTS, _TENSORS, _JSON = "facts", "tensors", "json"


def packed(facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> RecordDict:
    """Facts and named tensors as the content of a message."""
    content = RecordDict({_FACTS: ConfigRecord({_JSON: json.dumps(dict(facts))})})
    if tensors is not None:
        arrays = {name: Array(np.ascontiguousarray(each.detach().cpu().numpy())) for name, each in tensors.items()}
        content[_TENSORS] = ArrayRecord(arrays)
    return content


def unpacked(content: RecordDict) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `packed` was given; no tensors where there were none.

    Raises
    ------
    InputError
        For content of another form.
    """
    try:
        facts = json.loads(str(content.config_records[_FACTS][_JSON]))
        arrays = content.array_records.get(_TENSORS, {})
        tensors = {name: torch.from_numpy(np.array(each.numpy())) for name, each in arrays.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"a message has another form than phosphene's: {error!r}") from error
    if not isinstance(facts, dict):
        raise InputError("a message holds facts that are no table")
    return facts, tensors
