"""Every knob of a person does what it says, to that person alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_people import tiny_settings

from phosphene.errors import InputError
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.scenes import scene_set
from phosphene.virtual import VirtualPerson
from phosphene.virtual.people import calibrated, draw_person
from phosphene.virtual.sheet import HIGHER


@pytest.fixture(scope="module")
def scenes() -> StimulusSet:
    lazy = scene_set(60, seed=5, size=32, captions=0)
    return StimulusSet(lazy.ids, lazy.pixels(), labels=lazy.labels)


def pair(scenes: StimulusSet, seed: int = 0, person: dict[str, Any] | None = None, **own: Any) -> list[VirtualPerson]:
    """Two people; the second one with knobs of its own."""
    settings = tiny_settings(person=person or {"voxels": 150}, people={"sub-02": own})
    return calibrated([draw_person(settings, seed, name) for name in settings.names], scenes)


KNOBS: dict[str, Any] = {
    "voxels": 190,
    "warp": 7.0,
    "rotation": 1.2,
    "rotation_rank": 60,
    "nonlinearity": 0.6,
    "exponent": {"V1": 0.4, "LOC": 1.8},
    "pool": {"V2": 2.5, "FFA": 3.0},
    "gain": 2.0,
    "noise": 2.0,
    "ncsnr": {"V1": 1.2},
    "ncsnr_spread": 0.1,
    "drift": 1.0,
    "noise_length": 20.0,
    "noise_rank": 9,
    "noise_shares": (0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_acts_on_its_person_only(knob: str, scenes: StimulusSet) -> None:
    few = scenes.select(scenes.ids[:12])
    plain, turned = pair(few), pair(few, **{knob: KNOBS[knob]})

    def recorded(person: VirtualPerson) -> np.ndarray:
        return person.measure(person.respond(few), session=2)

    np.testing.assert_array_equal(recorded(plain[0]), recorded(turned[0]))
    before, after = recorded(plain[1]), recorded(turned[1])
    assert before.shape != after.shape or not np.allclose(before, after)


def test_exponent_and_pool_act_on_their_area_only(scenes: StimulusSet) -> None:
    plain, turned = pair(scenes)[1], pair(scenes, exponent={"V1": 0.4}, pool={"LOC": 3.0})[1]
    before, after = plain.respond(scenes), turned.respond(scenes)
    changed = np.abs(before - after).max(0) > 1e-4
    touched = np.isin(plain.sheet.area, ["V1", "LOC"]) & plain.informative
    assert changed[touched].all()
    assert not changed[~touched].any()


def test_gain_scales_everything(scenes: StimulusSet) -> None:
    plain, turned = pair(scenes)[1], pair(scenes, gain=3.0)[1]
    first, second = (p.measure(p.respond(scenes), session=1) for p in (plain, turned))
    np.testing.assert_allclose(second, 3 * first, rtol=1e-4, atol=1e-4)


def test_noise_lowers_the_true_ncsnr(scenes: StimulusSet) -> None:
    plain, turned = pair(scenes)[1], pair(scenes, noise=2.0)[1]
    np.testing.assert_allclose(turned.ncsnr, plain.ncsnr / 2)
    np.testing.assert_allclose(turned.respond(scenes), plain.respond(scenes))


def test_ncsnr_has_the_wanted_median_and_none_outside_the_visual_cortex(scenes: StimulusSet) -> None:
    person = pair(scenes, person={"voxels": 2000, "ncsnr": {"V1": 0.9, "PPA": 0.2}})[0]
    area = person.sheet.area
    assert np.median(person.ncsnr[area == "V1"]) == pytest.approx(0.9, rel=0.25)
    assert np.median(person.ncsnr[area == "PPA"]) == pytest.approx(0.2, rel=0.25)
    assert not person.ncsnr[area == "NONVIS"].any()
    assert not person.respond(scenes)[:, area == "NONVIS"].any()


def test_signal_has_the_deviation_that_ncsnr_promises(scenes: StimulusSet) -> None:
    person = pair(scenes)[0]
    np.testing.assert_allclose(person.respond(scenes).std(0), person.ncsnr * person.scale, rtol=1e-3, atol=1e-6)


def test_warp_is_returned_and_moves_the_map(scenes: StimulusSet) -> None:
    person = pair(scenes, warp=6.0, voxels=800)[1]
    np.testing.assert_allclose(person.sheet.functional, person.sheet.template + person.warp, atol=1e-9)
    np.testing.assert_allclose(person.warp_at(person.sheet.template), person.warp)
    assert 2.5 < np.sqrt((person.warp**2).sum(1).mean()) < 11
    # smooth: neighbours on the sheet are displaced alike
    distance = np.linalg.norm(person.sheet.template[:, None] - person.sheet.template[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest, close = distance.argmin(1), distance.min(1) < 4
    assert np.corrcoef(person.warp[close, 0], person.warp[nearest[close], 0])[0, 1] > 0.95
    assert not pair(scenes, warp=0.0)[1].warp.any()


def agreement(first: VirtualPerson, second: VirtualPerson, scenes: StimulusSet) -> float:
    """Median correlation of noise-free responses at the same anatomical place of two people."""
    distance = np.linalg.norm(first.sheet.template[:, None] - second.sheet.template[None], axis=2)
    rows = np.flatnonzero((distance.min(1) < 3) & first.informative & second.informative[distance.argmin(1)])
    one, two = first.respond(scenes)[:, rows], second.respond(scenes)[:, distance.argmin(1)[rows]]
    one, two = (values - values.mean(0) for values in (one, two))
    return float(np.median((one * two).sum(0) / np.linalg.norm(one, axis=0) / np.linalg.norm(two, axis=0)))


def test_people_agree_less_the_more_their_maps_are_warped(scenes: StimulusSet) -> None:
    quiet = {"voxels": 500, "rotation": 0.0, "nonlinearity": 0.0}
    curve = [agreement(*pair(scenes, person={**quiet, "warp": warp}), scenes) for warp in (0.0, 3.0, 9.0)]
    assert curve[0] > curve[1] + 0.05 > curve[2] + 0.1


def test_rotation_changes_higher_voxels_and_keeps_early_ones(scenes: StimulusSet) -> None:
    plain, turned = pair(scenes, rotation=0.0)[1], pair(scenes, rotation=1.5, rotation_rank=90)[1]
    before, after = plain.respond(scenes), turned.respond(scenes)
    higher = np.isin(plain.sheet.area, HIGHER)
    np.testing.assert_array_equal(before[:, ~higher], after[:, ~higher])
    alike = [np.corrcoef(before[:, voxel], after[:, voxel])[0, 1] for voxel in np.flatnonzero(higher)]
    assert np.median(alike) < 0.6
    assert np.linalg.matrix_rank(turned.rotation - np.eye(len(turned.rotation)), tol=1e-4) == 90


def test_higher_areas_select_categories(scenes: StimulusSet) -> None:
    scenes = scene_set(250, seed=8, size=16, captions=0)
    person = pair(scenes, person={"voxels": 600, "rotation": 0.0})[0]
    response = person.respond(StimulusSet(scenes.ids, labels=scenes.labels))
    response = response / np.maximum(response.std(0), 1e-9)
    living = scenes.labels["group"] == "living"
    contrast = response[living].mean(0) - response[~living].mean(0)
    area = person.sheet.area
    assert contrast[area == "FFA"].mean() > contrast[area == "PPA"].mean() + 0.2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"people": {"sub-09": {}}}, "sub-01, sub-02"),
        ({"people": {"sub-01": {"wrap": 1.0}}}, "wrap"),
        ({"person": {"exponent": {"V9": 1.0}}}, "V9"),
        ({"person": {"warp": 50.0}}, "warp"),
        ({"person": {"ncsnr": {"V1": -1.0}}}, "ncsnr.V1"),
        ({"shares": {"cortex": 1.0}}, "cortex"),
        ({"person": {"noise_shares": (0, 0, 0)}}, "noise_shares"),
        ({"stimuli": {"unseen": 5}}, "stimuli.holdout"),
        ({"stimuli": {"common": 0, "own": 0}}, "nothing to train on"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        tiny_settings(**settings)
