"""Schedules and costs against published figures of whole towers, and settings."""

import itertools
import re
import subprocess
import sys

import pytest

from phosphene.encoders.merging.schedule import flops, patch_flops, schedule
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.errors import InputError
from phosphene.settings import load_preset

# layers, tokens, width, MLP width, patches, patch, operations of the image tower in 10^9
TOWERS = {
    "B/16": (12, 197, 768, 3072, 196, 16, 35.1),
    "L/14": (24, 257, 1024, 4096, 256, 14, 162.0),
    "H/14": (32, 257, 1280, 5120, 256, 14, 334.6),
    "bigG/14": (48, 257, 1664, 8192, 256, 14, 967.5),
}


def tower(name):
    layers, tokens, width, mlp_width = TOWERS[name][:4]
    return layers, tokens, {"width": width, "mlp_width": mlp_width}


def plan(name, **wanted):
    layers, tokens, widths = tower(name)
    return schedule(layers, tokens, protected=1, **widths, **wanted)


def share(name, rates, fixed=0.0):
    layers, tokens, widths = tower(name)
    return flops(tokens, rates, fixed=fixed, **widths) / flops(tokens, [0] * layers, fixed=fixed, **widths)


def check_feasible(rates, tokens, protected):
    for rate in rates:
        assert 0 <= rate <= (tokens - protected) // 2
        tokens -= rate


@pytest.mark.parametrize("name", TOWERS)
def test_cost_of_whole_towers_is_the_published_one(name):
    layers, tokens, width, mlp_width, patches, patch, published = TOWERS[name]
    embedding = patch_flops(patches, patch, width)
    found = flops(tokens, [0] * layers, width=width, mlp_width=mlp_width, fixed=embedding)
    assert found / 1e9 == pytest.approx(published, abs=0.06)


def test_cost_counts_what_each_half_of_a_block_sees():
    # q, k, v, output: 4 * 2 * 6 * 3^2; scores and sums: 2 * 2 * 6^2 * 3; MLP after merging 2: 2 * 2 * 4 * 3 * 5
    assert flops(6, [2], width=3, mlp_width=5, fixed=7) == 432 + 432 + 240 + 7


@pytest.mark.parametrize(
    ("name", "r", "constant", "decreasing"),
    [
        ("L/14", 8, 1.63, 1.98),
        ("H/14", 4, 1.35, 1.45),
        ("H/14", 7, 1.80, 2.31),
        ("bigG/14", 2, 1.24, 1.26),
        ("bigG/14", 3, 1.40, 1.50),
        ("bigG/14", 4, 1.61, 1.85),
        ("bigG/14", 5, 1.90, 2.43),
    ],
)
def test_gains_by_rate_are_the_known_ones(name, r, constant, decreasing):
    assert 1 / share(name, plan(name, r=r, kind="constant")) == pytest.approx(constant, abs=0.006)
    assert 1 / share(name, plan(name, r=r, kind="decreasing")) == pytest.approx(decreasing, abs=0.006)


@pytest.mark.parametrize(("r", "left"), [(4, 149), (8, 101), (13, 41), (16, 11)])
def test_a_rate_is_cut_to_half_of_what_is_left(r, left):
    rates = plan("B/16", r=r, kind="constant")
    assert 197 - sum(rates) == left
    assert rates[0] == r
    check_feasible(rates, 197, 1)


@pytest.mark.parametrize("kind", ["constant", "decreasing"])
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("keep", [1.0, 0.9, 0.5, 0.25, 0.1, 0.02])
def test_the_wanted_number_of_tokens_remains(kind, name, keep):
    rates = plan(name, keep=keep, kind=kind)
    tokens = TOWERS[name][1]
    assert abs(tokens - sum(rates) - keep * tokens) <= 0.5
    check_feasible(rates, tokens, 1)


@pytest.mark.parametrize("kind", ["constant", "decreasing"])
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("wanted", [1.0, 0.9, 0.5, 0.4])
def test_the_budget_is_met_closely(kind, name, wanted):
    rates = plan(name, flops=wanted, kind=kind)
    assert share(name, rates) == pytest.approx(wanted, abs=0.003)
    check_feasible(rates, TOWERS[name][1], 1)


