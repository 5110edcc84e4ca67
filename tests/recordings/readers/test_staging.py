"""Scratch files of the readers: sound voxels come through, and nothing is left behind by a full disk or Ctrl-C."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.files import scratch_folder
from phosphene.recordings.readers.staging import Staged
from phosphene.recordings.readers.tree import Needs


def test_blocks_come_back_scaled_and_without_lost_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-900, 900, (10, 4), dtype=np.int16)
    values[4:, 1] = 7  # constant in the second session only
    staged = Staged(tmp_path / "s", 4, "int16", 1 / 300)
    staged.append(values[:2], 1)
    staged.append(values[2:4], 1)
    staged.append(values[4:], 2)
    staged.finish()
    assert staged.shape == (10, 3)
    np.testing.assert_allclose(staged[3:8], values[3:8][:, [0, 2, 3]] / 300, rtol=1e-6)
    assert staged[8:20].shape == (2, 3)
    assert staged.dropped == {"not_finite": 0, "constant_in_a_session": 1}
    assert staged.words() == "1 of 4 voxels left out (0 with NaN or infinite responses, 1 constant within a session)"


def test_a_constant_that_is_split_over_blocks_is_still_found(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "s", 2)
    staged.append(np.array([[1.0, 1.0], [1.0, 2.0]]), 1)
    staged.append(np.array([[1.0, 2.0]]), 1)
    staged.finish()
    assert staged.keep.tolist() == [False, True]
    other = Staged(tmp_path / "t", 2)
    other.append(np.array([[1.0, 1.0], [1.0, 2.0]]), 1)
    other.append(np.array([[3.0, 2.0]]), 1)
    other.finish()
    assert other.keep.tolist() == [True, True]


def test_a_session_of_one_trial_says_nothing_about_variation(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "s", 1)
    staged.append(np.array([[1.0]]), 1)
    staged.append(np.array([[1.0]]), 2)
    staged.finish()
    assert staged.keep.tolist() == [True]


def test_no_sound_voxel_is_refused(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "s", 2)
    staged.append(np.array([[0.0, np.inf], [0.0, 1.0]]), 1)
    with pytest.raises(InputError, match=r"none of the 2 voxels is usable: 1 have NaN .* 1 are constant"):
        staged.finish()


def test_wrong_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 voxels\), found shape \(1, 3\)"):
        Staged(tmp_path / "s", 2).append(np.zeros((1, 3)), 1)


def stop_while_writing(out: Path, error: BaseException) -> None:
    with scratch_folder(out) as folder:
        (folder / "half").write_bytes(b"written")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_nothing_is_left_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stop_while_writing(tmp_path / "study.h5", error)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the disk is full: .*study\.h5 was not written"):
        stop_while_writing(tmp_path / "study.h5", OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*file/study\.h5"):
        stop_while_writing(tmp_path / "file/study.h5", KeyboardInterrupt())


def test_a_long_list_of_missing_files_is_cut(tmp_path: Path) -> None:
    needs = Needs(tmp_path, "made", "see the docs")
    needs.check()
    for number in range(130):
        needs.file(f"{number}.txt", "a part")
    with pytest.raises(InputError) as caught:
        needs.check()
    assert "130 missing" in str(caught.value)
    assert "and 30 more" in str(caught.value)
    assert str(caught.value).endswith("see the docs")
