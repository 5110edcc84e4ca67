"""Arms of adaptation: what is trained of a new person, and whose the settings in a table are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phosphene.decoders.adaptable import ADAPTER_ARMS, AdaptableDecoder, AdapterConfig, check_of_arm, settings_of_arm
from phosphene.errors import unknown
from phosphene.settings import load_preset, presets
from phosphene.training.bench import check_classes
from phosphene.training.settings import TrainingConfig

__all__ = ["ARMS", "WHOLE_ARMS", "settings_of_arms", "settings_of_run"]

WHOLE_ARMS = ("full", "from-scratch")
"""Arms that train the shared weights too: their result is a model of the new person alone."""

ARMS = (*ADAPTER_ARMS, *WHOLE_ARMS)

_LARGE_TARGET = 50_000  # numbers in a target from which on the decoder counts as one of NSD size


def settings_of_arms(
    arms: Sequence[str], training: Mapping[str, Any], adapter: Mapping[str, Any]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Settings of training and of adapters for each of several arms, out of tables that are theirs together.

    Every arm gets what it has a use for. A table under the name of an arm is its own, over what all have.

    Parameters
    ----------
    arms : sequence of str
        Of `ARMS`; those that are run.
    training, adapter : mapping
        Settings of `TrainingConfig` and of `AdapterConfig`.

    Raises
    ------
    InputError
        For a setting that does not exist or that none of the arms has, or a table of an arm that is not among them.

    Examples
    --------
    >>> found = settings_of_arms(["both", "full"], {"epochs": 9, "full": {"epochs": 3}}, {"rank": 4})
    >>> found["both"], found["full"]
    (({'epochs': 9}, {'rank': 4}), ({'epochs': 3}, {}))
    """
    (trained, trained_alone), (common, alone) = _shared_and_own(training, arms), _shared_and_own(adapter, arms)
    AdapterConfig.build(common)
    if idle := [name for name in common if not any(name in settings_of_arm(arm) for arm in arms)]:
        check_of_arm(arms[0], {idle[0]: common[idle[0]]})
    found = {}
    for arm in arms:
        of_training = trained | trained_alone.get(arm, {})
        TrainingConfig.check_names(of_training)
        check_of_arm(arm, own := alone.get(arm, {}))
        known = {name: value for name, value in common.items() if name in settings_of_arm(arm)} | own
        AdapterConfig.build(known)
        found[arm] = (of_training, known)
    return found


def _shared_and_own(table: Mapping[str, Any], arms: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    own = {name: dict(each) for name, each in table.items() if isinstance(each, Mapping)}
    if strange := [name for name in own if name not in arms]:
        raise unknown("arm with settings of its own:", strange[0], arms)
    return {name: each for name, each in table.items() if name not in own}, own


def _of_arm(arm: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Out of a table of a preset: what all arms have, and over it what this one has."""
    common, own = _shared_and_own(table, ARMS)
    return common | own.get(arm, {})


def settings_of_run(
    base: AdaptableDecoder, arm: str, preset: str | None, training: Mapping[str, Any], adapter: Mapping[str, Any]
) -> tuple[TrainingConfig, AdapterConfig]:
    """Settings of the preset, those of the arm over the others', those that were given over both."""
    if preset is None:
        wanted = "nsd" if int(np.prod(base.target_shape)) >= _LARGE_TARGET else "small"
        preset = wanted if wanted in presets("decoders", base.name) else None
    layers = load_preset("decoders", base.name, preset) if preset else {}
    config = TrainingConfig.build(_of_arm(arm, layers.get("adapting", {})), training)
    check_classes(base, float(training.get("class_weight", 0.0)))
    settings = AdapterConfig.build(_of_arm(arm, layers.get("adapter", {})), adapter)
    check_of_arm(arm, adapter)
    return config, settings
