"""What every aligner promises: a linear map a person, saved to the bit, people added without touching the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from people_who_share import one_grid, shared_study
from safetensors.numpy import load_file, save_file
from scipy import sparse

from phosphene.alignment import ALIGNERS, Aligner, make_aligner
from phosphene.errors import InputError, LeakageError
from phosphene.files import read_json, write_json
from phosphene.recordings import Study

FUNCTIONAL = [name for name, cls in ALIGNERS.items() if cls.functional]


@pytest.fixture(scope="module")
def study() -> Study:
    return shared_study()


@pytest.fixture(params=list(ALIGNERS))
def aligner(request: pytest.FixtureRequest, study: Study) -> Aligner:
    return make_aligner(request.param).fit(study.split("train"))


def whole(matrix) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def test_the_map_is_linear_and_uncovered_places_are_nan(aligner: Aligner, study: Study) -> None:
    view = study.split("test")
    for subject in view.subjects:
        responses, person = view.responses(subject), aligner.person(subject)
        assert aligner.matrix(subject).shape == (view.n_voxels(subject), aligner.template.size)
        dense = whole(person.matrix)
        expected = (responses.astype(np.float64) - person.mean) @ dense.astype(np.float64) + person.offset
        aligned = aligner.transform(subject, responses)
        assert aligned.dtype == np.float32
        covered = aligner.covered(subject)
        np.testing.assert_allclose(aligned[:, covered], expected[:, covered], rtol=1e-4, atol=1e-4)
        assert np.isnan(aligned[:, ~covered]).all()
        assert np.abs(dense[:, ~covered]).sum() == 0


def test_saved_and_loaded_to_the_bit(aligner: Aligner, study: Study, tmp_path: Path) -> None:
    loaded = Aligner.load(aligner.save(tmp_path / "aligner"))
    assert type(loaded) is type(aligner)
    assert loaded.config == aligner.config
    assert loaded.fitted_on == aligner.fitted_on
    assert loaded.template.voxels == aligner.template.voxels
    assert loaded.template.digest == aligner.template.digest
    assert loaded.identity == aligner.identity
    for subject in study.subjects:
        responses = study.split("test").responses(subject)
        np.testing.assert_array_equal(loaded.transform(subject, responses), aligner.transform(subject, responses))


def test_one_more_person_leaves_the_others_as_they_were(aligner: Aligner, study: Study, tmp_path: Path) -> None:
    view = study.split("train")
    few = make_aligner(aligner.name).fit(view.subset(["sub-01", "sub-02"]))
    before = {s: few.transform(s, view.responses(s)) for s in few.subjects}
    template = few.template.digest
    few = Aligner.load(few.save(tmp_path / "few"))  # whatever adding needs has to survive the disk
    few.add("sub-03", view)
    assert few.subjects == ["sub-01", "sub-02", "sub-03"]
    assert few.template.digest == template
    for subject, expected in before.items():
        np.testing.assert_array_equal(few.transform(subject, view.responses(subject)), expected)
    assert np.isfinite(few.transform("sub-03", view.responses("sub-03"))[:, few.covered("sub-03")]).all()
    with pytest.raises(InputError, match="'sub-02' is in this aligner already"):
        few.add("sub-02", view)


def test_the_same_data_give_the_same_maps(aligner: Aligner, study: Study) -> None:
    again = make_aligner(aligner.name).fit(study.split("train"))
    for subject in study.subjects:
        one, two = (a.matrix(subject) for a in (aligner, again))
        assert abs(whole(one) - whole(two)).max() == 0


def test_maps_come_back_to_the_voxels(aligner: Aligner, study: Study) -> None:
    for subject in study.subjects:
        size, n_voxels = aligner.template.size, study.recordings[subject].n_voxels
        native = aligner.inverse(subject, np.ones((2, size), dtype=np.float32))
        assert native.shape == (2, n_voxels)
        assert aligner.inverse(subject, np.ones(size)).shape == (n_voxels,)
        # what came from the voxels is found again, as far as the map has not mixed it
        held = np.where(aligner.covered(subject), aligner.inverse(subject, np.ones(size)) @ aligner.matrix(subject), 0)
        assert np.isfinite(held).all()
    with pytest.raises(InputError, match="places"):
        aligner.inverse("sub-01", np.ones(size + 1))


def test_wrong_input_is_named(aligner: Aligner, study: Study) -> None:
    with pytest.raises(InputError, match=r"unknown subject.*'sub-09'.*sub-01, sub-02, sub-03"):
        aligner.transform("sub-09", np.zeros((2, 40)))
    with pytest.raises(InputError, match=r"responses of sub-01 must be \(trials, 40 voxels\), found shape \(2, 41\)"):
        aligner.transform("sub-01", np.zeros((2, 41)))
    with pytest.raises(InputError, match="unknown subject 'sub-07'"):
        aligner.add("sub-07", study.split("train"))
    with pytest.raises(InputError, match="not fitted"):
        make_aligner(aligner.name).transform("sub-01", np.zeros((2, 40)))


def test_a_changed_file_is_refused(aligner: Aligner, tmp_path: Path) -> None:
    folder = aligner.save(tmp_path / "aligner")
    tensors = load_file(folder / "maps.safetensors")
    good = (folder / "maps.safetensors").read_bytes()
    save_file({**tensors, "0/mean": tensors["0/mean"] + 1}, folder / "maps.safetensors")
    with pytest.raises(InputError, match=r"'0/mean' is not what was written"):
        Aligner.load(folder)
    (folder / "maps.safetensors").write_bytes(good[:100])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        Aligner.load(folder)


def test_a_template_of_another_size_is_refused(aligner: Aligner, tmp_path: Path) -> None:
    folder = aligner.save(tmp_path / "aligner")
    lines = (folder / "template.tsv").read_text().splitlines(keepends=True)
    (folder / "template.tsv").write_text("".join(lines[:-1]))
    size = aligner.template.size
    with pytest.raises(InputError, match=rf"template.tsv has {size - 1} places, the maps go onto {size}"):
        Aligner.load(folder)


def test_only_functional_ones_remember_stimuli(aligner: Aligner, study: Study) -> None:
    train, test = study.split("train"), study.split("test")
    aligner.check_apart(test.stimulus_ids, test.stimuli.hashes)
    if not aligner.functional:
        assert aligner.fitted_on == frozenset()
        aligner.check_apart(train.stimulus_ids)
        return
    assert aligner.fitted_on == set(train.stimulus_ids.tolist())
    with pytest.raises(LeakageError, match=rf"the {aligner.name} aligner was fitted on 1 of the 2 stimuli"):
        aligner.check_apart(["s089", "s000"])
    with pytest.raises(LeakageError, match="fitted on 60 of the 60"):
        aligner.check_apart(train.stimulus_ids, train.stimuli.hashes)
    # a name alone is not the stimulus: with another content it is another one
    aligner.check_apart(["s000"], ["0" * 32])


@pytest.mark.parametrize("role", ["test", "all"])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_ones_refuse_to_look_at_held_out_stimuli(name: str, role: str, study: Study) -> None:
    with pytest.raises(LeakageError, match=rf"functional aligner {name}.*found '{role}'"):
        make_aligner(name).fit(study.split(role))
    fitted = make_aligner(name).fit(study.split("train").subset(["sub-01", "sub-02"]))
    with pytest.raises(LeakageError, match=rf"found '{role}'"):
        fitted.add("sub-03", study.split(role))


def test_names_and_settings_that_nobody_knows(study: Study) -> None:
    with pytest.raises(InputError, match="unknown aligner 'poled'; did you mean 'pooled'"):
        make_aligner("poled")
    with pytest.raises(InputError, match="unknown setting of PooledSettings: 'widht'; did you mean 'width'"):
        make_aligner("pooled", widht=3)


@pytest.mark.parametrize("key", ["template", "aligner", "people", "sha256"])
def test_a_config_that_lacks_something_is_named(key: str, study: Study, tmp_path: Path) -> None:
    folder = make_aligner("anatomical").fit(study.split("train")).save(tmp_path / "aligner")
    config = read_json(folder / "config.json")
    del config[key]
    write_json(folder / "config.json", config)
    with pytest.raises(InputError, match=rf"config.json of the aligner is damaged: it lacks {key}"):
        Aligner.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(templat={}), "unknown key 'templat'; did you mean 'template'"),
        (lambda config: config["template"].update(spaces=1), "unknown key 'template.spaces'.*template.name"),
        (lambda config: config["template"].pop("size"), "it lacks template.size"),
        (lambda config: config.update(template="fsaverage5"), "template must be a table, found str"),
        (lambda config: config["people"][1].update(name="x"), r"unknown key 'people.1.name'.*people.1.subject"),
        (lambda config: config["settings"].update(spacings=1.0), "unknown setting of AnatomicalSettings: 'spacings'"),
        (lambda config: config["state"].pop("way"), "damaged: state, 'way'"),
    ],
)
def test_a_config_with_keys_that_nobody_reads_is_refused(change, message: str, study: Study, tmp_path: Path) -> None:
    folder = make_aligner("anatomical").fit(study.split("train")).save(tmp_path / "aligner")
    config = read_json(folder / "config.json")
    change(config)
    write_json(folder / "config.json", config)
    with pytest.raises(InputError, match=message):
        Aligner.load(folder)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pooled", {"width": 8, "within": "roi"}, "width = 8 has no use with within = 'roi'"),
        (
            "anatomical",
            {"template": "fsaverage5", "spacing": 2.0},
            "spacing = 2.0 has no use where.*mesh.*allowed.*radius",
        ),
        (
            "anatomical",
            {"template": "fsaverage5", "columns": ("x",), "affines": {"a": [[1.0]]}},
            "affines = .*columns = ",
        ),
        ("hybrid", {"anatomical": {"template": "fsaverage5", "spacing": 2.0}}, "spacing = 2.0 has no use"),
        (
            "hybrid",
            {"anatomical": {"templat": "fsaverage5"}},
            "unknown setting of AnatomicalSettings: 'anatomical.templat'",
        ),
        ("hybrid", {"components": (3,)}, r"components = \(3,\) has no use with method = 'ridge', which has penalties"),
        ("hybrid", {"method": "procrustes", "penalties": (1.0,)}, "penalties = .*which has components"),
        ("ridge", {"penalties": ()}, "penalties"),
        ("srm", {"features": (0,)}, "features"),
    ],
    ids=str,
)
def test_settings_that_others_leave_without_a_use_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_aligner(name, **settings)


def test_settings_that_the_way_of_people_has_no_use_for_are_refused(study: Study) -> None:
    view, grid = study.split("train"), shared_study((40, 40), space=one_grid()).split("train")
    with pytest.raises(
        InputError, match=r"method = 'nearest', radius = 3.0 have no use where people who lie on one grid"
    ):
        make_aligner("anatomical", method="nearest", radius=3.0).fit(grid)
    with pytest.raises(
        InputError, match=r"freesurfer = 'there' has no use where.*template positions; allowed.*spacing"
    ):
        make_aligner("anatomical", freesurfer="there").fit(view)
    with pytest.raises(InputError, match=r"rounds = 5 has no use where one person is the template \(sub-01\)"):
        make_aligner("procrustes", rounds=5).fit(view)
    assert make_aligner("procrustes", rounds=5).fit(grid).template.size == 40


def test_another_folder_is_no_aligner(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "config.json", {"format": "phosphene-decoder"})
    with pytest.raises(InputError, match="not the config of a phosphene aligner"):
        Aligner.load(tmp_path / "other")
    assert read_json(tmp_path / "other" / "config.json") == {"format": "phosphene-decoder"}
