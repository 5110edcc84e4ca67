"""The contract of all decoders, run over every one that is registered."""

import copy

import pytest
import torch
from made_view import made_view

from phosphene.decoders import DECODERS, Decoder, make_decoder
from phosphene.errors import InputError
from phosphene.nn import LoRALinear, attach, detach

SUBJECTS = {"sub-01": 53, "sub-02": 40}
SHAPES = [(5, 6), (7,)]

#: Small settings of every registered decoder, in the variants whose contract could differ.
TESTED = {
    "lite-mind": [
        {"patches": 5, "width": 8, "hidden": 16, "heads": 4},
        {"patches": 6, "width": 8, "hidden": 16, "heads": 4, "linear_rank": 4, "shared_patches": True},
        {"patches": 6, "width": 8, "hidden": 16, "heads": 4, "gating": "cosine", "spectrum": "cube"},
    ],
    "mindeye-mlp": [
        {"width": 24, "blocks": 2, "projector": 16},
        {"width": 24, "blocks": 1, "projector": 0},
    ],
    "mindtuner": [
        {"width": 24, "blocks": 2, "projector": 16, "start_rank": 5},
        {"width": 24, "blocks": 1, "projector": 0, "start_rank": 5},
    ],
    "ridge": [{}],
    "shared-response": [{"folds": 2}],
    "wills-aligner": [
        {"pool_subjects": False, "width": 24, "blocks": 2, "projector": 16, "linear_rank": 4},
        {
            "pool_subjects": False,
            "trunk": "lite-mind",
            "patches": 5,
            "width": 8,
            "hidden": 16,
            "heads": 4,
            "projector": 0,
        },
    ],
}
CASES = [(name, settings, shape) for name, variants in TESTED.items() for settings in variants for shape in SHAPES]
TRAINED = [case for case in CASES if not DECODERS[case[0]].closed_form]


def label(case):
    return f"{case[0]}-{'-'.join(map(str, case[1].values()))}-{'x'.join(map(str, case[2]))}"


every = pytest.mark.parametrize("case", CASES, ids=label)
every_trained = pytest.mark.parametrize("case", TRAINED, ids=label)


def build(case, subjects=None, seed=0, **more) -> Decoder:
    """A decoder that has been through what precedes training (closed-form ones are fitted)."""
    name, settings, shape = case
    torch.manual_seed(seed)
    decoder = make_decoder(name, subjects=subjects or SUBJECTS, target_shape=shape, **(settings | more))
    if decoder.closed_form:
        view, targets, _ = made_view(decoder.subjects, shape)
        decoder.solve(view, targets, decoder.target_kind, progress=False)
    for number, (subject, n_voxels) in enumerate(decoder.subjects.items()):
        decoder.set_standardiser(subject, torch.full((n_voxels,), 0.1 * number), torch.full((n_voxels,), 1.5))
    return decoder.eval()


def responses(n, subject="sub-01", seed=0):
    return torch.randn(n, SUBJECTS[subject], generator=torch.Generator().manual_seed(seed))


def test_every_registered_decoder_is_tested():
    # other tests register decoders of their own
    assert set(TESTED) == {name for name, cls in DECODERS.items() if cls.__module__.startswith("phosphene.")}


@every
def test_shapes_and_embedding(case):
    decoder, shape = build(case), case[2]
    for subject in SUBJECTS:
        for n in (1, 4):
            prediction = decoder(responses(n, subject), subject)
            if len(shape) == 2:
                assert prediction.tokens.shape == (n, *shape)
                torch.testing.assert_close(prediction.pooled, prediction.tokens.mean(dim=1))
                assert torch.equal(prediction.target, prediction.tokens.flatten(1))
            else:
                assert prediction.tokens is None
                assert torch.equal(prediction.target, prediction.pooled)
            compared = prediction.target if prediction.retrieval is None else prediction.retrieval.flatten(1)
            assert torch.equal(prediction.embedding, compared)
            assert prediction.pooled.shape == (n, shape[-1])
            assert bool(torch.isfinite(prediction.embedding).all())


