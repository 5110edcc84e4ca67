"""Sites with studies of their own: what they must have alike, and that the engine in process comes to the same."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from loopback_grid import SETTINGS, LoopbackGrid, same

from phosphene.encoders import targets_named
from phosphene.errors import InputError
from phosphene.federation import LabelClasses, StudySites, federate
from phosphene.federation.flower import RunSettings, federate_over
from phosphene.recordings import Study
from phosphene.virtual import make_settings, simulate

NAMES = "artefact,living,sky,solid,symbol"
RUN = {"rounds": 2, "sites": 2, "set": "model.width=16 client.epochs=1", "classes": "group"}
RUN |= {"targets": "pocket", "text": "pocket-text", "wait": 0.05}  # as in docs/federated_deployment.md


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Other people and other pictures; the second hospital showed too few to have every class."""
    folder, made = tmp_path_factory.mktemp("hospitals"), {}
    for seed, (name, own) in enumerate({"north": 24, "south": 3}.items(), start=1):
        stimuli = {"test": 4, "common": 0, "own": own, "size": 32, "captions": 1}
        person = {"voxels": 50 + seed}
        settings = make_settings(None, subjects=1, sessions=1, repeats=1, runs=1, stimuli=stimuli, person=person)
        made[name] = simulate(settings, seed, progress=False).study.save(folder / f"{name}.h5")
    return made


def over(studies: dict[str, Path], folder: Path, **changes):
    nodes = {
        number: {"site": name, "study": str(path), "keep": str(folder / name)}
        for number, (name, path) in enumerate(studies.items(), start=1)
    }
    given = {**RUN, "out": str(folder / "run"), **changes}
    return federate_over(LoopbackGrid(nodes, given), RunSettings.of_config(given), pause=0.01)


def test_hospitals_that_agree_on_classes_train_as_in_process(studies: dict[str, Path], tmp_path: Path) -> None:
    there = over(studies, tmp_path, **{"class-names": f"{NAMES},unicorn"})
    sites = {}
    for name, path in studies.items():
        with Study.open(path) as opened:
            targets = targets_named("pocket", opened, False), targets_named("pocket-text", opened, False)
            classes = LabelClasses((*NAMES.split(","), "unicorn"), ("group",))
            made = StudySites(opened, {name: opened.subjects}, classes, *targets)
            sites |= made.sites(SETTINGS.model.width)
    here = federate(sites, SETTINGS, 2, progress=False)
    assert same(there.shared, here.shared)
    assert "unicorn" in there.history[-1].without_prototype
    assert {each.name for each in tmp_path.iterdir()} == {"run", "north", "south"}
    assert all(list((tmp_path / name).glob(f"*/{name}/round-00002/tensors.safetensors")) for name in studies)


def test_hospitals_that_found_other_classes_are_told_so(studies: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"south: 3 classes instead of 5, lacking sky, symbol|only here sky, symbol"):
        over(studies, tmp_path)
    assert not (tmp_path / "run").exists()


def test_encoders_that_learned_from_other_pictures_are_not_the_same(studies: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image encoder"):
        over(studies, tmp_path, **{"class-names": NAMES, "targets": "z:pixels"})
