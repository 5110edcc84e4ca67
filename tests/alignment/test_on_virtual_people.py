"""What alignment must show: the correlation that warp and rotation took away comes back, each by its remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phosphene.alignment import IscReport, inter_subject_correlation, make_aligner, unaligned
from phosphene.recordings import Recording, Study
from phosphene.virtual import VirtualStudy, make_settings, simulate

HIGHER = ("LOC", "FFA", "EBA", "PPA")


def _people(warp: float, rotation: float) -> VirtualStudy:
    plan: dict[str, Any] = {
        "subjects": 3,
        "sessions": 2,
        "repeats": 2,
        "stimuli": {"test": 60, "common": 120, "own": 0, "size": 32, "captions": 1},
        "person": {"voxels": 300, "warp": warp, "rotation": rotation, "nonlinearity": 0.0, "noise": 0.6},
    }
    return simulate(make_settings(None, **plan), seed=1, progress=False)


@pytest.fixture(scope="module")
def straight() -> VirtualStudy:
    return _people(0.0, 0.0)


@pytest.fixture(scope="module")
def warped() -> VirtualStudy:
    return _people(8.0, 0.0)


@pytest.fixture(scope="module")
def rotated() -> VirtualStudy:
    return _people(0.0, 1.2)


def _measure(name: str, study: Study, **settings: Any) -> IscReport:
    aligner = make_aligner(name, **settings).fit(study.split("train"))
    return inter_subject_correlation(aligner, study.split("test"), n_boot=0)


def _higher(report: IscReport) -> float:
    return float(np.mean([report.row(roi).normalised for roi in HIGHER]))


def test_anatomy_beats_scanner_order(straight: VirtualStudy) -> None:
    test = straight.study.split("test")
    before = inter_subject_correlation(unaligned(test), test, n_boot=0).row()
    after = _measure("anatomical", straight.study).row()
    assert before.normalised < 0.5  # type: ignore[operator]
    assert after.normalised > 0.8  # type: ignore[operator]


def test_a_warp_takes_away_what_its_inverse_gives_back(straight: VirtualStudy, warped: VirtualStudy) -> None:
    known = []
    for person in warped.study.recordings.values():
        truth = warped.truth.people[person.subject].sheet.functional
        voxels = person.voxels.with_columns(map_u=truth[:, 0], map_v=truth[:, 1])
        known.append(Recording(person.subject, person.read(), person.trials, voxels, **person.meta()))
    study = Study(warped.study.stimuli, known, {"default": warped.study.roles()}, scaling="session")
    unwarped = _measure("anatomical", study, columns=("map_u", "map_v")).row().normalised
    lost, whole = (_measure("anatomical", v.study).row().normalised for v in (warped, straight))
    assert lost < whole - 0.15  # type: ignore[operator]
    assert unwarped == pytest.approx(whole, abs=0.05)


def test_function_restores_what_anatomy_cannot(straight: VirtualStudy, rotated: VirtualStudy) -> None:
    lost, whole = (_higher(_measure("anatomical", v.study)) for v in (rotated, straight))
    assert lost < whole - 0.1
    assert _higher(_measure("hybrid", rotated.study)) > lost + 0.05
