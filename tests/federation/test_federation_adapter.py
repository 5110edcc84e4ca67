"""Adapters in closed form: what they say, that they stay, and that training sees them out of fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federation_sites import AGREEMENT, made_sites, made_trials, run, same, settings

from phosphene.federation.adapter import adapted_trials, with_adapters
from phosphene.federation.client import client_update, site_model
from phosphene.federation.server import first_state
from phosphene.federation.state import SiteState
from phosphene.federation.trials import FMRI, IMAGE

RIDGE = settings(model={"adapter": "ridge"})
PARTS = [AGREEMENT.image_width, AGREEMENT.text_width, len(AGREEMENT.classes)]


def site(n: int = 60, **changes) -> SiteState:
    return SiteState("one", made_trials(4, {"p1": 20}, n, **changes), AGREEMENT)


def errors(said: torch.Tensor, trials) -> list[float]:
    """Squared error of what is said of images, texts and classes, over their variance."""
    inputs = trials.inputs
    parts = zip(said.split(PARTS, dim=1), (inputs.image, inputs.text, trials.labels), strict=True)
    return [float((part - true).square().sum() / (true - true.mean(dim=0)).square().sum()) for part, true in parts]


def said_by(made: SiteState, trials) -> torch.Tensor:
    return trials.inputs.responses["p1"] @ made.private["p1/weight"].T + made.private["p1/bias"]


def test_an_adapter_speaks_of_image_text_and_classes_of_new_trials_and_foretells_old_ones_as_well():
    made = with_adapters(site(), RIDGE)
    fresh = errors(said_by(made, new := made_trials(5, {"p1": 20}, 60)), new)
    foretold = errors(made.foretold["p1"], made.trials)
    inside = errors(said_by(made, made.trials), made.trials)
    assert max(fresh) < 0.5
    for new_error, old_error, seen in zip(fresh, foretold, inside, strict=True):
        assert seen < old_error  # what was fitted to is said too well
        assert abs(old_error - new_error) < 0.15


def test_trials_without_the_modality_are_foretold_by_the_others_and_a_modality_nobody_has_stays_silent():
    whole = site()
    present = whole.trials.present.clone()
    present[::3, IMAGE] = False
    some = with_adapters(replace(whole, trials=whole.trials.hiding(present)), RIDGE)
    image = some.foretold["p1"][::3, : PARTS[0]]
    true = whole.trials.inputs.image[::3]
    assert float((image - true).square().sum() / (true - true.mean(dim=0)).square().sum()) < 0.5
    present[:, IMAGE] = False
    none = with_adapters(replace(whole, trials=whole.trials.hiding(present)), RIDGE)
    assert not none.foretold["p1"][:, : PARTS[0]].any()
    assert not none.private["p1/weight"][: PARTS[0]].any()
    assert none.private["p1/weight"][PARTS[0] :].any()


def test_what_is_foretold_of_a_trial_has_not_seen_its_unit_even_through_a_repeat_or_a_sibling():
    """Doubled trials, one of each pair without its picture: foretelling the pair must be as hard as of new trials."""
    whole = site(n=40).trials
    twice = torch.arange(40).repeat(2)
    pair = whole.select(twice)
    present = pair.present.clone()
    present[40:, IMAGE] = False
    for trials in (pair.hiding(present), replace(pair.hiding(present), ids=np.arange(80).astype(str), units=pair.ids)):
        made = with_adapters(SiteState("one", trials, AGREEMENT), RIDGE)
        said, true = made.foretold["p1"][40:, : PARTS[0]], whole.inputs.image
        assert torch.allclose(said, made.foretold["p1"][:40, : PARTS[0]], atol=1e-5)
        weight, bias = made.private["p1/weight"][: PARTS[0]], made.private["p1/bias"][: PARTS[0]]
        inside = whole.inputs.responses["p1"] @ weight.T + bias
        assert float((said - true).square().sum()) > 1.1 * float((inside - true).square().sum())


def test_it_is_made_once_and_no_round_changes_it():
    first, kept = client_update(site(), first_state(AGREEMENT, RIDGE), RIDGE)
    assert same(kept.private, with_adapters(site(), RIDGE).private)
    assert not any("adapters" in name for name in first.weights)
    assert with_adapters(kept, RIDGE) is kept
    learned = settings()
    assert with_adapters(site(), learned).private == {}
    assert adapted_trials(site(), learned).inputs.adapted is False


def test_a_site_without_labels_or_without_brains_trains_all_the_same():
    bare = site()
    bare = replace(bare, trials=replace(bare.trials, labels=None))
    made = with_adapters(bare, RIDGE)
    assert not made.foretold["p1"][:, -PARTS[2] :].any()
    sent, _ = client_update(bare, first_state(AGREEMENT, RIDGE), RIDGE)
    assert "loss retrieval" in sent.metrics
    public = SiteState("public", made_trials(6, {}, public=20), AGREEMENT)
    sent, kept = client_update(public, first_state(AGREEMENT, RIDGE), RIDGE)
    assert kept.private == {}
    assert sent.n_present == (0, 20, 20)


def test_training_reads_what_is_foretold_and_prediction_reads_voxels():
    shared, sites, _ = run(made_sites(), RIDGE, 1)
    for each in sites:
        adapted = adapted_trials(each, RIDGE)
        model = site_model(each, shared, RIDGE).eval()
        with torch.no_grad():
            learned, used = model.encode(adapted.inputs)[:, FMRI], model.encode(each.trials.inputs)[:, FMRI]
        held = each.trials.present[:, FMRI]
        assert learned.shape == used.shape
        assert not torch.allclose(learned[held], used[held])
        rows = torch.arange(len(each.trials)).flip(0)[:7]
        assert adapted.select(rows).inputs.adapted


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_saved_and_read_goes_on_to_the_same_bits(tmp_path, seed):
    chosen = RIDGE.model_copy(update={"seed": seed})
    shared, sites, _ = run(made_sites(), chosen, 1)
    again = []
    for each in sites:
        each.save(tmp_path / each.site)
        again.append(SiteState.load(tmp_path / each.site, each.trials, AGREEMENT))
    one, other = (run(which, chosen, 1, shared)[0] for which in (sites, again))
    assert same(one.to_tensors()[0], other.to_tensors()[0])
