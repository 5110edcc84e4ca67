"""NSD: what is written into a tree of the released layout comes out of the study, place by place."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import nibabel
import nsd_tree as made
import numpy as np
import pytest
import scipy.io

from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.readers import nsd_layout as layout
from phosphene.recordings.readers.nsd import import_nsd, nsd_splits
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.surfaces import MESHES, icosphere, neighbourhood_average


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nsd")
    made.write_design(root)
    made.write_pictures(root)
    return root


@pytest.fixture(scope="module")
def betas(tree: Path) -> list[np.ndarray]:
    return made.write_person(tree, 1, sessions=2)


@pytest.fixture(scope="module")
def study(tree: Path, betas: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Study:
    captions = made.write_captions(tmp_path_factory.mktemp("coco") / "captions.json")
    out = tmp_path_factory.mktemp("out") / "nsd.h5"
    import_nsd(tree, out, subjects=["subj01"], sessions=2, captions=[captions])
    assert [entry.name for entry in out.parent.iterdir()] == ["nsd.h5"]  # nothing of the scratch folder is left
    return Study.open(out)


@pytest.fixture
def copy(tree: Path, betas: list[np.ndarray], tmp_path: Path) -> Path:
    """A tree of its own, to be damaged; the large files of the experiment are links."""
    shutil.copytree(tree, tmp_path / "nsd", copy_function=lambda a, b: Path(b).symlink_to(a))
    return tmp_path / "nsd"


def test_every_response_is_at_its_place(study: Study, betas: list[np.ndarray]) -> None:
    person = study.recordings["sub-01"]
    index = tuple(person.voxels[axis] for axis in "ijk")
    expected = np.concatenate([session[(slice(None), *index)] for session in betas]) / 300
    assert person.n_trials == 1500
    np.testing.assert_allclose(person.read(), expected, rtol=1e-6)
    np.testing.assert_array_equal(person.voxels["ncsnr"], np.arange(120).reshape(made.SHAPE)[index])
    np.testing.assert_allclose(person.voxels["x"], 1.8 * index[0] - 4, rtol=1e-6)
    # slice by slice, as the scanner lists them
    assert np.all(np.diff(np.ravel_multi_index(index[::-1], made.SHAPE[::-1])) > 0)


def test_a_voxel_lost_in_one_session_is_left_out_and_counted(study: Study) -> None:
    person = study.recordings["sub-01"]
    assert person.n_voxels == 3 * 2 * 4 - 1
    assert (1, 1, 1) not in set(zip(*(person.voxels[axis].tolist() for axis in "ijk"), strict=True))
    assert study.recipe["voxels_left_out"] == {"sub-01": {"not_finite": 0, "constant_in_a_session": 1}}


def test_regions_have_the_names_of_the_colour_tables(study: Study) -> None:
    rois = study.recordings["sub-01"].rois
    assert set(rois) == {"nsdgeneral", "V1v", "V1d", "Kastner2015.V1d"}
    np.testing.assert_array_equal(rois["V1d"], study.recordings["sub-01"].voxels["i"] == 2)
    assert rois["nsdgeneral"].all()


def test_trials_show_the_images_of_the_design(study: Study, tree: Path) -> None:
    design = layout.read_design(tree / layout.DESIGN)
    trials = study.recordings["sub-01"].trials
    shown = design.shown(1)[:1500]
    assert trials["stimulus_id"].tolist() == [f"nsd-{n:05d}" for n in shown]
    assert trials["session"].tolist() == [1] * 750 + [2] * 750
    assert np.bincount(trials["run"][:750])[1:].tolist() == [63, 62] * 6
    seen: dict[int, int] = {}
    for image, repeat in zip(shown.tolist(), trials["repeat"].tolist(), strict=True):
        assert repeat == seen.get(image, 0)
        seen[image] = repeat + 1


def test_pictures_captions_and_labels_belong_to_their_stimulus(study: Study) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (73_000, 3, 3, 3), dtype=np.uint8)
    for row in (0, 7, len(study.stimuli) - 1):
        number = int(study.stimuli.ids[row].removeprefix("nsd-"))
        np.testing.assert_array_equal(study.stimuli.pixels([row])[0], pictures[number])
        assert study.stimuli.captions[row] == (f"picture {number}",)
        assert study.stimuli.labels["coco_id"][row] == 500_000 - number


def test_both_published_splits_by_name(tree: Path, study: Study) -> None:
    design = layout.read_design(tree / layout.DESIGN)
    splits = nsd_splits(design, np.unique(design.shown(1)))
    assert {role: len(ids) for role, ids in splits["shared1000-40"].items()} == {"train": 9000, "test": 1000}
    assert len(splits["shared982-37"]["test"]) == 982
    assert set(splits["shared982-37"]["test"]) == set(layout.stimulus_name(design.shared_until(37)))
    assert not set(splits["shared982-37"]["train"]) & set(splits["shared1000-40"]["test"])
    assert study.split_names == ["shared1000-40", "shared982-37"]
    assert set(study.split("test").stimulus_ids) <= set(layout.stimulus_name(design.shared))


def test_views_are_scaled_by_session_on_training_trials(study: Study) -> None:
    view = study.split("train")
    session = view.trials("sub-01")["session"]
    for number in (1, 2):
        part = view.responses("sub-01")[session == number]
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(part.std(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("mask", "expected"), [("V1v", 8), ("prf-visualrois", 16), ("Kastner2015:V1d", 8), ("whole", 120)]
)
def test_masks_by_name(tree: Path, betas: list[np.ndarray], tmp_path: Path, mask: str, expected: int) -> None:
    out = import_nsd(tree, tmp_path / "s.h5", subjects=[1], sessions=1, mask=mask, pictures=False)
    with Study.open(out) as study:
        assert study.recordings["sub-01"].n_voxels == expected


def test_nifti_betas_give_what_hdf5_gives(tree: Path, tmp_path: Path) -> None:
    betas = made.write_person(tree, 4, sessions=1, suffix="nii.gz")
    with Study.open(import_nsd(tree, tmp_path / "s.h5", subjects=[4], sessions=1, image_size=2)) as study:
        person = study.recordings["sub-04"]
        index = tuple(person.voxels[axis] for axis in "ijk")
        np.testing.assert_allclose(person.read(), betas[0][(slice(None), *index)] / 300, rtol=1e-6)
        assert study.stimuli.frame_shape == (2, 2, 3)


def test_fsaverage(tree: Path, tmp_path: Path) -> None:
    betas = made.write_surfaces(tree, 2, sessions=2)
    out = import_nsd(tree, tmp_path / "s.h5", subjects=[2], sessions=2, space="fsaverage", pictures=False)
    with Study.open(out) as study:
        person = study.recordings["sub-02"]
        assert person.n_vertices == (made.VERTICES, made.VERTICES)
        assert study.recipe["voxels_left_out"]["sub-02"]["not_finite"] == 1
        vertex, side = person.voxels["vertex"], person.voxels["hemisphere"]
        assert vertex[side == "L"].tolist() == list(range(5, 15))
        assert 7 not in vertex[side == "R"]
        columns = (
            [pair[0][:, vertex[side == "L"]] for pair in betas],
            [pair[1][:, vertex[side == "R"]] for pair in betas],
        )
        expected = np.concatenate([np.concatenate(part) for part in columns], axis=1)
        np.testing.assert_allclose(person.read(), expected, rtol=1e-6)
        assert set(person.to_gifti(np.ones(person.n_voxels))) == {"L", "R"}


def test_coarser_surfaces_are_means_over_neighbours(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, coarse = icosphere(2), icosphere(1)
    monkeypatch.setitem(MESHES, "fsaverage", len(fine))
    monkeypatch.setitem(MESHES, "fsaverage5", len(coarse))
    monkeypatch.setattr(made, "VERTICES", len(fine))
    mask = fine.points[:, 2] > 0.2
    betas = made.write_surfaces(tree, 6, sessions=2, mask=mask)
    words = {"subjects": [6], "sessions": 2, "space": "fsaverage5", "pictures": False}
    for name in ("SUBJECTS_DIR", "FREESURFER_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"sphere of fsaverage \(lh.sphere.reg\) was not found"):
        import_nsd(tree, tmp_path / "s.h5", **words)
    surf = tree / "nsddata/freesurfer/fsaverage/surf"
    surf.mkdir()
    for side in ("lh", "rh"):
        nibabel.freesurfer.write_geometry(str(surf / f"{side}.sphere.reg"), 100 * fine.points, fine.faces)
    weights = neighbourhood_average(fine, coarse.points, mask).toarray()
    kept = np.flatnonzero(weights.sum(axis=0) > 0)
    assert 5 < len(kept) < len(coarse)
    with Study.open(import_nsd(tree, tmp_path / "s.h5", **words)) as study:
        person = study.recordings["sub-06"]
        assert (person.space, person.n_vertices) == ("fsaverage5", (len(coarse), len(coarse)))
        # one response of the right hemisphere is not a number: the vertices that need it are left out
        lost = int((weights[-1] > 0).sum())
        assert 1 <= lost <= 3
        assert study.recipe["voxels_left_out"]["sub-06"]["not_finite"] == lost
        for number, side in enumerate("LR"):
            mine = person.voxels["hemisphere"] == side
            vertex = person.voxels["vertex"][mine]
            known = np.nan_to_num(np.concatenate([pair[number][:, mask] for pair in betas]))
            expected = known @ weights[:, vertex]
            np.testing.assert_allclose(person.read()[:, mine], expected, atol=1e-5)
            ncsnr = np.arange(len(fine))[mask] @ weights[:, vertex]
            np.testing.assert_allclose(person.voxels["ncsnr"][mine], ncsnr, rtol=1e-5)
            assert person.rois["nsdgeneral"][mine].all()
            assert len(vertex) == len(kept) - lost * (side == "R")


def test_all_that_is_missing_is_listed_before_anything_is_read(copy: Path, tmp_path: Path) -> None:
    (copy / layout.DESIGN).unlink()
    folder = copy / layout.beta_folder(1, "func1pt8mm", layout.BETAS)
    (folder / "ncsnr.nii.gz").unlink()
    whole = (folder / "betas_session02.hdf5").read_bytes()
    (folder / "betas_session02.hdf5").unlink()
    (folder / "betas_session02.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=3)
    told = str(caught.value)
    for part in (
        "4 missing",
        "nsd_expdesign.mat",
        "ncsnr.nii.gz",
        "betas_session02.hdf5: truncated",
        "betas_session03",
    ):
        assert part in told
    assert not (tmp_path / "s.h5").exists()


def test_without_sessions_all_scanned_ones_are_wanted(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="38 missing"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], pictures=False)


def test_damaged_nifti_is_named(copy: Path, tmp_path: Path) -> None:
    made.write_person(copy, 5, sessions=1, suffix="nii.gz")
    path = copy / layout.beta_folder(5, "func1pt8mm", layout.BETAS) / "betas_session01.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"betas_session01\.nii\.gz is truncated"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[5], sessions=1, pictures=False)
    assert list(tmp_path.glob("*.h5*")) == []
    assert list(tmp_path.glob(".*staging")) == []


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), InputError)]
)
def test_interrupted_imports_leave_nothing(
    tree: Path, betas: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type
) -> None:
    (tmp_path / "s.h5").write_text("an older study")
    append, calls = Staged.append, []

    def stop(self: Staged, block: np.ndarray, session: int) -> None:
        calls.append(session)
        if session == 2:
            raise error
        append(self, block, session)

    monkeypatch.setattr(Staged, "append", stop)
    with pytest.raises(raised):
        import_nsd(tree, tmp_path / "s.h5", subjects=[1], sessions=2, pictures=False)
    assert calls[-1] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.h5"]
    assert (tmp_path / "s.h5").read_text() == "an older study"


def test_wrong_grid_is_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / layout.beta_folder(1, "func1pt8mm", layout.BETAS) / "betas_session01.hdf5"
    path.unlink()
    with h5py.File(path, "w") as file:
        file["betas"] = np.zeros((750, *made.SHAPE), dtype=np.int16)  # axes not in MATLAB's order
    with pytest.raises(InputError, match=r"expected shape \(750, 6, 4, 5\)"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)


def test_a_log_that_disagrees_with_the_design_is_refused(copy: Path, tmp_path: Path) -> None:
    design = layout.read_design(copy / layout.DESIGN)
    path = copy / "nsddata/ppdata/subj01/behav/responses.tsv"
    path.parent.mkdir()
    images = design.shown(1)[:750] + 1
    lines = [f"1\t1\t1\t{image}\tNaN" for image in images]
    path.write_text("\n".join(["SUBJECT\tSESSION\tRUN\t73KID\tRT", *lines]) + "\n")
    import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)
    lines[10] = "1\t1\t1\t1\t1.5"
    path.write_text("\n".join(["SUBJECT\tSESSION\tRUN\t73KID\tRT", *lines]) + "\n")
    with pytest.raises(InputError, match=r"1 trials name another image .* trial 11 of session 1"):
        import_nsd(copy, tmp_path / "t.h5", subjects=[1], sessions=1, pictures=False)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mask": "V9"}, "unknown mask of subj01 .* Known: .*V1d"),
        ({"space": "mni"}, "Known: fsaverage, fsaverage5, fsaverage6, func1pt8mm"),
        ({"subjects": [9]}, "Known: subj01"),
        ({"sessions": 0}, "sessions 1 to 40"),
    ],
)
def test_wrong_words_list_the_known_ones(tree: Path, betas: list, tmp_path: Path, wrong: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        import_nsd(tree, tmp_path / "s.h5", **({"subjects": [1], "sessions": 1, "pictures": False} | wrong))


def test_images_without_caption_are_named(tree: Path, betas: list, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text('{"annotations": []}')
    with pytest.raises(InputError, match=r"no caption in .* give both"):
        import_nsd(tree, tmp_path / "s.h5", subjects=[1], sessions=1, captions=[tmp_path / "captions.json"])


def test_atlases_without_names_are_read_and_told(copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab").unlink()
    with Study.open(import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)) as study:
        assert {"prf-visualrois_1", "prf-visualrois_2"} <= set(study.recordings["sub-01"].rois)
    assert "prf-visualrois has no colour table" in caplog.text


def test_damaged_tables_of_labels_and_atlases_are_named(copy: Path, tmp_path: Path) -> None:
    path = copy / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab"
    path.unlink()
    path.write_text("0 Unknown\n\nV1v 1\n")
    with pytest.raises(InputError, match=r"prf-visualrois\.mgz\.ctab, line 3: expected a label number"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)
    roi = copy / "nsddata/ppdata/subj01/func1pt8mm/roi"
    made.volume(roi / "other.nii.gz", np.ones((2, 2, 2), dtype=np.float32))
    with pytest.raises(InputError, match=r"atlas other has shape \(2, 2, 2\)"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)
    (roi / "other.nii.gz").write_bytes((roi / "nsdgeneral.nii.gz").read_bytes()[:100])
    with pytest.raises(InputError, match=r"other\.nii\.gz is (damaged|not a readable image)"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)


def test_damaged_designs_are_named(copy: Path, tmp_path: Path) -> None:
    path = copy / layout.DESIGN
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"nsd_expdesign\.mat(:| is not a readable MATLAB file)"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)
    scipy.io.savemat(path, {"sharedix": np.arange(3)})
    with pytest.raises(InputError, match="missing variable masterordering, subjectim"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)
    scipy.io.savemat(path, {"sharedix": [1], "masterordering": [1, 9], "subjectim": np.ones((8, 3))})
    with pytest.raises(InputError, match=r"expected subjectim \(8, images\)"):
        import_nsd(copy, tmp_path / "s.h5", subjects=[1], sessions=1, pictures=False)
