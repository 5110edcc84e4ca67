"""The server's part of a round: rubbish is refused by name, order does not matter, too little is an error."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from federation_sites import AGREEMENT, made_sites, made_trials, run, same, settings

from phosphene.errors import FederationError, InputError
from phosphene.federation.aggregation import difference, fedavg, total_norm
from phosphene.federation.client import client_update
from phosphene.federation.library import PrototypeLibrary
from phosphene.federation.server import first_state, server_update
from phosphene.federation.state import Contribution, GlobalState, SiteState

CHOSEN = settings(server={"weighting": "trials"})


@pytest.fixture(scope="module")
def round_one() -> tuple[GlobalState, list[Contribution]]:
    """The first state, and what four sites send."""
    sites = [*made_sites(), SiteState("zoo", made_trials(8, {"p8": 12}), AGREEMENT)]
    shared = first_state(AGREEMENT, CHOSEN)
    return shared, [client_update(site, shared, CHOSEN)[0] for site in sites]


def everything(state: GlobalState) -> dict[str, torch.Tensor]:
    return state.to_tensors()[0]


def test_first_state_is_of_the_seed_alone():
    assert same(everything(first_state(AGREEMENT, settings())), everything(first_state(AGREEMENT, settings())))
    assert not same(first_state(AGREEMENT, settings()).weights, first_state(AGREEMENT, settings(seed=1)).weights)


def test_weights_are_the_mean_by_trials_and_prototypes_by_class_counts(round_one):
    shared, sent = round_one
    after = server_update(shared, sent, CHOSEN)
    expected = fedavg([each.weights for each in sent], [each.n_trials for each in sent])
    assert same(after.weights, expected)
    total = PrototypeLibrary.total(each.library for each in sent)
    assert torch.equal(after.library.counts, total.counts)
    assert torch.equal(after.library.sums, total.sums)
    assert after.round == 1
    assert after.report.used.keys() == {"north", "south", "west", "zoo"}
    assert after.report.refused == {}


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam", "median", "trimmed-mean"])
def test_the_order_of_arrival_changes_no_bit(round_one, aggregator):
    shared, sent = round_one
    trim = {"trim": 0.25} if aggregator == "trimmed-mean" else {}
    chosen = settings(server={"aggregator": aggregator, "weighting": "modality", **trim})
    one = server_update(shared, sent, chosen)
    assert same(everything(one), everything(server_update(shared, sent[::-1], chosen)))
    assert not same(one.weights, shared.weights)
    assert bool(one.moments) == (aggregator == "fedadam")


def spoilt(contribution: Contribution, what: str) -> Contribution:
    name = "fusion.mix.weight"
    weights, library = dict(contribution.weights), contribution.library
    changes = {
        "nan": {"weights": {**weights, name: weights[name] * torch.nan}},
        "lacking": {"weights": {key: value for key, value in weights.items() if key != name}},
        "extra": {"weights": {**weights, "more" * 1000: torch.zeros(1)}},
        "shape": {"weights": {**weights, name: weights[name][:, 1:]}},
        "dtype": {"weights": {**weights, name: weights[name].double()}},
        "round": {"round": 4},
        "trials": {"n_trials": 0},
        "present": {"n_present": (1000, 0, 0)},
        "classes": {"agreement": replace(AGREEMENT, classes=("a", "b", "c", "e"))},
        "width": {"agreement": replace(AGREEMENT, width=17)},
        "library nan": {"library": replace(library, sums=library.sums * torch.nan)},
        "library size": {"library": PrototypeLibrary.empty(4, 17)},
        "negative": {"library": replace(library, counts=library.counts - 1000)},
        "many": {"library": replace(library, counts=library.counts * 1000)},
        "noise": {"library": replace(library, sums=library.sums + 1, counts=library.counts * 0)},
        "poisoned": {"weights": {key: value * 100 for key, value in weights.items()}},
        "poisoned library": {"library": replace(library, sums=library.sums * 100)},
    }
    return replace(contribution, **changes[what])


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("nan", "'fusion.mix.weight' holds numbers that are not finite"),
        ("lacking", "its weights lack 'fusion.mix.weight'"),
        ("extra", "^its weights have 1 tensor that the network has not$"),
        ("shape", r"'fusion.mix.weight' is \(16, 47\)"),
        ("dtype", "torch.float64, the others have"),
        ("round", "trained for round 4, this is round 1"),
        ("trials", "counts 0 trials"),
        ("present", "of which"),
        ("classes", "does not agree with the others: other classes, only here e, lacking d"),
        ("width", "width 17 instead of 16"),
        ("library nan", "its library holds numbers that are not finite"),
        ("library size", "its library has 4 classes, 1 centres, width 17"),
        ("negative", "its library counts from"),
        ("many", "its library counts from"),
        ("noise", "sums of classes of which it counts no trial"),
        ("poisoned", "its update has norm .*more than .*10 times the median of all sites"),
        ("poisoned library", "its largest prototype has norm"),
    ],
)
def test_rubbish_is_refused_by_name_and_the_others_go_on(round_one, what, reason, caplog):
    shared, sent = round_one
    after = server_update(shared, [sent[0], spoilt(sent[1], what), *sent[2:]], CHOSEN)
    clean = server_update(shared, [sent[0], *sent[2:]], CHOSEN)
    assert same(everything(after), everything(clean))
    assert after.report.refused.keys() == {"south"}
    assert re.search(reason, after.report.refused["south"]), after.report.refused
    assert "the contribution of south is refused" in caplog.text


def test_a_site_that_sends_twice_counts_not_at_all(round_one):
    shared, sent = round_one
    after = server_update(shared, [*sent, sent[0]], CHOSEN)
    assert after.report.refused == {"north": "the site sent more than one contribution in the round"}


def test_limits_on_norms(round_one):
    shared, sent = round_one
    norms = {each.site: total_norm(difference(each.weights, shared.weights)) for each in sent}
    largest = max(norms, key=norms.get)
    limit = sorted(norms.values())[-2] * 1.0001
    after = server_update(shared, sent, settings(server={"max_norm": limit}))
    assert after.report.refused.keys() == {largest}
    assert "server.max_norm" in after.report.refused[largest]
    cut = server_update(shared, sent, settings(server={"update_limit": 0.01}))
    assert 0.001 < total_norm(difference(cut.weights, shared.weights)) <= 0.01


def test_too_few_usable_contributions_are_an_error(round_one):
    shared, sent = round_one
    with pytest.raises(FederationError, match="round 1 has 0 usable contributions, 1 are needed; no other site sent"):
        server_update(shared, [], CHOSEN)
    chosen = settings(server={"quorum": 4})
    server_update(shared, sent, chosen)
    with pytest.raises(FederationError, match=r"3 usable contributions, 4 are needed; refused: south: .*not finite"):
        server_update(shared, [sent[0], spoilt(sent[1], "nan"), *sent[2:]], chosen)


def test_robust_aggregators_say_how_many_sites_they_need(round_one):
    shared, sent = round_one
    with pytest.raises(InputError, match="found 2"):
        server_update(shared, sent[:2], settings(server={"aggregator": "median"}))
    with pytest.raises(InputError, match="at least 10 sites"):
        server_update(shared, sent, settings(server={"aggregator": "trimmed-mean", "trim": 0.1}))


def test_an_encoder_is_averaged_over_those_who_trained_it(round_one):
    """A site without text returns the text projector untouched; by modality it does not hold the others back."""
    shared, _ = round_one
    chosen = settings(server={"weighting": "modality"})
    blind = SiteState(
        "blind", made_trials(0, {"p1": 20}).hiding(torch.tensor([True, True, False]).expand(24, 3)), AGREEMENT
    )
    full = SiteState("full", made_trials(1, {"p2": 20}), AGREEMENT)
    sent = [client_update(site, shared, chosen)[0] for site in (blind, full)]
    name = "text.0.weight"
    assert torch.equal(sent[0].weights[name], shared.weights[name])
    after = server_update(shared, sent, chosen)
    assert torch.equal(after.weights[name], sent[1].weights[name])
    assert not torch.equal(after.weights["image.0.weight"], sent[1].weights["image.0.weight"])
    alone = server_update(shared, sent[:1], chosen)
    assert torch.equal(alone.weights[name], shared.weights[name])


@pytest.mark.parametrize(
    ("server", "least"), [({"aggregator": "median"}, 3), ({"aggregator": "trimmed-mean", "trim": 0.3}, 4)]
)
def test_a_modality_of_too_few_sites_for_a_robust_mean_does_not_end_the_run(round_one, server, least, caplog):
    """Of five sites one, and then as many as are needed, have text; the other groups of weights are aggregated."""
    shared, _ = round_one
    chosen = settings(server={"weighting": "modality", **server})
    whole = [made_trials(seed, {f"p{seed}": 20}) for seed in range(5)]
    blind = [each.hiding(torch.tensor([True, True, False]).expand(24, 3)) for each in whole]

    def after(n_with):
        trials = [*whole[:n_with], *blind[n_with:]]
        sites = [SiteState(f"s{number}", each, AGREEMENT) for number, each in enumerate(trials)]
        return server_update(shared, [client_update(site, shared, chosen)[0] for site in sites], chosen)

    few, enough = after(least - 1), after(least)
    assert few.report.unmoved == ["text"]
    assert torch.equal(few.weights["text.0.weight"], shared.weights["text.0.weight"])
    assert not torch.equal(few.weights["image.0.weight"], shared.weights["image.0.weight"])
    assert f"the encoder of text stays as it was: {least - 1} of 5 sites have the modality" in caplog.text
    assert enough.report.unmoved == []
    assert not torch.equal(enough.weights["text.0.weight"], shared.weights["text.0.weight"])


def test_what_a_site_sends_as_text_is_not_passed_on_at_any_length(round_one):
    shared, sent = round_one
    secret = "/srv/patients/miller\n" * 1000
    named = replace(sent[1], weights={**sent[1].weights, secret: torch.zeros(1), "other": torch.zeros(1)})
    encoder = replace(sent[2], agreement=replace(AGREEMENT, image_encoder=secret))
    classes = replace(sent[3], agreement=replace(AGREEMENT, classes=tuple(f"{c}{secret}" for c in "abcd")))
    refused = server_update(shared, [sent[0], named, encoder, classes], CHOSEN).report.refused
    assert refused["south"] == "its weights have 2 tensors that the network has not"
    assert all(len(reason) < 500 and "\n" not in reason for reason in refused.values())
    told = replace(sent[0], metrics={"loss total": 1.0, "complete": 3.0, "loss task": torch.nan, secret: 1.0}).told
    assert told == {"loss total": 1.0, "complete": 3.0}


def test_a_class_nobody_has_and_counts_below_the_threshold_are_told(round_one):
    shared, _ = round_one
    trials = made_trials(0, {"p1": 20}, n=40)
    labels = torch.eye(4)[torch.arange(40) % 3]
    labels[0], labels[1] = torch.eye(4)[2], torch.eye(4)[0]
    few = labels.clone()
    few[labels[:, 1] > 0] = torch.eye(4)[0]
    few[:3] = torch.eye(4)[1]
    chosen = settings(library={"min_count": 5}, client={"epochs": 1})
    site = SiteState("s", replace(trials, labels=few), AGREEMENT)
    after, sites, _ = run([site], chosen, 1, shared)
    assert after.report.without_prototype == ["b", "d"]
    assert after.report.suppressed == 4  # class b in three modalities and the fusion
    assert after.library.counts[:, 1].sum() == 0
    assert not after.library.sums[:, [1, 3]].any()
    later, _, _ = run(sites, chosen, 2, after)  # contrast and masks go on without them
    assert all(torch.isfinite(tensor).all() for tensor in later.weights.values())


def test_a_site_that_stays_away_leaves_its_prototypes_a_round_older(round_one):
    shared, _ = round_one
    trials = made_trials(0, {"p1": 20}, n=40)
    halves = []
    for name, own in (("ab", [0, 1]), ("cd", [2, 3])):
        rows = trials.labels[:, own].any(dim=1).nonzero().flatten()
        halves.append(SiteState(name, trials.select(rows), AGREEMENT))
    first, sites, _ = run(halves, CHOSEN, 1, shared)
    second, _, _ = run(sites[:1], CHOSEN, 2, first)
    assert second.library.age[1].tolist() == [0, 0, 2, 2]
    assert torch.equal(second.library.sums[:, 2:], first.library.sums[:, 2:])
