"""Every arm is what it says: who exchanges what, and in which settings it differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hospitals_made import COMMON, made_hospitals

from phosphene.errors import InputError
from phosphene.evaluation.federated_matrix import Plan
from phosphene.evaluation.federated_rivals import ABLATIONS, ARMS, Arm, train
from phosphene.evaluation.hospitals import Cell
from phosphene.evaluation.missing_modalities import PATTERNS, shown
from phosphene.federation.engine import federate
from phosphene.federation.library import PARTS
from phosphene.federation.privacy import PrivacySettings, Protection

CELL = Cell("made", "instance", 0.5, 0)
PLAN = Plan({}, common=COMMON)
EVERY = {**ARMS, **ABLATIONS}
ROUNDS = 2


@pytest.fixture(scope="module")
def hospitals():
    return made_hospitals(n=40, n_test=12)


def settings_of(name, **changes):
    return PLAN.settings(replace(EVERY[name], **changes), "ce", 0)


def trained(hospitals, name, settings=None, rounds=ROUNDS):
    settings = settings or settings_of(name)
    return train(EVERY[name], hospitals.sites(CELL, settings), settings, rounds)


def said(hospitals, name, found, site="site-0", pattern="fmri"):
    trials = hospitals.test[site]
    network = found.network(site, trials.inputs.people, settings_of(name), pattern)
    return network.predict(shown(trials.inputs, pattern))


def distance(one, other):
    return sum((one[name] - other[name]).square().sum().item() for name in one)


@pytest.mark.parametrize("name", EVERY)
def test_every_arm_has_the_network_the_epochs_and_the_seed_of_the_others(name):
    settings, ours = settings_of(name), settings_of("pmcmfl")
    for one in ("width", "trunk", "blocks", "projector", "input_dropout", "dropout"):
        assert getattr(settings.model, one) == getattr(ours.model, one)
    assert (settings.client.epochs, settings.client.batch_size) == (2, 32)
    assert settings.seed == ours.seed


@pytest.mark.parametrize("name", ARMS)
def test_moments_are_kept_where_weights_are_not_averaged(name):
    kept = settings_of(name).client.optimiser == "kept"
    assert kept == (ARMS[name].engine != "federated")


def test_all_that_is_tuned_has_at_least_as_many_candidates_as_pmcmfl():
    least = len(ARMS["pmcmfl"].candidates)
    assert all(len(arm.candidates) >= least for arm in ARMS.values() if arm.rates)
    assert len(ARMS["dropout-token"].candidates) == 2 * least

    def hidden(arm):
        made = [arm.settings(COMMON, chosen, 0) for chosen in arm.candidates]
        return {(each.client.learning_rate, each.masks.dropout, each.objective.full_view) for each in made}

    for name in ("dropout-token", "local", "central"):
        assert hidden(ARMS["pmcmfl"]) < hidden(ARMS[name]), "nothing is PmcmFL's to choose alone that is not its own"
    assert not any(arm.candidates for arm in ABLATIONS.values())
    for arm in ARMS.values():
        made = [arm.settings(COMMON, chosen, 0).model_dump_json() for chosen in arm.candidates]
        assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", [name for name in ABLATIONS if not ABLATIONS[name].privacy])
def test_an_ablation_differs_in_what_it_names_and_stands_over_the_choice(name):
    chosen = ARMS["pmcmfl"].candidates[-1]
    plan = replace(PLAN, chosen={"pmcmfl": chosen})
    settings, ours = plan.settings(ABLATIONS[name], "ce", 0), plan.settings(ARMS["pmcmfl"], "ce", 0)
    tables = {words.split(".")[0] for words in settings.differences(ours)}
    assert bool(tables) == (name != f"rule-{ours.inference.rule}")
    assert tables <= set(ABLATIONS[name].changes)
    assert settings.client.learning_rate == ours.client.learning_rate == chosen["client"]["learning_rate"]


@pytest.mark.parametrize(
    "common", [{"masks": {"dropout": 0.1}}, {"client": {"learning_rate": 1.0}}, {"client": {"optimiser": "kept"}}]
)
def test_what_arms_differ_in_is_not_common(common):
    with pytest.raises(InputError, match="arms"):
        replace(PLAN, common=common).settings(ARMS["token"], "ce", 0)


def test_a_published_recipe_keeps_its_loss_and_several_classes_need_the_binary_one():
    assert settings_of("pmcmfl-paper").objective.task == "bce"
    assert PLAN.settings(ARMS["pmcmfl"], "bce", 0).objective.task == "bce"


def test_local_training_knows_of_nobody_else(hospitals):
    alone = replace(hospitals, train={"site-0": hospitals.train["site-0"]}, test={"site-0": hospitals.test["site-0"]})
    one, other = (said(each, "local", trained(each, "local")) for each in (hospitals, alone))
    assert torch.equal(one.logits, other.logits)
    federated = [said(each, "dropout-token", trained(each, "dropout-token")) for each in (hospitals, alone)]
    assert not torch.equal(federated[0].logits, federated[1].logits)
    assert trained(hospitals, "local").cost["bytes_up"] == 0


def test_one_place_has_one_network_and_everybodys_adapter(hospitals):
    found = trained(hospitals, "central").held[""]
    assert len({id(shared) for shared, _ in found.values()}) == 1
    people = {entry.split("/")[0] for entry in found["site-0"][1].private}
    assert people == {"p0", "p1", "p2"}


@pytest.mark.parametrize("adapter", ["ridge", "learned"])
def test_a_model_of_a_pattern_never_saw_other_modalities(hospitals, adapter):
    """Adapters in closed form are the person's own affair: made of all that the site has, as for every arm."""
    common = {**COMMON, "model": {"width": 16, "adapter": adapter}}
    settings = replace(PLAN, common=common).settings(ARMS["central-by-pattern"], "ce", 0)
    other = replace(hospitals, train={name: scrambled(trials) for name, trials in hospitals.train.items()})
    one, two = (trained(each, "central-by-pattern", settings, rounds=1) for each in (hospitals, other))
    assert set(one.held) == set(PATTERNS)
    for pattern in PATTERNS:
        unseen = "image" not in pattern and pattern != "all" and (adapter == "learned" or "fmri" not in pattern)
        states = [each.held[pattern]["site-0"][0].weights for each in (one, two)]
        assert (distance(*states) == 0) == unseen, pattern
    assert one.network("site-0", {}, settings, "fmri").model.retrieve is None


