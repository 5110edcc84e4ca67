"""wills-aligner: what is common stays bit for bit when experts come, routes without an id, covered places, merging."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.decoders import Decoder, make_decoder
from phosphene.decoders.brain_experts import anatomy_vector, expert_places, use_of_experts
from phosphene.decoders.wills_aligner import WillsAligner
from phosphene.errors import InputError
from phosphene.nn.freezing import adapter_names
from phosphene.table import Table
from phosphene.training.data import StepBatch
from phosphene.training.objective import Objective, TrainingStep
from phosphene.training.settings import TrainingConfig

PEOPLE = {"sub-01": 30, "sub-02": 30, "sub-03": 30}
MLP: dict[str, Any] = {"width": 16, "blocks": 2, "projector": 12, "experts": 3, "rank": 2}
LITE: dict[str, Any] = {"trunk": "lite-mind", "patches": 5, "width": 8, "hidden": 16, "heads": 4} | {
    key: MLP[key] for key in ("blocks", "projector", "experts", "rank")
}
ANATOMY: dict[str, Any] = {"router": ("anatomy",), "anatomy": ("sulc",)}
EXPERTS: list[dict[str, Any]] = [
    {**MLP, "linear_rank": 4, "private": True},
    {**MLP, "router": ("data",), "gate": "top-k"},
    {**MLP, **ANATOMY, "insert": ("first", "out.*")},
    {**LITE, "router": ("person", "data"), "linear_rank": 3},
    {**LITE, "router": ("data",), "gate": "per-token"},
]
experts = pytest.mark.parametrize("settings", EXPERTS, ids=lambda s: "-".join(map(str, s.values())))


def voxels(seed: int, covered: int = 30) -> Table:
    rng = np.random.default_rng(seed)
    return Table(
        {
            "i": np.arange(30),
            "sulc": rng.normal(size=30),
            "roi_V1": np.arange(30) < 9,
            "covered": np.arange(30) < covered,
        }
    )


def build(shape: tuple[int, ...] = (3, 4), seed: int = 0, **settings: Any) -> WillsAligner:
    torch.manual_seed(seed)
    settings = {"class_columns": ("what",), "classes": ("ball", "box"), **settings}
    decoder = make_decoder("wills-aligner", subjects=PEOPLE, target_shape=shape, **settings)
    assert isinstance(decoder, WillsAligner)
    for at, subject in enumerate(PEOPLE):
        decoder.meet(subject, voxels(at))
    decoder.begin("training")
    return decoder.eval()


def with_gradient(decoder: WillsAligner, x: torch.Tensor, subject: str | None) -> torch.Tensor:
    found = decoder(x, subject)
    return torch.cat([found.embedding, found.target, found.classes], dim=1)


@torch.no_grad()
def heads(decoder: WillsAligner, x: torch.Tensor, subject: str | None) -> torch.Tensor:
    return with_gradient(decoder, x, subject)


def step_stage2(decoder: WillsAligner, steps: int = 2) -> dict[str, bool]:
    """Train experts on random targets; tells whose gradient was ever other than zero."""
    decoder.train()
    trained = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    reached = {name: False for name, p in decoder.named_parameters() if p.requires_grad}
    for step in range(steps):
        torch.manual_seed(step)
        out = torch.cat([with_gradient(decoder, torch.randn(12, 30), subject) for subject in PEOPLE])
        loss = (out - torch.randn_like(out)).square().mean() + sum(decoder.penalties().values())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in decoder.named_parameters():
            if parameter.grad is not None and parameter.requires_grad:
                reached[name] |= bool((parameter.grad != 0).any())
        optimizer.step()
    decoder.eval()
    return reached


@experts
def test_experts_train_and_what_is_common_stays_bit_for_bit(settings: dict[str, Any]) -> None:
    decoder, x = build(**settings), torch.randn(5, 30)
    first, trunk = [heads(decoder, x, subject) for subject in PEOPLE], decoder.common
    decoder.begin("stage2")
    # zero-initialised experts add nothing yet
    assert all(torch.equal(heads(decoder, x, s), was) for s, was in zip(PEOPLE, first, strict=True))
    reached = step_stage2(decoder)
    assert [name for name, found in reached.items() if not found] == []
    assert set(reached) == {name for name in adapter_names(decoder) if name in dict(decoder.named_parameters())}
    assert decoder.common == trunk
    for subject, was in zip(PEOPLE, first, strict=True):
        assert not torch.allclose(heads(decoder, x, subject), was, atol=1e-3)
        with decoder.commonality():
            assert torch.equal(heads(decoder, x, subject), was)


@experts
def test_saved_and_loaded_with_experts_it_predicts_the_same_bits(settings: dict[str, Any], tmp_path) -> None:
    decoder = build(**settings)
    for at, subject in enumerate(PEOPLE):
        decoder.arrange_voxels(subject, voxels(at, 30 - at))
    decoder.begin("training")
    decoder.begin("stage2")
    step_stage2(decoder)
    again = Decoder.load(decoder.save(tmp_path / "decoder"))
    x = torch.randn(4, 30)
    for subject in (*PEOPLE, None):
        assert torch.equal(heads(again, x, subject), heads(decoder, x, subject))
    with again.commonality(), decoder.commonality():
        assert torch.equal(heads(again, x, "sub-02"), heads(decoder, x, "sub-02"))


def test_gates_depend_on_what_the_router_is_told() -> None:
    x = torch.randn(4, 30)
    decoder = build(**MLP)
    with pytest.raises(InputError, match="no experts"):
        decoder.routing(x, "sub-01")
    decoder.begin("stage2")
    assert decoder.routing(x, "sub-01").shape == (1, 3)
    assert not torch.equal(decoder.routing(x, "sub-01"), decoder.routing(x, "sub-02"))
    assert torch.equal(decoder.routing(x), decoder.routing(x, "somebody"))
    data = build(**MLP | {"router": ("data",)})
    data.begin("stage2")
    gates = data.routing(x)
    assert gates.shape == (4, 3)
    assert not torch.equal(gates[0], gates[1])
    assert torch.equal(gates, data.routing(x, "sub-03"))
    tokens = build(**LITE | {"router": ("data",), "gate": "per-token"})
    tokens.begin("stage2")
    assert tokens.routing(x).shape == (4, 5, 3)
    assert {name.split(".parts")[0][:13] for name in adapter_names(tokens) if ".parts." in name} == {"trunk.blocks."}


def test_balance_has_a_gradient_on_the_router_and_only_training_counts() -> None:
    decoder = build(**MLP | {"balance_weight": 0.5, "id_dropout": 0.0})
    assert decoder.penalties() == {}
    decoder.begin("stage2")
    decoder(torch.randn(3, 30), "sub-01")
    assert decoder.penalties() == {}
    decoder.train()
    decoder(torch.randn(3, 30), "sub-01")
    assert decoder.penalties() == {}  # one person alone has no balance
    for subject in PEOPLE:
        decoder(torch.randn(3, 30), subject)
    term = decoder.penalties()["balance"]
    term.backward()
    assert decoder.router is not None
    assert all(float(p.grad.abs().sum()) > 0 for p in decoder.router.people)
    assert decoder.penalties() == {}


def test_passes_that_were_no_step_neither_count_nor_stand_in_the_way_of_copies() -> None:
    decoder = build(**MLP | {"balance_weight": 0.5, "id_dropout": 0.0, "router": ("person",)})
    decoder.begin("stage2")
    decoder.train()

    def stray() -> None:
        for subject in PEOPLE:
            decoder(torch.randn(50, 30), subject)

    stray()
    assert copy.deepcopy(decoder).penalties() == {}
    assert isinstance(decoder.merged("sub-01"), WillsAligner)
    assert "balance" in decoder.penalties()  # a copy takes nothing away
    stray()
    decoder.begin("stage2")
    assert decoder.penalties() == {}
    stray()
    step = TrainingStep(decoder, Objective(TrainingConfig(contrastive="none", mse_weight=1.0), 1.0, (3, 4)))
    calls = [("sub-01", torch.randn(4, 30))]
    batch = StepBatch(calls, torch.randn(4, 12), torch.arange(4), None, None, (4,))
    assert "balance" not in step(batch, 0.1)[1]  # one person alone has none


def test_places_that_somebody_does_not_cover_take_a_learned_value() -> None:
    decoder = build(**MLP)
    decoder.arrange_voxels("sub-01", voxels(0))
    decoder.arrange_voxels("sub-02", voxels(1, covered=20))
    decoder.begin("training")
    assert decoder.fill is not None
    x = torch.randn(4, 30)
    other = x.clone()
    other[:, 20:] = 5.0
    assert torch.equal(heads(decoder, x, "sub-02"), heads(decoder, other, "sub-02"))
    assert not torch.equal(heads(decoder, x, "sub-01"), heads(decoder, other, "sub-01"))
    decoder.train()
    with_gradient(decoder, x, "sub-02").square().sum().backward()
    assert not decoder.fill.grad[:20].any()
    assert decoder.fill.grad[20:].all()


@pytest.mark.parametrize("settings", [EXPERTS[0], EXPERTS[2]], ids=["private", "anatomy"])
def test_one_person_is_exported_as_a_plain_model(settings: dict[str, Any], tmp_path) -> None:
    decoder, x = build(**settings), torch.randn(6, 30)
    decoder.arrange_voxels("sub-02", voxels(1, covered=25))
    decoder.begin("training")
    decoder.begin("stage2")
    step_stage2(decoder, steps=4)
    decoder.set_standardiser("sub-02", np.full(30, 0.3), np.full(30, 2.0))
    plain = decoder.merged("sub-02")
    assert not adapter_names(plain)
    assert list(plain.subjects) == ["sub-02"]
    wanted = heads(decoder, x, "sub-02")
    torch.testing.assert_close(heads(plain, x, "sub-02"), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted, heads(decoder, x, "sub-01"), atol=1e-2)
    again = Decoder.load(plain.save(tmp_path / "plain"))
    assert torch.equal(heads(again, x, "sub-02"), heads(plain, x, "sub-02"))
    assert torch.equal(heads(decoder, x, "sub-02"), wanted)
    with decoder.commonality():  # an export is of the whole model, whatever is switched off meanwhile
        within = decoder.merged("sub-02")
        assert not decoder.individual
    assert torch.equal(heads(within, x, "sub-02"), heads(plain, x, "sub-02"))


def test_what_depends_on_every_trial_is_not_merged() -> None:
    decoder = build(**MLP | {"router": ("person", "data")})
    decoder.begin("stage2")
    with pytest.raises(InputError, match="depend on every trial"):
        decoder.merged("sub-01")
    with pytest.raises(InputError, match=r"sub-09.*sub-01"):
        build(**MLP).merged("sub-09")


@pytest.mark.parametrize("settings", [EXPERTS[0], EXPERTS[2]], ids=["private", "anatomy"])
def test_somebody_added_later_changes_nobody_and_begins_without_an_id(settings: dict[str, Any]) -> None:
    decoder, x = build(**settings), torch.randn(5, 30)
    decoder.begin("stage2")
    step_stage2(decoder)
    before = copy.deepcopy(decoder)
    stranger = heads(decoder, x, None)
    decoder.add_subject("sub-04", 30)
    torch.testing.assert_close(heads(decoder, x, "sub-04"), stranger)
    decoder.meet("sub-04", voxels(9))
    for subject in PEOPLE:
        assert torch.equal(heads(decoder, x, subject), heads(before, x, subject))
    own = decoder.own("sub-04")
    if settings.get("private"):
        assert "router.people.3" in own
        assert all(name == "router.people.3" or ".parts.own.of_sub-04." in name for name in own)
    else:
        assert own == []
        assert not torch.allclose(heads(decoder, x, "sub-04"), stranger, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches": 8}, "patches = 8 belong to the trunk lite-mind"),
        ({"router": ("anatomy",)}, "anatomy names the columns"),
        ({"anatomy": ("sulc",)}, "anatomy names the columns"),
        ({"gate": "per-token"}, "latent tokens"),
        ({"gate": "top-k", "top": 9}, "top must be at most"),
        ({"stage2": "meta", "router": ("data",)}, "a person's own"),
        ({"router": ()}, "at least 1"),
        ({"trunk": "lite-mind", "hidden": 10, "heads": 4}, "heads must divide"),
        ({"person_embedding": True}, "instead of a second stage: give it with stage2 'none', found 'plain'"),
        ({"person_embedding": True, "stage2": "none", "pool_subjects": False}, "for one input of all people"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_decoder("wills-aligner", subjects=PEOPLE, target_shape=(4,), **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "wills-aligner",
            {"stage2": "none", "private": True},
            "private = True has no use: stage2 = 'none' has no experts",
        ),
        ("wills-aligner", {"inner_rate": 0.1}, "inner_rate = 0.1 has no use: for stage2 = 'meta', found 'plain'"),
        ("wills-aligner", {"private_rank": 4}, r"private_rank = 4 has no use: for private experts on a linear path"),
        ("wills-aligner", {"private": True, "private_start": "zero"}, "private_start = 'zero' has no use: for private"),
        ("wills-aligner", {"top": 1}, "top = 1 has no use: for gate = 'top-k', found 'dense'"),
        ("wills-aligner", {"router": ("data",), "id_dropout": 0.1}, "id_dropout = 0.1 .*router with 'person'"),
        (
            "wills-aligner",
            {"balance_weight": 0.0, "balance_sharpness": 0.1},
            "balance_sharpness = 0.1 .*balance_weight = 0",
        ),
        ("wills-aligner", {"linear_rank": 0, "branch_scale": 0.2}, "branch_scale = 0.2 .*linear_rank = 0"),
        ("mindtuner", {"blocks": 0, "dropout": 0.1}, "dropout = 0.1 has no use: blocks = 0"),
        ("mindtuner", {"blocks": 0, "projector": 0, "branch_scale": 0.1}, "branch_scale = 0.1 has no use"),
    ],
    ids=str,
)
def test_settings_that_others_leave_without_a_use_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_decoder(name, subjects=PEOPLE, target_shape=(4,), width=8, **settings)
    # what a preset says does not count: it may know more than the settings leave a use for
    make_decoder("wills-aligner", "small", subjects=PEOPLE, target_shape=(4,), width=8, stage2="none")


@pytest.mark.parametrize("settings", [MLP, LITE], ids=["mlp", "lite-mind"])
def test_a_vector_for_each_person_is_learned_and_goes_with_the_person(settings: dict[str, Any], tmp_path) -> None:
    settings = {key: value for key, value in settings.items() if key not in ("experts", "rank")}
    decoder = build(**settings, stage2="none", person_embedding=True)
    x = torch.randn(6, 30)
    assert torch.equal(heads(decoder, x, "sub-01"), heads(decoder, x, "sub-02"))
    with_gradient(decoder, x, "sub-02").square().sum().backward()
    assert [each.grad is not None and bool(each.grad.any()) for each in decoder.embeddings] == [False, True, False]
    with torch.no_grad():
        decoder.embeddings[1].normal_()
    alone = {subject: heads(decoder, x, subject) for subject in PEOPLE}
    assert not torch.allclose(alone["sub-02"], alone["sub-01"], atol=1e-3)
    decoder.add_subject("sub-04", 30)
    again = Decoder.load(decoder.save(tmp_path / "decoder"))
    assert all(torch.equal(heads(again, x, subject), found) for subject, found in alone.items())
    assert torch.equal(heads(again, x, "sub-04"), heads(decoder, x, None))
    torch.testing.assert_close(heads(decoder.merged("sub-02"), x, "sub-02"), alone["sub-02"])


def test_places_of_experts_by_word_and_pattern() -> None:
    decoder = build(**MLP | {"linear_rank": 4})
    assert expert_places(decoder, ["first"]) == ["trunk.inputs.0.0", "linear.people.0", "class_path.people.0"]
    assert expert_places(decoder, ["last-1"]) == ["trunk.blocks.1.branch.0"]
    assert expert_places(decoder, ["linear.*", "out.out"]) == ["linear.people.0", "out.out"]
    assert len(expert_places(decoder, ["all"])) == 10
    with pytest.raises(InputError, match=r"'lasst-1'; there are: trunk.inputs.0.0"):
        expert_places(decoder, ["lasst-1"])
    with pytest.raises(InputError, match=r"insert = first leaves no linear layer"):
        expert_places(build(**LITE), ["first"])


def test_anatomy_is_told_by_region_and_what_is_missing_is_named(tmp_path) -> None:
    table = voxels(0)
    found = anatomy_vector(table, ["sulc"])
    sulc, v1 = table["sulc"], table["sulc"][:9]
    np.testing.assert_allclose(found, [sulc.mean(), sulc.std(), v1.mean(), v1.std()], rtol=1e-5)
    with pytest.raises(InputError, match=r"sub-01: the voxel table lacks thickness.*sulc"):
        build(**MLP | {"router": ("anatomy",), "anatomy": ("thickness",)})
    trained = build(**MLP | ANATOMY)
    trained.begin("stage2")
    trained.add_subject("sub-04", 30)
    with pytest.raises(InputError, match="sub-04 has other named regions"):
        trained.meet("sub-04", Table({"sulc": np.ones(30)}))
    # as many regions, but others: before the second stage, and of a decoder that was saved
    other = Table({"sulc": np.ones(30), "roi_FFA": np.arange(30) < 9})
    message = "sub-04 has other named regions than the others.*found FFA, the others have V1"
    read = Decoder.load(trained.save(tmp_path / "decoder"))
    for each in (trained, read):
        with pytest.raises(InputError, match=message):
            each.meet("sub-04", other)
        each.meet("sub-04", table)
    torch.manual_seed(0)
    decoder = make_decoder("wills-aligner", subjects=PEOPLE, target_shape=(4,), **MLP | ANATOMY)
    decoder.meet("sub-01", table)
    with pytest.raises(InputError, match="sub-02 has other named regions"):
        decoder.meet("sub-02", other)
    with pytest.raises(InputError, match="anatomy of all 3 people, it has 1"):
        decoder.begin("stage2")


def test_a_collapse_is_warned_of_by_name(caplog: pytest.LogCaptureFixture) -> None:
    apart = {"sub-01": torch.eye(3)[[0] * 5], "sub-02": torch.eye(3)[[1] * 7], "sub-03": torch.eye(3)[[2] * 7]}
    told = use_of_experts(apart, "wills-aligner")
    assert told["collapse"] is None
    assert not caplog.records
    assert told["information_expert_subject"] == pytest.approx(np.log(3), rel=1e-3)
    same = use_of_experts({name: torch.eye(3)[[0] * 4] for name in apart}, "wills-aligner")
    assert "expert 0 has 100%" in same["collapse"]
    assert same["information_expert_subject"] == pytest.approx(0, abs=1e-6)
    assert "wills-aligner collapsed: expert 0 has 100%" in caplog.text
