"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.files import FolderFormat, atomic_path, digest, read_json, refuse_filled, write_json, write_text


def test_success_leaves_only_the_result(tmp_path):
    with atomic_path(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_failure_and_interruption_keep_the_old_file(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def half_written():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        half_written()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


MAP = FolderFormat("a map", "map/1", ("config.json", "parts/*.npy", "notes.txt"), keys=("scale",))


def write_map(path, *names):
    with MAP.written(path) as temporary:
        write_json(temporary / "config.json", {"format": "map/1", "scale": 2})
        for name in names:
            write_text(temporary / name, name)


def files_of(folder):
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())


def test_a_folder_of_the_same_kind_is_replaced_whole(tmp_path):
    write_map(tmp_path / "d", "parts/old.npy", "notes.txt")
    write_map(tmp_path / "d", "parts/new.npy")
    assert files_of(tmp_path) == ["d/config.json", "d/parts/new.npy"]
    (tmp_path / "empty" / "within").mkdir(parents=True)
    write_map(tmp_path / "empty")
    assert [each.name for each in (tmp_path / "empty").iterdir()] == ["config.json"]


A_MAP = {"config.json": '{"format": "map/1", "scale": 1}'}


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ({"thesis.txt": "x", "results/a.csv": "1"}, r"\(thesis.txt, results/a.csv\), and is not a map: name another"),
        ({"config.json": '{"format": "map/2"}'}, r"\(config.json\), and is not a map"),
        ({"config.json": "[]"}, "is not a map"),
        ({"config.json": '{"format": "map/1"}'}, r"\(config.json\), and is not a map"),
        ({**A_MAP, "deep/.git/HEAD": "x"}, r"lost \(deep/.git/HEAD\) beside those of a map"),
        ({**A_MAP, "parts/mine/a.npy": "x"}, r"lost \(parts/mine/a.npy\) beside"),
        ({**A_MAP, "mine/parts/a.npy": "x"}, r"lost \(mine/parts/a.npy\) beside"),
        ({**A_MAP, "parts/config.json": "{}", "mine/config.json": "{}"}, r"\(mine/config.json, parts/config.json\)"),
        ({f"{n}.txt": "x" for n in range(3)}, r"\(0.txt, 1.txt, 2.txt\)"),
        ({f"{n}.txt": "x" for n in range(5)}, r"\(0.txt, 1.txt, 2.txt and more\)"),
    ],
)
def test_folders_of_other_people_are_never_replaced(tmp_path, mine, words):
    for name, text in mine.items():
        write_text(tmp_path / "d" / name, text)
    with pytest.raises(InputError, match=words):
        MAP.check(tmp_path / "d")
    with pytest.raises(InputError, match=words):
        write_map(tmp_path / "d")
    with pytest.raises(InputError, match="holds files that would be lost"), atomic_path(tmp_path / "d") as temporary:
        temporary.mkdir()
    assert {name: (tmp_path / "d" / name).read_text() for name in files_of(tmp_path / "d")} == mine
    assert [each.name for each in tmp_path.iterdir()] == ["d"]


def test_links_are_somebodys_files(tmp_path):
    write_text(tmp_path / "far" / "thesis.txt", "x")
    for name, to in (("alive", tmp_path / "far"), ("dead", tmp_path / "nowhere")):
        write_map(tmp_path / name)
        (tmp_path / name / "mine").symlink_to(to)
        with pytest.raises(InputError, match=r"lost \(mine\) beside those of a map"):
            write_map(tmp_path / name)
        assert (tmp_path / name / "mine").readlink() == to
    with pytest.raises(InputError, match=r"lost \(thesis.txt\)"):
        write_map(tmp_path / "alive" / "mine")


def test_a_link_to_nothing_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "d").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="d is a link to nothing, where a folder is to be written"):
        MAP.check(tmp_path / "d")
    with pytest.raises(InputError, match="d is a link to nothing"):
        write_map(tmp_path / "d")
    assert [each.name for each in tmp_path.iterdir()] == ["d"]


def test_a_refusal_does_not_look_through_all_there_is(tmp_path, monkeypatch):
    for n in range(50):
        write_text(tmp_path / "mine" / f"{n:02}" / "a.txt", "x")
    seen, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: [seen.append(str(path)), scandir(path)][1])
    with pytest.raises(InputError, match=r"\(00/a.txt, 01/a.txt, 02/a.txt and more\), and is not a map"):
        MAP.check(tmp_path / "mine")
    assert [Path(each).name for each in seen] == ["mine", "00", "01", "02", "03"]


def test_what_comes_while_a_folder_is_written_is_not_lost(tmp_path):
    with pytest.raises(InputError, match=r"lost \(mine.txt\)"), MAP.written(tmp_path / "d"):
        write_text(tmp_path / "d" / "mine.txt", "x")
    assert files_of(tmp_path) == ["d/mine.txt"]


