"""GLMsingle: the same betas come out of every way its Python and MATLAB versions write them."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.check import check_study
from phosphene.recordings.readers.glmsingle import MODEL, import_glmsingle
from phosphene.table import Table

SHAPE, TRIALS = (4, 3, 5), 12
MASK = np.zeros(SHAPE, dtype=bool)
MASK[1:3, :, 1:4] = True
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def betas(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(TRIALS, *SHAPE)).astype(np.float32)


def write(folder: Path, values: np.ndarray, form: str) -> None:
    """One fit of `values` (trials, X, Y, Z) and its table of trials."""
    folder.mkdir(parents=True, exist_ok=True)
    volumes = values.transpose(1, 2, 3, 0)
    flat = values[:, MASK].T
    if form == "python":
        with h5py.File(folder / f"{MODEL}.hdf5", "w") as file:
            file["betasmd"] = volumes
    elif form == "python-flat":
        with h5py.File(folder / f"{MODEL}.hdf5", "w") as file:
            file["betasmd"] = flat[:, None, None, :]
    elif form in ("matlab", "matlab-flat"):
        with h5py.File(folder / f"{MODEL}.mat", "w") as file:
            file["modelmd"] = (volumes if form == "matlab" else flat[:, None, None, :]).T
            file["modelmd"].attrs["MATLAB_class"] = np.bytes_("single")
    elif form == "array":
        np.save(folder / "betasmd.npy", flat)
    elif form == "pickle":
        np.save(folder / f"{MODEL}.npy", np.array({"betasmd": volumes}, dtype=object), allow_pickle=True)
    stimulus = [f"s{n % 6}" for n in range(len(values))]
    Table({"stimulus_id": stimulus, "run": np.arange(len(values)) // 6 + 1}).write_tsv(folder / "trials.tsv")


def person(root: Path) -> Path:
    folder = root / "sub-01"
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(MASK.astype(np.uint8), AFFINE), folder / "mask.nii.gz")
    region = MASK & (np.arange(4) == 1)[:, None, None]
    nibabel.save(nibabel.Nifti1Image(region.astype(np.uint8), AFFINE), folder / "roi_V1.nii.gz")
    return folder


@pytest.mark.parametrize("form", ["python", "python-flat", "matlab", "matlab-flat", "array"])
def test_betas_of_every_form(tmp_path: Path, form: str) -> None:
    write(person(tmp_path / "g"), betas(), form)
    with Study.open(import_glmsingle(tmp_path / "g", tmp_path / "s.h5")) as study:
        recording = study.recordings["sub-01"]
        np.testing.assert_array_equal(recording.read(), betas()[:, MASK])
        assert recording.rois["V1"].sum() == 9
        assert recording.voxels["x"].tolist() == (2 * np.argwhere(MASK)[:, 0]).tolist()
        assert recording.trials["repeat"].tolist() == [0] * 6 + [1] * 6
        assert recording.to_nifti(recording.read([0])[0]).shape == SHAPE
        assert study.split("train").n_trials("sub-01") + study.split("test").n_trials("sub-01") == TRIALS


def test_one_fit_a_session(tmp_path: Path) -> None:
    folder = person(tmp_path / "g")
    lost = betas(1)
    lost[:, 1, 0, 1] = 0
    lost[2, 2, 2, 3] = np.nan
    write(folder / "ses-01", betas(0), "python")
    write(folder / "ses-02", lost, "matlab")
    out = import_glmsingle(tmp_path / "g", tmp_path / "s.h5")
    with Study.open(out) as study:
        recording = study.recordings["sub-01"]
        assert recording.trials["session"].tolist() == [1] * TRIALS + [2] * TRIALS
        assert study.scaling == "session"
        kept = MASK.copy()
        kept[1, 0, 1] = kept[2, 2, 3] = False
        np.testing.assert_array_equal(recording.read(), np.concatenate([betas(0), lost])[:, kept])
    assert "sub-01: voxels left out on import: 1 not finite, 1 constant in a session" in check_study(out).notes


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write(person(tmp_path / "g"), betas(), "pickle")
    with pytest.raises(InputError) as caught:
        import_glmsingle(tmp_path / "g", tmp_path / "s.h5")
    assert "never opened" in str(caught.value)
    assert "np.save('betasmd.npy'" in str(caught.value)
    assert "wanthdf5=1" in str(caught.value)


def test_a_pickle_under_another_name_is_refused_as_well(tmp_path: Path) -> None:
    folder = person(tmp_path / "g")
    write(folder, betas(), "pickle")
    (folder / f"{MODEL}.npy").rename(folder / "betasmd.npy")
    with pytest.raises(InputError, match="is a Python dictionary in a pickle"):
        import_glmsingle(tmp_path / "g", tmp_path / "s.h5")


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    folder = person(tmp_path / "g")
    write(folder / "ses-01", betas(), "python")
    (folder / "ses-01/trials.tsv").unlink()
    (folder / "ses-02").mkdir()
    (folder / "ses-03").mkdir()
    (folder / f"ses-03/{MODEL}.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (folder / "ses-03/trials.tsv").write_text("stimulus_id\n")
    with pytest.raises(InputError) as caught:
        import_glmsingle(tmp_path / "g", tmp_path / "s.h5")
    for part in (
        "4 missing",
        "ses-01/trials.tsv",
        f"ses-02/{MODEL}.hdf5 or",
        "ses-02/trials.tsv",
        "save it with '-v7.3'",
    ):
        assert part in str(caught.value)


def test_tables_and_masks_that_do_not_fit(tmp_path: Path) -> None:
    folder = person(tmp_path / "g")
    write(folder, betas(), "python")
    Table({"stimulus_id": ["a"] * (TRIALS + 1)}).write_tsv(folder / "trials.tsv")
    with pytest.raises(InputError, match="13 trials"):
        import_glmsingle(tmp_path / "g", tmp_path / "s.h5")
    write(folder, betas(), "python")
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), AFFINE), folder / "mask.nii.gz")
    (folder / "roi_V1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"need a mask\.nii\.gz of that grid"):
        import_glmsingle(tmp_path / "g", tmp_path / "s.h5")
    (folder / f"{MODEL}.hdf5").unlink()
    write(folder, betas(), "array")
    with pytest.raises(InputError, match=r"18 voxels, but mask\.nii\.gz has 8"):
        import_glmsingle(tmp_path / "g", tmp_path / "s.h5")


def test_without_a_mask_flat_betas_still_come_in(tmp_path: Path) -> None:
    write(tmp_path / "g/sub-01", betas(), "array")
    with Study.open(import_glmsingle(tmp_path / "g", tmp_path / "s.h5")) as study:
        assert study.recordings["sub-01"].voxels.columns == ("voxel",)
