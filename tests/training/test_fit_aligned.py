"""Decoders behind an aligner: native responses in, one space for all, saved together, nothing of the test seen."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene import virtual
from phosphene.alignment import Aligner, make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.adaptable import AdaptableDecoder
from phosphene.encoders import Targets, encode
from phosphene.errors import InputError, LeakageError
from phosphene.evaluation import evaluate
from phosphene.recordings import Study
from phosphene.training import adapt, fit

SETTINGS: dict[str, Any] = {
    "subjects": 3,
    "sessions": 2,
    "repeats": 2,
    "stimuli": {"test": 30, "common": 60, "own": 20},
    "person": {"voxels": 150},
    "people": {"sub-02": {"voxels": 170}},
}


@pytest.fixture(scope="module")
def study() -> Study:
    return virtual.study(seed=3, **SETTINGS)


@pytest.fixture(scope="module")
def targets(study: Study) -> Targets:
    train = study.split("train").stimulus_ids
    return encode(study.stimuli, "z:gabor", fit_on=train, cache=False, progress=False)


@pytest.mark.parametrize("name", ["ridge", "lite-mind", "mindeye-mlp"])
def test_one_input_for_all_takes_native_responses(name: str, study: Study, targets: Targets, tmp_path: Path) -> None:
    aligner = make_aligner("ridge").fit(study.split("train"))
    training = {} if name == "ridge" else {"training": {"epochs": 2, "batch_size": 32}}
    decoder = fit(name, study, targets, aligner=aligner, progress=False, **training)
    assert decoder.subject_free
    native = study.split("test").responses("sub-02")
    assert native.shape[1] == 170 != aligner.template.size
    through = study.split("test").through(aligner).responses("sub-02")
    assert through.shape[1] == aligner.template.size
    predicted = decoder.predict(native, "sub-02")
    # the front does what the view does
    decoder.aligner, fronts = None, decoder.fronts
    np.testing.assert_allclose(decoder.predict(through, "sub-02"), predicted, rtol=1e-3, atol=1e-4)
    decoder.aligner, decoder.fronts = aligner, fronts
    again = Decoder.load(decoder.save(tmp_path / "decoder"))
    np.testing.assert_array_equal(again.predict(native, "sub-02"), predicted)
    card = evaluate(decoder, study, targets, rivals=(), n_boot=10, n_perm=10, progress=False)
    assert card.get("two-way", "brain_to_image").value > 0.5


def test_importance_comes_back_to_native_voxels(study: Study, targets: Targets) -> None:
    aligner = make_aligner("ridge").fit(study.split("train"))
    decoder = fit("ridge", study, targets, aligner=aligner, progress=False)
    found = decoder.importance(study.split("test"), targets, "sub-02")
    assert found.voxels.shape == (170,)
    assert found.voxels[study.split("test").rois("sub-02")["V1"]].mean() > 0


def test_places_a_person_does_not_cover_say_nothing(study: Study, targets: Targets) -> None:
    aligner = make_aligner("anatomical").fit(study.split("train"))
    decoder = fit("ridge", study, targets, aligner=aligner, progress=False)
    front = decoder.fronts[0]
    front.covered[:5] = False
    seen: list[torch.Tensor] = []
    original = decoder._decode
    decoder._decode = lambda responses, subject: (seen.append(responses), original(responses, subject))[1]  # type: ignore[method-assign]
    decoder.predict(study.split("test").responses("sub-01"), "sub-01")
    assert not seen[0][:, :5].any()
    assert seen[0][:, 5:].any()


def test_an_unknown_name_is_not_taken_for_the_template(study: Study, targets: Targets) -> None:
    known = ["sub-01", "sub-02"]
    aligner = make_aligner("ridge").fit(study.split("train").subset(known))
    decoder = fit("ridge", study, targets, subjects=known, aligner=aligner, progress=False)
    native = study.split("test").responses("sub-03")
    assert native.shape[1] == aligner.template.size  # by chance as many voxels as places
    with pytest.raises(InputError, match=r"does not take 'sub-03' .*only sub-01, sub-02: add the person"):
        decoder.predict(native, "sub-03")
    assert len(decoder.predict(native)) == len(native)  # said to lie in the template
    words: dict[str, Any] = {"rivals": (), "n_boot": 0, "n_perm": 0, "progress": False}
    with pytest.raises(InputError, match="does not take 'sub-03'"):
        evaluate(decoder, study, targets, **words)
    with pytest.raises(InputError, match="does not take 'sub-03'"):
        decoder.importance(study.split("test"), targets, "sub-03")
    alone = fit("ridge", study, targets, subjects=["sub-01"], pool_subjects=True, progress=False)
    with pytest.raises(InputError, match="does not take 'sub-03'"):
        evaluate(alone, study, targets, subjects=["sub-03"], **words | {"rivals": {"behind an aligner": decoder}})
    # without an aligner one grid is taken at its word, as before
    assert evaluate(alone, study, targets, subjects=["sub-03"], **words).scores
    assert len(alone.predict(native, "sub-03")) == len(native)


def test_strangers_are_standardised_by_those_who_cover_a_place(study: Study, targets: Targets) -> None:
    aligner = make_aligner("anatomical").fit(study.split("train"))
    decoder = fit("ridge", study, targets, aligner=aligner, progress=False)
    for at, value in enumerate((100.0, 200.0, 600.0)):
        decoder.standardisers[at].mean[:3] = value
        decoder.standardisers[at].deviation[:3] = value / 10
    fronts: Any = decoder.fronts
    for front, covered in zip(fronts, ([True, True, False], [True, True, False], [True, False, False]), strict=True):
        front.covered[:3] = torch.tensor(covered)
    stranger = torch.full((1, aligner.template.size), 320.0)
    found = decoder._standardised(stranger, None)[0, :3]
    torch.testing.assert_close(found, torch.tensor([(320 - 300) / 30, (320 - 150) / 15, 0.0]))
    assert bool(decoder._standardised(stranger, None).isfinite().all())


def test_an_aligner_that_saw_the_test_part_is_refused(study: Study, targets: Targets) -> None:
    test, train = study.roles()["test"], study.roles()["train"]
    swapped = study.with_splits({"swapped": {"train": test, "test": train}}).using("swapped")
    aligner = make_aligner("ridge").fit(swapped.split("train"))
    with pytest.raises(LeakageError, match="ridge aligner was fitted on"):
        fit("ridge", study, targets, aligner=aligner, progress=False)
    decoder = fit("ridge", study, targets, aligner=make_aligner("ridge").fit(study.split("train")), progress=False)
    decoder.align(aligner)
    with pytest.raises(LeakageError, match="ridge aligner was fitted on"):
        evaluate(decoder, study, targets, rivals=(), n_boot=0, n_perm=0, progress=False)


def test_another_aligner_in_the_folder_of_a_decoder_is_refused(study: Study, targets: Targets, tmp_path: Path) -> None:
    train = study.split("train")
    aligner = make_aligner("ridge").fit(train)
    decoder = fit("ridge", study, targets, aligner=aligner, progress=False)
    folder = decoder.save(tmp_path / "decoder")
    make_aligner("ridge", penalties=(100.0,)).fit(train).save(folder / "aligner")
    with pytest.raises(InputError, match=rf"aligner is not the aligner in front of this decoder.*{aligner.identity}"):
        Decoder.load(folder)
    plain = fit("ridge", study, targets, subjects=["sub-01"], progress=False).save(tmp_path / "plain")
    aligner.save(plain / "aligner")
    with pytest.raises(InputError, match=r"not the aligner in front of this decoder.*needed None"):
        Decoder.load(plain)


def test_an_adapter_belongs_to_the_aligner_in_front_too(study: Study, targets: Targets, tmp_path: Path) -> None:
    view, quick = study.split("train"), {"epochs": 1, "batch_size": 32}
    two = view.subset(["sub-01", "sub-02"])
    aligner = make_aligner("ridge").fit(two)
    small: dict[str, Any] = {"width": 8, "blocks": 1, "projector": 0, "start_rank": 4, "pool_subjects": False}
    words: dict[str, Any] = {"progress": False, "training": quick}
    base = fit("mindtuner", study, targets, subjects=["sub-01"], aligner=aligner, **small, **words)
    assert isinstance(base, AdaptableDecoder)
    adapted = adapt(base, study, targets, "sub-02", out=tmp_path / "run", **words)
    assert isinstance(adapted, AdaptableDecoder)
    person = adapted.save_person(tmp_path / "person", "sub-02")

    def behind(front: Aligner | None) -> AdaptableDecoder:
        decoder = copy.deepcopy(base)
        decoder.aligner, decoder.fronts = None, torch.nn.ModuleList()
        if front is not None:
            decoder.align(front)
        return decoder

    assert behind(aligner).load_person(person) == "sub-02"
    grown = copy.deepcopy(aligner)
    grown.add("sub-03", view)
    assert behind(grown).load_person(person) == "sub-02"  # whoever else is added changes nothing for them
    others = make_aligner("ridge", penalties=(100.0,)).fit(two)
    own = copy.deepcopy(aligner)
    own.people["sub-02"] = others.person("sub-02")
    for front, words_ in (
        (others, "behind its ridge aligner"),
        (own, "behind its ridge"),
        (None, "without an aligner"),
    ):
        decoder = behind(front)
        with pytest.raises(
            InputError, match=rf"another aligner in front of it.*{words_}.*adapt this one to sub-02 anew"
        ):
            decoder.load_person(person)
        assert list(decoder.subjects) == ["sub-01"]
    # a finished run behind one aligner is not that behind another
    with pytest.raises(InputError, match=r"aligner was .*, is now"):
        adapt(behind(others), study, targets, "sub-02", out=tmp_path / "run", **words)


def test_a_person_without_aligned_data_is_named(study: Study, targets: Targets) -> None:
    aligner = make_aligner("ridge").fit(study.split("train").subset(["sub-01", "sub-02"]))
    with pytest.raises(InputError, match="'sub-03'"):
        fit("ridge", study, targets, aligner=aligner, progress=False)


def test_a_person_added_to_the_aligner_can_be_decoded(study: Study, targets: Targets) -> None:
    train = study.split("train")
    aligner = make_aligner("ridge").fit(train.subset(["sub-01", "sub-02"]))
    decoder = fit("ridge", study, targets, subjects=["sub-01", "sub-02"], aligner=aligner, progress=False)
    before = decoder.predict(study.split("test").responses("sub-01"), "sub-01")
    aligner.add("sub-03", train)
    with pytest.raises(InputError, match=r"takes 150 voxels of sub-03 to \d+ places, found 149 voxels"):
        decoder.add_subject("sub-03", 149)
    decoder.add_subject("sub-03", 150)
    decoder.set_standardiser("sub-03", *train.through(aligner).moments("sub-03"))
    assert decoder.predict(study.split("test").responses("sub-03"), "sub-03").shape[0] > 0
    np.testing.assert_array_equal(decoder.predict(study.split("test").responses("sub-01"), "sub-01"), before)


def test_stimuli_set_apart_for_alignment_may_be_aligned_on(study: Study, targets: Targets) -> None:
    roles = study.roles()
    shared = [name for name in roles["train"] if all(name in _shown(study, person) for person in study.subjects)]
    apart = shared[:40]
    rest = [name for name in roles["train"] if name not in apart]
    split = study.with_splits({"apart": {"train": rest, "align": apart, "test": roles["test"]}}).using("apart")
    aligner = make_aligner("ridge").fit(split.split("align"))
    own = encode(study.stimuli, "z:gabor", fit_on=rest, cache=False, progress=False)
    decoder = fit("ridge", split, own, aligner=aligner, progress=False)
    card = evaluate(decoder, split, own, rivals=(), n_boot=0, n_perm=0, progress=False)
    assert card.get("two-way", "brain_to_image").value > 0.5


def _shown(study: Study, person: str) -> set[str]:
    return set(study.recordings[person].trials["stimulus_id"].tolist())


def test_naive_pooling_is_called_by_its_name(study: Study, targets: Targets, caplog: pytest.LogCaptureFixture) -> None:
    two = ["sub-01", "sub-03"]  # as many voxels, at other places
    with caplog.at_level(logging.WARNING):
        fit("ridge", study, targets, subjects=two, pool_subjects=True, progress=False)
    assert "taken for the same places" in caplog.text
    caplog.clear()
    aligner = make_aligner("anatomical").fit(study.split("train").subset(two))
    with caplog.at_level(logging.WARNING):
        fit("ridge", study, targets, subjects=two, aligner=aligner, progress=False)
    assert "taken for the same places" not in caplog.text
