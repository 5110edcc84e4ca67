"""Token merging on the command line: options of encode, and the fidelity report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

transformers = pytest.importorskip("transformers", reason="vision towers need transformers: not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
import tiny_models  # noqa: E402

from phosphene.cli import app  # noqa: E402
from phosphene.encoders import Targets, make_encoder  # noqa: E402
from phosphene.errors import InputError  # noqa: E402
from phosphene.recordings import Recording, Study  # noqa: E402
from phosphene.stimuli.scenes import scene_set  # noqa: E402
from phosphene.table import Table  # noqa: E402


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models, pictures and a study of them."""
    import numpy as np

    folder = tmp_path_factory.mktemp("room")
    tiny_models.clip(folder / "clip")
    stimuli = scene_set(12, size=32)
    (folder / "pictures").mkdir()
    for name, frame in zip(stimuli.ids, stimuli.frames(), strict=True):
        Image.fromarray(frame).save(folder / "pictures" / f"{name}.png")
    trials = Table({"stimulus_id": stimuli.ids})
    person = Recording("sub-01", np.ones((12, 1), "float32"), trials, Table({"voxel": [0]}))
    splits = {"default": {"train": stimuli.ids[:8], "test": stimuli.ids[8:]}}
    Study(stimuli, [person], splits).save(folder / "study.h5")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path / "cache"))


def _run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _encode(room: Path, out: Path, encoder: str, *words: object) -> str:
    return _run("encode", room / "study.h5", "--encoder", encoder, "--out", out, *words)


def test_encode_merges_when_asked_and_only_then(room: Path, tmp_path: Path) -> None:
    name = f"hf:{room / 'clip'}"
    assert "merged" not in _encode(room, tmp_path / "full", name)
    told = _encode(room, tmp_path / "half", name, "--merge-tokens", 0.5, "--json", tmp_path / "told.json")
    assert "tokens merged inside the tower: 17 -> 9 tokens" in told
    facts = json.loads((tmp_path / "told.json").read_text())
    assert facts["merging"]["remaining"] == 9
    full, half = Targets.open(tmp_path / "full"), Targets.open(tmp_path / "half")
    assert full.shape("tokens") == half.shape("tokens") == (17, 24)
    assert full.identity == make_encoder(name).identity
    assert half.identity == make_encoder(name, merge={"tokens": 0.5}).identity != full.identity


@pytest.mark.parametrize(
    ("words", "merge", "texts"),
    [
        (("--merge-flops", 0.7), {"flops": 0.7}, ()),
        (("--merge-flops", 0.7, "--merge-guide", "both"), {"flops": 0.7, "guide": "both"}, ()),
        (("--merge-tokens", 0.6, "--merge-text", "a dog"), {"tokens": 0.6, "guide": "text"}, ("a dog",)),
        (("--merge-guide", "spatial", "--set", "merge.r=2"), {"r": 2, "guide": "spatial"}, ()),
        (("--merge-tokens", 0.6, "--set", "merge.restore=false"), {"tokens": 0.6, "restore": False}, ()),
    ],
)
def test_options_become_settings(room: Path, tmp_path: Path, words: tuple, merge: dict, texts: tuple) -> None:
    name = f"hf:{room / 'clip'}"
    _encode(room, tmp_path / "t", name, *words)
    assert Targets.open(tmp_path / "t").identity == make_encoder(name, merge=merge, texts=texts).identity


def test_standardised_towers_merge_inside(room: Path, tmp_path: Path) -> None:
    told = _encode(room, tmp_path / "t", f"z:hf:{room / 'clip'}", "--merge-flops", 0.7, "--split", "default")
    assert "17 -> 8 tokens" in told
    assert Targets.open(tmp_path / "t").encoder.inner.config.merge.flops == 0.7


