"""Studies and views: scaling from training rows, averages, splits, and a test part out of reach."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table


def test_views_hold_their_role_only(made_study):
    train, test = made_study.split("train"), made_study.split("test")
    assert set(train.stimulus_ids) & set(test.stimulus_ids) == set()
    assert set(train.trials("sub-01")["stimulus_id"]) == set(train.stimulus_ids)
    assert train.stimuli.ids.tolist() == train.stimulus_ids.tolist()
    with pytest.raises(InputError, match="10 stimuli are not in the train part"):
        train.restrict(test.stimulus_ids)
    with pytest.raises(IndexError):
        train.responses("sub-01", [train.n_trials("sub-01")])
    public = [getattr(train, name) for name in dir(train) if not name.startswith("_")]
    assert not any(isinstance(thing, Study | Recording) for thing in public)


def test_sessions_are_scaled_by_training_trials_only(made_study):
    train = made_study.split("train")
    sessions = train.trials("sub-01")["session"]
    scaled = train.responses("sub-01")
    for session in (1, 2):
        here = scaled[sessions == session]
        np.testing.assert_allclose(here.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(here.std(axis=0), 1, atol=1e-4)

    loud = made_study.recordings["sub-01"]
    responses = np.array(loud.responses)
    responses[np.isin(loud.trials["stimulus_id"], made_study.split("test").stimulus_ids)] *= 100
    changed = Study(
        made_study.stimuli,
        [Recording("sub-01", responses, loud.trials, loud.voxels)],
        {"default": made_study.roles()},
    )
    np.testing.assert_array_equal(changed.split("train").responses("sub-01"), scaled)


def test_a_new_person_is_scaled_by_own_responses_and_it_is_said(made_study, caplog):
    everything = made_study.with_splits({"new": {"test": made_study.stimuli.ids}}).using("new")
    responses = everything.split("test").responses("sub-02")
    np.testing.assert_allclose(responses.mean(axis=0), 0, atol=1e-4)
    assert "no training trials" in caplog.text


def test_averages_over_repeats(made_study):
    view = made_study.split("test")
    ids, averaged = view.averaged("sub-02")
    _, first = view.averaged("sub-02", max_repeats=1)
    shown, responses = view.trials("sub-02")["stimulus_id"], view.responses("sub-02")
    for row, name in enumerate(ids):
        np.testing.assert_allclose(averaged[row], responses[shown == name].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(first[row], responses[shown == name][0], atol=1e-6)
    for none in (0, -1):
        with pytest.raises(InputError, match=f"max_repeats must be at least 1, or None for all of them; found {none}"):
            view.averaged("sub-02", max_repeats=none)


def test_moments_agree_with_numpy(made_study):
    view = made_study.split("train")
    mean, deviation = view.moments("sub-01")
    np.testing.assert_allclose(mean, view.responses("sub-01").mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(deviation, view.responses("sub-01").std(axis=0), atol=1e-5)


def test_constant_voxels_stay_finite():
    voxels = Table({"voxel": [0, 1]})
    trials = Table({"stimulus_id": [f"s{i}" for i in range(24)], "session": np.repeat([1, 2], 12)})
    responses = np.stack([np.full(24, 7.0), np.arange(24.0)], axis=1).astype(np.float32)
    stimuli = StimulusSet(trials["stimulus_id"])
    study = Study(stimuli, [Recording("sub-01", responses, trials, voxels)], {"default": {"train": stimuli.ids}})
    scaled = study.split("train").responses("sub-01")
    assert np.all(scaled[:, 0] == 0)
    assert np.isfinite(scaled).all()


def test_units_keep_stimuli_together(made_study):
    assert made_study.split("train").units.tolist() == made_study.split("train").stimulus_ids.tolist()
    by_category = Study(made_study.stimuli, made_study.recordings, {"default": made_study.roles()}, unit="category")
    assert set(by_category.split("test").units) == {"x", "y"}
    with pytest.raises(InputError, match=r"unknown unit.*'colour'.*category, hue"):
        Study(made_study.stimuli, made_study.recordings, unit="colour")


def test_wrong_studies_are_refused(made_study):
    person = made_study.recordings["sub-01"]
    with pytest.raises(InputError, match="trials table has 79 rows, the responses have 80 trials"):
        Recording("sub-01", person.responses, person.trials.take(slice(79)), person.voxels)
    with pytest.raises(InputError, match="voxels table has 5 rows, the responses have 30"):
        Recording("sub-01", person.responses, person.trials, person.voxels.take(slice(5)))
    with pytest.raises(InputError, match="needs a column stimulus_id"):
        Recording("sub-01", person.responses, Table({"run": np.ones(80)}), person.voxels)
    with pytest.raises(InputError, match="stimulus ids of the trials table are not among the 5"):
        Study(made_study.stimuli.select(made_study.stimuli.ids[:5]), [person])
    with pytest.raises(InputError, match="stimuli have two roles, such as s00"):
        Study(made_study.stimuli, [person], {"default": {"train": ["s00", "s01"], "test": ["s00"]}})
    for wrong, message in (("tset", r"unknown role .*'tset'; did you mean 'test'"), ("validation", "Known: all, test")):
        with pytest.raises(InputError, match=message):
            made_study.split(wrong)
    with pytest.raises(InputError, match=r"unknown split 'fold-0'.*default"):
        made_study.using("fold-0")
    with pytest.raises(InputError, match=r"unknown subject 'sub-09'.*sub-01, sub-02"):
        made_study.split("train").responses("sub-09")


def test_stimuli_alone_are_a_study_where_that_is_asked_for(made_study, tmp_path):
    with pytest.raises(InputError, match="at least one person"):
        Study(made_study.stimuli, [])
    alone = Study(made_study.stimuli, [], {"default": made_study.roles()}, stimuli_alone=True)
    path = alone.save(tmp_path / "pictures.h5")
    with pytest.raises(InputError, match="at least one person"):
        Study.open(path)
    with Study.open(path, stimuli_alone=True) as opened:
        view = opened.split("train")
        assert (view.subjects, view.stimulus_ids.tolist()) == ([], made_study.split("train").stimulus_ids.tolist())
        assert opened.digest == alone.digest


def test_first_sessions_are_all_that_is_read_and_scaled_by(made_study):
    later = made_study.recordings["sub-01"].trials["session"] > 1
    loud = made_study.recordings["sub-01"]
    responses = np.array(loud.responses)
    responses[later] = np.nan
    people = [Recording("sub-01", responses, loud.trials, loud.voxels), made_study.recordings["sub-02"]]
    changed = Study(made_study.stimuli, people, {"default": made_study.roles()})
    view = changed.split("train").subset(["sub-01"]).first_sessions(1)
    assert view.sessions("sub-01") == (1,)
    assert set(view.trials("sub-01")["session"]) == {1}
    np.testing.assert_allclose(view.responses("sub-01").std(axis=0), 1, atol=1e-4)
    smaller = view.restrict(view.stimulus_ids[:5])
    assert 0 < smaller.n_trials("sub-01") < view.n_trials("sub-01")
    assert np.isfinite(smaller.responses("sub-01")).all()
    with pytest.raises(InputError, match="sub-01 has 2 sessions; asked for the first 3"):
        view.first_sessions(3)
    with pytest.raises(InputError, match="asked for the first 0"):
        view.first_sessions(0)


def test_a_view_of_the_first_sessions_does_not_grow_again(made_study):
    view = made_study.split("train").first_sessions(1)
    with pytest.raises(InputError, match="this view sees the first 1 session alone; asked for the first 2"):
        view.first_sessions(2)
    assert view.first_sessions(1).n_trials("sub-01") == view.n_trials("sub-01")
    fewer = view.first_sessions(0.5)
    assert fewer.n_trials("sub-01") == made_study.split("train").first_sessions(0.5).n_trials("sub-01")


def test_nobody_is_counted_twice_and_somebody_is_there(made_study):
    with pytest.raises(InputError, match="subject sub-01 named twice among sub-01, sub-02, sub-01"):
        made_study.split("train").subset(["sub-01", "sub-02", "sub-01"])
    with pytest.raises(InputError, match="subjects is empty: name at least one person"):
        made_study.split("train").subset([])


class _Halves:
    """A common space of two places: the means of two halves of somebody's voxels."""

    def filled(self, subject, responses):
        return np.stack([half.mean(axis=1) for half in np.array_split(responses, 2, axis=1)], axis=1)

    def places(self, subject):
        return Table({"covered": [True, True]})

    def space(self):
        return {"space": "halves", "volume_shape": None}


