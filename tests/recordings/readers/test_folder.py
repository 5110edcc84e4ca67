"""The study folder in its three forms, and what is said when something is wrong with it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.readers.blocks import event_means, normalise_run
from phosphene.recordings.readers.folder import import_folder
from phosphene.table import Table

N = 6


@pytest.fixture
def folder(tmp_path) -> Path:
    """Form 2: arrays, pictures, captions, labels, one split."""
    root = tmp_path / "my-study"
    ids = [f"s{i}" for i in range(N)]
    (root / "stimuli").mkdir(parents=True)
    for i, name in enumerate(ids):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(root / "stimuli" / f"{name}.png")
    Table({"stimulus_id": ids, "category": ["x", "y"] * 3}).write_tsv(root / "stimuli.tsv")
    Table({"stimulus_id": [*ids, "s0"], "caption": [f"thing {n}" for n in [*ids, "again"]]}).write_tsv(
        root / "captions.tsv"
    )
    Table({"stimulus_id": ids, "default": ["train"] * 4 + ["test"] * 2}).write_tsv(root / "splits.tsv")
    person = root / "sub-01"
    person.mkdir()
    np.save(person / "responses.npy", np.arange(N * 2 * 3, dtype=np.float64).reshape(N * 2, 3))
    Table({"stimulus_id": ids * 2, "run": np.repeat([1, 2], N)}).write_tsv(person / "trials.tsv")
    Table({"i": [0, 1, 2], "j": [0, 0, 0], "k": [0, 0, 0], "roi_V1": [True, False, True]}).write_tsv(
        person / "voxels.tsv"
    )
    (root / "study.json").write_text(json.dumps({"name": "mine", "unit": "category"}))
    return root


def test_arrays(folder, tmp_path):
    with Study.open(import_folder(folder, tmp_path / "study.h5")) as study:
        assert (study.name, study.unit, study.scaling) == ("mine", "category", "session")
        assert study.stimuli.captions[0] == ("thing s0", "thing again")
        assert study.stimuli.pixels([5])[0, 0, 0, 0] == 5
        recording = study.recordings["sub-01"]
        assert recording.trials["repeat"].tolist() == [0] * N + [1] * N
        assert recording.rois["V1"].tolist() == [True, False, True]
        np.testing.assert_array_equal(recording.read([7]), [[21, 22, 23]])
        assert study.split("test").stimulus_ids.tolist() == ["s4", "s5"]


def test_folds_by_label_and_the_stated_holdout(folder, tmp_path):
    with Study.open(import_folder(folder, tmp_path / "a.h5", folds_column="category")) as study:
        assert study.split_names == ["default", "category-x", "category-y"]
        assert set(study.using("category-y").split("test").units) == {"y"}
    (folder / "splits.tsv").unlink()
    with Study.open(import_folder(folder, tmp_path / "b.h5")) as study:
        assert len(set(study.split("test").units)) == 1, "the holdout keeps units whole"
    with pytest.raises(InputError, match="folds must be 2 to 2"):
        import_folder(folder, tmp_path / "c.h5", folds_column="category", folds=3)


def test_volumes_and_regions(folder, tmp_path):
    person = folder / "sub-01"
    for name in ("responses.npy", "voxels.tsv"):
        (person / name).unlink()
    rng, affine = np.random.default_rng(0), np.diag([2.0, 2, 2, 1])
    volumes = rng.normal(size=(3, 4, 2, 2 * N)).astype(np.float32)
    mask = np.zeros((3, 4, 2), np.uint8)
    mask[[0, 1, 2], [3, 1, 0], [1, 0, 1]] = 1
    region = np.zeros_like(mask)
    region[1, 1, 0] = 1
    for name, data in (("responses", volumes), ("mask", mask), ("roi_V4", region)):
        nibabel.save(nibabel.Nifti1Image(data, affine), person / f"{name}.nii.gz")
    with Study.open(import_folder(folder, tmp_path / "study.h5")) as study:
        recording = study.recordings["sub-01"]
        np.testing.assert_allclose(recording.read(), volumes[mask > 0].T)
        assert recording.voxels["x"].tolist() == [0.0, 2.0, 4.0]
        assert recording.rois["V4"].tolist() == [False, True, False]
        back = recording.to_nifti(recording.read([3])[0]).get_fdata()
        np.testing.assert_allclose(back[mask > 0], volumes[..., 3][mask > 0], rtol=1e-6)


def bold_study(root: Path) -> Path:
    """Two runs in which one voxel answers one kind of event, five seconds late."""
    func = root / "sub-01" / "func"
    func.mkdir(parents=True)
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 2, 1), np.uint8)
    mask[0, :, 0] = 1
    for run in (1, 2):
        series = 100 + rng.normal(size=(2, 2, 1, 60)) + np.linspace(0, 9, 60)
        series[0, 0, 0, 2 + 10 : 2 + 18] += 20  # volumes 12 to 19: an event of 20 s at 25 s, TR 2.5 s
        image = nibabel.Nifti1Image(series.astype(np.float32), np.eye(4))
        image.header.set_zooms((1, 1, 1, 2.5))
        nibabel.save(image, func / f"sub-01_task-t_run-{run}_bold.nii.gz")
        events = {"onset": [25.0, 75.0, 110.0], "duration": [20.0, 20.0, 10.0], "trial_type": ["face", "house", "rest"]}
        Table(events).write_tsv(func / f"sub-01_task-t_run-{run}_events.tsv")
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), root / "sub-01" / "mask.nii.gz")
    return root


def test_bold_runs_with_events(tmp_path):
    root = bold_study(tmp_path / "bold")
    with Study.open(import_folder(root, tmp_path / "study.h5", folds_column="run")) as study:
        recording = study.recordings["sub-01"]
        assert recording.tr == 2.5
        assert recording.delay == 5.0
        assert recording.trials["stimulus_id"].tolist() == ["face_run-1", "house_run-1", "face_run-2", "house_run-2"]
        assert study.stimuli.labels["label"].tolist() == ["face", "face", "house", "house"]
        responses = recording.read()
        assert responses[[0, 2], 0].min() > 2
        assert np.abs(responses[[1, 3], 0]).max() < 1
        assert study.using("run-2").split("test").stimulus_ids.tolist() == ["face_run-2", "house_run-2"]
    next((root / "sub-01" / "func").glob("*run-2_events.tsv")).unlink()
    with pytest.raises(InputError, match=r"missing sub-01_task-t_run-2_events\.tsv"):
        import_folder(root, tmp_path / "b.h5")


def test_event_means_against_a_slow_loop():
    rng = np.random.default_rng(1)
    series = rng.normal(size=(50, 3))
    onset, duration = np.array([0.0, 12.0, 61.0]), np.array([10.0, 7.5, 4.0])
    found = event_means(series, onset, duration, tr=2.0, delay=4.0, name="run")
    for row in range(3):
        inside = [v for v in range(50) if onset[row] + 4 <= 2.0 * v < onset[row] + duration[row] + 4]
        np.testing.assert_allclose(found[row], np.mean([series[v] for v in inside], axis=0))
    with pytest.raises(InputError, match="event at 99 s lies outside of the run, which ends at 100 s"):
        event_means(series, np.array([99.0]), np.array([2.0]), 2.0, 4.0, "run")
    normal = normalise_run(series + np.linspace(0, 50, 50)[:, None])
    np.testing.assert_allclose(normal.std(axis=0), 1)
    assert np.all(normalise_run(np.full((9, 1), 3.0)) == 0)


class Trap:
    """Pickled, it would run code when loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "stimuli" / "s3.png").unlink(), "1 of 6 stimuli are missing in .*stimuli, such as s3"),
        (lambda f: (f / "sub-01" / "trials.tsv").unlink(), r"trials\.tsv does not exist"),
        (lambda f: (f / "sub-01" / "responses.npy").unlink(), r"missing responses\.npy, responses\.nii\.gz or func/"),
        (
            lambda f: Table({"stimulus_id": ["s0"] * 13}).write_tsv(f / "sub-01" / "trials.tsv"),
            "trials table has 13 rows, the responses have 12 trials",
        ),
        (
            lambda f: Table({"stimulus_id": ["s0"] * 11}).write_tsv(f / "sub-01" / "trials.tsv"),
            "more than the 11 trials of the trials table",
        ),
        (
            lambda f: Table({"stimulus_id": ["s0"] * 11 + ["zz"]}).write_tsv(f / "sub-01" / "trials.tsv"),
            "1 stimulus ids of the trials table are not among the 6 stimuli, such as zz",
        ),
        (
            lambda f: Table({"stimulus_id": [f"s{i}" for i in range(6)] + ["s0"]}).write_tsv(f / "stimuli.tsv"),
            "1 stimulus ids occur more than once",
        ),
        (
            lambda f: Table({"stimulus_id": ["s9"], "caption": ["x"]}).write_tsv(f / "captions.tsv"),
            r"captions\.tsv, line 2: stimulus_id 's9' is not among the 6",
        ),
        (
            lambda f: np.save(f / "sub-01" / "responses.npy", np.array([Trap()], dtype=object)),
            r"responses\.npy is not a readable array of numbers",
        ),
        (
            lambda f: (f / "sub-01" / "responses.npy").write_bytes(pickle.dumps(Trap())),
            r"responses\.npy is not a readable array of numbers",
        ),
        (
            lambda f: np.save(f / "sub-01" / "responses.npy", np.full((12, 3), np.nan)),
            "36 responses are NaN or infinite",
        ),
        (
            lambda f: np.save(f / "sub-01" / "responses.npy", np.zeros((12, 4))),
            "voxels table has 3 rows, the responses have 4 voxels",
        ),
        (lambda f: (f / "study.json").write_text('{"unti": "category"}'), r"'unti'; did you mean 'unit'"),
        (
            lambda f: Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(f / "stimuli" / "s1.png"),
            "images of different sizes",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(folder, tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=message):
        import_folder(folder, tmp_path / "study.h5")
    assert not (tmp_path / "study.h5").exists()
    assert not (tmp_path / "executed").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["my-study"]
