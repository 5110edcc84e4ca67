"""No door that writes a folder takes somebody else's: what it does not know stays, and the door says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from phosphene.alignment import make_aligner
from phosphene.decoders import make_decoder
from phosphene.decoders.adaptable import AdapterConfig
from phosphene.encoders import Targets, make_encoder
from phosphene.encoders.mlip import MLIP, MLIPConfig, Tokenizer, save_model
from phosphene.errors import InputError
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Agreement, GlobalState, SiteState
from phosphene.federation.trials import Inputs, Trials
from phosphene.files import read_json, write_json, write_text
from phosphene.recordings import Recording, Study
from phosphene.rendering import Gallery
from phosphene.rendering.decoding import Decoded
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training import Pivot
from phosphene.training.run_folder import RunFolder

IDS = ["a", "b"]


def study() -> Study:
    table = Table({"i": [0, 1, 2], "j": [0, 0, 0], "k": [0, 0, 0]})
    shown = Table({"stimulus_id": IDS})
    space: dict[str, Any] = {"space": "MNI152", "affine": np.eye(4), "volume_shape": (3, 1, 1)}
    people = [Recording(f"sub-0{n}", np.eye(2, 3, dtype="float32"), shown, table, **space) for n in (1, 2)]
    return Study(StimulusSet(IDS), people, {"default": {"train": IDS}})


def aligner() -> Any:
    return make_aligner("anatomical").fit(study().split("train"))


def decoder() -> Any:
    made = make_decoder("mindtuner", subjects={"sub-01": 3}, target_shape=(4,), width=4, blocks=1, projector=4)
    made.encoder = make_encoder("pixels")
    made.arrange_voxels("sub-01", study().recordings["sub-01"].voxels)
    made.align(aligner())
    made.adopt("sub-02", 3, "ridge-only", AdapterConfig())
    return made


def gallery() -> Gallery:
    return Gallery(IDS, np.eye(2, 4, dtype="float32"), [(), ()])


def decoded() -> Decoded:
    names, zeros = np.array(["0"]), np.zeros((1, 1), dtype=np.int64)
    return Decoded(np.array(["sub-01"]), names, np.eye(1, 4), np.zeros((1, 1)), zeros, gallery(), {})


def site() -> SiteState:
    subjects, rows = np.array(["sub-01", "sub-01"]), torch.ones(2, 2)
    inputs = Inputs(subjects, {"sub-01": rows}, rows, rows, torch.ones(2, 3, dtype=torch.bool))
    return SiteState("here", Trials(inputs, np.array(IDS), None), AGREEMENT)


def server() -> GlobalState:
    return GlobalState({"weight": torch.ones(2)}, PrototypeLibrary.empty(2, 2), AGREEMENT)


AGREEMENT = Agreement(("one", "two"), 2, 2, 2)
SIZES = {"image_size": 32, "width": 16, "heads": 2, "spatial_blocks": 1, "text_width": 16, "text_heads": 2}
MODEL, WORDS = MLIP(MLIPConfig.build({**SIZES, "vocabulary": 300})), Tokenizer.train(["a red ball"], 300)
DOORS = {
    "aligner": lambda path: aligner().save(path),
    "decoder": lambda path: decoder().save(path),
    "person": lambda path: decoder().save_person(path, "sub-02"),
    "pivot": lambda path: Pivot(torch.eye(2), torch.zeros(2), "pooled", "images", "texts", {}).save(path),
    "encoder": lambda path: make_encoder("pixels").save(path),
    "targets": lambda path: Targets(IDS, None, np.eye(2, dtype="float32"), make_encoder("pixels")).save(path),
    "mlip": lambda path: save_model(path, MODEL, WORDS, card="# tiny"),
    "gallery": lambda path: gallery().save(path),
    "decoded": lambda path: decoded().save(path),
    "site": lambda path: site().save(path),
    "server": lambda path: server().save(path, FederationSettings()),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_replaces_its_own_and_refuses_what_is_not(tmp_path, door):
    write, place = DOORS[door], tmp_path / "place"
    write(place)
    write(place)
    write_text(place / "thesis.txt", "mine")
    with pytest.raises(InputError, match=r"place holds files that would be lost \(thesis.txt\)"):
        write(place)
    write_text(tmp_path / "mine" / "results" / "thesis.txt", "mine")
    with pytest.raises(InputError, match=r"mine holds files that would be lost \(results/thesis.txt\)"):
        write(tmp_path / "mine")
    assert (place / "thesis.txt").read_text() == (tmp_path / "mine" / "results" / "thesis.txt").read_text() == "mine"


INSIDE = {
    "targets": {"encoder"},
    "decoder": {"encoder", "aligner", "voxels", "people", "people/sub-02", "people/sub-02/adapter"},
}


@pytest.mark.parametrize("door", INSIDE)
def test_files_of_others_are_safe_in_every_folder_inside(tmp_path, door):
    write, place = DOORS[door], tmp_path / "place"
    write(place)
    inside = {each for each in place.rglob("*") if each.is_dir()}
    assert {each.relative_to(place).as_posix() for each in inside} == INSIDE[door]
    for folder in inside:
        for name in ("thesis.txt", "raw.npy", "mine/thesis.txt", "mine/config.json", "mine/a.tsv"):
            write_text(folder / name, "mine")
            strange = (folder / name).relative_to(place).as_posix()
            with pytest.raises(
                InputError, match=rf"place holds files that would be lost \({strange}\) beside those of"
            ):
                write(place)
            (folder / name).unlink()
    write(place)


@pytest.mark.parametrize(
    ("door", "name", "content"),
    [
        ("site", "state.json", {"round": 3, "site": "mine"}),
        ("server", "state.json", {"round": 3}),
        ("encoder", "config.json", {"format": 1}),
        ("mlip", "config.json", {"format": 1, "model_type": "clip"}),
        ("targets", "targets.json", {"format": 1}),
    ],
)
def test_files_that_only_look_like_ours_are_somebody_elses(tmp_path, door, name, content):
    write_json(tmp_path / name, content)
    with pytest.raises(InputError, match=rf"lost \({name}\), and is not"):
        DOORS[door](tmp_path)
    assert read_json(tmp_path / name) == content


@pytest.mark.parametrize("other", DOORS)
def test_a_folder_of_another_kind_is_somebody_elses(tmp_path, other):
    DOORS[other](tmp_path / "place")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    for door, write in DOORS.items():
        if door != other:
            with pytest.raises(InputError, match="files that would be lost"):
                write(tmp_path / "place")
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


def test_weights_under_common_names_are_somebody_elses(tmp_path):
    for name in ("config.json", "model.safetensors", "README.md"):
        write_text(tmp_path / "clip" / name, "{}")
    with pytest.raises(InputError, match="and is not a decoder"):
        decoder().save(tmp_path / "clip")


def test_a_run_does_not_end_in_a_decoder_that_it_did_not_make(tmp_path):
    decoder().save(tmp_path / "decoder")
    with pytest.raises(InputError, match=r"decoder holds files that would be lost .* are not of that run"):
        RunFolder(tmp_path, {"seed": 0})
    write_json(tmp_path / "config.json", {"seed": 0})
    assert RunFolder(tmp_path, {"seed": 0}).finished
    (tmp_path / "decoder" / "config.json").rename(tmp_path / "decoder" / "mine.txt")
    with pytest.raises(InputError, match="are not of that run"):
        RunFolder(tmp_path, {"seed": 0})
    assert read_json(tmp_path / "decoder" / "mine.txt")["format"] == "phosphene-decoder"
    assert RunFolder(tmp_path / "new", {"seed": 0}).finished is False
