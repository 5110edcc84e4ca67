"""Errors that name the thing, what was found and what is allowed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "FederationError",
    "InputError",
    "LeakageError",
    "MissingDependencyError",
    "PhospheneError",
    "refuse_doubles",
    "require",
    "unknown",
]


class PhospheneError(Exception):
    """Base of all errors meant for the user: the message alone must be enough to act on."""


class InputError(PhospheneError, ValueError):
    """Data, a file or an argument given by the user is not what is needed."""


class LeakageError(InputError):
    """Something fitted on held-out stimuli was about to be used to predict them."""


class FederationError(PhospheneError):
    """A round of federated training cannot go on: too few usable contributions, or a loss that is not finite."""


class MissingDependencyError(PhospheneError, ImportError):
    """An optional package is needed and not installed."""


def unknown(kind: str, found: object, known: Iterable[str]) -> InputError:
    """Build the error for a name that is not in a registry.

    Parameters
    ----------
    kind : str
        What the name stands for, e.g. ``"decoder"``.
    found : object
        The name that was given.
    known : iterable of str
        The names that are allowed; all are listed, the nearest is suggested.

    Examples
    --------
    >>> str(unknown("decoder", "rigde", ["ridge", "lite-mind"]))
    "unknown decoder 'rigde'; did you mean 'ridge'? Known: lite-mind, ridge"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(found), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(f"unknown {kind} {str(found)!r}{hint} Known: {', '.join(names) or 'none'}")


def refuse_doubles(kind: str, names: Iterable[str]) -> None:
    """Refuse a list in which a name occurs twice, where each would count as another one.

    Parameters
    ----------
    kind : str
        What the names stand for, e.g. ``"subject"``.
    names : iterable of str

    Raises
    ------
    InputError

    Examples
    --------
    >>> refuse_doubles("subject", ["sub-01", "sub-02"])
    """
    listed = list(names)
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise InputError(f"{kind} {', '.join(twice)} named twice among {', '.join(listed)}")


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say how to install it.

    Parameters
    ----------
    module : str
        Import name, e.g. ``"transformers"``.
    extra : str
        The extra of phosphene that brings it, e.g. ``"clip"``.
    purpose : str
        What it is needed for, as the subject of "needs".

    Raises
    ------
    MissingDependencyError
        With the install words.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package {module!r} ({error}). Install it with: pip install 'phosphene[{extra}]'"
        ) from error