def test_smaller_views_stay_in_the_common_space(made_study):
    native = made_study.split("train")
    view = native.through(_Halves())
    for each in (view, view.subset(["sub-02"]), view.restrict(view.stimulus_ids[:5]), view.first_sessions(1)):
        assert each.n_voxels("sub-02") == each.responses("sub-02").shape[1] == 2
        assert each.voxels("sub-02")["covered"].all()
        # what is the common space's to tell is not the person's
        assert each.space("sub-02") == {**native.space("sub-02"), "space": "halves", "volume_shape": None}


def test_part_of_a_session_is_its_first_trials(made_study):
    whole = made_study.split("all").subset(["sub-01"])
    one = whole.first_sessions(1).n_trials("sub-01")
    half = whole.first_sessions(0.5)
    assert half.n_trials("sub-01") == round(one / 2)
    assert half.sessions("sub-01") == (1,)
    assert whole.first_sessions(1.5).n_trials("sub-01") > one
    early = half.trials("sub-01")["stimulus_id"].tolist()
    assert early == whole.trials("sub-01")["stimulus_id"].tolist()[: len(early)]
    # the mean and deviation of a part are taken from that part
    train = made_study.split("train").subset(["sub-01"]).first_sessions(0.5)
    np.testing.assert_allclose(train.responses("sub-01").mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("scaling", ["none", "session"])
def test_responses_that_are_not_finite_are_refused_where_they_are_handed_out(scaling) -> None:
    stimuli, shown = StimulusSet(["a", "b", "c"]), Table({"stimulus_id": ["a", "b", "c", "b"], "session": [1, 1, 2, 2]})
    responses = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    responses[1, 2], responses[3, 0] = np.nan, np.inf
    person = Recording("sub-01", responses, shown, Table({"i": range(3), "j": [0] * 3, "k": [0] * 3}))
    splits = {"one": {"train": ["a", "b"], "test": ["c"]}, "two": {"train": ["a", "c"], "test": ["b"]}}
    study = Study(stimuli, [person], splits, scaling=scaling)
    words = "sub-01: responses of 2 trials are NaN or infinite, the first in trial 1 at voxel 2"
    for hand_out in (
        lambda view: view.responses("sub-01"),
        lambda v: v.averaged("sub-01"),
        lambda v: v.moments("sub-01"),
    ):
        with pytest.raises(InputError, match=words):
            hand_out(study.using("one").split("train"))
    assert np.isfinite(study.using("two").split("train").averaged("sub-01")[1]).all()  # nobody asked for the others
    with pytest.raises(InputError, match=words):
        study.using("two").split("test").responses("sub-01")


def test_nothing_is_scaled_by_training_responses_that_are_not_finite(made_study):
    person = made_study.recordings["sub-01"]
    responses = np.array(person.responses)
    row = np.flatnonzero(np.isin(person.trials["stimulus_id"], made_study.split("train").stimulus_ids))[3]
    responses[row, 2] = np.nan
    broken = Recording("sub-01", responses, person.trials, person.voxels)
    study = Study(made_study.stimuli, [broken], {"default": made_study.roles()})
    with pytest.raises(InputError, match=f"responses of 1 trials are NaN or infinite, the first in trial {row} at"):
        study.split("test").responses("sub-01")