@every_trained
def test_two_steps_on_all_subjects_reach_every_parameter(case):
    decoder = build(case).train()
    reached = {name: False for name, _ in decoder.named_parameters()}
    assert reached
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
    for step in range(2):
        predictions = torch.cat([decoder(responses(16, s, step), s).embedding for s in SUBJECTS])
        torch.manual_seed(10 + step)
        loss = (predictions - torch.randn_like(predictions)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in decoder.named_parameters():
            reached[name] |= parameter.grad is not None and bool((parameter.grad != 0).any())
        optimizer.step()
    assert [name for name, found in reached.items() if not found] == []


@every
def test_closed_form_means_nothing_is_left_to_train(case):
    decoder = build(case)
    assert decoder.closed_form == (not list(decoder.parameters()))


@every
def test_saved_and_loaded_it_predicts_the_same_bits(case, tmp_path):
    decoder = build(case)
    view = made_view(SUBJECTS, case[2])[0]
    for subject in SUBJECTS:
        decoder.arrange_voxels(subject, view.voxels(subject))
    loaded = Decoder.load(decoder.save(tmp_path / "decoder"))
    assert type(loaded) is DECODERS[case[0]]
    for subject in SUBJECTS:
        x = responses(3, subject)
        assert torch.equal(loaded(x, subject).embedding, decoder(x, subject).embedding)


@every
def test_one_seed_one_set_of_weights(case):
    first, again = build(case, seed=1).state_dict(), build(case, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    if list(build(case).parameters()):
        other = build(case, seed=2).state_dict()
        assert any(not torch.equal(first[name], other[name]) for name in first)


@every
def test_a_batch_of_one_is_predicted_as_in_company(case):
    decoder, x = build(case), responses(4)
    alone = torch.cat([decoder(row[None], "sub-01").embedding for row in x])
    torch.testing.assert_close(alone, decoder(x, "sub-01").embedding, atol=1e-5, rtol=1e-4)


@every_trained
def test_a_batch_of_one_can_be_trained_on(case):
    decoder = build(case).train()
    decoder(responses(1), "sub-01").embedding.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in decoder.parameters() if p.grad is not None)


@every
def test_unknown_people_are_refused_and_the_known_ones_listed(case):
    decoder = build(case)
    with pytest.raises(InputError, match=r"sub-07.*sub-01, sub-02"):
        decoder(responses(2), "sub-07")
    with pytest.raises(InputError, match="whose responses these are: sub-01, sub-02"):
        decoder(responses(2), None)


@every
def test_a_wrong_voxel_count_is_refused_with_the_right_one(case):
    with pytest.raises(InputError, match=r"sub-02.*40 voxels.*\(2, 53\)"):
        build(case)(responses(2), "sub-02")


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(case, value):
    x = responses(3)
    x[1, 7] = value
    with pytest.raises(InputError, match="row 1 at voxel 7"):
        build(case)(x, "sub-01")


@every
def test_bfloat16_autocast_is_close_to_full_precision(case):
    decoder, x = build(case), responses(6)
    full = decoder(x, "sub-01").embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = decoder(x, "sub-01").embedding
    assert bool(torch.isfinite(half).all())
    assert float((half.float() - full).norm() / full.norm()) < 0.05


@every
def test_a_person_added_later_does_not_change_the_others(case):
    decoder = build(case)
    before, x = copy.deepcopy(decoder), {s: responses(3, s) for s in SUBJECTS}
    decoder.add_subject("sub-03", 61)
    decoder.eval()
    for subject in SUBJECTS:
        assert torch.equal(decoder(x[subject], subject).embedding, before(x[subject], subject).embedding)
    assert decoder(torch.randn(2, 61), "sub-03").embedding.shape == before(x["sub-01"][:2], "sub-01").embedding.shape
    with pytest.raises(InputError, match=r"sub-03.*already"):
        decoder.add_subject("sub-03", 61)


@every
def test_pooled_people_share_one_input_and_strangers_are_taken(case):
    decoder = build(case, subjects={"sub-01": 30, "sub-02": 30}, pool_subjects=True)
    assert decoder.subject_free
    x = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    for subject in ("sub-01", None, "sub-99"):
        assert decoder(x, subject).embedding.shape == (3, decoder.n_outputs)
    n_values = sum(p.numel() for p in decoder.parameters())
    decoder.add_subject("sub-03", 30)
    assert sum(p.numel() for p in decoder.parameters()) == n_values
    with pytest.raises(InputError, match="one voxel grid"):
        decoder.add_subject("sub-04", 31)


def test_attached_adapters_are_not_lost_without_a_word(tmp_path):
    decoder = make_decoder("lite-mind", subjects={"sub-01": 40}, target_shape=(3,))
    attach(decoder, ["readout.*"], lambda name, linear: LoRALinear(linear, rank=1))
    with pytest.raises(InputError, match=r"adapters are attached to this lite-mind decoder.*LoRALinear.*detach"):
        decoder.save(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    detach(decoder, merge=True)
    assert Decoder.load(decoder.save(tmp_path / "kept")).name == "lite-mind"
