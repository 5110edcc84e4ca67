"""Whole virtual studies: schedule, splits, seeds, any stimuli, streaming to disk, recovered ncsnr."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from tiny_people import tiny_settings

import phosphene
from phosphene import virtual
from phosphene.errors import InputError
from phosphene.recordings import Study
from phosphene.settings import presets
from phosphene.stimuli import StimulusSet
from phosphene.virtual import VirtualStudy, make_settings, record, simulate, write_study
from phosphene.virtual.schedule import plan_trials

TINY = tiny_settings()


def test_splits_share_no_stimulus_and_everybody_sees_the_test_part(tiny: VirtualStudy) -> None:
    study = tiny.study
    roles = study.roles("default")
    assert set(roles) == {"train", "test"}
    assert (len(roles["test"]), len(roles["train"])) == (8, 6 + 2 * 12)
    for subject in study.subjects:
        shown, counts = np.unique(study.recordings[subject].trials["stimulus_id"], return_counts=True)
        assert set(roles["test"]) <= set(shown)
        assert len(shown) == 8 + 6 + 12
        assert set(counts) == {2}
    mine, theirs = (set(study.recordings[s].trials["stimulus_id"]) for s in study.subjects)
    assert len(mine & theirs) == 8 + 6


def test_voxel_table_carries_anatomy_template_and_truth(tiny: VirtualStudy) -> None:
    for subject, person in tiny.truth.people.items():
        recording = tiny.study.recordings[subject]
        table = recording.voxels
        for column in ("i", "j", "k", "x", "y", "z", "hemisphere", "template_u", "template_v", "curvature", "sulc"):
            assert column in table
        np.testing.assert_array_equal(table["ncsnr"], person.ncsnr)
        rois = recording.rois
        assert list(rois) == ["V1", "V2", "V3", "V4", "LOC", "FFA", "EBA", "PPA", "NONVIS"]
        assert np.all(sum(mask.astype(int) for mask in rois.values()) == 1)
        image = recording.to_nifti(table["ncsnr"]).get_fdata()
        np.testing.assert_allclose(image[table["i"], table["j"], table["k"]], table["ncsnr"], rtol=1e-6)
        assert (recording.tr, recording.delay) == (1.6, 0.0)


def test_same_seed_same_study_other_seed_another(tiny: VirtualStudy) -> None:
    assert simulate(tiny_settings(), seed=3).study.digest == tiny.study.digest
    assert simulate(tiny_settings(), seed=4).study.digest != tiny.study.digest


def test_sessions_come_in_order_with_runs_and_onsets(tiny: VirtualStudy) -> None:
    trials = tiny.study.recordings["sub-01"].trials
    when = trials["session"] * 1e6 + trials["run"] * 1e4 + trials["onset"]
    assert np.all(np.diff(when) > 0)
    assert set(trials["session"]) == {1, 2}
    assert set(trials["run"]) == {1, 2}
    starts = trials["onset"][np.flatnonzero(np.diff(trials["run"], prepend=0))]
    assert not starts.any()
    seen: dict[str, int] = {}
    for stimulus, repeat in zip(trials["stimulus_id"].tolist(), trials["repeat"].tolist(), strict=True):
        assert repeat == seen.get(stimulus, 0)
        seen[stimulus] = repeat + 1


def test_fewer_sessions_keep_all_repeats_of_shared_stimuli() -> None:
    settings = tiny_settings(sessions=4, trials=13, people={"sub-02": {"sessions": 2}})
    shared, others = [f"s{n}" for n in range(8)], [f"o{n}" for n in range(18)]
    table = plan_trials(settings, 0, "sub-02", shared, others)
    assert len(table) == 2 * 13
    shown, counts = np.unique(table["stimulus_id"], return_counts=True)
    assert dict(zip(shown.tolist(), counts.tolist(), strict=True)) | dict.fromkeys(shared, 2) == dict(
        zip(shown.tolist(), counts.tolist(), strict=True)
    )
    assert len(plan_trials(settings, 0, "sub-01", shared, others)) == 4 * 13


def test_drift_shifts_sessions_and_scaling_takes_it_out() -> None:
    stimuli = {"test": 10, "common": 50, "own": 0, "size": 16, "captions": 0}
    study = simulate(tiny_settings(subjects=1, sessions=3, stimuli=stimuli, person={"voxels": 100, "drift": 1.0})).study
    recording = study.recordings["sub-01"]
    sessions = recording.trials["session"]
    means = np.array([recording.read(sessions == n).mean(0) for n in (1, 2, 3)])
    spread = recording.read(sessions == 1).std(0)
    assert np.median(np.abs(means[2] - means[0]) / spread) > 0.5
    view = study.split("train")
    scaled = np.array([view.responses("sub-01")[view.trials("sub-01")["session"] == n].mean(0) for n in (1, 2, 3)])
    np.testing.assert_allclose(scaled, 0, atol=1e-3)


def test_requested_ncsnr_is_found_again_from_repeats() -> None:
    stimuli = {"test": 10, "common": 290, "own": 0, "size": 32, "captions": 0}
    result = simulate(
        tiny_settings(subjects=1, sessions=1, repeats=6, stimuli=stimuli, person={"voxels": 200, "drift": 0.0})
    )
    recording = result.study.recordings["sub-01"]
    order = np.argsort(recording.trials["stimulus_id"], kind="stable")
    repeats = recording.read(order).reshape(300, 6, -1)
    noise = repeats.var(1, ddof=1).mean(0)
    signal = np.maximum(repeats.mean(1).var(0, ddof=1) - noise / 6, 0)
    estimated, true = np.sqrt(signal / noise), result.truth.people["sub-01"].ncsnr
    # measured over five seeds: r 0.980 to 0.986, median absolute error 0.030 to 0.035
    assert np.corrcoef(estimated, true)[0, 1] > 0.95
    assert np.median(np.abs(estimated - true)) < 0.06
    assert np.median(estimated[true == 0]) < 0.1


def test_without_noise_the_recording_is_what_the_truth_responds() -> None:
    quiet = simulate(tiny_settings(person={"voxels": 150, "noise": 0.0, "drift": 0.0}), seed=3)
    recording, person = quiet.study.recordings["sub-01"], quiet.truth.people["sub-01"]
    first = np.flatnonzero(recording.trials["repeat"] == 0)[:20]
    expected = person.respond(quiet.study.stimuli.select(recording.trials["stimulus_id"][first]))
    np.testing.assert_allclose(recording.read(first), expected, atol=1e-4)


def test_compositional_holdout_is_a_role_of_its_own() -> None:
    stimuli = {"test": 6, "common": 20, "own": 4, "unseen": 7, "holdout": "shape-colour", "size": 16, "captions": 1}
    study = simulate(tiny_settings(stimuli=stimuli)).study
    roles = study.roles("default")
    assert {role: len(ids) for role, ids in roles.items()} == {"train": 28, "test": 6, "unseen": 7}

    def pairs(role: str) -> set[tuple[str, str]]:
        labels = study.split(role).stimuli.labels
        slots = [zip(labels[f"shape_{k}"].tolist(), labels[f"colour_{k}"].tolist(), strict=True) for k in range(3)]
        return {pair for slot in slots for pair in slot if pair[0] != "none"}

    assert not pairs("unseen") & (pairs("train") | pairs("test"))
    assert study.split("unseen").stimuli.pixels().shape == (7, 16, 16, 3)
    assert study.split("unseen").stimuli.pixels().std() > 5


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 20, 28, 3), dtype=np.uint8)


@pytest.mark.parametrize("words", [{"labels": {"label": ["cat", "dog", "car", "cup"] * 6}}, {"captions": True}])
def test_any_stimuli_can_be_shown(words: dict, pictures: np.ndarray) -> None:
    captions = [
        [f"a {name} by the {place}"] for name in ("cat", "dog", "car", "cup") for place in ["sea", "oak", "hut"]
    ]
    known = {"captions": captions * 2} if "captions" in words else words
    stimuli = StimulusSet([f"x{n}" for n in range(24)], pictures, **known)
    result = record(stimuli, TINY, seed=1)
    person, study = result.truth.people["sub-01"], result.study
    assert person.informative[person.sheet.area != "NONVIS"].all()
    assert {role: len(ids) for role, ids in study.roles().items()} == {"train": 20, "test": 4}
    response = person.respond(stimuli)
    higher = np.isin(person.sheet.area, ["LOC", "FFA", "EBA", "PPA"])
    # every fourth (label) or twelfth (caption) stimulus means the same: so do its higher responses, not its early ones
    period = 12 if "captions" in words else 4
    np.testing.assert_allclose(response[:period, higher], response[period : 2 * period, higher], atol=1e-5)
    assert np.abs(response[:period, ~higher] - response[period : 2 * period, ~higher]).max() > 0.1


def test_clips_are_seen_by_their_middle_frame(pictures: np.ndarray) -> None:
    ids, labels = [f"x{n}" for n in range(8)], {"label": list("abcdabcd")}
    clips = pictures.reshape(8, 3, 20, 28, 3)
    moving = record(StimulusSet(ids, clips, labels=labels, fps=8.0), TINY, seed=1)
    still = record(StimulusSet(ids, clips[:, 1], labels=labels), TINY, seed=1)
    np.testing.assert_array_equal(
        moving.study.recordings["sub-01"].responses, still.study.recordings["sub-01"].responses
    )


def test_what_drives_nothing_is_silent_and_says_so(pictures: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    ids = [f"x{n}" for n in range(24)]
    blind = record(StimulusSet(ids, captions=[[word] for word in ["cat", "dog", "car", "cup"] * 6]), TINY)
    mute = record(StimulusSet(ids, pictures), TINY)
    assert "no pixels" in caplog.text
    assert "no captions" in caplog.text
    for result, silent in ((blind, ["V1", "V2", "V3", "V4"]), (mute, ["LOC", "FFA", "EBA", "PPA"])):
        person = result.truth.people["sub-01"]
        quiet = np.isin(person.sheet.area, [*silent, "NONVIS"])
        assert not person.informative[quiet].any()
        assert person.informative[~quiet].all()
        assert not result.study.recordings["sub-01"].voxels["ncsnr"][quiet].any()


def test_streamed_to_disk_is_the_same_study(tiny: VirtualStudy, tmp_path: Path) -> None:
    path = write_study(tmp_path / "study.h5", TINY, seed=3)
    with Study.open(path) as stored:
        assert stored.roles() == tiny.study.roles()
        for subject in stored.subjects:
            ours, theirs = stored.recordings[subject], tiny.study.recordings[subject]
            assert ours.trials == theirs.trials
            assert ours.voxels == theirs.voxels
            np.testing.assert_allclose(ours.read(), theirs.read(), atol=1e-4)
        np.testing.assert_array_equal(stored.stimuli.pixels([0, 5]), tiny.study.stimuli.pixels([0, 5]))


def test_some_people_and_sessions_are_the_first_part_of_the_whole(tiny: VirtualStudy, tmp_path: Path) -> None:
    path = write_study(tmp_path / "part.h5", TINY, seed=3, subjects=1, sessions=1)
    with Study.open(path) as part:
        assert part.subjects == ["sub-01"]
        whole = tiny.study.recordings["sub-01"]
        first = whole.trials["session"] == 1
        np.testing.assert_allclose(part.recordings["sub-01"].read(), whole.read(first), atol=1e-4)
        assert set(part.stimuli.ids) == set(whole.trials["stimulus_id"][first])


def _interrupted(path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 3) -> list[int]:
    """Write the tiny study until `after` sessions are done, then fail; returns the sessions that were begun."""
    measure, begun = virtual.VirtualPerson.measure, []

    def measured(person: virtual.VirtualPerson, signal: np.ndarray, session: int) -> np.ndarray:
        begun.append(session)
        if len(begun) > after:
            raise error
        return measure(person, signal, session)

    with monkeypatch.context() as patched:
        patched.setattr(virtual.VirtualPerson, "measure", measured)
        if after < 4:
            with pytest.raises((type(error), InputError)):  # a full disk is told in words
                write_study(path, TINY, seed=3)
        else:
            write_study(path, TINY, seed=3)
    return begun


def test_an_interrupted_simulation_goes_on_to_the_same_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.h5"
    _interrupted(path, monkeypatch, KeyboardInterrupt())
    assert not path.exists()
    parts = tmp_path / ".study.h5.parts"
    assert sorted(p.name for p in parts.glob("*.npy")) == ["sub-01-001.npy", "sub-01-002.npy", "sub-02-001.npy"]
    (parts / "sub-01-002.npy").write_bytes(b"\x93NUMPY cut short")
    assert _interrupted(path, monkeypatch, KeyboardInterrupt(), after=4) == [2, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.h5"]
    whole = write_study(tmp_path / "whole.h5", TINY, seed=3)
    with Study.open(path) as one, Study.open(whole) as other:
        assert one.digest == other.digest


def test_sessions_of_other_settings_are_not_taken_for_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.h5"
    _interrupted(path, monkeypatch, KeyboardInterrupt())
    write_study(path, TINY, seed=4)
    with Study.open(path) as one, Study.open(write_study(tmp_path / "whole.h5", TINY, seed=4)) as other:
        assert one.digest == other.digest


def test_a_simulation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(tmp_path / "study.h5", monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert not list(tmp_path.iterdir())


def test_nsd_preset_runs_for_one_person_and_two_sessions(tmp_path: Path) -> None:
    path = write_study(tmp_path / "nsd.h5", "nsd", subjects=1, sessions=2)
    with Study.open(path) as study:
        assert study.subjects == ["sub-01"]
        recording = study.recordings["sub-01"]
        assert (recording.n_trials, recording.n_voxels) == (1500, 15724)
        assert np.unique(recording.trials["session"]).tolist() == [1, 2]
        assert len(np.unique(recording.trials["run"])) == 12
        assert {role: len(ids) > 0 for role, ids in study.roles().items()} == {"test": True, "train": True}
        # the second half of trials of a session is another block of the file: both hold responses that vary
        assert (recording.read(np.array([0, 700, 1499])).std(1) > 0).all()


def test_presets_are_valid_and_nsd_has_its_real_numbers() -> None:
    assert presets("virtual", "study") == ["demo", "hours", "nsd", "small"]
    for name in presets("virtual", "study"):
        make_settings(name)
    nsd = make_settings("nsd")
    people = [nsd.of(name) for name in nsd.names]
    assert [p.voxels for p in people] == [15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386]
    assert [p.sessions for p in people] == [40, 40, 32, 30, 40, 32, 40, 30]
    assert (nsd.trials, nsd.repeats, nsd.stimuli.test, nsd.stimuli.own) == (750, 3, 1000, 9000)
    hours = make_settings("hours")
    assert (hours.person.voxels, hours.sessions, hours.trials) == (2000, 40, 750)


def test_the_stable_door() -> None:
    study = phosphene.virtual.study(
        preset="demo", seed=0, person={"voxels": 60}, stimuli={"test": 3, "own": 5, "size": 16}
    )
    assert study.subjects == ["sub-01", "sub-02"]
    assert study.split("train").n_trials("sub-01") > 0
    assert study.split("test").n_trials("sub-01") > 0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda path: virtual.study("smal"), "did you mean 'small'"),
        (lambda path: virtual.study(None, wrap=1), "wrap"),
        (lambda path: write_study(path, TINY, subjects=3), "between 1 and 2"),
        (lambda path: write_study(path, TINY, subjects=["sub-7"]), "sub-01, sub-02"),
        (lambda path: write_study(path, TINY, subjects=[]), "no subjects"),
        (lambda path: write_study(path, TINY, sessions=0), "sessions"),
        (lambda path: record(StimulusSet(["a"]), None), "at least two"),
    ],
)
def test_wrong_calls_are_named(call, named: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=named):
        call(tmp_path / "study.h5")
    assert not list(tmp_path.iterdir())
