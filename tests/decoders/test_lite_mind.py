"""lite-mind: what its settings do, its size for NSD, and where it starts."""

import numpy as np
import pytest
import torch
from made_view import made_view

from phosphene.decoders import make_decoder
from phosphene.errors import InputError
from phosphene.nn.cost import count_parameters, multiply_adds, with_gradient
from phosphene.nn.patches import voxel_order
from phosphene.settings import load_preset, presets
from phosphene.table import Table
from phosphene.training.settings import TrainingConfig

SMALL = {"patches": 5, "width": 8, "hidden": 16, "heads": 4, "dropout": 0.0}


def build(subjects=None, shape=(4, 6), seed=0, **settings):
    torch.manual_seed(seed)
    return make_decoder("lite-mind", subjects=subjects or {"a": 43}, target_shape=shape, **(SMALL | settings))


@pytest.mark.parametrize("preset", ["nsd", "small"])
def test_presets_hold_valid_settings(preset):
    assert preset in presets("decoders", "lite-mind")
    layers = load_preset("decoders", "lite-mind", preset)
    make_decoder("lite-mind", preset, subjects={"a": 500}, target_shape=(30,))
    assert TrainingConfig.build(layers["training"]).epochs > 1


def test_nsd_size_stays_within_its_limits():
    decoder = make_decoder("lite-mind", "nsd", subjects={"sub-01": 15_724}, target_shape=(257, 768)).eval()
    counts = count_parameters(decoder)
    assert counts.total == counts.trainable <= 12_300_000
    assert multiply_adds(lambda: decoder(torch.zeros(1, 15_724), "sub-01")) <= 0.25e9


def test_every_single_value_of_every_parameter_gets_gradient():
    decoder = build({"a": 43, "b": 31}, linear_rank=3)
    torch.manual_seed(1)
    x = {"a": torch.randn(40, 43), "b": torch.randn(40, 31)}
    target = torch.randn(40, 24)
    losses = [lambda s=s: (decoder(x[s], s).embedding - target).square().mean() for s in x]
    assert with_gradient(decoder, losses) == count_parameters(decoder).total


def test_no_voxel_is_left_out():
    decoder = build({"a": 47}).eval()
    x = torch.randn(8, 47, requires_grad=True)
    decoder(x, "a").embedding.square().sum().backward()
    assert bool((x.grad.abs().sum(dim=0) > 0).all())


def test_trunk_is_shared_and_inputs_are_not():
    decoder = build({"a": 43, "b": 31})
    own = {name for name, _ in decoder.named_parameters() if name.startswith(("inputs.", "linear.people."))}
    assert {name.split(".")[1] for name in own} == {"0", "1"}
    assert sum(p.numel() for n, p in decoder.named_parameters() if n not in own) == sum(
        p.numel() for n, p in build({"c": 99}).named_parameters() if not n.startswith("inputs.")
    )


@pytest.mark.parametrize("order", ["roi", "curve", "random"])
def test_order_is_a_relabelling_of_voxels_that_survives_saving(order, tmp_path):
    rng = np.random.default_rng(0)
    voxels = Table({"i": rng.integers(0, 9, 43), "j": np.arange(43), "k": np.arange(43), "roi_V1": np.arange(43) > 30})
    plain, ordered = build().eval(), build(order=order).eval()
    ordered.load_state_dict(plain.state_dict())
    ordered.arrange_voxels("a", voxels)
    x = torch.randn(3, 43)
    listed = x[:, voxel_order(order, voxels)]
    assert torch.equal(ordered(x, "a").embedding, plain(listed, "a").embedding)
    assert not torch.allclose(ordered(x, "a").embedding, plain(x, "a").embedding)
    again = type(plain).load(ordered.save(tmp_path / "d"))
    assert torch.equal(again(x, "a").embedding, ordered(x, "a").embedding)


def test_order_needs_its_columns():
    with pytest.raises(InputError, match="roi_<NAME>"):
        build(order="roi").arrange_voxels("a", Table({"i": np.arange(43)}))


def test_predicted_tokens_are_not_of_as_many_dimensions_as_there_are_patches():
    decoder = build({"a": 90}, shape=(30, 40), hidden=64).double().eval()
    with torch.no_grad():
        tokens = decoder(torch.randn(60, 90, dtype=torch.float64), "a").tokens.reshape(-1, 40)
    values = torch.linalg.svdvals(tokens - tokens.mean(dim=0))
    assert int((values > 1e-6 * values[0]).sum()) == 40  # the published layout: 5


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (7,)])
def test_warm_start_is_ridge(shape, pool):
    people = {"a": 43, "b": 43}
    view, targets, _ = made_view(people, shape)
    decoder = build(people, shape, linear_rank=64, branch_scale=1e-6, pool_subjects=pool).eval()
    ridge = make_decoder("ridge", subjects=people, target_shape=shape, pool_subjects=pool)
    for model in (decoder, ridge):
        for subject in people:
            responses = view.averaged(subject)[1]
            model.set_standardiser(subject, responses.mean(axis=0), responses.std(axis=0))
    ridge.solve(view, targets, decoder.target_kind, progress=False)
    decoder.warm_start(view, targets, decoder.target_kind, progress=False)
    responses = torch.from_numpy(view.averaged("a")[1])
    expected = ridge(responses, "a").embedding
    spread = float(expected.std())
    assert float((decoder(responses, "a").embedding - expected).abs().max()) < 0.02 * spread


def test_warm_start_of_low_rank_is_close_to_ridge_and_leaves_no_weight_dead():
    view, targets, _ = made_view({"a": 43}, (3, 10))
    decoder = build({"a": 43}, (3, 10), linear_rank=6, branch_scale=0.1).eval()
    decoder.warm_start(view, targets, "tokens", progress=False)
    ids, responses = view.averaged("a")
    true = targets.of(ids).reshape(len(ids), -1)
    predicted = decoder(torch.from_numpy(responses), "a").embedding.detach().numpy()
    assert ((predicted - true) ** 2).mean() < 0.2 * true.var(axis=0).mean()
    x, y = torch.from_numpy(responses), torch.from_numpy(true)
    reached = with_gradient(decoder, [lambda: (decoder(x, "a").embedding - y).square().mean()])
    assert reached == count_parameters(decoder).total


def test_warm_start_without_linear_path_sets_the_mean():
    view, targets, _ = made_view({"a": 43}, (3, 4))
    decoder = build({"a": 43}, (3, 4))
    decoder.warm_start(view, targets, "tokens", progress=False)
    mean = targets.of(view.stimulus_ids).mean(axis=0)
    np.testing.assert_allclose(decoder.readout.bias.detach().numpy(), mean, rtol=1e-5, atol=1e-6)


def test_it_learns():
    view, targets, _ = made_view({"a": 43}, (3, 4), noise=0.1)
    decoder = build({"a": 43}, (3, 4), width=16, hidden=64, blocks=1).train()
    ids, responses = view.averaged("a")
    x, y = torch.from_numpy(responses), torch.from_numpy(targets.of(ids).reshape(len(ids), -1))
    decoder.set_standardiser("a", x.mean(dim=0), x.std(dim=0))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    for _ in range(80):
        loss = (decoder(x, "a").embedding - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.1 * float(y.var(dim=0).mean())


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="heads must divide hidden 16, found 5"):
        build(heads=5)
    with pytest.raises(InputError, match="projector_groups must be 0 or divide width 8, found 3"):
        build(projector_groups=3)
    with pytest.raises(InputError, match="filters"):
        build(filters=1)
    with pytest.raises(InputError, match=r"patchs.*patches"):
        build(patchs=4)