def test_the_folder_a_process_stands_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the folder this runs in"):
        write_map(".")
    write_text("mine.txt", "x")
    with pytest.raises(InputError, match="the folder this runs in"):
        refuse_filled(tmp_path)
    assert files_of(tmp_path) == ["mine.txt"]
    write_map(tmp_path / "d")
    (tmp_path / "d" / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "d" / "parts")
    with pytest.raises(InputError, match="d is the folder this runs in"):
        write_map(tmp_path / "d")
    write_map(tmp_path / "dd")


@pytest.mark.skipif(os.name != "posix", reason="a folder somebody stands in cannot be deleted elsewhere")
def test_in_a_deleted_folder_whole_paths_go_on_and_others_are_nowhere(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for write in (write_map, MAP.check, refuse_filled, lambda path: write_text(path, "x")):
        with pytest.raises(InputError, match="d is nowhere: the folder this runs in was deleted"):
            write("d")
    write_map(tmp_path / "d")
    write_map(tmp_path / "d", "notes.txt")
    assert files_of(tmp_path) == ["d/config.json", "d/notes.txt"]


def test_a_file_is_no_place_for_a_folder_nor_the_other_way_round(tmp_path):
    write_text(tmp_path / "a", "x")
    with pytest.raises(InputError, match="a is a file, where a folder is to be written"):
        write_map(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="b is a folder, where a file is to be written"):
        write_text(tmp_path / "b", "x")


@pytest.mark.skipif(os.name != "posix", reason="modes of files are of POSIX")
def test_tensors_are_read_by_whom_the_rest_is(tmp_path):
    """A lab shares a folder: the weights of a decoder are no more private than its settings."""
    from safetensors.numpy import save_file

    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "decoder") as temporary:
            (temporary / "deep").mkdir(parents=True)
            write_json(temporary / "config.json", {})
            save_file({"a": np.zeros(2)}, temporary / "deep" / "model.safetensors")
        with MAP.written(tmp_path / "map") as temporary:
            save_file({"a": np.zeros(2)}, temporary / "parts.safetensors")
        with atomic_path(tmp_path / "alone.safetensors") as temporary:
            save_file({"a": np.zeros(2)}, temporary)
    finally:
        os.umask(before)
    decoder = ("decoder/config.json", "decoder/deep/model.safetensors")
    for name in (*decoder, "map/parts.safetensors", "alone.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


def test_full_disk_is_said_and_loses_nothing(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(InputError, match=r"disk is full.*a\.txt"), atomic_path(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "old"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path):
    target = tmp_path / "a[1].txt"
    code = """
import os, signal, sys
from phosphene.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    (dead,) = tmp_path.iterdir()
    write_text(target, "too soon to say")
    assert dead.exists()
    with atomic_path(target) as temporary:
        living = temporary.parent
        for folder in (dead, living):
            os.utime(folder, (0, 0))
        write_text(target, "new")
        assert living.exists()
        assert not dead.exists()
        temporary.write_text("newest")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a[1].txt", "newest")]


_LIMITED = """
import resource, sys
import numpy as np
from phosphene.errors import InputError
from phosphene.files import atomic_path
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from safetensors.numpy import save_file
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
voxels = Table({"i": range(20000), "j": [0] * 20000, "k": [0] * 20000})
person = Recording("sub-01", np.ones((50, 20000), "float32"), Table({"stimulus_id": ["a"] * 50}), voxels)
try:
    if sys.argv[1].endswith(".h5"):
        Study(StimulusSet(["a"]), [person]).save(sys.argv[1])
    else:
        with atomic_path(sys.argv[1]) as temporary:
            save_file({"x": np.ones((50, 20000), "float32")}, temporary)
except InputError as error:
    sys.stdout.write(str(error))
    sys.exit(2)
"""


@pytest.mark.parametrize("limit", [500, 65536, 1500000, 2500000, 3999000])
@pytest.mark.parametrize("name", ["study.h5", "model.safetensors"])
def test_full_disk_under_a_real_limit(tmp_path, name, limit):
    """A process that may write no more meets the limit inside HDF5 or safetensors, as on a full disk; it lives on."""
    words = [sys.executable, "-c", _LIMITED, str(tmp_path / name), str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == f"the disk is full: {tmp_path / name} was not written, what stood there before is unchanged"
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_nan_and_names_damage(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json is not readable JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "c.json")


def test_digest_tells_dtype_shape_and_borders_apart():
    zeros = np.zeros(4, dtype=np.float32)
    kinds = [zeros, zeros.reshape(2, 2), zeros.astype(np.int32)]
    assert len({digest(kind) for kind in kinds}) == 3
    assert digest("ab", "c") != digest("a", "bc")