def scrambled(trials):
    return replace(trials, inputs=replace(trials.inputs, image=trials.inputs.image.flip(0)))


def test_fedproto_exchanges_prototypes_and_no_weights(hospitals):
    found = trained(hospitals, "fedproto")
    states = {name: shared for name, (shared, _) in found.held[""].items()}
    assert distance(states["site-0"].weights, states["site-1"].weights) > 0
    assert torch.equal(states["site-0"].library.sums, states["site-1"].library.sums)
    assert states["site-0"].library.counts.sum() > 0
    assert {shared.round for shared in states.values()} == {ROUNDS}
    whole = trained(hospitals, "dropout-token").cost["bytes_up"]
    assert 0 < found.cost["bytes_up"] < whole / 4


def test_fedproto_is_drawn_to_the_prototypes_of_others(hospitals):
    """Without its contrast another site has no way to reach it."""
    alone = replace(hospitals, train={"site-0": hospitals.train["site-0"]}, test={"site-0": hospitals.test["site-0"]})
    free = PLAN.settings(ARMS["local"], "ce", 0)
    for settings, reached in ((settings_of("fedproto"), True), (free, False)):
        held = [train(ARMS["fedproto"], each.sites(CELL, settings), settings, 3).held for each in (hospitals, alone)]
        weights = [each[""]["site-0"][0].weights for each in held]
        assert (distance(*weights) > 0) == reached


def test_fedprox_stays_nearer_to_the_global_weights(hospitals):
    norms = []
    for own in (0.0, 10.0):
        arm = replace(ARMS["fedprox"], own=({"objective": {"proximal": own}},))
        settings = PLAN.settings(arm, "ce", 0)
        done = federate(hospitals.sites(CELL, settings), settings, 1, progress=False)
        norms.append(sum(done.history[0].used.values()))
    assert norms[1] < 0.9 * norms[0]


@pytest.mark.parametrize("name", ["dropout-token", "token", "fedavg-zero", "fedavg-random"])
def test_rivals_without_prototypes_do_not_look_at_them(hospitals, name):
    found = trained(hospitals, name, rounds=1)
    shared, site = found.held[""]["site-0"]
    library = replace(shared.library, sums=shared.library.sums + 1.0)
    other = replace(found, held={"": {"site-0": (replace(shared, library=library), site)}})
    assert torch.equal(*(said(hospitals, name, each, pattern="text").logits for each in (found, other)))
    assert not any(settings_of(name).objective.contrast)


def test_noise_is_for_those_who_send(hospitals):
    found = trained(hospitals, "noise-1", rounds=1)
    assert found.cost["epsilon"]["trial"] > 0
    arm = Arm("odd", "local with noise", engine="local", privacy=ABLATIONS["noise-0.1"].privacy)
    with pytest.raises(InputError, match="noise has no use"):
        train(arm, hospitals.sites(CELL, settings_of("local")), settings_of("local"), 1)


def test_somebody_without_a_training_brain_is_scored_with_an_adapter_from_the_seed(hospitals):
    """Under a site pattern a person's fMRI may be missing altogether, and with it the adapter at one place."""
    lost = hospitals.train["site-2"]
    hidden = lost.present.clone()
    hidden[:, 0] = False
    without = replace(hospitals, train={**hospitals.train, "site-2": lost.hiding(hidden)})
    found = trained(without, "central-by-pattern", rounds=1)
    assert said(without, "central-by-pattern", found, site="site-2", pattern="fmri").logits.isfinite().all()


def test_noise_reads_no_prototype_of_fewer_trials_than_it_could_make_up():
    for name in ("clipped", "noise-0.01", "noise-0.1", "noise-1"):
        arm = ABLATIONS[name]
        protection = Protection(PrivacySettings(**arm.privacy), 64, len(PARTS))
        assert arm.changes["library"]["min_count"] == pytest.approx(max(2.0, protection.least_count(4)), rel=0.01)
