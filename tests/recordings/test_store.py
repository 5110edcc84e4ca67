"""The study file: a faithful round trip, lazy reading, checksums, and nothing half-written."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Recording, Study, StudyWriter
from phosphene.recordings.store import verify
from phosphene.stimuli import StimulusSet
from phosphene.table import Table


def test_round_trip(made_study, tmp_path):
    path = made_study.save(tmp_path / "study.h5")
    with Study.open(path) as back:
        assert back.digest == made_study.digest
        assert (back.name, back.scaling, back.unit) == (made_study.name, made_study.scaling, made_study.unit)
        assert back.roles() == made_study.roles()
        assert back.stimuli.captions == made_study.stimuli.captions
        assert back.stimuli.labels == made_study.stimuli.labels
        np.testing.assert_array_equal(back.stimuli.pixels(), made_study.stimuli.pixels())
        for subject, recording in made_study.recordings.items():
            np.testing.assert_array_equal(back.recordings[subject].read(), recording.read())
            assert back.recordings[subject].trials == recording.trials
            assert back.recordings[subject].voxels == recording.voxels
            assert back.recordings[subject].meta() == recording.meta()
        np.testing.assert_allclose(
            back.split("test").responses("sub-01"), made_study.split("test").responses("sub-01"), atol=1e-5
        )
    assert verify(path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["study.h5"]


def test_reading_some_rows_reads_some_rows(made_study, tmp_path, monkeypatch):
    path = made_study.save(tmp_path / "study.h5")
    with Study.open(path) as study:
        recording = study.recordings["sub-01"]
        read = []
        plain = h5py.Dataset.__getitem__
        monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda d, key: read.append(key) or plain(d, key))
        rows = [40, 3, 4, 40]
        np.testing.assert_array_equal(recording.read(rows), made_study.recordings["sub-01"].read(rows))
        assert read == [slice(3, 5), slice(40, 41)]


def test_digest_follows_content(made_study):
    person = made_study.recordings["sub-01"]
    responses = np.array(person.responses)
    responses[3, 4] += 1
    other = Study(
        made_study.stimuli,
        [Recording("sub-01", responses, person.trials, person.voxels), made_study.recordings["sub-02"]],
        {"default": made_study.roles()},
    )
    assert other.digest != made_study.digest
    assert made_study.with_splits({"fold": {"train": ["s00"]}}).digest != made_study.digest


@pytest.mark.parametrize(("value", "row"), [(np.nan, 70), (np.inf, 3)])
def test_nan_and_infinite_responses_are_named(made_study, tmp_path, value, row):
    person = made_study.recordings["sub-01"]
    responses = np.array(person.responses)
    responses[row, 5] = value
    bad = Study(made_study.stimuli, [Recording("sub-01", responses, person.trials, person.voxels)])
    with pytest.raises(
        InputError, match=f"sub-01: 1 responses are NaN or infinite, the first in trial {row} at voxel 5"
    ):
        bad.save(tmp_path / "study.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_stops_early_leaves_nothing(tmp_path):
    stimuli, voxels = StimulusSet(["a", "b"]), Table({"voxel": [0]})
    trials = Table({"stimulus_id": ["a", "b"]})
    path = tmp_path / "study.h5"

    def write(*blocks, error=None):
        with StudyWriter(path, scaling="none") as writer:
            writer.stimuli(stimuli)
            person = writer.recording("sub-01", trials, voxels)
            for block in blocks:
                person.append(block)
            if error is not None:
                raise error

    with pytest.raises(InputError, match="the trials table has 2 rows, the responses have 1 trials"):
        write(np.ones((1, 1)))
    with pytest.raises(InputError, match="more than the 2 trials"):
        write(np.ones((3, 1)))
    with pytest.raises(InputError, match=r"must be \(trials, 1 voxels\), found shape \(2, 4\)"):
        write(np.ones((2, 4)))
    with pytest.raises(KeyboardInterrupt):
        write(np.ones((2, 1)), error=KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
    write(np.ones((1, 1)), np.zeros((1, 1)))
    with pytest.raises(KeyboardInterrupt):
        write(error=KeyboardInterrupt())
    with Study.open(path) as study:
        assert study.recordings["sub-01"].read().ravel().tolist() == [1.0, 0.0]


def test_damaged_files_are_named(made_study, tmp_path):
    path = made_study.save(tmp_path / "study.h5")
    whole = path.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.h5 is not a readable HDF5 file \(truncated or damaged\)"):
        Study.open(cut)
    with pytest.raises(InputError, match="does not exist"):
        Study.open(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="is not a phosphene study"):
        Study.open(tmp_path / "other.h5")
    with h5py.File(path, "r+") as file:
        del file["recordings/sub-02/trials"]
    with pytest.raises(InputError, match="is a damaged study file"):
        Study.open(path)


def test_changed_responses_are_found(made_study, tmp_path):
    path = made_study.save(tmp_path / "study.h5")
    with h5py.File(path, "r+") as file:
        file["recordings/sub-02/responses"][0, 0] += 1
    assert verify(path) == ["sub-02: responses differ from their checksum"]