def test_the_budget_is_met_by_the_nearest_schedule_of_its_kind():
    every = set()
    for gone in range(40):  # the kind spelled out: shares 3, 2, 1, 0 of what goes, halves at most, the rest handed on
        parts = [int(gone * weight / 6) for weight in (3, 2, 1, 0)]
        for place in range(gone - sum(parts)):
            parts[place] += 1
        rates, left, over = [], 16, 0
        for part in parts:
            rates.append(min(part + over, left // 2))
            over += part - rates[-1]
            left -= rates[-1]
        every.add(tuple(rates))
    widths = {"width": 8, "mlp_width": 32}
    full = flops(17, [0] * 4, **widths)
    for wanted in (0.95, 0.8, 0.63, 0.5, 0.45):
        found = schedule(4, 17, protected=1, flops=wanted, **widths)
        gap = abs(flops(17, found, **widths) / full - wanted)
        assert found in every
        assert gap == pytest.approx(min(abs(flops(17, rates, **widths) / full - wanted) for rates in every))


def test_kinds():
    constant, decreasing = plan("L/14", keep=0.3, kind="constant"), plan("L/14", keep=0.3, kind="decreasing")
    assert max(constant) - min(constant) <= 1
    assert all(one >= other for one, other in itertools.pairwise(decreasing))
    assert decreasing[-1] == 0
    assert sum(constant) == sum(decreasing)
    assert share("L/14", decreasing) < share("L/14", constant)


def test_operations_beside_the_blocks_count_in_the_budget():
    layers, tokens, widths = tower("B/16")
    fixed = 0.5 * flops(tokens, [0] * layers, **widths)
    rates = plan("B/16", flops=0.6, fixed=fixed)
    assert share("B/16", rates, fixed) == pytest.approx(0.6, abs=0.003)
    assert share("B/16", rates) < 0.42
    with pytest.raises(InputError, match=r"flops = 0.33 is out of reach.*0.4"):
        plan("B/16", flops=0.33, fixed=fixed)


def test_a_rate_out_of_reach_is_refused_with_the_range():
    with pytest.raises(InputError, match=r"tokens = 0.01 is out of reach.* 0.0102 at the least"):
        plan("B/16", keep=0.01)
    with pytest.raises(InputError, match=r"flops = 0.1 is out of reach.* at the least"):
        plan("B/16", flops=0.1)
    with pytest.raises(InputError, match=r"tokens = 1\.5 is out of reach"):
        plan("B/16", keep=1.5)
    with pytest.raises(InputError, match="at most one of"):
        plan("B/16", keep=0.5, r=3)
    with pytest.raises(InputError, match="1 tokens, 1 of them protected, has none to merge"):
        schedule(2, 1, protected=1, keep=0.5, width=8, mlp_width=32)


@pytest.mark.parametrize(("preset", "least"), [("pocket-cpu", 0.669), ("pocket", 0.436), ("vit-b-16", 0.387)])
def test_what_a_refusal_names_can_be_asked_for(preset, least):
    from phosphene.encoders.mlip.config import MLIPConfig
    from phosphene.encoders.mlip.image import tower_shape

    shape = tower_shape(MLIPConfig.build(load_preset("encoders", "mlip", preset)["model"]))
    with pytest.raises(InputError, match=r"flops = 0\.3 is out of reach") as refused:
        shape.plan(MergeSettings(flops=0.3))
    by_flops, by_tokens = map(float, re.findall(r"\(--merge-\w+\) from ([\d.]+) to 1", str(refused.value)))
    assert by_flops == least
    assert shape.plan(MergeSettings(flops=by_flops)).flops == pytest.approx(least, abs=0.01)
    most = shape.plan(MergeSettings(tokens=by_tokens))
    assert f"the least is {most.remaining} of {shape.tokens} tokens" in str(refused.value)
    assert f"{shape.fixed / (shape.fixed + _blocks(shape)):.0%} of the operations lie outside" in str(refused.value)
    shape.plan(MergeSettings(tokens=0.5))  # as docs/merging.md says


def _blocks(shape):
    return flops(shape.tokens, [0] * shape.layers, width=shape.width, mlp_width=shape.mlp_width)


def test_without_a_rate_nothing_is_merged():
    assert plan("B/16") == plan("B/16", keep=1.0) == plan("B/16", flops=1.0) == plan("B/16", r=0) == (0,) * 12


def test_settings():
    settings = MergeSettings.build({"tokens": 0.5, "guide": "both"})
    layers, tokens, widths = tower("B/16")
    assert settings.active
    assert settings.rates(layers, tokens, protected=1, **widths) == plan("B/16", keep=0.5)
    assert MergeSettings(flops=0.5, schedule="constant").rates(layers, tokens, protected=1, **widths) == plan(
        "B/16", flops=0.5, kind="constant"
    )
    assert MergeSettings.build(settings.model_dump(mode="json")) == settings
    assert not MergeSettings().active
    assert not MergeSettings(r=0).active


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tokens": 0.0}, "tokens"),
        ({"flops": 1.2}, "flops"),
        ({"r": -1}, "r = -1"),
        ({"tokens": 0.5, "r": 3}, "found tokens and r"),
        ({"guide": "edges"}, "guide"),
        ({"balance": 2}, "balance"),
        ({"rate": 0.5}, "rate"),
    ],
)
def test_wrong_settings_are_named(wrong, words):
    with pytest.raises(InputError, match=words):
        MergeSettings.build(wrong)


def test_settings_are_read_without_loading_torch():
    code = "import sys; from phosphene.encoders.merging import MergeSettings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
