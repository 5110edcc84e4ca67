"""Inter-subject correlation against a slow loop, and its bound against what noise leaves."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from people_who_share import FEATURES, latents, line_of_voxels, one_grid, shared_study

from phosphene.alignment import inter_subject_correlation, make_aligner, unaligned
from phosphene.alignment.isc import leave_one_out
from phosphene.alignment.shared import half_means
from phosphene.errors import InputError, LeakageError
from phosphene.recordings import Recording, Study


def test_it_is_what_a_loop_says() -> None:
    x = np.random.default_rng(0).normal(size=(4, 30, 5))
    x[1, :, 2] = np.nan  # one person covers nothing at place 2
    found = leave_one_out(x)
    assert found.shape == (4, 1, 5)
    for person in range(4):
        for place in range(5):
            others = [o for o in range(4) if o != person and np.isfinite(x[o, 0, place])]
            if not np.isfinite(x[person, 0, place]):
                assert np.isnan(found[person, 0, place])
                continue
            mean = x[others, :, place].mean(axis=0)
            assert found[person, 0, place] == pytest.approx(np.corrcoef(x[person, :, place], mean)[0, 1])


def test_identification_is_what_a_loop_says() -> None:
    study = shared_study((40, 40, 40), n=60, noise=6.0, space=one_grid())
    view = study.split("test")
    report = inter_subject_correlation(unaligned(view), view, n_boot=0)
    x = np.stack([view.averaged(s)[1] for s in view.subjects]).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    wins = []
    for person in range(3):
        others = np.delete(x, person, axis=0).mean(axis=0)
        likeness = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in others] for a in x[person]]
        wins += [likeness[i][i] > likeness[i][j] for i in range(20) for j in range(20) if i != j]
    assert report.identification == pytest.approx(np.mean(wins))


def test_identification_sees_that_a_map_has_dropped_almost_everything() -> None:
    study = shared_study((40, 44, 38), n=150, noise=0.3)
    reports = []
    for features in (1, FEATURES):
        aligner = make_aligner("srm", features=(features,)).fit(study.split("train"))
        reports.append(inter_subject_correlation(aligner, study.split("test"), n_boot=0))
    assert min(report.row().value or 0 for report in reports) > 0.9
    assert reports[0].identification < 0.95
    assert reports[1].identification > 0.99


def test_weights_repeat_stimuli() -> None:
    x = np.random.default_rng(1).normal(size=(3, 20, 4))
    weights = np.random.default_rng(2).multinomial(20, np.full(20, 0.05), size=6)
    found = leave_one_out(x, weights)
    for number, count in enumerate(weights):
        expected = leave_one_out(np.repeat(x, count, axis=1))[:, 0]
        np.testing.assert_allclose(found[:, number], expected, atol=1e-9)


def test_what_does_not_vary_has_no_correlation() -> None:
    x = np.random.default_rng(3).normal(size=(3, 20, 2))
    x[0, :, 0] = 7.0
    found = leave_one_out(x)[:, 0]
    assert np.isnan(found[0, 0])
    assert np.isfinite(found[:, 1]).all()


def test_halves_are_odd_and_even_repeats(made_study: Study) -> None:
    view = made_study.split("train")
    ids = view.stimulus_ids[5:20]
    halves = half_means(view, "sub-01", ids)
    assert halves is not None
    shown, responses = view.trials("sub-01")["stimulus_id"], view.responses("sub-01")
    for row, name in enumerate(ids):
        first, second = np.flatnonzero(shown == name)
        np.testing.assert_allclose(halves[0][row], responses[first], rtol=1e-5)
        np.testing.assert_allclose(halves[1][row], responses[second], rtol=1e-5)


def _common(noise: float, repeats: int) -> Study:
    code = np.random.default_rng(9).normal(size=(FEATURES, 40))
    return shared_study((40, 40, 40), codes=[code] * 3, noise=noise, repeats=repeats, n=600, space=one_grid())


@pytest.mark.parametrize("noise", [0.5, 2.0, 5.0])
def test_the_normalised_value_does_not_know_the_noise(noise: float) -> None:
    view = _common(noise, 4).split("test")
    row = inter_subject_correlation(unaligned(view), view, n_boot=0).row()
    # people agree completely but for noise, which lowers the raw value: sqrt(reliability of one x that of two)
    power = np.square(np.random.default_rng(9).normal(size=(FEATURES, 40))).sum(axis=0)
    expected = np.sqrt(power / (power + noise**2 / 4) * power / (power + noise**2 / 8)).mean()
    assert row.value == pytest.approx(expected, abs=0.03)
    assert row.normalised == pytest.approx(1.0, abs=0.06)


def test_without_repeats_nothing_is_normalised() -> None:
    view = _common(0.5, 1).split("test")
    assert inter_subject_correlation(unaligned(view), view, n_boot=0).row().normalised is None


def test_people_who_share_nothing_share_nothing() -> None:
    view = shared_study((40, 40), n=600, space=one_grid()).split("test")
    row = inter_subject_correlation(unaligned(view), view, n_boot=200).row()
    assert row.value is not None
    assert row.interval is not None
    assert abs(row.value) < 0.15


def test_the_interval_holds_the_value_and_comes_again() -> None:
    view = _common(2.0, 2).split("test")
    one, two = (inter_subject_correlation(unaligned(view), view, n_boot=200, seed=4) for _ in range(2))
    assert one == two
    for row in one.rows:
        assert row.interval is not None
        assert row.interval[0] < row.value < row.interval[1]  # type: ignore[operator]
        assert row.interval[1] - row.interval[0] < 0.1
    assert [row.roi for row in one.rows] == ["all", "V1", "V2"]
    assert one.row("V1").n_places == 20
    assert set(one.row().by_subject) == {"sub-01", "sub-02", "sub-03"}
    assert one.to_dict()["rows"][0]["roi"] == "all"
    with pytest.raises(InputError, match="no inter-subject correlation of 'V7'"):
        one.row("V7")


def test_resamples_of_all_places_are_never_held_at_once() -> None:
    """1,000 resamples of 3 people over 12,000 places are 288 MB; of eight people over fsaverage they would be 10 GB."""
    view = shared_study((12_000,) * 3, n=30, repeats=1, space=one_grid(12_000)).split("test")
    aligner = unaligned(view)
    tracemalloc.start()
    try:
        found = inter_subject_correlation(aligner, view, n_boot=1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.row("V2").interval is not None
    assert peak < 240e6


def test_before_alignment_scanner_order_counts_where_there_is_no_grid() -> None:
    assert unaligned(_common(0.5, 2).split("test")).name == "anatomical"
    view = shared_study((40, 44, 38)).split("test")
    assert unaligned(view).template.name == "pooled-roi"
    bare = line_of_voxels(40)
    bare = type(bare)({name: bare[name] for name in bare.columns if not name.startswith("roi_")})
    assert unaligned(shared_study((40, 40), tables=[bare, bare]).split("test")).template.name == "pooled-40"


def test_stimuli_that_the_aligner_was_fitted_on_are_refused() -> None:
    study = shared_study()
    aligner = make_aligner("ridge").fit(study.split("train"))
    inter_subject_correlation(aligner, study.split("test"), n_boot=0)
    with pytest.raises(LeakageError, match="fitted on 60 of the 60 stimuli"):
        inter_subject_correlation(aligner, study.split("train"), n_boot=0)


def test_too_few_people_or_stimuli() -> None:
    study = shared_study()
    view = study.split("test")
    with pytest.raises(InputError, match="at least two people, found sub-01"):
        inter_subject_correlation(unaligned(view), view.subset(["sub-01"]))
    with pytest.raises(InputError, match=r"9 stimuli of the test part .* at least 10 are needed"):
        inter_subject_correlation(unaligned(view), view.restrict(view.stimulus_ids[:9]))


def test_only_what_all_saw_counts() -> None:
    study = shared_study(n=90)
    person = study.recordings["sub-02"]
    rows = np.flatnonzero(~np.isin(person.trials["stimulus_id"], study.stimuli.ids[60:70]))
    fewer = Recording("sub-02", person.read(rows), person.trials.take(rows), person.voxels, space=person.space)
    people = [study.recordings["sub-01"], fewer, study.recordings["sub-03"]]
    view = Study(study.stimuli, people, {"default": study.roles()}, scaling="none").split("test")
    assert inter_subject_correlation(unaligned(view), view, n_boot=0).n_stimuli == 20
    assert latents().shape == (90, FEATURES)


def test_who_covers_nothing_of_a_region_has_no_part_in_its_interval() -> None:
    study = shared_study((40, 40, 40), n=90, noise=0.3, space=one_grid())
    view = study.split("test")
    aligner = unaligned(view)
    person = aligner.people["sub-02"]
    region = aligner.template.rois["V1"]
    aligner.people["sub-02"] = replace(person, covered=person.covered & ~region)
    row = inter_subject_correlation(aligner, view, n_boot=200).row("V1")
    assert row.interval is not None
    assert row.interval[0] <= row.value <= row.interval[1]


def test_people_without_a_value_are_named(caplog: pytest.LogCaptureFixture) -> None:
    study = shared_study((40, 40, 40), n=60, space=one_grid())
    study.recordings["sub-02"].responses[:] = 0
    view = study.split("test")
    report = inter_subject_correlation(unaligned(view), view, n_boot=0)
    assert report.row().by_subject["sub-02"] is None
    assert "no inter-subject correlation of sub-02" in caplog.text
    assert "the mean is over 2 of 3 people" in caplog.text


@pytest.mark.parametrize("method", ["ridge", "procrustes", "srm", "hybrid", "anatomical"])
def test_a_missing_response_is_named_before_anything_is_made_of_it(method: str) -> None:
    study = shared_study((40, 40, 40), n=60, space=one_grid())
    last = study.recordings["sub-02"].n_trials - 1  # of the test part
    study.recordings["sub-02"].responses[last, 7] = np.nan
    aligner = make_aligner(method).fit(study.split("train"))
    with pytest.raises(
        InputError, match=f"sub-02: responses of 1 trials are NaN or infinite.* trial {last} at voxel 7"
    ):
        inter_subject_correlation(aligner, study.split("test"), n_boot=0)
    study = shared_study((40, 40, 40), n=60, space=one_grid())
    study.recordings["sub-02"].responses[0, 7] = np.inf
    if method != "anatomical":  # which looks at no response
        with pytest.raises(InputError, match="sub-02: responses of 1 trials are NaN or infinite"):
            make_aligner(method).fit(study.split("train"))


@pytest.mark.parametrize(
    ("words", "said"), [({"n_boot": -1}, "n_boot.* found -1"), ({"level": 95}, "level.* found 95")]
)
def test_numbers_of_the_interval(words: dict[str, float], said: str) -> None:
    view = shared_study((40, 40), space=one_grid()).split("test")
    with pytest.raises(InputError, match=said):
        inter_subject_correlation(unaligned(view), view, **words)
