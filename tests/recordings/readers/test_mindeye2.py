"""The MindEye2 release: rows of the betas, tars of trials and float16 pictures find each other."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.readers.mindeye2 import import_mindeye2

SESSIONS, PER_SESSION, VOXELS = 40, 12, 5


def write_tar(path: Path, rows: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            for name, values in (("behav", row[None]), ("past_behav", np.full((15, 17), -1.0))):
                stream = io.BytesIO()
                np.save(stream, values)
                info = tarfile.TarInfo(f"sample{number:09d}.{name}.npy")
                info.size = stream.tell()
                stream.seek(0)
                tar.addfile(info, stream)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One person; every third image of 120 is shared, every image is shown four times."""
    root = tmp_path / "mindeye2"
    rng = np.random.default_rng(0)
    n = SESSIONS * PER_SESSION
    image = rng.permutation(np.repeat(np.arange(120), 4)) * 600
    test = []
    for session in range(SESSIONS):
        train = []
        for trial in range(PER_SESSION):
            row = np.full(17, -1.0)
            number = session * PER_SESSION + trial
            row[[0, 1, 2, 3, 4, 5]] = image[number], 1, session + 1, 1 + trial // 6, 1 + trial % 6, number
            (test if image[number] % 1800 == 0 else train).append(row)
        write_tar(root / f"wds/subj01/train/{session}.tar", train)
    write_tar(root / "wds/subj01/new_test/0.tar", list(rng.permutation(test)))
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file["betas"] = rng.normal(size=(n, VOXELS)).astype(np.float32)
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        pictures = file.create_dataset("images", (73_000, 3, 2, 2), dtype="float16", chunks=(600, 3, 2, 2))
        for number in range(0, 72_000, 600):
            pictures[number] = rng.uniform(size=(3, 2, 2))
    return root


def test_rows_trials_and_pictures_belong_together(tree: Path, tmp_path: Path) -> None:
    with Study.open(import_mindeye2(tree, tmp_path / "s.h5", subjects=[1])) as study:
        person = study.recordings["sub-01"]
        with h5py.File(tree / "betas_all_subj01_fp32_renorm.hdf5") as file:
            np.testing.assert_array_equal(person.read(), file["betas"][...])
        assert study.scaling == "none"
        assert person.trials["session"].tolist() == np.repeat(np.arange(1, 41), PER_SESSION).tolist()
        assert study.split_names == ["shared1000-40"]
        assert {int(i.removeprefix("nsd-")) % 1800 for i in study.split("test").stimulus_ids} == {0}
        assert len(study.split("train").stimulus_ids) == 80
        assert person.trials["repeat"].max() == 3
        row = 17
        number = int(study.stimuli.ids[row].removeprefix("nsd-"))
        with h5py.File(tree / "coco_images_224_float16.hdf5") as file:
            expected = np.rint(255 * file["images"][number].astype(np.float32)).transpose(1, 2, 0)
        np.testing.assert_array_equal(study.stimuli.pixels([row])[0], expected)


def test_one_hour_keeps_the_whole_test(tree: Path, tmp_path: Path) -> None:
    with Study.open(import_mindeye2(tree, tmp_path / "s.h5", sessions=1, pictures=False)) as study:
        assert set(study.split("train").trials("sub-01")["session"]) == {1}
        assert study.split("test").n_trials("sub-01") == 160


def test_voxels_that_are_not_sound_are_left_out(tree: Path, tmp_path: Path) -> None:
    with h5py.File(tree / "betas_all_subj01_fp32_renorm.hdf5", "r+") as file:
        file["betas"][7, 2] = np.nan
    with Study.open(import_mindeye2(tree, tmp_path / "s.h5", pictures=False)) as study:
        assert study.recordings["sub-01"].voxels["voxel"].tolist() == [0, 1, 3, 4]
        assert study.recipe["voxels_left_out"]["sub-01"]["not_finite"] == 1


def test_all_that_is_missing_is_listed(tree: Path, tmp_path: Path) -> None:
    (tree / "wds/subj01/train/3.tar").unlink()
    (tree / "wds/subj01/new_test/0.tar").unlink()
    (tree / "coco_images_224_float16.hdf5").unlink()
    with pytest.raises(InputError) as caught:
        import_mindeye2(tree, tmp_path / "s.h5", subjects=["subj01", 2])
    for part in ("train/3.tar (training trials of session 4)", "new_test/0.tar", "coco_images", "betas_all_subj02"):
        assert part in str(caught.value)


def test_damaged_files_are_named(tree: Path, tmp_path: Path) -> None:
    whole = (tree / "wds/subj01/train/3.tar").read_bytes()
    (tree / "wds/subj01/train/3.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match=r"3\.tar is truncated or damaged"):
        import_mindeye2(tree, tmp_path / "s.h5", pictures=False)


def test_pickled_behaviour_is_never_unpacked(tree: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with tarfile.open(tree / "wds/subj01/train/0.tar", "w") as tar:
        info = tarfile.TarInfo("x.behav.npy")
        info.size = stream.tell()
        stream.seek(0)
        tar.addfile(info, stream)
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        import_mindeye2(tree, tmp_path / "s.h5", pictures=False)


def a_test_trial(tree: Path) -> np.ndarray:
    with tarfile.open(tree / "wds/subj01/new_test/0.tar") as tar:
        stream = tar.extractfile("sample000000000.behav.npy")
        assert stream is not None
        return np.load(io.BytesIO(stream.read()))[0]


def test_an_image_on_both_sides_is_refused(tree: Path, tmp_path: Path) -> None:
    row = a_test_trial(tree)
    with tarfile.open(tree / "wds/subj01/train/0.tar") as tar:
        stream = tar.extractfile("sample000000000.behav.npy")
        assert stream is not None
        row[5] = np.load(io.BytesIO(stream.read()))[0, 5]  # in the place of a training trial
    write_tar(tree / "wds/subj01/train/0.tar", [row])
    with pytest.raises(InputError, match="1 images are in both train and test tars"):
        import_mindeye2(tree, tmp_path / "s.h5", pictures=False)


def test_a_trial_twice_is_refused(tree: Path, tmp_path: Path) -> None:
    write_tar(tree / "wds/subj01/train/0.tar", [a_test_trial(tree)])
    with pytest.raises(InputError, match="1 trials occur more than once"):
        import_mindeye2(tree, tmp_path / "s.h5", pictures=False)


def test_betas_shorter_than_the_trials_are_refused(tree: Path, tmp_path: Path) -> None:
    with h5py.File(tree / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file["betas"] = np.zeros((100, VOXELS), dtype=np.float32)
    with pytest.raises(InputError, match="rows 0 to 479, betas has shape"):
        import_mindeye2(tree, tmp_path / "s.h5", pictures=False)


def test_unknown_test_list(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Known: new_test, test"):
        import_mindeye2(tree, tmp_path / "s.h5", test="tests")
