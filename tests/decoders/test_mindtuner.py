"""mindtuner: it starts as ridge, every block is alive, adapters start at nothing, train, and travel in small files."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from made_view import made_view

from phosphene.decoders import Decoder, make_decoder
from phosphene.decoders.adaptable import AdapterConfig
from phosphene.errors import InputError
from phosphene.files import read_json, write_json
from phosphene.nn import LoRALinear, attach
from phosphene.nn.freezing import adapter_names, train_only, trainable
from phosphene.settings import load_preset
from phosphene.training.arms import ARMS, settings_of_run
from phosphene.training.settings import TrainingConfig
from phosphene.training.validation import retrieval

PEOPLE = {"sub-01": 40, "sub-02": 33}
NEW = {"sub-03": 37}
SMALL = {"width": 24, "blocks": 2, "projector": 12, "start_rank": 8}
SHAPES = [(3, 4), (12,)]
ADAPTER = AdapterConfig.build({"rank": 2, "skip_rank": 2, "skip_tokens": True, "decorrelation": 0.5})


def made(shape, seed=0, start=True):
    """A decoder of two people at its closed form, and the study of three."""
    view, targets, study = made_view(PEOPLE | NEW, shape)
    torch.manual_seed(seed)
    decoder = make_decoder("mindtuner", subjects=PEOPLE, target_shape=shape, **SMALL)
    both, kind = view.subset(list(PEOPLE)), decoder.target_kind
    for subject in PEOPLE:
        decoder.set_standardiser(subject, *view.moments(subject))
    if start:
        assert decoder.warm_start(both, targets, kind, progress=False)
        decoder.conclude(both, targets, kind)
    return decoder.eval(), view, targets, study


def with_new(decoder, view, targets, arm="both", adapter=ADAPTER):
    ((subject, n_voxels),) = NEW.items()
    decoder.adopt(subject, n_voxels, arm, adapter)
    decoder.set_standardiser(subject, *view.moments(subject))
    decoder.start_person(subject, view, targets, decoder.target_kind)
    return decoder.eval()


def told_apart(decoder, subject, study, targets, what="embedding"):
    ids, x = study.split("test").averaged(subject)
    predicted = decoder.predict(x, subject, what=what).reshape(len(ids), -1)
    true = targets.of(ids).reshape(len(ids), -1)
    centre = targets.of(study.split("train").stimulus_ids).reshape(-1, true.shape[1]).mean(axis=0)
    return retrieval(torch.from_numpy(predicted - centre), torch.from_numpy(true - centre))["two-way"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_starts_as_ridge_and_so_does_a_new_person(shape):
    decoder, view, targets, study = made(shape)
    ridge = make_decoder("ridge", subjects=PEOPLE | NEW, target_shape=shape)
    ridge.solve(view, targets, ridge.target_kind, progress=False)
    with_new(decoder, view, targets, "ridge-only")
    untrained = made(shape, start=False)[0]
    for subject in decoder.subjects:
        best = told_apart(ridge, subject, study, targets)
        assert told_apart(decoder, subject, study, targets) > best - 0.05 > 0.85
        assert told_apart(decoder, subject, study, targets, "target") > best - 0.05
    assert told_apart(untrained, "sub-01", study, targets) < 0.7


def test_without_blocks_and_projector_the_start_is_ridge_itself():
    view, targets, _ = made_view(PEOPLE, (6,))
    decoder = make_decoder("mindtuner", subjects=PEOPLE, target_shape=(6,), width=16, blocks=0, projector=0)
    ridge = make_decoder("ridge", subjects=PEOPLE, target_shape=(6,))
    ridge.solve(view, targets, "pooled", progress=False)
    for subject in PEOPLE:
        decoder.set_standardiser(subject, *view.moments(subject))
    decoder.warm_start(view, targets, "pooled", progress=False)
    x = view.averaged("sub-01")[1]
    # penalties are chosen for components here and for target dimensions there
    assert np.corrcoef(decoder.predict(x, "sub-01").ravel(), ridge.predict(x, "sub-01").ravel())[0, 1] > 0.99


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_block_changes_the_output_and_has_gradient(shape):
    decoder, view, _, _ = made(shape)
    x = torch.from_numpy(view.responses("sub-01", slice(0, 8)))
    before = decoder(x, "sub-01").embedding
    for block in [*decoder.blocks, decoder.projector]:
        changed = copy.deepcopy(block.state_dict())
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        assert float((decoder(x, "sub-01").embedding - before).detach().abs().mean()) > 1e-3
        block.load_state_dict(changed)
    decoder(x, "sub-01").embedding.square().sum().backward()
    for block in [*decoder.blocks, decoder.projector]:
        assert all(bool((p.grad != 0).any()) for p in block.parameters())


@pytest.mark.parametrize("arm", ["ridge-only", "lora", "skip-lora", "both"])
def test_adapters_start_at_nothing_and_others_keep_their_bits(arm):
    decoder, view, targets, _ = made((3, 4))
    before = copy.deepcopy(decoder)
    with_new(decoder, view, targets, arm)
    for subject in PEOPLE:
        x = torch.from_numpy(view.responses(subject, slice(0, 5)))
        assert torch.equal(decoder(x, subject).embedding, before(x, subject).embedding)
    bare = with_new(before, view, targets, "ridge-only")
    x = torch.from_numpy(view.responses("sub-03", slice(0, 5)))
    assert torch.equal(decoder(x, "sub-03").embedding, bare(x, "sub-03").embedding)
    places = {name.partition(".parts")[0] for name in adapter_names(decoder)}
    lora = {name for name in places if not name.startswith("skips")}
    assert len(lora) == (8 if arm in ("lora", "both") else 0)
    assert (len(places) > len(lora)) == (arm in ("skip-lora", "both"))


def test_gradient_reaches_every_adapter_in_two_steps_and_nothing_else_moves():
    decoder, view, targets, _ = made((3, 4))
    with_new(decoder, view, targets).train()
    names = train_only(decoder, "sub-03", decoder.own("sub-03"))
    before = {name: each.clone() for name, each in decoder.state_dict().items()}
    reached, values = set(), []
    optimizer = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], lr=0.05)
    x = torch.from_numpy(view.responses("sub-03", slice(0, 16)))
    y = torch.from_numpy(targets.of(view.trials("sub-03")["stimulus_id"][:16])).flatten(1)
    for _ in range(3):
        loss = (decoder(x, "sub-03").embedding - y).square().mean()
        penalties = decoder.penalties()
        values.append(float(penalties["decorrelation"].detach()))
        optimizer.zero_grad()
        (loss + penalties["decorrelation"]).backward()
        reached |= {n for n, p in decoder.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        assert all(bool(torch.isfinite(p.grad).all()) for p in decoder.parameters() if p.grad is not None)
        optimizer.step()
    assert reached == set(names)
    assert values[0] == 0 < values[2] < ADAPTER.decorrelation
    now = decoder.state_dict()
    assert {name for name, each in now.items() if not torch.equal(each, before[name])} <= set(names)
    assert trainable(decoder, decoder.of_people).base == {}


def test_decorrelation_is_attached_and_weighted():
    grads = {}
    for weight in (0.0, 1.0):
        decoder, view, targets, _ = made((12,))
        with_new(decoder, view, targets, "skip-lora", AdapterConfig.build({"decorrelation": weight})).train()
        with torch.no_grad():
            for bank in decoder.skips:
                for parameter in bank.parameters():
                    parameter.normal_()
        decoder(torch.from_numpy(view.responses("sub-03", slice(0, 4))), "sub-03")
        found = decoder.penalties()
        if weight == 0:
            assert found == {}
            continue
        found["decorrelation"].backward()
        grads = {name for name, p in decoder.skips.named_parameters() if p.grad is not None and (p.grad != 0).any()}
        assert 0 < float(found["decorrelation"]) < 1
        assert decoder.penalties() == {}
    assert len(grads) == 2 * (len(decoder.blocks) + 1)


def test_passes_that_were_no_step_neither_count_nor_stand_in_the_way_of_copies():
    decoder, view, targets, _ = made((12,))
    with_new(decoder, view, targets, "skip-lora").train()
    decoder(torch.randn(6, 37), "sub-03")
    assert copy.deepcopy(decoder).penalties() == {}
    assert "decorrelation" in decoder.penalties()
    decoder(torch.randn(6, 37), "sub-03")
    decoder.begin("training")
    assert decoder.penalties() == {}


@pytest.mark.parametrize("arm", ["ridge-only", "both"])
def test_people_come_back_from_their_files(arm, tmp_path):
    decoder, view, targets, _ = made((3, 4))
    decoder.save(tmp_path / "base")
    with_new(decoder, view, targets, arm)
    decoder.adopt("sub-04", 9, "lora", AdapterConfig.build({"lora": ["out", "blocks.*"], "rank": 3}))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name in adapter_names(decoder):
                parameter.normal_()
    decoder.arrange_voxels("sub-03", view.voxels("sub-03"), {"space": "here"})
    decoder.save(tmp_path / "all")
    base = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert (tmp_path / "all" / "model.safetensors").read_bytes() == base
    loaded = Decoder.load(tmp_path / "all")
    assert list(loaded.subjects) == list(decoder.subjects)
    assert loaded.spaces["sub-03"] == {"space": "here"}
    for subject in decoder.subjects:
        x = torch.randn(3, decoder.subjects[subject])
        assert torch.equal(loaded(x, subject).embedding, decoder.eval()(x, subject).embedding)
    # somebody may stay away, and the others' places move up
    fewer, x = Decoder.load(tmp_path / "all", without=["sub-03"]), torch.randn(3, 9)
    assert "sub-03" not in fewer.subjects
    assert torch.equal(fewer(x, "sub-04").embedding, decoder(x, "sub-04").embedding)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    decoder, view, targets, _ = made((12,))
    with_new(decoder, view, targets).save(tmp_path / "one")
    made((12,), seed=1)[0].save(tmp_path / "other")
    shutil.copytree(tmp_path / "one" / "people", tmp_path / "other" / "people")
    with pytest.raises(InputError, match=r"sub-03.*belongs to another base model"):
        Decoder.load(tmp_path / "other")


def test_what_is_refused():
    decoder, view, targets, _ = made((12,))
    with pytest.raises(InputError, match="no shared linear layer is named like 'heads"):
        copy.deepcopy(decoder).adopt("sub-03", 37, "lora", AdapterConfig.build({"lora": ["heads.*"]}))
    with pytest.raises(InputError, match="unknown arm with adapters 'lara'; did you mean 'lora'"):
        decoder.adopt("sub-03", 37, "lara")
    with pytest.raises(InputError, match=r"'sub-01' is in this mindtuner decoder already \(sub-01"):
        decoder.adopt("sub-01", 40)
    pooled = make_decoder("mindtuner", subjects={"a": 5, "b": 5}, target_shape=(12,), pool_subjects=True, **SMALL)
    with pytest.raises(InputError, match="one input for all"):
        pooled.adopt("c", 5)
    untrained = made((12,), start=False)[0]
    untrained.adopt("sub-03", 37)
    with pytest.raises(InputError, match="has not been trained yet"):
        untrained.start_person("sub-03", view, targets, "pooled")


@pytest.mark.parametrize("preset", ["nsd", "small"])
def test_presets_hold_valid_settings(preset):
    layers = load_preset("decoders", "mindtuner", preset)
    with torch.device("meta"):
        base = make_decoder("mindtuner", preset, subjects={"a": 500}, target_shape=(30,))
    assert TrainingConfig.build(layers["training"]).mixing_fraction == 0.33
    for arm in ARMS:
        training, adapter = settings_of_run(base, arm, preset, {}, {})
        assert training.contrastive == "softclip"
        assert adapter.rank >= 1


def test_voxels_are_dropped_in_training_alone():
    torch.manual_seed(0)
    decoder = make_decoder(
        "mindtuner", subjects=PEOPLE, target_shape=(12,), voxel_dropout=0.5, **SMALL | {"dropout": 0}
    )
    x = torch.randn(4, 40)
    assert torch.equal(decoder.eval()(x, "sub-01").embedding, decoder(x, "sub-01").embedding)
    assert not torch.equal(decoder.train()(x, "sub-01").embedding, decoder(x, "sub-01").embedding)
    decoder.voxel_dropout.p = 0.0
    assert torch.equal(decoder(x, "sub-01").embedding, decoder(x, "sub-01").embedding)


@pytest.mark.parametrize("key", ["subject", "n_voxels", "space", "arm", "adapter"])
def test_a_damaged_person_is_named(key, tmp_path):
    decoder, view, targets, _ = made((12,))
    bare = decoder.save(tmp_path / "base")
    with_new(decoder, view, targets)
    place = decoder.save_person(tmp_path / "person", "sub-03")
    config = read_json(place / "config.json")
    write_json(place / "config.json", {name: each for name, each in config.items() if name != key})
    with pytest.raises(InputError, match=f"of an adapted person is damaged: it lacks {key}"):
        Decoder.load(bare).load_person(place)


def test_attached_adapters_are_refused_beside_those_of_people(tmp_path):
    decoder = made((12,), start=False)[0]
    attach(decoder, ["out"], lambda name, linear: LoRALinear(linear, rank=1))
    with pytest.raises(InputError, match=r"attached to this mindtuner decoder.*out \(LoRALinear\)"):
        decoder.save(tmp_path / "lost")
