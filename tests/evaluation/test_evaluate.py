"""The whole of `evaluate` against scores computed straight from predictions, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from linear_study import linear_study
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from phosphene.decoders import make_decoder
from phosphene.encoders import Targets, encode, make_encoder
from phosphene.errors import InputError, LeakageError
from phosphene.evaluation import evaluate
from phosphene.recordings import Recording, Study
from phosphene.training import fit

QUIET = {"n_boot": 60, "n_perm": 60, "progress": False}


def straight(decoder, study, targets, subject, repeats=None):
    """Cosine table of a person, computed without the evaluation room."""
    ids, responses = study.split("test").averaged(subject, repeats)
    with torch.no_grad():
        predicted = decoder(torch.from_numpy(responses), subject).embedding.numpy()
    return ids, cosine_similarity(predicted, targets.of(ids).reshape(len(ids), -1))


def two_way_loop(table):
    n = len(table)
    return np.mean([[table[i, i] > table[i, j] for j in range(n) if j != i] for i in range(n)])


def noisy(seed=0, **settings):
    study, targets = linear_study(noise=6.0, seed=seed, **settings)
    return study, targets, fit("ridge", study, targets, progress=False)


def test_scores_equal_a_straight_computation_per_person_and_on_the_mean():
    study, targets, decoder = noisy()
    card = evaluate(decoder, study, targets, rivals=(), **QUIET)
    values = {"top-1": [], "two-way": [], "median-rank": []}
    for subject in study.subjects:
        for direction in ("brain_to_image", "image_to_brain"):
            ids, table = straight(decoder, study, targets, subject)
            table = table if direction == "brain_to_image" else table.T
            score = card.get("top-1", direction, subject=subject)
            assert score.value == pytest.approx(top_k_accuracy_score(np.arange(len(ids)), table, k=1))
            assert score.chance == pytest.approx(1 / 15)
            assert (score.n, score.pool) == (15, {"size": 15, "smallest": 15, "draws": 1})
            two_way = card.get("two-way", direction, subject=subject)
            assert two_way.value == pytest.approx(two_way_loop(table))
            ranks = (table > np.diag(table)[:, None]).sum(axis=1) + 1
            assert card.get("median-rank", direction, subject=subject).value == np.median(ranks)
            if direction == "brain_to_image":
                for metric, value in (("top-1", score), ("two-way", two_way)):
                    values[metric].append(value.value)
    assert card.get("top-1").value == pytest.approx(np.mean(values["top-1"]))
    assert card.get("two-way").value == pytest.approx(np.mean(values["two-way"]))
    assert 0.55 < card.get("two-way").value < 0.99


def test_pearson_is_another_score_than_cosine():
    study, targets, decoder = noisy()
    card = evaluate(decoder, study, targets, rivals=(), **QUIET)
    cosine, pearson = card.get("two-way"), card.get("two-way", similarity="pearson")
    assert cosine.value != pearson.value
    assert (cosine.name, pearson.name) == (
        "two-way_brain_to_image_cosine".replace("-", "_"),
        "two_way_brain_to_image_pearson",
    )


def test_averaging_fewer_repeats_uses_the_first_ones_and_is_stated():
    study, targets, decoder = noisy()
    found = []
    for repeats in (1, 2, None):
        card = evaluate(decoder, study, targets, repeats=repeats, rivals=(), **QUIET)
        tables = [straight(decoder, study, targets, subject, repeats)[1] for subject in study.subjects]
        assert card.get("two-way").value == pytest.approx(np.mean([two_way_loop(table) for table in tables]))
        assert card.protocol["repeats"] == ("all" if repeats is None else repeats)
        assert card.protocol["trials_per_stimulus"]["sub-01"] == (repeats or 3)
        assert f"repeats {card.protocol['repeats']}" in card.get("two-way").protocol
        found.append(card.get("two-way").value)
    assert found[0] < found[2]


def test_folds_pool_the_queries_and_keep_candidates_within_the_fold(folded):
    study, targets, decoders = folded
    card = evaluate(decoders, study, targets, rivals=("mean",), unit="group", **QUIET)
    for subject in study.subjects:
        hits, two_way = [], []
        for split, decoder in decoders.items():
            ids, table = straight(decoder, study.using(split), targets, subject)
            hits += (table.argmax(axis=1) == np.arange(len(ids))).tolist()
            two_way += [two_way_loop(table)] * len(ids)
        assert card.get("top-1", subject=subject).value == pytest.approx(np.mean(hits))
        assert card.get("two-way", subject=subject).value == pytest.approx(np.mean(two_way))
        assert card.get("top-1", subject=subject).n == 54
    assert card.get("top-1").pool["size"] == 18
    assert card.get("top-1").interval_over == "group and people"
    record = card.stimuli[0]
    assert sorted(record["ids"]) == study.stimuli.ids.tolist()
    assert set(record["split"]) == set(decoders)
    for stimulus, split, top in zip(record["ids"], record["split"], record["top"], strict=True):
        candidates = study.using(split).split("test").stimulus_ids
        assert stimulus in candidates
        assert set(top) <= set(candidates)


def test_unequal_folds_are_weighted_by_their_stimuli():
    study, targets = linear_study(noise=6.0)
    ids = study.stimuli.ids
    study = study.with_splits({"a": {"train": ids[24:], "test": ids[:24]}, "b": {"train": ids[:50], "test": ids[54:]}})
    decoders = {split: fit("ridge", study.using(split), targets, progress=False) for split in ("a", "b")}
    card = evaluate(decoders, study, targets, rivals=(), subjects=["sub-01"], **QUIET)
    parts = [straight(decoders[s], study.using(s), targets, "sub-01")[1] for s in ("a", "b")]
    score = card.get("two-way")
    assert score.value == pytest.approx((24 * two_way_loop(parts[0]) + 6 * two_way_loop(parts[1])) / 30)
    assert score.pool == {"size": 24, "smallest": 6, "draws": 1}
    assert card.get("top-1").chance == pytest.approx((24 / 24 + 6 / 6) / 30)


def test_the_mean_rival_is_at_chance_and_ridge_is_the_decoder_itself(scorecard):
    for direction in ("brain_to_image", "image_to_brain"):
        for metric in ("top-1", "top-5", "two-way", "median-rank"):
            score = scorecard.get(metric, direction, method="mean")
            assert score.value == pytest.approx(score.chance)
            assert score.null["p"] == 1.0
            assert scorecard.get(metric, direction).value == scorecard.get(metric, direction, method="ridge").value
    assert scorecard.get("top-1").null["p"] < 0.02
    assert scorecard.get("top-1").value > scorecard.get("top-1", method="nearest").value > 0.2


def test_nearest_copies_a_training_target(linear, scorecard):
    study, targets = linear
    train, test = study.split("train"), study.split("test")
    known_ids, known = train.averaged("sub-01")
    _, new = test.averaged("sub-01")
    z = [(x - known.mean(axis=0)) / known.std(axis=0) for x in (new, known)]
    best = [max(range(len(known_ids)), key=lambda j, i=i: np.corrcoef(z[0][i], z[1][j])[0, 1]) for i in range(len(new))]
    table = cosine_similarity(targets.of(known_ids[best]), targets.of(test.stimulus_ids))
    record = next(r for r in scorecard.stimuli if (r["method"], r["subject"]) == ("nearest", "sub-01"))
    own = np.diag(table)[:, None]
    expected = 1 + (table > own + 1e-9).sum(axis=1) + ((abs(table - own) <= 1e-9).sum(axis=1) - 1) / 2
    assert record["rank"]["brain_to_image"] == expected.tolist()


def test_differences_to_rivals_are_paired(scorecard):
    rows = {(r["rival"], r["subject"], r["metric"], r["direction"], r["task"]): r for r in scorecard.comparisons}
    for rival in ("mean", "nearest", "ridge"):
        row = rows[rival, "mean", "top-1", "brain_to_image", "retrieval-full-cosine"]
        expected = scorecard.get("top-1").value - scorecard.get("top-1", method=rival).value
        assert row["difference"] == pytest.approx(expected)
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    same = rows["ridge", "mean", "two-way", "brain_to_image", "two-way-cosine"]
    assert (same["difference"], same["interval"], same["p"], same["better"]) == (0.0, (0.0, 0.0), 1.0, False)
    other = rows["mean", "mean", "two-way", "brain_to_image", "two-way-cosine"]
    assert other["better"]
    assert other["p"] < 0.02
    assert rows["mean", "mean", "median-rank", "brain_to_image", "retrieval-full-cosine"]["better"]


def test_seeds_decide_intervals_and_nulls_and_nothing_else(linear, ridge):
    study, targets = linear
    cards = [evaluate(ridge, study, targets, rivals=("nearest",), name="d", seed=s, **QUIET) for s in (1, 1, 2)]
    assert cards[0].to_dict() == cards[1].to_dict()
    first, other = cards[0].get("top-1", method="nearest"), cards[2].get("top-1", method="nearest")
    assert first.value == other.value
    assert first.null != other.null


def test_without_resamples_there_is_neither_interval_nor_null(linear, ridge):
    study, targets = linear
    card = evaluate(ridge, study, targets, rivals=("mean",), n_boot=0, n_perm=0, progress=False)
    assert card.get("top-1").interval is None
    assert card.get("top-1").null is None
    assert card.comparisons[0]["interval"] is None
    json.dumps(card.to_dict(), allow_nan=False)


def test_a_null_of_shuffled_targets_is_not_significant():
    study, targets, decoder = noisy()
    shuffled = Targets(targets.ids, None, targets.pooled[np.random.default_rng(1).permutation(60)], targets.encoder)
    card = evaluate(decoder, study, shuffled, rivals=(), **QUIET)
    score = card.get("two-way")
    assert score.null["p"] > 0.05
    assert abs(score.null["mean"] - 0.5) < 0.03


def test_drawn_pools_state_their_expectation(linear, ridge):
    study, targets = linear
    card = evaluate(ridge, study, targets, rivals=("nearest",), protocols=["retrieval-6x30"], **QUIET)
    score = card.get("top-1", method="nearest", task="retrieval-6x30-cosine")
    assert score.pool == {"size": 6, "smallest": 6, "draws": 30}
    assert score.chance == pytest.approx(1 / 6)
    assert score.extra["expected"] == pytest.approx(score.value, abs=0.05)
    with pytest.raises(InputError, match="pools of 16, the smallest gallery has 15"):
        evaluate(ridge, study, targets, rivals=(), protocols=["retrieval-16x3"], **QUIET)


def test_csls_is_beside_the_ordinary_scores_and_flagged(scorecard):
    flagged = [score for score in scorecard.scores if score.transductive]
    assert {score.task for score in flagged} == {"retrieval-full-cosine-csls"}
    assert "csls: transductive" in scorecard.table()
    assert not scorecard.get("top-1").transductive


def test_classification_by_training_centroids_and_by_given_classes(linear, ridge):
    study, targets = linear
    card = evaluate(ridge, study, targets, protocols=["classification:label"], rivals=("mean",), **QUIET)
    train, test = study.split("train"), study.split("test")
    labels = dict(zip(study.stimuli.ids, study.stimuli.labels["label"], strict=True))
    of_train = np.array([labels[name] for name in train.stimulus_ids])
    names = np.unique(of_train)
    centroids = np.stack([targets.of(train.stimulus_ids[of_train == name]).mean(axis=0) for name in names])
    accuracy = []
    for subject in study.subjects:
        ids, responses = test.averaged(subject)
        chosen = names[cosine_similarity(ridge.predict(responses, subject), centroids).argmax(axis=1)]
        accuracy.append(np.mean(chosen == [labels[name] for name in ids]))
    score = card.get("accuracy")
    assert score.value == pytest.approx(np.mean(accuracy))
    assert score.value > 0.6
    assert (score.chance, score.pool["size"], score.direction) == (0.25, 4, "brain_to_label")
    assert score.extra["majority"] == pytest.approx(4 / 15)
    assert score.null["p"] < 0.05
    assert abs(score.null["mean"] - 0.25) < 0.08
    given = dict(zip(names, centroids, strict=True))
    again = evaluate(ridge, study, targets, protocols=["classification:label"], class_targets=given, rivals=(), **QUIET)
    assert again.get("accuracy").value == pytest.approx(score.value)
    given.pop("cat")
    with pytest.raises(InputError, match="'cat' has no class embedding"):
        evaluate(ridge, study, targets, protocols=["classification:label"], class_targets=given, rivals=(), **QUIET)


def test_one_hot_targets_classify(linear):
    study, _ = linear
    targets = encode(study.stimuli, "labels", fit_on=study.split("train").stimulus_ids, cache=False)
    decoder = fit("ridge", study, targets, progress=False)
    card = evaluate(decoder, study, targets, rivals=(), **QUIET)
    assert card.scores[0].task == "classification:label"
    assert card.get("accuracy").value > 0.6
    # fifteen stimuli of four classes: the right class leaves about a fourth of them tied
    assert card.get("top-1").value < 0.5


def test_targets_left_out_are_encoded_by_the_decoder_itself(linear):
    study, _ = linear
    train = study.split("train").stimulus_ids
    targets = encode(study.stimuli, "tfidf-svd4", fit_on=train, cache=False)
    decoder = fit("ridge", study, targets, progress=False)
    given = evaluate(decoder, study, targets, rivals=("mean",), **QUIET)
    left_out = evaluate(decoder, study, rivals=("mean",), **QUIET)
    assert given.to_dict() == left_out.to_dict()
    assert given.protocol["target"]["name"] == "tfidf-svd4"
    decoder.encoder = None
    with pytest.raises(InputError, match="carries no encoder"):
        evaluate(decoder, study, rivals=(), **QUIET)


def test_another_study_with_new_people_needs_a_subject_free_decoder():
    study, targets = linear_study(noise=0.5)
    other, _ = linear_study(noise=0.5, people=3)
    free = fit("ridge", study, targets, pool_subjects=True, progress=False)
    # the same people under other names, in a study that has a test part only
    strangers = [type(r)(f"new-{n}", r.responses, r.trials, r.voxels) for n, r in enumerate(other.recordings.values())]
    ids = study.stimuli.ids
    new = type(study)(other.stimuli, strangers, {"default": {"test": ids[:15]}}, name="elsewhere", scaling="none")
    card = evaluate(free, new, targets, **QUIET)
    assert {score.subject for score in card.scores} == {"new-0", "new-1", "new-2", "mean"}
    assert card.get("two-way").value > 0.9
    assert len(card.notes) == 3
    assert "no training part" in card.notes[0]
    alone = fit("ridge", study, targets, progress=False)
    with pytest.raises(InputError, match=r"'new-0' needs a subject-free decoder"):
        evaluate(alone, new, targets, **QUIET)


def test_role_all_scores_a_study_without_splits(linear):
    study, targets = linear
    decoder = fit("ridge", study, targets, progress=False)
    bare = part_of(study, study.stimuli.ids[:15])
    card = evaluate(decoder, bare, targets, role="all", **QUIET)
    assert card.get("top-1").n == 2 * 15
    assert {score.method for score in card.scores} == {"ridge"}


def part_of(study, ids, name="bare", scaling="none"):
    """A study of its own, without splits: these stimuli and the trials in which they were shown."""
    people = []
    for person in study.recordings.values():
        rows = np.isin(person.trials["stimulus_id"], ids)
        people.append(Recording(person.subject, person.responses[rows], person.trials.take(rows), person.voxels))
    return Study(study.stimuli.select(ids), people, None, name=name, scaling=scaling)


def test_fitted_rivals_can_be_given(linear, ridge):
    study, targets = linear
    pooled = fit("ridge", study, targets, pool_subjects=True, progress=False)
    card = evaluate(pooled, study, targets, rivals={"ridge": None, "alone": ridge}, **QUIET)
    assert list(dict.fromkeys(score.method for score in card.scores)) == ["ridge", "ridge (rival)", "alone"]
    assert card.get("top-1", method="alone").value == card.get("top-1", method="ridge (rival)").value
    wide = make_decoder("ridge", subjects=ridge.subjects, target_shape=(9,))
    with pytest.raises(InputError, match=r"'wide' predicts targets of shape \(9,\)"):
        evaluate(ridge, study, targets, rivals={"wide": wide}, **QUIET)


def test_models_of_single_people_stand_beside_one_of_all(folded):
    study, targets, ridge = noisy()
    single = {each: fit("ridge", study, targets, subjects=[each], progress=False) for each in study.subjects}
    card = evaluate(ridge, study, targets, rivals={"one a person": single, "ridge": None}, **QUIET)
    for subject in (*study.subjects, "mean"):
        # the rival that is fitted here is a ridge of one person too
        ours, theirs = (
            card.get("two-way", "brain_to_image", subject=subject, method=name)
            for name in ("one a person", "ridge (rival)")
        )
        assert ours.value == theirs.value
    assert {row["rival"] for row in card.comparisons} == {"one a person", "ridge (rival)"}
    alone = {study.subjects[0]: single[study.subjects[0]]}
    with pytest.raises(InputError, match=f"unknown person of rival 'alone': '{study.subjects[1]}'"):
        evaluate(ridge, study, targets, rivals={"alone": alone}, **QUIET)
    shared, targets, decoders = folded
    with pytest.raises(InputError, match="one decoder a person: these are for one split, found 3"):
        evaluate(decoders, shared, targets, rivals={"alone": dict.fromkeys(shared.subjects, ridge)}, **QUIET)


def test_leakage_is_refused(linear, ridge):
    study, targets = linear
    ids = study.stimuli.ids
    fitted_on_all = encode(study.stimuli, "tfidf-svd4", fit_on=ids, cache=False)
    decoder = make_decoder("ridge", subjects=ridge.subjects, target_shape=(4,))
    with pytest.raises(LeakageError, match="'tfidf-svd4' was fitted on 15 of the 15"):
        evaluate(decoder, study, fitted_on_all, rivals=(), **QUIET)
    crossed = study.with_splits({"other": {"train": ids[:40], "test": ids[40:]}})
    elsewhere = fit("ridge", crossed.using("other"), targets, progress=False)
    with pytest.raises(LeakageError, match="training part of split 'other' of study 'linear', which holds 15"):
        evaluate(elsewhere, crossed, targets, rivals=(), **QUIET)
    # another file: without the split it was fitted on, under another name, with other responses
    for other in (study, part_of(study, ids[:20], "copied")):
        role = "test" if other.split_names else "all"
        with pytest.raises(LeakageError, match="'linear', which holds"):
            evaluate(elsewhere, other, targets, role=role, rivals=(), **QUIET)
    with pytest.raises(LeakageError, match="'linear', which holds 15"):
        evaluate(ridge, crossed, targets, rivals={"other": elsewhere}, **QUIET)
    elsewhere.provenance.pop("training_content")
    card = evaluate(elsewhere, study, targets, rivals=(), **QUIET)
    assert "could not be checked" in card.notes[0]
    assert not evaluate(ridge, crossed, targets, rivals=(), **QUIET).notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rivals": ("rigde",)}, "did you mean 'ridge'"),
        ({"protocols": ["retrival"]}, "unknown protocol 'retrival'"),
        ({"protocols": ["classification:colour"]}, "unknown label column 'colour'"),
        ({"subjects": ["sub-07"]}, "sub-01, sub-02"),
        ({"subjects": []}, "at least one person"),
        ({"unit": "action"}, "unknown unit"),
        ({"repeats": 0}, "found 0"),
        ({"role": "validation"}, "unknown role"),
    ],
)
def test_wrong_arguments_name_what_is_allowed(linear, ridge, change, message):
    study, targets = linear
    with pytest.raises(InputError, match=message):
        evaluate(ridge, study, targets, **{"rivals": (), **QUIET, **change})


def test_targets_of_another_encoder_or_shape_are_refused(linear, ridge):
    study, targets = linear
    other = Targets(targets.ids, None, targets.pooled, make_encoder("pixels"))
    with pytest.raises(InputError, match="identity"):
        evaluate(ridge, study, other, rivals=(), **QUIET)
    wide = Targets(targets.ids, None, np.ones((60, 9), np.float32), targets.encoder)
    with pytest.raises(InputError, match=r"shape \(8,\), the targets have \(9,\)"):
        evaluate(ridge, study, wide, rivals=(), **QUIET)


def test_unknown_split_of_a_fold_mapping(folded):
    study, targets, decoders = folded
    with pytest.raises(InputError, match="unknown split 'fold-9'"):
        evaluate({"fold-9": decoders["fold-0"]}, study, targets, rivals=(), **QUIET)
    with pytest.raises(InputError, match="unknown split of the targets 'fold-1'"):
        evaluate(decoders, study, {"fold-0": targets, "fold-2": targets}, rivals=(), **QUIET)
    with pytest.raises(InputError, match="mapping of split names to decoders is empty"):
        evaluate({}, study, targets, **QUIET)


def test_people_with_different_stimuli_have_their_own_candidates():
    study, targets = linear_study()
    first, second = study.recordings.values()
    keep = np.flatnonzero(np.isin(second.trials["stimulus_id"], study.stimuli.ids[5:]))
    part = type(second)(second.subject, second.read(keep), second.trials.take(keep), second.voxels)
    uneven = type(study)(study.stimuli, [first, part], {"default": study.roles()}, name="uneven", scaling="none")
    decoder = fit("ridge", uneven, targets, progress=False)
    card = evaluate(decoder, uneven, targets, **QUIET)
    assert [card.get("top-1", subject=s).pool["size"] for s in uneven.subjects] == [15, 10]
    assert card.get("top-1").n == 25
    assert card.get("top-1").chance == pytest.approx((1 / 15 + 1 / 10) / 2)


def test_tokens_are_compared_flattened(linear):
    study, pooled = linear
    tokens = Targets(pooled.ids, pooled.pooled.reshape(60, 2, 4), pooled.pooled[:, :4], make_encoder("gabor"))
    decoder = fit("ridge", study, tokens, kind="tokens", progress=False)
    card = evaluate(decoder, study, tokens, rivals=("mean", "nearest"), **QUIET)
    flat = evaluate(fit("ridge", study, pooled, progress=False), study, pooled, rivals=(), **QUIET)
    assert card.protocol["target"]["shape"] == [2, 4]
    assert card.get("top-1").value == flat.get("top-1").value
    assert card.audits["predictions"]["ridge"]["sub-01"]["effective_rank"] <= 4


def test_the_audits_of_a_plain_study(scorecard):
    assert scorecard.audits["overlap"]["default"] == {
        "ids": 0,
        "contents": 0,
        "captions": 0,
        "test_stimuli": 15,
        "examples": [],
    }
    own = scorecard.audits["predictions"]["decoder"]["sub-01"]
    assert 1 < own["effective_rank"] <= 8
    assert own["closer_to_training"] < 0.5
    assert scorecard.audits["predictions"]["nearest"]["sub-01"]["closer_to_training"] == 1.0
    assert scorecard.audits["predictions"]["mean"]["sub-01"]["effective_rank"] == 0.0
    assert scorecard.audits["semantic_leakage"]["default"]["in_training_clusters"] > 0.5
    ceiling = scorecard.audits["noise_ceiling"]["sub-01"]
    assert ceiling["repeated_stimuli"] == 15
    assert 0.5 < ceiling["voxel_median_single"] < ceiling["voxel_median"] < 1
    assert ceiling["halves_two_way"] > 0.9