def test_what_cannot_be_merged_is_refused(room: Path, tmp_path: Path) -> None:
    name = f"hf:{room / 'clip'}"
    for encoder in ("gabor", "z:pixels", f"hf-text:{room / 'clip'}"):
        with pytest.raises(InputError, match=r"no tower whose tokens could be merged; pocket, mlip:FOLDER, hf:MODEL"):
            _encode(room, tmp_path / "t", encoder, "--merge-flops", 0.5)
    with pytest.raises(InputError, match=r"flops = 0\.1 is out of reach"):
        _encode(room, tmp_path / "t", name, "--merge-flops", 0.1)
    with pytest.raises(InputError, match="at most one of tokens, flops and r"):
        _encode(room, tmp_path / "t", name, "--merge-flops", 0.5, "--merge-tokens", 0.5)
    with pytest.raises(InputError, match="say how much to merge with --merge-flops"):
        _encode(room, tmp_path / "t", name, "--merge-guide", "spatial")
    with pytest.raises(InputError, match="needs texts that say what to spare, such as --merge-text"):
        _encode(room, tmp_path / "t", name, "--merge-flops", 0.7, "--merge-guide", "text")
    with pytest.raises(InputError, match=r"merge\.guide"):
        _encode(room, tmp_path / "t", name, "--merge-flops", 0.7, "--merge-guide", "spacial")
    for words, message in (
        (("--merge-flops", 0.7, "--set", "merge.strength=0.3"), r"merge\.strength has no use: guide = 'none'"),
        (
            ("--set", "merge.tokens=0.6", "--set", "merge.balance=0.3"),
            r"merge\.balance has no use: guide = 'both' alone",
        ),
        (("--set", "merge.guide=both"), r"merge\.guide has no use: nothing is merged without tokens, flops or r"),
    ):
        with pytest.raises(InputError, match=message):
            _encode(room, tmp_path / "t", name, *words)
        with pytest.raises(InputError, match=message):
            _encode(
                room, tmp_path / "t", f"z:{name}", *(str(word).replace("merge.", "settings.merge.") for word in words)
            )
    assert not (tmp_path / "t").exists()


def test_fidelity_of_a_folder_and_of_a_study(room: Path, tmp_path: Path) -> None:
    name, out = f"hf:{room / 'clip'}", tmp_path / "told.json"
    words = ("--rate", 0.8, "--rate", 0.6, "--cosine", 0.1, "--repeats", 1, "--json", out)
    told = _run("fidelity", name, room / "pictures", *words)
    assert "hf:clip, merged against full, on 12 pictures; guide none" in told
    assert "for a mean cosine of at least 0.1: flops = 0.6" in told
    facts = json.loads(out.read_text())
    assert [row["rate"] for row in facts["rows"]] == [0.8, 0.6]
    assert facts["chosen"]["rate"] == 0.6
    study = ("--by", "tokens", "--rate", 0.6, "--limit", 5, "--merge-guide", "both", "--set", "merge.balance=0.2")
    told = _run("fidelity", name, room / "study.h5", *study, "--repeats", 1, "--json", out)
    assert "on 5 pictures; guide both" in told
    assert json.loads(out.read_text())["protocol"]["balance"] == 0.2


def test_fidelity_reads_folders_of_classes_picture_by_picture(room: Path, tmp_path: Path) -> None:
    for number, picture in enumerate(sorted((room / "pictures").iterdir())):
        kind = tmp_path / "sorted" / f"class{number % 3}"
        kind.mkdir(parents=True, exist_ok=True)
        (kind / picture.name).write_bytes(picture.read_bytes())
    told = _run("fidelity", f"hf:{room / 'clip'}", tmp_path / "sorted", "--rate", 0.8, "--repeats", 1)
    assert "sorted: 12 pictures from 3 folders" in told
    assert "merged against full, on 12 pictures" in told


def test_fidelity_refuses(room: Path, tmp_path: Path) -> None:
    name = f"hf:{room / 'clip'}"
    with pytest.raises(InputError, match="'gabor' has no tower"):
        _run("fidelity", "gabor", room / "pictures")
    with pytest.raises(InputError, match=r"merge\.r: the report tries rates of its own \(--rate\)"):
        _run("fidelity", name, room / "pictures", "--set", "merge.r=2")
    with pytest.raises(InputError, match=r"merge\.balance has no use: guide = 'both' alone reads it"):
        _run("fidelity", name, room / "pictures", "--merge-guide", "spatial", "--set", "merge.balance=0.3")
    with pytest.raises(InputError, match="does not exist"):
        _run("fidelity", name, tmp_path / "nothing.h5")
    with pytest.raises(InputError, match="holds no images"):
        _run("fidelity", name, room / "clip")
    with pytest.raises(InputError, match="--limit must be at least 1"):
        _run("fidelity", name, room / "pictures", "--limit", 0)
