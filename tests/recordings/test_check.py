"""`check_study` counts what was planted, and tells notes from problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Recording, Study
from phosphene.recordings.ceiling import estimate_ncsnr, noise_ceiling
from phosphene.recordings.check import check_study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table

N, VOXELS, REPEATS = 30, 6, 3


def person(name: str = "sub-01", seed: int = 0, ids: np.ndarray | None = None, **voxels: Any) -> Recording:
    rng = np.random.default_rng(seed)
    shown = np.tile(np.array([f"s{n:02d}" for n in range(N)]) if ids is None else ids, REPEATS)
    signal = rng.normal(size=(N, VOXELS)) * np.arange(VOXELS)  # voxel 0 has no signal
    responses = np.tile(signal, (REPEATS, 1)) + rng.normal(size=(len(shown), VOXELS))
    columns = {"i": np.arange(VOXELS), "j": np.zeros(VOXELS, int), "k": np.zeros(VOXELS, int)}
    columns |= {"roi_V1": np.arange(VOXELS) < 3, "roi_none": np.zeros(VOXELS, bool)} | voxels
    session = np.repeat(np.arange(1, REPEATS + 1), N)
    trials = Table({"stimulus_id": shown, "session": session, "run": np.ones_like(session)})
    return Recording(name, responses.astype(np.float32), trials, Table(columns), volume_shape=(VOXELS, 1, 1))


def stimuli(**facts: Any) -> StimulusSet:
    pixels = np.random.default_rng(1).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    ids = [f"s{n:02d}" for n in range(N)]
    return StimulusSet(ids, **({"pixels": pixels, "captions": [[f"scene {n}"] for n in range(N)]} | facts))


def save(path: Path, shown: StimulusSet, *people: Recording, **facts: Any) -> Path:
    splits = {"default": {"train": shown.ids[:20], "test": shown.ids[20:]}}
    return Study(shown, people or [person()], **({"splits": splits} | facts)).save(path / "study.h5")


def slow_ncsnr(recording: Recording) -> np.ndarray:
    """The formula as NSD states it, voxel by voxel and stimulus by stimulus."""
    responses, session = recording.read(), recording.trials["session"]
    values = []
    for voxel in range(recording.n_voxels):
        z = responses[:, voxel].astype(float)
        for number in np.unique(session):
            part = z[session == number]
            z[session == number] = (part - part.mean()) / part.std()
        variances = [
            z[recording.trials["stimulus_id"] == s].var(ddof=1) for s in np.unique(recording.trials["stimulus_id"])
        ]
        noise = np.mean(variances)
        values.append(np.sqrt(max(0, 1 - noise)) / np.sqrt(noise))
    return np.array(values)


def test_a_sound_study_has_no_problem(tmp_path: Path) -> None:
    found = check_study(save(tmp_path, stimuli()))
    assert found.problems == []
    facts = found.people["sub-01"]
    assert (facts["trials"], facts["voxels"], facts["sessions"], facts["stimuli"]) == (90, VOXELS, 3, N)
    assert facts["repeats"] == {3: N}
    assert facts["rois"] == {"V1": 3, "none": 0}
    assert facts["trials_per_session"] == [30, 30]
    text = found.text()
    for part in ("30 shown 3x", "90 in 3 session(s) of 30", "default: 10 test, 20 train", "V1", "no problem found"):
        assert part in text
    json.dumps(found.to_dict(), allow_nan=False)


def test_noise_ceiling_is_that_of_the_formula(tmp_path: Path) -> None:
    recording = person()
    estimate = estimate_ncsnr(recording)
    assert estimate is not None
    np.testing.assert_allclose(estimate, slow_ncsnr(recording), rtol=1e-3)
    facts = check_study(save(tmp_path, stimuli(), recording)).people["sub-01"]["noise_ceiling"]
    assert facts["ncsnr"] == pytest.approx(np.median(estimate))
    assert facts["rois"]["V1"]["averaged"] == pytest.approx(np.median(noise_ceiling(estimate[:3], 3)))
    assert "none" not in facts["rois"]


def test_noise_ceiling_finds_the_planted_ratio() -> None:
    rng = np.random.default_rng(5)
    truth = np.array([0.0, 0.3, 1.0])
    responses = np.repeat(rng.normal(size=(1500, 3)) * truth, 3, axis=0) + rng.normal(size=(4500, 3))
    trials = Table({"stimulus_id": np.repeat(np.arange(1500), 3).astype(str)})
    estimate = estimate_ncsnr(Recording("a", responses.astype("float32"), trials, Table({"voxel": np.arange(3)})))
    assert estimate is not None
    # over 100 seeds the largest errors are 0.22 (at zero, where a root is taken), 0.10 and 0.07
    assert np.all(np.abs(estimate - truth) < [0.3, 0.15, 0.12])


def test_without_repeats_there_is_no_ceiling(tmp_path: Path) -> None:
    trials = Table({"stimulus_id": [f"s{n:02d}" for n in range(N)]})
    once = Recording("sub-01", np.random.default_rng(0).normal(size=(N, 2)), trials, Table({"voxel": [0, 1]}))
    found = check_study(save(tmp_path, stimuli(), once))
    assert found.people["sub-01"]["noise_ceiling"] is None
    assert "no stimulus was repeated" in found.text()
    assert any("no place" in note for note in found.notes)


def test_the_same_picture_on_both_sides_is_a_problem(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    pixels[25] = pixels[3]
    found = check_study(save(tmp_path, stimuli(pixels=pixels)))
    assert len(found.problems) == 1
    assert "1 stimuli have the same picture in both train and test of split 'default': s03 = s25" in found.problems[0]
    assert check_study(tmp_path / "study.h5", pictures=False).problems == []


def test_equal_pictures_on_one_side_are_no_overlap(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    pixels[4] = pixels[3]
    assert check_study(save(tmp_path, stimuli(pixels=pixels))).problems == []


def test_equal_captions_are_a_note_with_pictures_and_a_problem_without(tmp_path: Path) -> None:
    captions = [[f"scene {n}", "a photo"] for n in range(N)]
    captions[25] = ["A photo ", "Scene 3"]
    with_pictures = check_study(save(tmp_path, stimuli(captions=captions)))
    assert with_pictures.problems == []
    assert any("exactly the same captions" in note for note in with_pictures.notes)
    without = check_study(save(tmp_path, stimuli(captions=captions, pixels=None)))
    assert any("s03 = s25" in problem for problem in without.problems)


def test_a_unit_on_both_sides_is_noted(tmp_path: Path) -> None:
    shown = stimuli(labels={"action": [f"a{n // 2}" for n in range(N)]})
    splits = {"odd": {"train": shown.ids[:21], "test": shown.ids[21:]}}
    found = check_study(save(tmp_path, shown, splits=splits, unit="action"))
    assert any("the same action in both train and test" in note for note in found.notes)


def test_constant_voxels_are_counted(tmp_path: Path) -> None:
    recording = person()
    responses = recording.read()
    responses[:, 1] = 4.0
    responses[recording.trials["session"] == 2, 2] = 0.0
    changed = Recording("sub-01", responses, recording.trials, recording.voxels)
    facts = check_study(save(tmp_path, stimuli(), changed))
    assert facts.people["sub-01"]["constant_voxels"] == 1
    assert facts.people["sub-01"]["voxels_constant_in_a_session"] == 1
    assert len([note for note in facts.notes if "constant" in note]) == 2


def test_places_outside_and_twice_are_problems(tmp_path: Path) -> None:
    found = check_study(save(tmp_path, stimuli(), person(i=np.array([0, 1, 2, 3, 3, 9]))))
    assert [p for p in found.problems if "1 voxels lie outside" in p]
    assert [p for p in found.problems if "1 voxels have the place of another" in p]


def test_vertices_that_a_mesh_does_not_have_are_problems(tmp_path: Path) -> None:
    table = Table({"hemisphere": ["L"] * 3 + ["R"] * 3, "vertex": [0, 1, 2, 0, 1, 12]})
    recording = person()
    changed = Recording("sub-01", recording.read(), recording.trials, table, n_vertices=(12, 12))
    found = check_study(save(tmp_path, stimuli(), changed))
    assert [p for p in found.problems if "row 5: a vertex of hemisphere R is a whole number from 0 to 11" in p]


def test_stimuli_without_role_and_people_without_test_trials(tmp_path: Path) -> None:
    shown = stimuli()
    splits = {"a": {"train": shown.ids[:10], "test": shown.ids[20:]}, "b": {"train": shown.ids[:10]}}
    blind = person("sub-02", seed=1, ids=shown.ids[np.arange(N) % 20])
    found = check_study(save(tmp_path, shown, person(), blind, splits=splits))
    assert found.people["sub-01"]["trials_without_role"] == 30
    assert "split 'a': no trial of role 'test' for sub-02" in found.notes
    assert found.problems == []


def test_a_role_nobody_saw_is_a_problem(tmp_path: Path) -> None:
    shown = stimuli()
    found = check_study(save(tmp_path, shown, person(ids=shown.ids[np.arange(N) % 20])))
    assert found.problems == ["split 'default': nobody saw any stimulus of role 'test'"]
    assert any("10 stimuli were shown to nobody" in note for note in found.notes)


def test_changed_responses_are_found(tmp_path: Path) -> None:
    path = save(tmp_path, stimuli(), person(), person("sub-02", seed=2))
    with h5py.File(path, "r+") as file:
        file["recordings/sub-02/responses"][5, 2] += 1
    found = check_study(path)
    assert found.problems == ["sub-02: responses differ from their checksum"]
    assert "noise_ceiling" not in found.people["sub-02"]
    assert "ceiling  not computed" in found.text()


def test_missing_values_that_got_past_the_writer_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, stimuli())
    with h5py.File(path, "r+") as file:
        file["recordings/sub-01/responses"][5, 2] = np.nan
    monkeypatch.setattr("phosphene.recordings.check.verify", lambda path: [])
    assert "sub-01: 1 voxels have NaN or infinite responses" in check_study(path).problems


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path, stimuli()).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        check_study(tmp_path / "cut.h5")


def test_repeats_are_read_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = person()
    whole = estimate_ncsnr(recording)
    monkeypatch.setattr("phosphene.recordings.ceiling._BLOCK_BYTES", 4 * VOXELS * 7)
    sizes = []
    read = Recording.read
    monkeypatch.setattr(
        Recording, "read", lambda self, rows=None, v=None: (sizes.append(len(rows)), read(self, rows, v))[1]
    )
    np.testing.assert_allclose(estimate_ncsnr(recording), whole, rtol=1e-6)
    assert sizes.count(6) == 15  # two stimuli of three repeats at a time


def test_damaged_pictures_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, stimuli())

    def fail(shown: StimulusSet) -> np.ndarray:
        raise OSError("inflate() failed")

    monkeypatch.setattr("phosphene.recordings.check.picture_keys", fail)
    assert check_study(path).problems == ["stimuli: the pictures are damaged (inflate() failed)"]
