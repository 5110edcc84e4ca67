"""Settings that decoders share, and what they may ask of a stage of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from phosphene.errors import InputError
from phosphene.settings import Settings

__all__ = ["ClassesConfig", "DecoderConfig", "Episodes"]


class DecoderConfig(Settings):
    """Settings every decoder has.

    Attributes
    ----------
    pool_subjects : bool
        One input for all people, who must share a voxel grid. The decoder then is `subject_free`: it takes people it
        was never trained on.
    """

    pool_subjects: bool = False

    def check_given(self, given: Iterable[str]) -> None:
        """Refuse settings that were asked for and have no use (`idle`).

        Raises
        ------
        InputError
        """
        if idle := self.idle(given):
            words = "; ".join(f"{name} = {getattr(self, name)!r} has no use: {why}" for name, why in idle.items())
            raise InputError(f"settings of {type(self).__name__}: {words}")


class ClassesConfig(DecoderConfig):
    """Settings of decoders with a head for several labels.

    Attributes
    ----------
    class_columns : tuple of str
        Label columns, or patterns of them, whose values are classes: see `phosphene.stimuli.multilabel`.
    classes : tuple of str
        The classes; left out, `phosphene.fit` takes those of the training stimuli.
    """

    class_columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Episodes:
    """Training in which what is a person's own adapts to some sessions before what is shared learns from others.

    Attributes
    ----------
    own : callable
        From a person to the names of the parameters that are theirs.
    steps : int
        Gradient steps of the adaptation.
    rate : float
        Their learning rate.
    """

    own: Callable[[str], list[str]]
    steps: int
    rate: float
