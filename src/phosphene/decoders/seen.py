"""What a decoder has seen in training, over everything that its weights rest on."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["seen_together"]


def seen_together(before: Mapping[str, str], now: Mapping[str, str], study: object) -> dict[str, str]:
    """Content hash of every training stimulus by id, of what was seen before and of what came from a study now.

    The same name with other contents is a stimulus of another study: both are kept.

    Examples
    --------
    >>> seen_together({"a": "1", "b": "2"}, {"b": "3", "c": "4"}, "new")
    {'a': '1', 'b': '2', 'b (new)': '3', 'c': '4'}
    """
    seen = dict(before)
    for name, content in now.items():
        seen[name if seen.get(name, content) == content else f"{name} ({study})"] = content
    return seen
