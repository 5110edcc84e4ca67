"""States as tensors and plain values, and back: the next round comes out the same to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federation_sites import AGREEMENT, made_sites, made_trials, run, same, settings

from phosphene.errors import InputError
from phosphene.federation.client import client_update
from phosphene.federation.state import Agreement, Contribution, GlobalState, SiteState, check_agreement

CHOSEN = settings(
    masks={"label": 0.3, "retrieval": 0.4, "token": 0.3, "dropout": 0.2},
    client={"optimiser": "kept"},
    library={"centres": 2},
    server={"aggregator": "fedadam"},
)


def test_a_run_goes_on_from_its_folders_to_the_same_bits(tmp_path):
    whole, whole_sites, _ = run(made_sites(), CHOSEN, 4)
    half, sites, _ = run(made_sites(), CHOSEN, 2)
    half.save(tmp_path / "server", CHOSEN)
    for site in sites:
        site.save(tmp_path / site.site)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    shared = GlobalState.load(tmp_path / "server", CHOSEN)
    again = [SiteState.load(tmp_path / site.site, site.trials, AGREEMENT) for site in made_sites()]
    assert shared.report == half.report
    shared, again, _ = run(again, CHOSEN, 2, shared)
    assert same(shared.to_tensors()[0], whole.to_tensors()[0])
    assert shared.moments
    for one, other in zip(again, whole_sites, strict=True):
        assert same(one.private, other.private)
        assert same(one.optimiser, other.optimiser)


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    shared, _, _ = run(made_sites(), CHOSEN, 1)
    shared.save(tmp_path / "server", CHOSEN)
    other = CHOSEN.model_copy(update={"seed": 3, "client": CHOSEN.client.model_copy(update={"epochs": 5})})
    with pytest.raises(InputError, match=r"other settings: client.epochs is 5, was 1; seed is 3, was 0"):
        GlobalState.load(tmp_path / "server", other)


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    shared, sites, _ = run(made_sites(), CHOSEN, 1)
    with pytest.raises(InputError, match="does not exist"):
        GlobalState.load(tmp_path / "none", CHOSEN)
    shared.save(tmp_path / "server", CHOSEN)
    (tmp_path / "server" / "tensors.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        GlobalState.load(tmp_path / "server", CHOSEN)
    sites[0].save(tmp_path / "site")
    with pytest.raises(InputError, match=r"belongs to {'p1': 20}, the trials are of {'q': 9}"):
        SiteState.load(tmp_path / "site", made_trials(0, {"q": 9}), AGREEMENT)


def test_state_that_is_not_finite_is_not_written(tmp_path):
    shared, _, _ = run(made_sites(), CHOSEN, 1)
    spoilt = replace(shared, weights={**shared.weights, "tokens": shared.weights["tokens"] * torch.nan})
    with pytest.raises(InputError, match="not finite"):
        spoilt.save(tmp_path / "server", CHOSEN)
    assert not (tmp_path / "server").exists()


def test_a_contribution_goes_round_as_tensors():
    shared, sites, _ = run(made_sites(), CHOSEN, 1)
    sent, _ = client_update(sites[0], shared, CHOSEN)
    back = Contribution.from_tensors(*sent.to_tensors())
    assert same(back.to_tensors()[0], sent.to_tensors()[0])
    assert back.to_tensors()[1] == sent.to_tensors()[1]
    assert back.n_present == sent.n_present


def test_sites_that_disagree_are_named_with_what_they_have():
    assert check_agreement({"a": AGREEMENT, "b": AGREEMENT}) == AGREEMENT
    with pytest.raises(
        InputError, match=r"\(2 of 3\). c: 3 classes instead of 4, lacking d; text width 9 instead of 7"
    ):
        check_agreement(
            {"a": AGREEMENT, "b": AGREEMENT, "c": replace(AGREEMENT, classes=("a", "b", "c"), text_width=9)}
        )
    with pytest.raises(InputError, match="the same classes in another order"):
        check_agreement({"a": AGREEMENT, "b": replace(AGREEMENT, classes=("b", "a", "c", "d"))})
    with pytest.raises(InputError, match="at least one site"):
        check_agreement({})
    with pytest.raises(InputError, match="at least two classes"):
        replace(AGREEMENT, classes=("a", "a"))


def test_a_sites_trials_must_fit_the_agreement():
    trials = made_trials(0, {"p": 5})
    for change, words in (
        ({"classes": ("a", "b")}, "s has 4 classes in its labels, the sites agreed on 2"),
        ({"image_width": 3}, "s has 10 as width of image embeddings, the sites agreed on 3"),
        ({"text_width": 3}, "s has 7 as width of text embeddings"),
    ):
        with pytest.raises(InputError, match=words):
            SiteState("s", trials, replace(AGREEMENT, **change))
    with pytest.raises(InputError, match="s has no trials"):
        SiteState("s", trials.select(torch.empty(0, dtype=torch.int64)), AGREEMENT)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": [1, 2, 3]}, "names of classes and encoders are text"),
        ({"classes": [1, "b", "c", "d"]}, "names of classes and encoders are text"),
        ({"image_encoder": 7}, "names of classes and encoders are text"),
        ({"width": "64"}, "are whole numbers"),
        ({"text_width": True}, "are whole numbers"),
    ],
)
def test_what_a_site_agrees_to_is_text_and_whole_numbers(changes, words):
    with pytest.raises(InputError, match=words):
        Agreement.of_facts({**AGREEMENT.facts, **changes})


def test_a_state_that_is_not_finite_is_told_before_it_is_saved():
    site = made_sites()[0]
    assert site.is_finite
    for part in ("private", "optimiser", "last"):
        assert not replace(site, **{part: {"x": torch.tensor([1.0, float("nan")])}}).is_finite
