"""fMRIPrep-style betas: volumes and surfaces, found by the entities of their names."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.readers.fmriprep import import_fmriprep
from phosphene.recordings.surfaces import MESHES
from phosphene.table import Table

SHAPE, TRIALS, VERTICES = (4, 3, 5), 6, 11
AFFINE = np.array([[2.0, 0, 0, 5], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
BRAIN = np.zeros(SHAPE, dtype=bool)
BRAIN[1:4] = True


def volume(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def surface(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [nibabel.gifti.GiftiDataArray(row, datatype="NIFTI_TYPE_FLOAT32") for row in values]
    nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), path)


def table(path: Path, kind: str = "trials", rest: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(10.0 * n, 2.0, f"s{n}", "photo") for n in range(TRIALS)]
    if rest:
        rows.insert(2, (15.0, 2.0, "n/a", "rest"))
    onset, duration, stimulus, trial_type = (list(column) for column in zip(*rows, strict=True))
    columns = {"onset": onset, "duration": duration, "stimulus_id": stimulus, "trial_type": trial_type}
    Table(columns).write_tsv(path.with_name(f"{path.name}_{kind}.tsv"))


def write_volumes(root: Path) -> dict[tuple[int, int], np.ndarray]:
    """Two sessions of two runs in T1w space; brain masks that differ by one voxel."""
    rng = np.random.default_rng(0)
    betas = {}
    for session in (1, 2):
        for run in (1, 2):
            stem = root / f"sub-01/ses-0{session}/func/sub-01_ses-0{session}_task-see_run-{run}"
            betas[session, run] = rng.normal(size=(*SHAPE, TRIALS)).astype(np.float32)
            volume(stem.with_name(f"{stem.name}_space-T1w_desc-glm_betas.nii.gz"), betas[session, run])
            table(stem)
            brain = BRAIN.copy()
            brain[3, 0, 0] = run == 1
            volume(stem.with_name(f"{stem.name}_space-T1w_desc-brain_mask.nii.gz"), brain.astype(np.uint8))
    return betas


def write_surfaces(root: Path) -> np.ndarray:
    betas = np.random.default_rng(1).normal(size=(2, TRIALS, VERTICES)).astype(np.float32)
    betas[1, :, 4] = 0.0  # the medial wall
    for side, values in zip("LR", betas, strict=True):
        surface(root / f"sub-02/sub-02_task-see_run-1_hemi-{side}_space-fsaverage5_betas.func.gii", values)
    table(root / "sub-02/sub-02_task-see_run-1")
    return betas


def test_volumes_in_the_masks_of_all_runs(tmp_path: Path) -> None:
    betas = write_volumes(tmp_path / "d")
    with Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5")) as study:
        recording = study.recordings["sub-01"]
        mask = BRAIN.copy()
        mask[3, 0, 0] = False
        expected = np.concatenate([betas[session, run][mask].T for session in (1, 2) for run in (1, 2)])
        np.testing.assert_array_equal(recording.read(), expected)
        assert recording.space == "T1w"
        assert recording.trials["session"].tolist() == [1] * 12 + [2] * 12
        assert recording.trials["run"].tolist() == ([1] * 6 + [2] * 6) * 2
        assert recording.trials["repeat"].max() == 3
        np.testing.assert_allclose(recording.voxels["x"], 5 + 2 * np.argwhere(mask)[:, 0])


def test_an_own_mask_with_regions_comes_first(tmp_path: Path) -> None:
    write_volumes(tmp_path / "d")
    own = np.zeros(SHAPE, dtype=np.uint8)
    own[2, 1] = 1
    volume(tmp_path / "d/sub-01/mask.nii.gz", own)
    own[2, 1, :2] = 0
    volume(tmp_path / "d/sub-01/roi_V1.nii.gz", own)
    with Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5")) as study:
        assert study.recordings["sub-01"].n_voxels == 5
        assert study.recordings["sub-01"].rois["V1"].tolist() == [False, False, True, True, True]


def test_surfaces_left_before_right(tmp_path: Path) -> None:
    betas = write_surfaces(tmp_path / "d")
    with Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5")) as study:
        recording = study.recordings["sub-02"]
        kept = [v for v in range(VERTICES) if v != 4]
        np.testing.assert_array_equal(recording.read(), np.concatenate([betas[0], betas[1][:, kept]], axis=1))
        assert recording.n_vertices == (VERTICES, VERTICES)
        assert study.recipe["people"]["sub-02"]["voxels_left_out"]["constant_in_a_session"] == 1
        assert recording.to_gifti(np.ones(recording.n_voxels))["R"].darrays[0].data.shape == (VERTICES,)


def test_a_mislabelled_mesh_is_known_by_its_vertices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_surfaces(tmp_path / "d")
    monkeypatch.setitem(MESHES, "fsaverage6", VERTICES)
    with caplog.at_level("WARNING"), Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5")) as study:
        assert study.recordings["sub-02"].space == "fsaverage6"
    assert f"sub-02: the files say fsaverage5, their {VERTICES} vertices are those of fsaverage6" in caplog.text
    caplog.clear()
    monkeypatch.setitem(MESHES, "fsaverage6", 40_962)
    with caplog.at_level("WARNING"), Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5")) as study:
        assert study.recordings["sub-02"].space == "fsaverage5"
    assert f"but no mesh of that family has {VERTICES} vertices" in caplog.text


def test_hemispheres_of_two_meshes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_surfaces(tmp_path / "d")
    monkeypatch.setitem(MESHES, "fsaverage6", VERTICES)
    other = tmp_path / "d/sub-02/sub-02_task-see_run-1_hemi-R_space-fsaverage5_betas.func.gii"
    surface(other, np.zeros((TRIALS, VERTICES + 1), dtype=np.float32))
    with pytest.raises(InputError, match=rf"the hemispheres have {VERTICES} and {VERTICES + 1} vertices"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")


def test_trials_from_the_raw_folder_without_rest(tmp_path: Path) -> None:
    write_surfaces(tmp_path / "d")
    (tmp_path / "d/sub-02/sub-02_task-see_run-1_trials.tsv").unlink()
    table(tmp_path / "raw/sub-02/func/sub-02_task-see_run-1", kind="events", rest=True)
    with Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5", events=tmp_path / "raw")) as study:
        assert study.recordings["sub-02"].trials["stimulus_id"].tolist() == [f"s{n}" for n in range(TRIALS)]


def test_several_spaces_must_be_chosen_from(tmp_path: Path) -> None:
    write_volumes(tmp_path / "d")
    write_surfaces(tmp_path / "d")
    with pytest.raises(InputError, match="several spaces: T1w, fsaverage5"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")
    with pytest.raises(InputError, match="Known: T1w, fsaverage5"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5", space="MNI")
    with Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5", space="T1w")) as study:
        assert study.subjects == ["sub-01"]


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    write_surfaces(tmp_path / "d")
    write_volumes(tmp_path / "d")
    (tmp_path / "d/sub-02/sub-02_task-see_run-1_hemi-R_space-fsaverage5_betas.func.gii").unlink()
    (tmp_path / "d/sub-02/sub-02_task-see_run-1_trials.tsv").unlink()
    with pytest.raises(InputError) as caught:
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5", space="fsaverage5")
    for part in ("2 missing", "sub-02_task-see_run-1: betas of hemi-R", "sub-02_task-see_run-1_trials.tsv"):
        assert part in str(caught.value)
    for mask in (tmp_path / "d/sub-01").rglob("*_mask.nii.gz"):
        mask.unlink()
    with pytest.raises(InputError, match=r"sub-01/mask\.nii\.gz, or \*_space-T1w_desc-brain_mask"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5", space="T1w")


def test_two_files_of_one_run_need_a_desc(tmp_path: Path) -> None:
    betas = write_volumes(tmp_path / "d")
    stem = "sub-01/ses-01/func/sub-01_ses-01_task-see_run-1_space-T1w"
    volume(tmp_path / f"d/{stem}_desc-other_betas.nii.gz", betas[1, 1] + 1)
    with pytest.raises(InputError, match=r"more than one file of betas .* choose with --desc"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")
    with Study.open(import_fmriprep(tmp_path / "d", tmp_path / "s.h5", desc="glm")) as study:
        assert study.recordings["sub-01"].n_trials == 24


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    betas = write_volumes(tmp_path / "d")
    stem = tmp_path / "d/sub-01/ses-02/func/sub-01_ses-02_task-see_run-1_space-T1w_desc-glm_betas.nii.gz"
    volume(stem, betas[2, 1][..., :4])
    with pytest.raises(InputError, match=r"sub-01_ses-02_task-see_run-1: 4 betas, but .* has 6 trials"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")
    volume(stem, betas[2, 1], affine=np.diag([3.0, 3, 3, 1]))
    with pytest.raises(InputError, match="grid differs"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")
    volume(stem, betas[2, 1])
    stem.write_bytes(stem.read_bytes()[:800])
    with pytest.raises(InputError, match=r"run-1_space-T1w_desc-glm_betas.nii.gz is"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")
    with pytest.raises(InputError, match="holds no"):
        import_fmriprep(tmp_path / "raw", tmp_path / "s.h5")


def test_a_damaged_gifti_is_named(tmp_path: Path) -> None:
    write_surfaces(tmp_path / "d")
    path = tmp_path / "d/sub-02/sub-02_task-see_run-1_hemi-R_space-fsaverage5_betas.func.gii"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"hemi-R_space-fsaverage5_betas.func.gii is not a readable GIFTI"):
        import_fmriprep(tmp_path / "d", tmp_path / "s.h5")
