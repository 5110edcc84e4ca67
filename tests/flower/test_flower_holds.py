"""Sites that lack a modality or a brain, and clusters as classes, over Flower: as the engine in process has it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the Flower app needs phosphene[federated]: run make federated")

from loopback_grid import SETTINGS, LoopbackGrid, made_sites, partitions, run_config, same
from typer.testing import CliRunner

from phosphene.encoders import targets_named, targets_of_nothing
from phosphene.errors import FederationError, InputError, LeakageError
from phosphene.federation import ClusterClasses, Federated, LabelClasses, StudySites, federate
from phosphene.federation.flower import RunSettings, federate_over, site
from phosphene.federation.flower.__main__ import app
from phosphene.recordings import Study
from phosphene.stimuli import StimulusSet

RUN = {"rounds": 2, "sites": 3, "set": "model.width=16 client.epochs=1", "classes": "group", "wait": 0.05}
RUN |= {"targets": "pocket", "text": "pocket-text", "class-names": "artefact,living,sky,solid,symbol"}
HOLDS = {"north": ("fmri", "image"), "south": ("fmri", "text"), "west": ("image", "text")}
CLUSTERS = {"classes": "", "class-names": ""}


def over(studies: dict[str, Path], folder: Path, own: dict[str, dict] | None = None, **changes):
    """Sites with names: each with a study, what it holds, and more of its own."""
    nodes = {
        number: {"site": name, "study": str(path), "keep": str(folder / name), **(own or {}).get(name, {})}
        for number, (name, path) in enumerate(studies.items(), start=1)
    }
    given = {**RUN, "out": str(folder / "run"), "sites": len(nodes), **changes}
    return federate_over(LoopbackGrid(nodes, given), RunSettings.of_config(given), pause=0.01)


def in_process(study: Path, people: dict[str, list[str]], classes, holds=None) -> Federated:
    with Study.open(study) as opened:
        targets = targets_named("pocket", opened, False), targets_named("pocket-text", opened, False)
        sites = StudySites(opened, people, classes, *targets, holds or {}).sites(SETTINGS.model.width)
    return federate(sites, SETTINGS, 2, progress=False)


@pytest.fixture(scope="module")
def bare(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Studies that do not even have what their site does not hold: no captions, no pixels, nobody's recording."""
    folder, made = tmp_path_factory.mktemp("bare"), {}
    with Study.open(study) as opened:
        ids, shown, roles = opened.stimuli.ids, opened.stimuli, {"default": opened.roles()}
        pixels, captions, labels = shown.pixels(), shown.captions, shown.labels
        stimuli = {
            "north": StimulusSet(ids, pixels, None, labels),
            "south": StimulusSet(ids, None, captions, labels),
            "west": StimulusSet(ids, pixels, captions, labels),
        }
        people = {"north": ["sub-01"], "south": ["sub-02", "sub-03"], "west": []}
        for name, each in stimuli.items():
            recordings = [opened.recordings[who] for who in people[name]]
            alone = Study(each, recordings, roles, scaling=opened.scaling, stimuli_alone=not recordings)
            made[name] = alone.save(folder / f"{name}.h5")
    return made


def test_sites_that_lack_something_train_as_in_process(study: Path, bare: dict[str, Path], tmp_path: Path) -> None:
    own = {name: {"holds": ",".join(held)} for name, held in HOLDS.items()}
    there = over(bare, tmp_path, own)
    classes = LabelClasses(tuple(RUN["class-names"].split(",")), ("group",))
    here = in_process(study, {"north": ["sub-01"], "south": ["sub-02", "sub-03"], "west": []}, classes, HOLDS)
    assert same(there.shared, here.shared)
    assert there.history[-1].fractions == pytest.approx(here.history[-1].fractions)
    kept = list((tmp_path / "west").glob("*/west/round-00002/tensors.safetensors"))
    assert len(kept) == 1


def test_what_is_dealt_in_a_simulation_may_lack_something_too(study: Path, tmp_path: Path) -> None:
    given = run_config(study, tmp_path, sites=3, holds="site-1=fmri,image site-3=image,text", pattern="site")
    there = federate_over(LoopbackGrid(partitions(3), given), RunSettings.of_config(given), pause=0.01)
    sites = made_sites(study, 3, kind="site", holds={"site-1": ("fmri", "image"), "site-3": ("image", "text")})
    assert same(there.shared, federate(sites, SETTINGS, 3, progress=False).shared)
    again = {**given, "holds": ""}
    with pytest.raises(InputError, match="belongs to another run: holds is None"):
        federate_over(LoopbackGrid(partitions(3), again), RunSettings.of_config(again), pause=0.01)


def test_a_study_without_people_holds_no_brain(bare: dict[str, Path], tmp_path: Path, caplog) -> None:
    with pytest.raises(FederationError, match="its data or settings were refused there"):
        over({"west": bare["west"]}, tmp_path)
    assert "at least one person" in caplog.text


