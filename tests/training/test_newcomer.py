"""One more person for a trained wills-aligner: only what is theirs is trained, everybody else keeps their bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.alignment import Aligner, make_aligner
from phosphene.decoders import Decoder
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.encoders import Targets, encode
from phosphene.errors import InputError, LeakageError
from phosphene.evaluation import evaluate
from phosphene.nn.freezing import state_digest
from phosphene.recordings import Study
from phosphene.training import adapt, fit
from phosphene.training.newcomer import add_subject

SMALL: dict[str, Any] = {"width": 16, "blocks": 1, "projector": 0, "linear_rank": 8, "experts": 3, "rank": 2}
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 48,
    "validation_fraction": 0.0,
    "stage2": {"epochs": 2, "learning_rate": 0.01},
}
FEW: dict[str, Any] = {"epochs": 4, "learning_rate": 0.02, "batch_size": 16, "validation_fraction": 0.0}


def of_two(study: Study, targets: Targets, **settings: Any) -> WillsAligner:
    two = ["sub-01", "sub-02"]
    aligner = make_aligner("anatomical").fit(study.split("train").subset(two))
    settings = {**SMALL, **settings}
    decoder = fit(
        "wills-aligner", study, targets, subjects=two, aligner=aligner, progress=False, training=TRAINING, **settings
    )
    assert isinstance(decoder, WillsAligner)
    return decoder


@pytest.fixture(scope="module")
def private(study: Study, targets: Targets) -> WillsAligner:
    return of_two(study, targets, private=True)


def test_only_what_is_the_persons_own_is_trained(
    study: Study, targets: Targets, private: WillsAligner, tmp_path: Path
) -> None:
    test, train = study.split("test"), study.split("train")
    before = {s: private.predict(test.responses(s), s) for s in private.subjects}
    state = {name: tensor.clone() for name, tensor in private.state_dict().items()}
    added = add_subject(private, study, targets, "sub-03", sessions=1, progress=False, out=tmp_path, training=FEW)
    assert list(private.subjects) == ["sub-01", "sub-02"]
    assert list(added.subjects) == ["sub-01", "sub-02", "sub-03"]
    now = added.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    for subject, was in before.items():
        np.testing.assert_array_equal(added.predict(test.responses(subject), subject), was)
    new = sorted(now.keys() - state.keys() - {"standardisers.2.mean", "standardisers.2.deviation"})
    assert new == sorted(added.own("sub-03"))
    assert now["router.people.2"].abs().sum() > 0
    told = added.provenance["newcomers"]["sub-03"]
    assert told["sessions"] == [1]
    assert told["n_trials"] == train.first_sessions(1).n_trials("sub-03")
    assert told["trained"] == sum(now[name].numel() for name in new)
    # only the first session counts, for the standardiser too
    mean, _ = train.subset(["sub-03"]).first_sessions(1).through(added.aligner).moments("sub-03")
    np.testing.assert_allclose(now["standardisers.2.mean"].numpy(), mean, atol=0.1)
    read = Decoder.load(tmp_path / "decoder")
    again = add_subject(private, study, targets, "sub-03", sessions=1, progress=False, out=tmp_path, training=FEW)
    fresh = add_subject(private, study, targets, "sub-03", sessions=1, progress=False, training=FEW)
    wanted = added.predict(test.responses("sub-03"), "sub-03")
    for other in (read, again, fresh):
        np.testing.assert_array_equal(other.predict(test.responses("sub-03"), "sub-03"), wanted)
    np.testing.assert_allclose(
        added.merged("sub-03").predict(test.responses("sub-03"), "sub-03"), wanted, atol=1e-4, rtol=1e-4
    )
    card = evaluate(added, study, targets, subjects=["sub-03"], rivals=(), n_boot=10, n_perm=0, progress=False)
    assert 0 < card.get("two-way", "brain_to_image").value <= 1


def test_the_base_given_is_not_modified_and_another_one_is_another_run(
    study: Study, targets: Targets, private: WillsAligner, tmp_path: Path
) -> None:
    base, before = copy.deepcopy(private).train(), state_digest(private)
    flags = {name: each.requires_grad for name, each in base.named_parameters()}
    words: dict[str, Any] = {"sessions": 1, "progress": False, "out": tmp_path, "training": {**FEW, "ema": 0.9}}
    added = add_subject(base, study, targets, "sub-03", **words)
    assert state_digest(base) == before
    assert {name: each.requires_grad for name, each in base.named_parameters()} == flags
    assert all(module.training for module in base.modules())
    assert added.get_parameter("out.out.weight").data_ptr() == base.get_parameter("out.out.weight").data_ptr()
    # the same first stage under other experts
    with torch.no_grad():
        base.router.constant.add_(1.0)
    assert base.common == private.common
    with pytest.raises(InputError, match=r"base was .*, is now"):
        add_subject(base, study, targets, "sub-03", **words)


def test_what_a_newcomer_was_shown_counts_as_seen(study: Study, targets: Targets, private: WillsAligner) -> None:
    added = add_subject(private, study, targets, "sub-03", progress=False, training={**FEW, "epochs": 1})
    test, train = study.roles()["test"], study.roles()["train"]
    swapped = study.with_splits({"swapped": {"train": test, "test": train}}).using("swapped")
    with pytest.raises(LeakageError):
        evaluate(added, swapped, targets, subjects=["sub-03"], rivals=(), n_boot=0, n_perm=0, progress=False)


@pytest.fixture(scope="module")
def ridges(study: Study) -> dict[str, Aligner]:
    train = study.split("train")
    return {
        "two": make_aligner("ridge", least=10).fit(train.subset(["sub-01", "sub-02"])),
        "all": make_aligner("ridge", least=10).fit(train),
    }


def test_it_is_told_what_the_aligner_knew_of_the_newcomer(
    study: Study, targets: Targets, ridges: dict[str, Aligner], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for name, aligner in ridges.items():
        kept = Aligner.load(aligner.save(tmp_path / name))
        brief: dict[str, Any] = {"subjects": ["sub-01", "sub-02"], "aligner": kept, "progress": False}
        decoder = fit("wills-aligner", study, targets, training={**TRAINING, "epochs": 1}, **brief, **SMALL)
        caplog.clear()
        added = add_subject(decoder, study, targets, "sub-03", sessions=1, progress=False, training=FEW)
        found[name] = added.provenance["newcomers"]["sub-03"]["alignment"]
        assert added.provenance["aligner"] == added.aligner.identity
        assert kept.identity == aligner.identity
        assert ("from 2 more sessions than the 1 asked for" in caplog.text) == (name == "all")
    trials = study.split("train").first_sessions(1).n_trials("sub-03")
    own = {"aligner": "ridge", "functional": True, "added": True, "sessions": [1], "n_trials": trials, "beyond": None}
    assert found["two"] == own
    assert not found["all"]["added"]
    assert found["all"]["sessions"] == [1, 2, 3]
    assert "2 more sessions" in found["all"]["beyond"]


@pytest.mark.parametrize("arm", ["both", "full"])
def test_a_person_whom_the_aligner_does_not_know_is_added_to_it_by_adapt(
    arm: str, study: Study, targets: Targets, ridges: dict[str, Aligner], tmp_path: Path
) -> None:
    aligner, two = ridges["two"], ["sub-01", "sub-02"]
    settings: dict[str, Any] = {"width": 16, "blocks": 1, "projector": 0, "start_rank": 4, "pool_subjects": False}
    quick: dict[str, Any] = {"progress": False, "training": {"epochs": 1, "batch_size": 48}}
    base = fit("mindtuner", study, targets, subjects=two, aligner=aligner, **settings, **quick)
    adapted = adapt(base, study, targets, "sub-03", sessions=1, arm=arm, out=tmp_path / "run", **quick)
    assert base.aligner is aligner
    assert aligner.subjects == two
    by_hand = copy.deepcopy(aligner)
    by_hand.add("sub-03", study.split("train").subset(["sub-03"]).first_sessions(1))
    assert adapted.aligner is not None
    assert adapted.aligner.identity == by_hand.identity
    facts = adapted.provenance if arm == "full" else adapted.apart["sub-03"]
    assert facts["alignment"]["added"]
    assert facts["alignment"]["sessions"] == [1]
    assert adapted.provenance["aligner"] == adapted.aligner.identity
    responses = study.split("test").responses("sub-03")
    again = Decoder.load(tmp_path / "run" / "decoder")
    np.testing.assert_array_equal(again.predict(responses, "sub-03"), adapted.predict(responses, "sub-03"))
    folder = base.save(tmp_path / "base")
    if arm == "both":
        with pytest.raises(InputError, match=r"does not know sub-03.*name a run folder"):
            adapt(folder, study, targets, "sub-03", sessions=1, **quick)


def test_with_nothing_of_ones_own_the_router_does(study: Study, targets: Targets) -> None:
    decoder = of_two(study, targets, router=("data", "anatomy"), anatomy=("sulc", "curvature"), private=False)
    added = add_subject(decoder, study, targets, "sub-03", sessions=2, progress=False)
    assert added.provenance["newcomers"]["sub-03"]["trained"] == 0
    with pytest.raises(InputError, match=r"training settings \(epochs\) have no use: .*nothing is trained"):
        add_subject(decoder, study, targets, "sub-03", sessions=2, progress=False, training={"epochs": 3})
    assert added.anatomies is not None
    assert not torch.equal(added.anatomies.vectors[2], added.anatomies.mean)
    assert added.predict(study.split("test").responses("sub-03"), "sub-03").shape[1:] == targets.shape("pooled")


def test_a_weight_of_classes_needs_a_head_for_them(study: Study, targets: Targets, private: WillsAligner) -> None:
    with pytest.raises(InputError, match="class_weight = 1 needs a decoder with a head for classes"):
        add_subject(private, study, targets, "sub-03", progress=False, training={"class_weight": 1.0})


def test_who_cannot_be_added_is_refused(study: Study, targets: Targets, private: WillsAligner) -> None:
    with pytest.raises(InputError, match=r"'sub-02' is in this wills-aligner decoder already \(sub-01, sub-02\)"):
        add_subject(private, study, targets, "sub-02", progress=False)
    with pytest.raises(InputError, match="sub-09"):
        add_subject(private, study, targets, "sub-09", progress=False)
    common = study.roles()["train"]
    ids = [name for name in common if name not in set(study.split("train").trials("sub-03")["stimulus_id"])]
    nothing = study.with_splits({"nothing": {"train": ids, "test": study.roles()["test"]}}).using("nothing")
    encoded = encode(study.stimuli, "gabor", cache=False, progress=False)
    private_of_plain = of_two(study, encoded, private=True)
    with pytest.raises(InputError, match="sub-03 has no trials in the training part of split 'nothing'"):
        add_subject(private_of_plain, nothing, encoded, "sub-03", progress=False)
    ridge = fit("ridge", study, targets, subjects=["sub-01"], progress=False)
    with pytest.raises(InputError, match="ridge has no experts"):
        add_subject(ridge, study, targets, "sub-03", progress=False)
    settings = {key: value for key, value in SMALL.items() if key not in ("experts", "rank")} | {"stage2": "none"}
    plain = fit(
        "wills-aligner",
        study,
        targets,
        subjects=["sub-01"],
        progress=False,
        training={"epochs": 1},
        **settings,
    )
    with pytest.raises(InputError, match="stage2 = 'none'"):
        add_subject(plain, study, targets, "sub-03", progress=False)
    with pytest.raises(InputError, match=r"pool_subjects = False\).*would be random"):
        add_subject(of_two(study, targets, pool_subjects=False), study, targets, "sub-03", progress=False)


def test_what_is_refused_leaves_no_folder_that_refuses_other_settings(
    study: Study, targets: Targets, private: WillsAligner, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"sessions": 1, "progress": False, "out": tmp_path / "run"}
    with pytest.raises(InputError, match=r"validation_unit: label column 'nobody'"):
        add_subject(private, study, targets, "sub-03", **words, training={**FEW, "validation_unit": "nobody"})
    add_subject(private, study, targets, "sub-03", **words, training=FEW)


def test_adapt_leads_here_too_and_refuses_what_has_no_use(
    study: Study, targets: Targets, private: WillsAligner, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"sessions": 1, "progress": False, "training": FEW}
    added = add_subject(private, study, targets, "sub-03", **words)
    same = adapt(private, study, targets, "sub-03", **words)
    assert isinstance(same, WillsAligner)
    assert state_digest(same) == state_digest(added)
    place = private.save(tmp_path / "two")
    for given, said in (
        ({"arm": "lora"}, "no arms.* found arm"),
        ({"rank": 2}, "no adapter settings.* found rank"),
        ({"preset": "small"}, "found preset"),
        ({"stimuli": ["a"]}, "found stimuli"),
        ({}, r"written as a whole: name a run folder \(out\)"),
    ):
        with pytest.raises(InputError, match=said):
            adapt(place, study, targets, "sub-03", **words, **given)
    found = adapt(place, study, targets, "sub-03", out=tmp_path / "three", **words)
    assert state_digest(Decoder.load(tmp_path / "three" / "decoder")) == state_digest(found) == state_digest(added)
