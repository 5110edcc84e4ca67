"""Trials: what is not present is gone, what does not fit is refused, and inference never gets labels."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from federation_sites import made_trials

from phosphene.errors import InputError
from phosphene.federation.trials import FMRI, IMAGE, TEXT, Inputs, Trials


@pytest.fixture
def trials() -> Trials:
    return made_trials(0, {"p1": 5, "p2": 6}, n=4, public=3)


def test_hidden_modalities_are_gone(trials):
    present = trials.present.clone()
    present[0, FMRI] = present[1, IMAGE] = present[2, TEXT] = False
    hidden = trials.hiding(present)
    assert not hidden.inputs.responses["p1"][0].any()
    assert not hidden.inputs.image[1].any()
    assert not hidden.inputs.text[2].any()
    assert torch.equal(hidden.inputs.image[2], trials.inputs.image[2])
    with pytest.raises(InputError, match="trial 0 has only image, text; fmri, image, text were asked for"):
        hidden.hiding(trials.present)


def test_missing_values_may_be_anything_and_present_ones_must_be_finite(trials):
    spoilt = trials.inputs.image.clone()
    spoilt[1] = torch.nan
    with pytest.raises(InputError, match="image: row 1"):
        replace(trials.inputs, image=spoilt)
    present = trials.present.clone()
    present[1, IMAGE] = False
    assert not replace(trials.inputs, image=spoilt, present=present).image[1].any()


def test_selection_keeps_people_and_rows_together(trials):
    rows = torch.tensor([9, 6, 1, 4, 0])
    some = trials.select(rows)
    assert some.inputs.subjects.tolist() == ["", "p2", "p1", "p2", "p1"]
    assert torch.equal(some.inputs.responses["p1"], trials.inputs.responses["p1"][[1, 0]])
    assert torch.equal(some.inputs.responses["p2"], trials.inputs.responses["p2"][[2, 0]])
    assert torch.equal(some.labels, trials.labels[rows])
    assert some.ids.tolist() == trials.ids[rows.numpy()].tolist()
    assert trials.select(torch.tensor([9])).inputs.responses == {}


def test_inputs_have_no_field_for_labels_or_stimuli():
    assert {each.name for each in fields(Inputs)} == {"subjects", "responses", "image", "text", "present", "adapted"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"present": i.present & False}, "no modality at all"),
        (lambda i: {"present": i.present.float()}, "booleans"),
        (lambda i: {"present": torch.ones_like(i.present)}, "fMRI response of nobody"),
        (lambda i: {"text": i.text[:-1]}, "text embeddings must be"),
        (lambda i: {"responses": {"p1": i.responses["p1"]}}, "p2 has 4 trials, found 0"),
        (lambda i: {"responses": {**i.responses, "p9": i.image}}, "responses of p9"),
    ],
)
def test_what_does_not_fit_is_refused(trials, change, message):
    with pytest.raises(InputError, match=message):
        replace(trials.inputs, **change(trials.inputs))


def test_labels_are_checked(trials):
    with pytest.raises(InputError, match="found numbers outside"):
        replace(trials, labels=trials.labels * 2)
    with pytest.raises(InputError, match="labels must be"):
        replace(trials, labels=trials.labels[:2])
    with pytest.raises(InputError, match="as many stimulus ids"):
        replace(trials, ids=trials.ids[:2])


def test_trials_of_a_study(made_study):
    from phosphene.encoders import Targets
    from phosphene.encoders.pixels import PixelGridEncoder

    view = made_study.split("train")
    encoded = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    targets = Targets(made_study.stimuli.ids, None, encoded, PixelGridEncoder())
    labels = np.eye(2, dtype=np.float32)[np.arange(30) % 2]
    trials = Trials.of_study(view, targets, targets, labels)
    assert len(trials) == 120
    assert trials.inputs.people == {"sub-01": 30, "sub-02": 31}
    np.testing.assert_array_equal(trials.inputs.responses["sub-02"].numpy(), view.responses("sub-02"))
    np.testing.assert_array_equal(trials.inputs.image.numpy(), targets.of(trials.ids, "pooled"))
    assert trials.labels[7].tolist() == labels[view.stimulus_ids.tolist().index(trials.ids[7])].tolist()
    averaged = Trials.of_study(view, targets, targets, averaged=True)
    assert len(averaged) == 60
    assert averaged.labels is None
    hidden = np.ones((120, 3), dtype=bool)
    hidden[0, 0] = False
    assert torch.equal(Trials.of_study(view, targets, targets, present=hidden).present, torch.from_numpy(hidden))
    wordless = Trials.of_study(view, targets, 9)
    assert wordless.inputs.text.shape == (120, 9)
    assert wordless.present[0].tolist() == [True, True, False]
    with pytest.raises(InputError, match="30 stimuli, found labels of 3"):
        Trials.of_study(view, targets, targets, labels[:3])


def test_public_stimuli_without_a_brain_join_those_of_people(trials, made_study):
    from phosphene.encoders import Targets
    from phosphene.encoders.pixels import PixelGridEncoder

    encoded = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)
    image = Targets(made_study.stimuli.ids, None, encoded, PixelGridEncoder())
    public = Trials.of_stimuli(made_study.stimuli.ids[:6], image, 7, np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]])
    assert public.present.tolist() == [[False, True, False]] * 6
    joined = Trials.joined([trials, public])
    assert len(joined) == len(trials) + 6
    assert joined.inputs.people == trials.inputs.people
    back = joined.select(torch.arange(len(trials)))
    assert torch.equal(back.inputs.responses["p2"], trials.inputs.responses["p2"])
    assert torch.equal(joined.labels[-6:], public.labels)
    with pytest.raises(InputError, match="a person stands in two parts: p1, p1, p2, p2"):
        Trials.joined([trials, trials])
    with pytest.raises(InputError, match="parts with labels and parts without"):
        Trials.joined([trials, replace(public, labels=None)])


def test_units_are_stimuli_unless_given_and_go_with_their_trials():
    trials = made_trials(0, {"p1": 20, "p2": 30}, n=4)
    assert trials.units.tolist() == trials.ids.tolist()
    given = replace(trials, units=np.array(list("aabbccdd")))
    assert given.select(torch.tensor([5, 0])).units.tolist() == ["c", "a"]
    assert given.hiding(given.present).units.tolist() == list("aabbccdd")
    alone = [replace(made_trials(k, {f"p{k}": 20}, n=2), units=np.array([f"{k}", f"{k}"])) for k in (1, 2)]
    assert Trials.joined(alone).units.tolist() == ["1", "1", "2", "2"]
    with pytest.raises(InputError, match="8 trials need as many units, found 2"):
        replace(trials, units=np.array(["a", "b"]))
