"""Settings and presets of the federation."""

from __future__ import annotations

import pytest

from phosphene.errors import InputError
from phosphene.federation.settings import FederationSettings, MaskSettings
from phosphene.settings import load_preset, presets

NAMES = presets("federation", "pmcmfl")


def test_all_presets_are_here():
    assert NAMES == ["default", "modality-dropout", "pmcmfl-paper"]


@pytest.mark.parametrize("name", NAMES)
def test_presets_build_and_set_nothing_without_a_use(name):
    built = FederationSettings.preset(name)
    given = {f"{part}.{key}" for part, inner in load_preset("federation", "pmcmfl", name).items() for key in inner}
    assert not given & built.without_use().keys()


def test_the_papers_recipe():
    """research facts: label masks, 1e-8/1e-8/0.01 from round 2, kappa 1/0.07 on raw products, complete pairs."""
    paper = FederationSettings.preset("pmcmfl-paper")
    assert paper.masks.mixture == {"label": 1.0}
    assert paper.objective.contrast == (1e-8, 1e-8, 1e-8, 0.01)
    assert paper.objective.contrast_temperature == 0.07
    assert (paper.objective.normalise, paper.objective.candidates, paper.objective.contrast_from) == (False, "batch", 2)
    assert paper.library.complete_only
    assert (paper.client.learning_rate, paper.client.head_rate, paper.client.beta2) == (3e-5, 20.0, 0.98)


def test_a_mixture_that_is_asked_for_stands_alone():
    assert FederationSettings.preset(masks={"zero": 2.0}).masks.mixture == {"zero": 1.0}
    assert FederationSettings.preset(masks={"label": 1, "token": 3}).masks.mixture == {"label": 0.25, "token": 0.75}
    assert FederationSettings.preset(masks={"dropout": 0.1}).masks.mixture == {"retrieval": 0.25, "token": 0.75}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": {"zero": 1.0, "temperature": 0.2}}, "masks.temperature has no use: no mask is retrieved"),
        ({"server": {"trim": 0.3}}, "server.trim has no use: the aggregator is fedavg"),
        ({"model": {"patches": 8}}, "model.patches has no use: the trunk is mlp"),
        ({"inference": {"rule": "token", "temperature": 0.2}}, "inference.temperature has no use"),
        ({"model": {"heads": ["retrieval"]}, "objective": {"task": "bce"}}, "objective.task has no use: no such head"),
        ({"objective": {"class_weight": 0.0, "full_view": 0.3}}, "objective.full_view has no use: class_weight is 0"),
        ({"model": {"heads": ["retrieval"]}, "objective": {"full_view": 0.3}}, "objective.full_view has no use"),
        (
            {
                "masks": {"token": 1.0},
                "objective": dict.fromkeys([f"contrast_{part}" for part in ("fmri", "image", "text", "fusion")], 0.0),
                "inference": {"rule": "token"},
                "library": {"centres": 3},
            },
            "library.centres has no use: neither training nor inference reads prototypes",
        ),
        ({"masks": {"lable": 1.0}}, "did you mean 'masks.label'|Known"),
        ({"masks": {"zero": 0.0}}, "must be above 0"),
        ({"model": {"heads": []}}, "heads are"),
    ],
)
def test_settings_that_are_wrong_or_without_use_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FederationSettings.preset(**changes)


def test_the_learning_rate_of_heads_has_a_use_with_either_head():
    for head in ("classification", "retrieval"):
        changed = FederationSettings.preset(model={"heads": [head]}, client={"head_rate": 2.0})
        assert changed.client.head_rate == 2.0


def test_shares_of_a_mixture_add_up_to_one():
    assert sum(MaskSettings(label=1, retrieval=2, token=3, zero=4, random=5).mixture.values()) == pytest.approx(1)


def test_differences_are_told_by_name():
    one, other = FederationSettings(), FederationSettings(seed=2)
    assert other.differences(one) == ["seed is 2, was 0"]
    assert one.differences(FederationSettings()) == []
