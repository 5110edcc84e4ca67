"""Scores of several labels: against scikit-learn, with ties and resamples; what is left out is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from phosphene import virtual
from phosphene.decoders import ClassesConfig, Decoder, Prediction
from phosphene.errors import InputError, LeakageError
from phosphene.evaluation.multilabel import auc, average_precision, chance_precision, evaluate_labels, hamming
from phosphene.files import read_json
from phosphene.recordings import Study
from phosphene.stimuli.multilabel import find_classes


@pytest.mark.parametrize("levels", [3, 1000])
def test_as_scikit_learn_has_them_with_ties_and_weights(levels: int) -> None:
    rng = np.random.default_rng(levels)
    truth, scores = rng.random(60) < 0.2, rng.integers(0, levels, 60).astype(float)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=5).astype(float)
    for mine, theirs in ((average_precision, metrics.average_precision_score), (auc, metrics.roc_auc_score)):
        assert mine(truth, scores)[0] == pytest.approx(theirs(truth, scores))
        wanted = [theirs(truth, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(mine(truth, scores, weights), wanted)


def test_hamming_as_scikit_learn_has_it() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.random((20, 5)) < 0.3, rng.random((20, 5)) < 0.3
    assert hamming(truth, said)[0] == pytest.approx(metrics.hamming_loss(truth, said))


def test_what_has_no_positive_is_no_number() -> None:
    assert np.isnan(average_precision(np.zeros(3, bool), np.arange(3.0)))[0]
    assert np.isnan(auc(np.ones(3, bool), np.arange(3.0)))[0]


class _Head(Decoder):
    """A linear head for classes with weights made up here."""

    name = "head"
    Config = ClassesConfig

    def __init__(self, config: ClassesConfig, subjects: Any, target_shape: Any) -> None:
        super().__init__(config, subjects, target_shape)
        self.inputs = nn.ModuleList()
        for subject, n_voxels in self.subjects.items():
            self._add_input(subject, n_voxels)

    def _add_input(self, subject: str, n_voxels: int) -> None:
        self.inputs.append(nn.Linear(n_voxels, len(self.config.classes)))

    def _decode(self, responses: Tensor, subject: str | None) -> Prediction:
        pooled = torch.zeros(len(responses), self.n_outputs)
        return Prediction(None, pooled, classes=self.inputs[self.index(str(subject))](responses))


@pytest.fixture(scope="module")
def study() -> Study:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 1, "repeats": 1}
    return virtual.study(seed=5, stimuli={"test": 40, "common": 150}, person={"voxels": 120, "noise": 0.3}, **sizes)


def _head(study: Study, solved: bool) -> Decoder:
    """A head at random, or at the least squares of the training part."""
    view, columns = study.split("train"), ("shape_*",)
    classes = find_classes(view.stimuli.labels, columns)
    torch.manual_seed(0)
    config = ClassesConfig(class_columns=columns, classes=(*classes, "never"))
    decoder = _Head(config, {subject: view.n_voxels(subject) for subject in view.subjects}, (3,)).eval()
    if solved:
        from phosphene.stimuli.multilabel import label_matrix

        for at, subject in enumerate(view.subjects):
            ids, x = view.averaged(subject)
            y = label_matrix(view.stimuli.select(ids).labels, columns, config.classes).astype(np.float32)
            gram = x.T @ x + 100 * np.eye(x.shape[1], dtype=np.float32)
            decoder.inputs[at].weight.data = torch.from_numpy(np.linalg.solve(gram, x.T @ (y - y.mean(0))).T)
            decoder.inputs[at].bias.data = torch.from_numpy(y.mean(0)) - 0.5
    return decoder


def test_person_by_person_then_the_mean_beside_a_rival(study: Study, tmp_path: Path) -> None:
    card = evaluate_labels(_head(study, True), study, rivals={"chance": _head(study, False)}, n_boot=200)
    people = [card.get("mAP", subject).value for subject in study.subjects]
    mean = card.get("mAP")
    assert mean.value == pytest.approx(np.mean(people))
    assert mean.low <= mean.value <= mean.high
    assert mean.value > mean.chance + 0.05
    assert card.get("AUC").value > 0.6
    gain = next(row for row in card.differences if row.metric == "mAP")
    assert gain.value == pytest.approx(mean.value - card.get("mAP", method="chance").value)
    assert gain.low > 0
    assert "never" in card.left_out["sub-01"]
    assert mean.classes == len(card.facts["classes"]) - len(card.left_out["sub-01"])
    for said in ("mAP", "left out", "head - chance"):
        assert said in card.table()
    assert read_json(card.save(tmp_path / "labels.json"))["scores"][0]["metric"] == "mAP"


def test_an_interval_holds_its_value_where_positives_are_few(study: Study) -> None:
    """Of 40 stimuli a class has three or so: resamples alone lie above what was measured."""
    card = evaluate_labels(_head(study, True), study, rivals={"chance": _head(study, False)}, n_boot=300)
    for score in [*card.scores, *card.differences]:
        assert score.low < score.value < score.high
        # about as far above as below
        assert 0.4 < (score.high - score.value) / (score.value - score.low) < 2.5
    perfect = _head(study, True)
    perfect.predict = lambda x, *_, **__: 2 * _truth(study, perfect) - 1  # type: ignore[method-assign]
    best = evaluate_labels(perfect, study, n_boot=100)
    for subject in study.subjects:
        score = best.get("mAP", subject)
        assert (score.low, score.value, score.high) == (1.0, 1.0, 1.0)


def _truth(study: Study, head: Decoder) -> np.ndarray:
    from phosphene.stimuli.multilabel import label_matrix

    view = study.split("test")
    ids = view.averaged("sub-01")[0]
    return label_matrix(view.stimuli.select(ids).labels, ("shape_*",), head.config.classes).astype(float)


def test_heads_of_single_people_stand_beside_one_of_all(study: Study) -> None:
    whole, single = _head(study, True), dict.fromkeys(study.subjects, _head(study, False))
    card = evaluate_labels(whole, study, rivals={"one a person": single}, n_boot=0)
    for subject in study.subjects:
        expected = evaluate_labels(single[subject], study, subjects=[subject], n_boot=0).get("mAP", subject).value
        assert card.get("mAP", subject, method="one a person").value == expected
    with pytest.raises(InputError, match="unknown person of 'alone': 'sub-02'"):
        evaluate_labels(whole, study, rivals={"alone": {"sub-01": single["sub-01"]}}, n_boot=0)


def test_chance_is_what_random_orders_have() -> None:
    rng = np.random.default_rng(3)
    truth = np.arange(30) < 3
    drawn = np.mean([average_precision(truth, rng.random(30))[0] for _ in range(4000)])
    assert chance_precision(30, 3) == pytest.approx(drawn, abs=0.005)
    assert chance_precision(1, 1) == 1.0


def test_without_resamples_there_is_no_interval_and_the_file_says_so(study: Study, tmp_path: Path) -> None:
    card = evaluate_labels(_head(study, True), study, n_boot=0)
    assert np.isnan(card.get("mAP").low)
    assert "nan" not in card.table()
    assert read_json(card.save(tmp_path / "labels.json"))["scores"][0]["low"] is None


def test_saying_nothing_is_what_hamming_stands_beside(study: Study) -> None:
    silent = _head(study, True)
    for layer in silent.inputs:
        layer.bias.data -= 100
    score = evaluate_labels(silent, study, n_boot=0).get("Hamming")
    assert score.value == pytest.approx(score.chance)


def test_to_say_what_is_never_there_is_wrong(study: Study) -> None:
    """A class without a positive has no precision, but Hamming distance counts what is said of it, as scikit-learn."""
    quiet, loud = _head(study, True), _head(study, True)
    for layer in loud.inputs:
        layer.bias.data[-1] += 100  # the class "never"
    first, second = (evaluate_labels(each, study, n_boot=0) for each in (quiet, loud))
    n_classes = len(quiet.config.classes)
    assert second.get("mAP").value == first.get("mAP").value
    assert second.get("Hamming").value == pytest.approx(first.get("Hamming").value + 1 / n_classes)
    assert second.get("Hamming").classes == n_classes
    x = study.split("test").averaged("sub-01")[1]
    said = loud.predict(x, "sub-01", what="classes") > 0
    wanted = metrics.hamming_loss(_truth(study, loud).astype(bool), said)
    assert second.get("Hamming", "sub-01").value == pytest.approx(wanted)


def test_other_classes_cannot_be_compared(study: Study) -> None:
    other = _Head(ClassesConfig(class_columns=("shape_*",), classes=("ball",)), {"sub-01": 120, "sub-02": 120}, (3,))
    with pytest.raises(InputError, match="other classes"):
        evaluate_labels(_head(study, False), study, rivals={"other": other})
    other.config = ClassesConfig()
    with pytest.raises(InputError, match="no head for classes"):
        evaluate_labels(other, study)


def test_what_would_be_ignored_is_refused(study: Study) -> None:
    with pytest.raises(InputError, match="a rival is called '_head' like the decoder itself"):
        evaluate_labels(_head(study, True), study, name="_head", rivals={"_head": _head(study, False)})
    with pytest.raises(InputError, match="subject sub-01 named twice"):
        evaluate_labels(_head(study, True), study, subjects=["sub-01", "sub-01"])
    with pytest.raises(InputError, match="subjects is empty"):
        evaluate_labels(_head(study, True), study, subjects=[])
    with pytest.raises(InputError, match="repeats must be at least 1, or None for all of them; found 0"):
        evaluate_labels(_head(study, True), study, repeats=0)


def test_classes_without_any_positive(study: Study) -> None:
    config = ClassesConfig(class_columns=("shape_*",), classes=("never",))
    with pytest.raises(InputError, match="none of the 1 classes has a positive"):
        evaluate_labels(_Head(config, {"sub-01": 120, "sub-02": 120}, (3,)), study)


def test_stimuli_of_training_are_refused(study: Study) -> None:
    decoder = _head(study, False)
    view = study.split("train")
    decoder.provenance = {
        "training_content": dict(zip(view.stimulus_ids.tolist(), view.stimuli.hashes.tolist(), strict=True)),
        "study_digest": study.digest,
    }
    with pytest.raises(LeakageError, match="fitted on the training part"):
        evaluate_labels(decoder, study, role="train")


def test_a_class_that_every_stimulus_has_has_no_curve_and_is_not_counted(study: Study, tmp_path: Path) -> None:
    head, test = _head(study, True), study.split("test")
    column = next(name for name in head.config.classes if name != "never" and _truth(study, head)[:, 0].any())
    at = head.config.classes.index(column)
    has = test.stimulus_ids[_truth(study, head)[:, at].astype(bool)]
    fewer = study.with_splits({"some": {"train": study.roles()["train"], "test": has.tolist()}}).using("some")
    card = evaluate_labels(head, fewer, n_boot=20)
    truth = _truth(fewer, head).astype(bool)
    present, curved = truth.any(axis=0), truth.any(axis=0) & ~truth.all(axis=0)
    for subject in study.subjects:
        assert column in card.always[subject]
        assert card.get("mAP", subject).classes == present.sum()
        assert card.get("AUC", subject).classes == curved.sum() < present.sum()
    assert "classes without a negative (of AUC) left out" in card.table()
    alone = study.with_splits({"one": {"train": study.roles()["train"], "test": has[:1].tolist()}}).using("one")
    card = evaluate_labels(head, alone, rivals={"chance": _head(study, False)}, n_boot=20)
    assert (card.get("AUC").classes, np.isnan(card.get("AUC").value)) == (0, True)
    assert "nan" not in card.table()
    assert read_json(card.save(tmp_path / "one.json"))["scores"][1]["value"] is None


def test_resamples_are_counted_from_zero(study: Study) -> None:
    with pytest.raises(InputError, match=r"n_boot.* found -1"):
        evaluate_labels(_head(study, True), study, n_boot=-1)
