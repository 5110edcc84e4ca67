"""A site's part of a round: deterministic, private things stay, one site is plain training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federation_sites import AGREEMENT, made_sites, made_trials, run, same, settings

from phosphene.errors import FederationError, InputError
from phosphene.federation.client import client_update, local_library, make_optimiser, site_model
from phosphene.federation.library import FUSION, PrototypeLibrary
from phosphene.federation.missing import missing_pattern
from phosphene.federation.objective import losses
from phosphene.federation.randomness import generator, seeded
from phosphene.federation.server import first_state, server_update
from phosphene.federation.state import Contribution, GlobalState, SiteState


def sent_bytes(contribution) -> dict[str, torch.Tensor]:
    return contribution.to_tensors()[0]


def test_same_state_same_bits_whatever_ran_before():
    chosen, sites = settings(masks={"retrieval": 0.5, "random": 0.2, "token": 0.3, "dropout": 0.3}), made_sites()
    shared, sites, _ = run(sites, chosen, 1)
    one, kept = client_update(sites[1], shared, chosen)
    torch.manual_seed(123)
    client_update(sites[0], shared, chosen)
    torch.rand(17)
    other, again = client_update(sites[1], shared, chosen)
    assert same(sent_bytes(one), sent_bytes(other))
    assert same(kept.private, again.private)
    assert one.metrics == other.metrics


def test_nothing_given_is_changed_and_the_own_generator_is_left_alone():
    chosen, site = settings(), made_sites()[0]
    shared = first_state(AGREEMENT, chosen)
    before = {name: tensor.clone() for name, tensor in shared.to_tensors()[0].items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _, after = client_update(site, shared, chosen)
    assert torch.equal(torch.rand(3), expected)
    assert same(before, shared.to_tensors()[0])
    assert site.private == {}
    assert after.private


def test_seed_site_and_round_each_make_another_draw():
    chosen, site = settings(), made_sites()[0]
    shared = first_state(AGREEMENT, chosen)
    one = client_update(site, shared, chosen)[0].weights
    assert not same(one, client_update(replace(site, site="else"), shared, chosen)[0].weights)
    assert not same(one, client_update(site, replace(shared, round=1), chosen)[0].weights)
    assert not same(one, client_update(site, shared, settings(seed=1))[0].weights)


@pytest.mark.parametrize("trunk", ["linear", "mlp", "lite-mind"])
def test_adapters_are_in_no_contribution_by_name_or_shape(trunk):
    """Sites whose people have other numbers of voxels send tensors of the same names, shapes and sizes."""
    chosen = settings(model={"trunk": trunk})
    shared = first_state(AGREEMENT, chosen)
    layouts, kept = [], []
    for people in ({"anna": 31}, {"bert": 57, "carl": 83}):
        contribution, site = client_update(SiteState("s", made_trials(0, people), AGREEMENT), shared, chosen)
        tensors, facts = contribution.to_tensors()
        layouts.append({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
        kept.append(site.private)
        words = repr(sorted(tensors)) + repr(facts)
        assert not any(person in words for person in people)
        assert contribution.n_bytes == sum(each.numel() * each.element_size() for each in tensors.values())
        private = {tensor.numpy().tobytes() for tensor in site.private.values() if tensor.numel() > 40}
        assert private
        assert not private & {tensor.numpy().tobytes() for tensor in tensors.values()}
    assert layouts[0] == layouts[1]
    assert layouts[0].keys() == {f"weights/{name}" for name in shared.weights} | {
        "library/sums",
        "library/counts",
        "library/age",
    }
    assert any(31 in tensor.shape or trunk == "lite-mind" for tensor in kept[0].values())


def test_adapters_come_back_in_the_next_round_and_learn():
    chosen = settings()
    shared, sites, _ = run(made_sites(), chosen, 1)
    first = sites[0].private
    model = site_model(sites[0], shared, chosen)
    assert same(model.private_state(), first)
    _, site = client_update(sites[0], shared, chosen)
    assert site.private.keys() == first.keys()
    assert not same(site.private, first)


def plain_training(site: SiteState, chosen, rounds: int) -> tuple[dict, dict]:
    """One network, one optimiser, one loop: what FedAvg of a single site must come to."""
    shared = first_state(AGREEMENT, chosen)
    model = site_model(site, shared, chosen)
    optimiser, library = make_optimiser(model, chosen), shared.library
    for number in range(1, rounds + 1):
        prototypes = library.release(chosen.library.min_count)
        draws = generator(chosen.seed, "training", site.site, number)
        model.train()
        with seeded(chosen.seed, "dropout", site.site, number):
            for _ in range(chosen.client.epochs):
                for rows in torch.randperm(len(site.trials), generator=draws).split(chosen.client.batch_size):
                    batch = site.trials.select(rows)
                    terms = losses(model, batch, prototypes, chosen.masks, chosen.objective, number >= 2, draws)
                    optimiser.zero_grad()
                    torch.stack(list(terms.values())).sum().backward()
                    optimiser.step()
        library = library.renewed(local_library(model, site.trials, library, chosen), chosen.library)
    return model.shared_state(), model.private_state()


@pytest.mark.parametrize("weighting", ["trials", "modality"])
def test_fedavg_of_one_site_is_plain_local_training_to_the_bit(weighting):
    chosen = settings(
        masks={"label": 0.3, "retrieval": 0.4, "token": 0.3, "dropout": 0.2},
        client={"optimiser": "kept", "epochs": 2},
        server={"weighting": weighting},
    )
    site = made_sites()[1]
    shared, sites, _ = run([site], chosen, 3)
    weights, private = plain_training(site, chosen, 3)
    assert same(shared.weights, weights)
    assert same(sites[0].private, private)
    fresh, _, _ = run([site], settings(**{**chosen_changes(chosen), "client": {"epochs": 2}}), 3)
    assert not same(fresh.weights, weights)  # a fresh optimiser in every round is another training


def chosen_changes(chosen) -> dict:
    return {"masks": {name: getattr(chosen.masks, name) for name in ("label", "retrieval", "token", "dropout")}}


def test_every_available_trial_contributes_to_the_modalities_it_has():
    chosen, trials = settings(), made_trials(0, {"p1": 20}, n=40)
    trials = trials.hiding(missing_pattern(trials.ids, 0.5, seed=1))
    site = SiteState("s", trials, AGREEMENT)
    shared = first_state(AGREEMENT, chosen)
    library = client_update(site, shared, chosen)[0].library
    for m in range(3):
        expected = trials.labels[trials.present[:, m]].sum(dim=0)
        assert torch.equal(library.counts[m, :, 0], expected.double())
    assert torch.equal(library.counts[FUSION, :, 0], trials.labels[trials.complete].sum(dim=0).double())
    ablated = client_update(site, shared, settings(library={"complete_only": True}))[0].library
    assert torch.equal(ablated.counts[0], ablated.counts[FUSION])
    every = client_update(site, shared, settings(library={"fusion_from": "all"}))[0].library
    assert torch.equal(every.counts[FUSION, :, 0], trials.labels.sum(dim=0).double())


def test_a_sites_library_is_the_sum_of_those_of_its_parts():
    chosen, trials = settings(library={"centres": 2}), made_trials(0, {"p1": 20}, n=40)
    shared, sites, _ = run([SiteState("s", trials, AGREEMENT)], chosen, 2)
    model = site_model(sites[0], shared, chosen)
    whole = local_library(model, trials, shared.library, chosen)
    parts = [local_library(model, trials.select(r), shared.library, chosen) for r in torch.arange(40).split(10)]
    total = PrototypeLibrary.total(parts)
    assert torch.equal(whole.counts, total.counts)
    # features of other batches differ by rounding of matrix products, far below the grid of three decimals
    torch.testing.assert_close(whole.sums, total.sums, atol=1e-4, rtol=0)
    assert ((whole.counts > 0).sum(dim=2) == 2).any()


def test_a_site_without_any_complete_trial_works_and_is_told():
    """Section 6: three sites of which one has brain and image, one brain and text, one image and text."""
    chosen = settings()
    pairs = {"a": [True, True, False], "b": [True, False, True], "c": [False, True, True]}
    sites = [
        SiteState(name, made_trials(number, {f"p{number}": 20}).hiding(torch.tensor(held).expand(24, 3)), AGREEMENT)
        for number, (name, held) in enumerate(pairs.items())
    ]
    shared, _, sent = run(sites, chosen, 3)
    assert [each.metrics["complete"] for each in sent[0]] == [0, 0, 0]
    assert shared.library.counts[FUSION].sum() == 0
    assert (shared.library.counts[:FUSION].sum(dim=(1, 2)) == 48).all()
    assert "loss contrast fmri" in sent[2][0].metrics
    assert sent[2][0].metrics["loss contrast fusion"] == 0


def test_all_that_training_tells_is_known_to_the_server():
    chosen = settings(objective={"proximal": 0.1, "contrast_from": 1})
    contribution, _ = client_update(made_sites()[0], first_state(AGREEMENT, chosen), chosen)
    assert len(contribution.metrics) == 9
    assert contribution.told == contribution.metrics


def test_a_site_without_labels_trains_retrieval_alone():
    chosen = settings()
    site = made_sites()[0]
    bare = replace(site, trials=replace(site.trials, labels=None))
    contribution, _ = client_update(bare, first_state(AGREEMENT, chosen), chosen)
    assert contribution.library.counts.sum() == 0
    assert "loss task" not in contribution.metrics
    assert contribution.metrics["loss retrieval"] > 0


def test_counts_below_a_sites_threshold_are_not_sent():
    trials = made_trials(0, {"p1": 20}, n=40)
    rare = trials.labels.clone()
    rare[:, 3] = 0
    rare[:2] = torch.eye(4)[3]
    site = SiteState("s", replace(trials, labels=rare), AGREEMENT)
    sent = client_update(site, first_state(AGREEMENT, settings()), settings(library={"site_min_count": 3}))[0]
    assert sent.library.counts[:, 3].sum() == 0
    assert not sent.library.sums[:, 3].any()
    assert sent.library.counts[0, 0, 0] >= 3


def test_features_are_cut_before_they_are_added():
    site = made_sites()[0]
    shared = first_state(AGREEMENT, settings())
    sent = client_update(site, shared, settings(library={"feature_limit": 0.1}))[0]
    assert sent.library.release().vectors.norm(dim=-1).max() <= 0.1001
    assert client_update(site, shared, settings())[0].library.release().vectors.norm(dim=-1).max() > 0.2


def test_fedprox_stays_nearer_to_the_global_weights():
    site, shared = made_sites()[0], first_state(AGREEMENT, settings())

    def distance(mu: float) -> float:
        chosen = settings(objective={"proximal": mu}, client={"epochs": 4})
        weights = client_update(site, shared, chosen)[0].weights
        return sum(float((weights[name] - shared.weights[name]).square().sum()) for name in weights)

    assert distance(10.0) < 0.5 * distance(0.0)


def test_disagreeing_sites_and_losses_that_explode_are_errors():
    site, shared = made_sites()[0], first_state(AGREEMENT, settings())
    for change, words in (
        ({"classes": tuple("abcx")}, "other classes, only here x, lacking d"),
        ({"width": 32}, "width 32 instead of 16"),
        ({"image_encoder": "image:2"}, "image encoder 'image:2' instead of 'image:1'"),
    ):
        with pytest.raises(InputError, match=f"north does not agree with the federation: {words}"):
            client_update(replace(site, agreement=replace(AGREEMENT, **change)), shared, settings())
    ahead = client_update(site, shared, settings())[1]
    with pytest.raises(InputError, match="north has trained in round 1, the server is done with 0"):
        client_update(ahead, shared, settings())
    with pytest.raises(FederationError, match="north: the loss is not finite in round 1"):
        client_update(site, shared, settings(client={"learning_rate": 1e30, "epochs": 3}))


def test_kept_moments_are_those_of_all_parameters():
    chosen = settings(client={"optimiser": "kept"})
    shared = first_state(AGREEMENT, chosen)
    contribution, site = client_update(made_sites()[0], shared, chosen)
    names = {entry.split(":", 1)[1] for entry in site.optimiser}
    assert names == contribution.weights.keys() | site.private.keys()
    after: GlobalState = server_update(shared, [contribution], chosen)
    assert client_update(site, after, chosen)[1].optimiser.keys() == site.optimiser.keys()


def test_moon_needs_a_last_round_and_then_changes_training():
    plain, chosen = settings("modality-dropout"), settings("modality-dropout", objective={"model_contrast": 1.0})
    shared, sites, sent = run(made_sites(), chosen, 1)
    assert same(sent[0][0].weights, run(made_sites(), plain, 1)[2][0][0].weights), "no last network in the first round"
    assert same(sites[0].last, sent[0][0].weights)
    second, _ = client_update(sites[0], shared, chosen)
    assert second.metrics["loss model contrast"] > 0
    assert not same(second.weights, client_update(sites[0], shared, plain)[0].weights)
    assert client_update(sites[0], shared, plain)[1].last == {}, "nothing is kept that nobody needs"


def test_where_nothing_reads_prototypes_none_is_sent():
    without = client_update(
        made_sites()[0], first_state(AGREEMENT, settings("modality-dropout")), settings("modality-dropout")
    )[0]
    with_them = client_update(made_sites()[0], first_state(AGREEMENT, settings()), settings())[0]
    assert not any(name.startswith("library/") for name in sent_bytes(without))
    after = server_update(first_state(AGREEMENT, settings("modality-dropout")), [without], settings("modality-dropout"))
    assert after.report.without_prototype == [], "what nobody reads is not missed"
    library = sum(each.numel() * each.element_size() for each in with_them.library.to_tensors().values())
    assert with_them.n_bytes - without.n_bytes == library
    back = Contribution.from_tensors(*without.to_tensors())
    assert back.library.is_empty
    assert back.library.sums.shape == with_them.library.sums.shape
    tensors, facts = without.to_tensors()
    for rubbish in ([4, 10**9, 1, 10**9], [4, 4, 1], [4, -1, 1, 16]):
        with pytest.raises(InputError, match="a library of shape"):
            Contribution.from_tensors(tensors, {**facts, "library": rubbish})
    with pytest.raises(InputError, match="counts nothing here"):
        Contribution.from_tensors(tensors, {**facts, "n_trials": 10**4000})
