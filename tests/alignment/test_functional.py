"""Functional aligners: what they restore, what they need, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from people_who_share import FEATURES, line_of_voxels, one_grid, shared_study
from scipy import sparse

from phosphene.alignment import Aligner, inter_subject_correlation, make_aligner, unaligned
from phosphene.errors import InputError
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet

# more features than there are would be noise, which no two people share
SETTINGS: dict[str, dict[str, Any]] = {"ridge": {}, "procrustes": {}, "srm": {"features": (FEATURES,)}}


def _isc(aligner: Aligner, study: Study) -> float:
    value = inter_subject_correlation(aligner, study.split("test"), n_boot=0).row().value
    assert value is not None
    return value


@pytest.mark.parametrize("name", list(SETTINGS))
def test_people_without_a_common_place_are_brought_together(name: str) -> None:
    study = shared_study(n=150)
    aligner = make_aligner(name, **SETTINGS[name]).fit(study.split("train"))
    assert _isc(unaligned(study.split("test")), study) < 0.3
    assert _isc(aligner, study) > 0.8


@pytest.mark.parametrize("name", list(SETTINGS))
def test_voxels_permuted_on_one_grid_are_no_obstacle(name: str) -> None:
    rng = np.random.default_rng(0)
    code = rng.normal(size=(FEATURES, 40))
    study = shared_study((40, 40, 40), codes=[code[:, rng.permutation(40)] for _ in range(3)], space=one_grid(), n=150)
    aligner = make_aligner(name, **SETTINGS[name]).fit(study.split("train"))
    assert _isc(unaligned(study.split("test")), study) < 0.4
    assert _isc(aligner, study) > 0.8


def test_the_reference_stays_as_recorded() -> None:
    study = shared_study()
    view = study.split("train")
    for name in ("ridge", "procrustes"):
        for reference, size in ((None, 40), ("sub-02", 44)):
            aligner = make_aligner(name, reference=reference).fit(view)
            subject = reference or "sub-01"
            assert (aligner.template.name, aligner.template.size) == (subject, size)
            assert set(aligner.template.rois) == {"V1", "V2"}
            np.testing.assert_array_equal(aligner.transform(subject, view.responses(subject)), view.responses(subject))
            assert sparse.issparse(aligner.matrix(subject))
        with pytest.raises(InputError, match="unknown reference 'sub-09'"):
            make_aligner(name, reference="sub-09").fit(view)


def test_on_one_grid_the_template_is_the_mean() -> None:
    study = shared_study((40, 40, 40), space=one_grid())
    aligner = make_aligner("ridge").fit(study.split("train"))
    assert aligner.template.name == "MNI152"
    mean = np.mean([study.split("train").averaged(s)[1] for s in study.subjects], axis=0)
    np.testing.assert_allclose(aligner._response, mean, atol=1e-5)


def test_maps_of_procrustes_and_srm_come_back_through_the_transpose() -> None:
    view = shared_study().split("train")
    for name in ("procrustes", "srm"):
        aligner = make_aligner(name).fit(view)
        matrix = np.asarray(aligner.matrix("sub-02"), dtype=np.float64)
        within = np.random.default_rng(0).normal(size=(3, 44)) @ matrix  # maps that the person can have
        back = aligner.inverse("sub-02", within)
        np.testing.assert_allclose(back @ matrix, within, atol=1e-4)
        np.testing.assert_allclose(back, within @ np.linalg.pinv(matrix, rcond=1e-3), atol=1e-4)


def test_hybrid_of_weight_zero_is_anatomical_and_of_one_is_not() -> None:
    view = shared_study().split("train")
    anatomical = make_aligner("anatomical").fit(view)
    zero, one = (make_aligner("hybrid", weight=w).fit(view) for w in (0.0, 1.0))
    half = make_aligner("hybrid", weight=0.5).fit(view)
    responses = view.responses("sub-02")
    np.testing.assert_array_equal(zero.transform("sub-02", responses), anatomical.transform("sub-02", responses))
    between = (zero.transform("sub-02", responses) + one.transform("sub-02", responses)) / 2
    covered = anatomical.covered("sub-02")
    np.testing.assert_allclose(half.transform("sub-02", responses)[:, covered], between[:, covered], atol=1e-4)
    assert half.covered("sub-02").all()


def test_hybrid_fills_places_without_anatomy_by_function_alone() -> None:
    table = line_of_voxels(40)
    gone = table.with_columns(template_u=np.where(np.arange(40) < 20, 9999.0, table["template_u"]))
    code = np.random.default_rng(0).normal(size=(FEATURES, 40))
    study = shared_study((40, 40, 40), codes=[code] * 3, tables=[table, gone, table], n=150)
    train, test = study.split("train"), study.split("test")
    anatomical, hybrid = make_aligner("anatomical").fit(train), make_aligner("hybrid", weight=0.5).fit(train)
    lost = ~anatomical.covered("sub-02") & anatomical.covered("sub-01")
    assert lost.sum() > 10
    mean = {s: test.averaged(s)[1] for s in study.subjects}
    guess, truth = hybrid.transform("sub-02", mean["sub-02"]), anatomical.transform("sub-01", mean["sub-01"])
    r = [np.corrcoef(guess[:, place], truth[:, place])[0, 1] for place in np.flatnonzero(lost)]
    assert np.median(r) > 0.8


def test_inner_folds_choose_the_weight_that_the_data_ask_for() -> None:
    code = np.random.default_rng(1).normal(size=(FEATURES, 40))
    rng = np.random.default_rng(2)
    rotated = [np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0] @ code for _ in range(3)]
    differ = make_aligner("hybrid").fit(shared_study((40,) * 3, codes=rotated, n=150).split("train"))
    # people alike but for strong noise, and few stimuli to learn from: anatomy must not be thrown away
    alike = shared_study((40,) * 3, codes=[code] * 3, n=36, noise=4.0, repeats=1)
    alike_too = make_aligner("hybrid", penalties=(1e-4,)).fit(alike.split("train"))
    assert differ._weight == 1.0
    assert alike_too._weight < 1.0


def test_too_few_shared_stimuli() -> None:
    study = shared_study(n=90)
    people = []
    for number, person in enumerate(study.recordings.values()):
        own = [f"s{i:03d}" for i in range(60) if i < 10 or i % 3 == number]
        rows = np.flatnonzero(np.isin(person.trials["stimulus_id"], own))
        people.append(
            Recording(person.subject, person.read(rows), person.trials.take(rows), person.voxels, space=person.space)
        )
    view = Study(study.stimuli, people, {"default": study.roles()}, scaling="none").split("train")
    with pytest.raises(
        InputError, match=r"10 stimuli of the train part .* at least 20 are needed \(seen by each: sub-01"
    ):
        make_aligner("ridge").fit(view)
    with pytest.raises(InputError, match="the view holds sub-01 alone"):
        make_aligner("srm").fit(study.split("train").subset(["sub-01"]))
    fitted = make_aligner("ridge").fit(study.split("train").subset(["sub-01", "sub-02"]))
    late = make_aligner("ridge", least=30).fit(study.split("train").subset(["sub-01", "sub-02"]))
    with pytest.raises(InputError, match=r"sub-03 saw 27 of the 60 stimuli .* at least 30 are needed"):
        late.add("sub-03", view)
    fitted.add("sub-03", view)


def test_a_stimulus_of_the_same_name_is_not_the_same_stimulus() -> None:
    study = shared_study()
    fitted = make_aligner("ridge").fit(study.split("train").subset(["sub-01", "sub-02"]))
    renamed = StimulusSet(study.stimuli.ids, labels={"number": np.arange(90) + 1000})
    other = Study(renamed, [study.recordings["sub-03"]], {"default": study.roles()}, scaling="none")
    with pytest.raises(InputError, match="sub-03 saw 0 of the 60 stimuli"):
        fitted.add("sub-03", other.split("train"))


def test_a_picture_is_known_under_any_name() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 4, 4, 3), dtype=np.uint8)
    study = shared_study()
    stimuli = StimulusSet(study.stimuli.ids, pixels=pixels)
    seen = Study(stimuli, list(study.recordings.values()), {"default": study.roles()}, scaling="none")
    aligner = make_aligner("ridge").fit(seen.split("train"))
    other = StimulusSet([f"p{i}" for i in range(90)], pixels=pixels)
    with pytest.raises(InputError, match=r"fitted on 1 of the 2 stimuli to be scored, such as p59"):
        aligner.check_apart(["p59", "p60"], other.hashes[[59, 60]])
    aligner.check_apart(["p60", "p61"], other.hashes[[60, 61]])


def test_an_added_person_is_aligned_as_well_as_the_first() -> None:
    study = shared_study(n=150)
    view = study.split("train")
    for name, settings in (*SETTINGS.items(), ("hybrid", {})):
        aligner = make_aligner(name, **settings).fit(view.subset(["sub-01", "sub-02"]))
        aligner.add("sub-03", view)
        report = inter_subject_correlation(aligner, study.split("test"), n_boot=0)
        assert (report.row().by_subject["sub-03"] or 0) > 0.8


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("srm", {"features": 5}),
        ("procrustes", {"components": 5}),
        ("ridge", {"penalties": 1}),
        ("hybrid", {"penalties": 2}),
    ],
)
def test_one_candidate_needs_no_list(method: str, words: dict[str, int]) -> None:
    ((name, value),) = words.items()
    assert getattr(make_aligner(method, **words).config, name) == (value,)
    with pytest.raises(InputError, match=name):
        make_aligner(method, **{name: 0})