def test_an_encoder_that_learns_is_not_known_without_stimuli(bare: dict[str, Path], tmp_path: Path, caplog) -> None:
    with pytest.raises(FederationError, match="its data or settings were refused there"):
        over({"north": bare["north"]}, tmp_path, {"north": {"holds": "fmri,image"}}, text="tfidf")
    assert "learns from stimuli, and there are none here" in caplog.text


@pytest.fixture(scope="module")
def clusters(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """Files of three and of four clusters, as the command writes them, and their digests."""
    made = {}
    for number in (3, 4):
        path = tmp_path_factory.mktemp("clusters") / "clusters.safetensors"
        words = ["clusters", path, "--study", study, "--number", number, "--public", "train", "--targets", "pocket"]
        done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
        assert f"{number} clusters of image embeddings of 96 public stimuli (train)" in done.output
        made[number] = path, done.output.partition('clusters="')[2][:32]
        assert ClusterClasses.open(path).digest == made[number][1]
    return made


def test_clusters_are_classes_as_in_process(study: Path, clusters, tmp_path: Path) -> None:
    path, digest = clusters[3]
    people = {"north": "sub-01", "south": "sub-02"}
    own = {name: {"people": who, "clusters": str(path)} for name, who in people.items()}
    there = over(dict.fromkeys(people, study), tmp_path, own, **CLUSTERS, clusters=digest)
    here = in_process(study, {name: [who] for name, who in people.items()}, ClusterClasses.open(path))
    assert same(there.shared, here.shared)
    given = run_config(study, tmp_path / "dealt", classes="", targets="pocket", clusters=digest)
    given["clusters-file"] = str(path)
    dealt = federate_over(LoopbackGrid(partitions(2), given), RunSettings.of_config(given), pause=0.01)
    assert dealt.shared.agreement.classes == there.shared.agreement.classes


def test_sites_with_other_clusters_are_refused(study: Path, clusters, tmp_path: Path) -> None:
    (path, digest), (other, _) = clusters[3], clusters[4]
    both = dict.fromkeys(("north", "south"), study)
    own = {"north": {"people": "sub-01", "clusters": str(path)}, "south": {"people": "sub-02", "clusters": str(other)}}
    with pytest.raises(
        InputError, match=r"sites disagree .* 4 classes instead of 3, only here cluster-000-|3 classes instead of 4"
    ):
        over(both, tmp_path, own, **CLUSTERS, clusters=digest)
    alike = {name: {**each, "clusters": str(other)} for name, each in own.items()}
    with pytest.raises(InputError, match=f"that are not the run's, {digest}: give them its file"):
        over(both, tmp_path, alike, **CLUSTERS, clusters=digest)
    assert not (tmp_path / "run").exists()


def test_a_site_with_other_targets_than_the_clusters_is_named(study: Path, clusters, tmp_path: Path, caplog) -> None:
    path, digest = clusters[3]
    own = {name: {"people": who, "clusters": str(path)} for name, who in (("north", "sub-01"), ("south", "sub-02"))}
    own |= {"east": {"people": "sub-03", "clusters": str(path), "targets": "pixels"}}
    pocket, pixels = (targets_of_nothing(name).identity for name in ("pocket", "pixels"))
    with pytest.raises(InputError) as told:
        over(dict.fromkeys(own, study), tmp_path, own, **CLUSTERS, clusters=digest)
    assert "sites disagree with the others (2 of 3). east: image width 768 instead of 128; " in str(told.value)
    assert f"image encoder '{pixels[:20]}" in str(told.value)
    assert "north:" not in str(told.value)
    assert f"clusters of {pocket}, and image targets of {pixels} here" in caplog.text  # in the site's own log
    assert str(path) not in str(told.value)
    for each in own.values():
        each["targets"] = "pixels"
    with pytest.raises(InputError, match=f"clusters, or image targets, that are not the run's, {digest}: give them"):
        over(dict.fromkeys(own, study), tmp_path, own, **CLUSTERS, clusters=digest)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_is_refused_before_anything_is_encoded(
    study: Path, clusters, tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    monkeypatch.setattr(site, "targets_named", lambda name, *rest, **others: encoded.append(name))
    path, digest = clusters[3]
    own = {"south": {"people": "sub-02", "clusters": str(path), "holds": "fmri,text"}}
    with pytest.raises(FederationError, match="its data or settings were refused there"):
        over({"south": study}, tmp_path, own, **CLUSTERS, clusters=digest)
    assert "south holds no image, and clusters are of image embeddings" in caplog.text
    given = run_config(study, tmp_path / "dealt", holds="site-9=fmri")
    with pytest.raises(FederationError, match="its data or settings were refused there"):
        federate_over(LoopbackGrid(partitions(2), given), RunSettings.of_config({**given, "wait": 0.05}), pause=0.01)
    assert "unknown site 'site-9'" in caplog.text
    assert not encoded


def test_clusters_of_test_stimuli_are_refused(study: Path, tmp_path: Path) -> None:
    words = ["clusters", tmp_path / "c", "--study", study, "--number", 2, "--public", "test", "--targets", "pocket"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(done.exception, LeakageError)
    assert not (tmp_path / "c").exists()
