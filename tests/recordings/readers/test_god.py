"""GOD: columns are found by their metadata in both spellings of the format."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.recordings.readers.god import import_god, stimulus_name

VOXELS = 8
SPELLINGS = {"old": ("dataSet", "metaData"), "new": ("dataset", "metadata")}


def write_person(root: Path, number: int, spelling: str = "old", without: str = "") -> np.ndarray:
    """1,200 training, 1,750 test and 20 imagery samples; labels between the voxels, to make columns matter."""
    rng = np.random.default_rng(number)
    root.mkdir(exist_ok=True)
    train = 1_500_000 + np.arange(1200) // 8 + (10_000 + np.arange(1200)) / 1e6
    test = np.repeat(2_000_000 + np.arange(50) + 77 / 1e6, 35)
    imagery = np.repeat(2_000_000.0 + np.arange(10), 2)
    stimulus = np.concatenate([train, rng.permutation(test), imagery])
    kind = np.repeat([1, 2, 3], [1200, 1750, 20])
    design = np.stack([kind, stimulus, np.arange(len(kind)) // 50 + 1, np.ones(len(kind))], axis=1)
    values = rng.normal(size=(len(kind), VOXELS))
    table = np.concatenate([values[:, :3], design, values[:, 3:]], axis=1)
    voxel = np.array([0, 1, 2, 7, 8, 9, 10, 11])

    def row(columns: np.ndarray | list, entries: object = 1.0) -> np.ndarray:
        line = np.full(table.shape[1], np.nan)
        line[columns] = entries
        return line

    keys = {
        "VoxelData": row(voxel),
        "ROI_VC": row(voxel[:6]),
        "ROI_V1": row(voxel[:2]),
        "ROI_FFA": row(voxel[5:7]),
        "DataType": row([3]),
        "stimulus_id": row([4]),
        "Run": row([5]),
        "Session": row([6]),
        "voxel_x": row(voxel, np.arange(VOXELS) * 3.0),
        "voxel_y": row(voxel, np.arange(VOXELS) * -3.0),
        "voxel_z": row(voxel, 6.0),
    }
    keys.pop(without, None)
    data, meta = SPELLINGS[spelling]
    with h5py.File(root / f"Subject{number}.h5", "w") as file:
        file[data] = table
        file[f"{meta}/key"] = np.array(list(keys), dtype="S" if spelling == "old" else object)
        file[f"{meta}/value"] = np.stack(list(keys.values()))
        file[f"{meta}/description"] = np.array(["" for _ in keys], dtype=object)
    return values


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_columns_are_found_by_their_metadata(tmp_path: Path, spelling: str) -> None:
    values = write_person(tmp_path / "god", 1, spelling)
    with Study.open(import_god(tmp_path / "god", tmp_path / "s.h5")) as study:
        person = study.recordings["sub-01"]
        np.testing.assert_allclose(person.read(), values[:2950, :6], rtol=1e-6)
        assert {name: mask.tolist() for name, mask in person.rois.items()} == {
            "VC": [True] * 6,
            "V1": [True] * 2 + [False] * 4,
            "FFA": [False] * 5 + [True],
        }
        assert person.voxels["x"].tolist() == [0, 3, 6, 9, 12, 15]
        assert person.trials["run"][:100].tolist() == [1] * 50 + [2] * 50


def test_training_and_test_are_those_of_the_paper(tmp_path: Path) -> None:
    write_person(tmp_path / "god", 1)
    with Study.open(import_god(tmp_path / "god", tmp_path / "s.h5")) as study:
        assert study.split_names == ["default"]
        assert study.split("train").n_trials("sub-01") == 1200
        ids, mean = study.split("test").averaged("sub-01")
        assert mean.shape == (50, 6)
        assert study.split("test").n_trials("sub-01") == 1750
        assert ids[0] == "n02000000_77"
        assert study.stimuli.labels["category"][study.stimuli.rows(["n01500000_10003"])[0]] == "n01500000"
        assert study.unit == "category"


def test_imagery_is_a_role_of_its_own(tmp_path: Path) -> None:
    values = write_person(tmp_path / "god", 2)
    with Study.open(import_god(tmp_path / "god", tmp_path / "s.h5", imagery=True, roi="all")) as study:
        view = study.split("imagery")
        assert view.n_trials("sub-02") == 20
        assert len(view.stimulus_ids) == 10
        np.testing.assert_allclose(view.responses("sub-02"), values[2950:, :7], rtol=1e-6)


def test_pictures_from_the_users_folder(tmp_path: Path) -> None:
    write_person(tmp_path / "god", 1)
    with Study.open(import_god(tmp_path / "god", tmp_path / "first.h5")) as study:
        names = study.stimuli.ids.tolist()
    (tmp_path / "pictures/test").mkdir(parents=True)
    for number, name in enumerate(names):
        folder = tmp_path / "pictures" / ("test" if name.startswith("n02") else "")
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(folder / f"{name}.png")
    out = import_god(tmp_path / "god", tmp_path / "s.h5", images=tmp_path / "pictures", imagery=True)
    with Study.open(out) as study:
        where = names.index("n02000004_77")
        for name in ("n02000004_77", "imagery-n02000004"):
            row = study.stimuli.rows([name])
            assert study.stimuli.pixels(row)[0, 0, 0].tolist() == [where % 256, where // 256, 0]
    (tmp_path / "pictures/n01500000_10003.png").unlink()
    with pytest.raises(InputError, match=r"1 missing or damaged:\n  n01500000_10003.JPEG"):
        import_god(tmp_path / "god", tmp_path / "t.h5", images=tmp_path / "pictures")


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    write_person(tmp_path / "god", 1, without="stimulus_id")
    write_person(tmp_path / "god", 2, without="ROI_VC")
    write_person(tmp_path / "god", 3)
    whole = (tmp_path / "god/Subject3.h5").read_bytes()
    (tmp_path / "god/Subject3.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "god/Subject4.h5", "w") as file:
        file["betas"] = np.zeros((2, 2))
    with pytest.raises(InputError) as caught:
        import_god(tmp_path / "god", tmp_path / "s.h5", subjects=[1, 2, 3, 4, 5])
    for part in (
        "5 missing",
        "Subject1.h5: metadata key stimulus_id",
        "Subject2.h5: metadata key ROI_VC",
        "Subject3.h5: truncated",
        "Subject4.h5: dataSet with metaData",
        "Subject5.h5 (responses",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"Subject1\.h5"):
        import_god(tmp_path, tmp_path / "s.h5")


def test_unknown_subject(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Known: 1, 2, 3, 4, 5"):
        import_god(tmp_path, tmp_path / "s.h5", subjects=[6])


def test_stimulus_numbers() -> None:
    assert stimulus_name(1443537.022563) == "n01443537_22563"
    assert stimulus_name(12_345_678.0) == "n12345678"
    assert stimulus_name(1518878.999999) == "n01518878_999999"


def test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_person(tmp_path / "god", 1)
    with h5py.File(tmp_path / "god/Subject1.h5", "r+") as file:
        file["dataSet"][5, 3] = 7
    with pytest.raises(InputError, match=r"DataType must be 1 \(train\), .* found \[7\.0\]"):
        import_god(tmp_path / "god", tmp_path / "s.h5")
    with h5py.File(tmp_path / "god/Subject1.h5", "r+") as file:
        file["dataSet"][5, 3] = 2  # a training picture among the test trials
        file["dataSet"][5, 4] = file["dataSet"][6, 4]
    with pytest.raises(InputError, match=r"stimulus n01500000_10006 is of the parts"):
        import_god(tmp_path / "god", tmp_path / "s.h5")


def test_fewer_trials_than_published_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_person(tmp_path / "god", 1)
    with h5py.File(tmp_path / "god/Subject1.h5", "r+") as file:
        table = file["dataSet"][...]
        del file["dataSet"]
        file["dataSet"] = table[10:]
    import_god(tmp_path / "god", tmp_path / "s.h5")
    assert "sub-01: 1190 train trials, GOD has 1200" in caplog.text
