"""Inference from any subset of modalities: rules against slow loops, and no way in for a label."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import get_args

import pytest
import torch
from federation_sites import AGREEMENT, made_sites, made_trials, run, settings
from torch.nn import functional

import phosphene.federation.inference as module
import phosphene.federation.retrieval as beneath
from phosphene.errors import InputError
from phosphene.federation.client import site_model
from phosphene.federation.inference import infer, predict
from phosphene.federation.library import FUSION, PrototypeLibrary
from phosphene.federation.masks import substitutes
from phosphene.federation.model import PmcmModel
from phosphene.federation.settings import FederationModelConfig, InferenceSettings, MaskSettings, Rule
from phosphene.federation.trials import Trials

RULES = get_args(Rule)


@pytest.fixture(scope="module")
def trained():
    """A network and library after three rounds, and test trials of one person."""
    chosen = settings(masks={"label": 0.5, "retrieval": 0.25, "token": 0.25})
    shared, sites, _ = run(made_sites(), chosen, 3)
    return site_model(sites[0], shared, chosen).eval(), shared.library, made_trials(7, {"p1": 20}, n=30)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seen", [(True, False, False), (False, True, False), (True, False, True)])
def test_permuted_test_labels_change_no_bit_of_the_predictions(trained, rule, seen):
    """The way of an evaluation: trials with labels in, predictions out."""
    model, library, trials = trained
    trials = trials.hiding(torch.tensor(seen).expand(30, 3))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    permuted = Trials(trials.inputs, trials.ids, trials.labels[order])
    assert not torch.equal(trials.labels, permuted.labels)
    one, other = [predict(model, some.inputs, library, InferenceSettings(rule=rule)) for some in (trials, permuted)]
    for name in ("logits", "embedding", "z"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_the_same_permutation_shows_where_a_label_chooses_the_mask(trained):
    """The control: the path that leaks, built from the training mask, is caught by what the test above looks at."""
    model, library, trials = trained
    present = torch.tensor([False, True, False]).expand(30, 3)
    features = model.encode(trials.inputs.hiding(present)).detach()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    found = []
    for labels in (trials.labels, trials.labels[order]):
        masks = substitutes(
            features,
            present,
            labels,
            library.release(),
            model.tokens,
            MaskSettings(label=1, token=0),
            torch.Generator(),
        )
        found.append(model.fuse(features, present, masks).logits)
    assert not torch.equal(*found)


def test_no_function_of_inference_can_be_given_a_label():
    for each in (module, beneath):
        functions = [
            made for _, made in inspect.getmembers(each, inspect.isfunction) if made.__module__ == each.__name__
        ]
        assert len(functions) >= 5
        for function in functions:
            names = " ".join(inspect.signature(function).parameters)
            assert "label" not in names, function
            annotations = " ".join(str(each) for each in inspect.get_annotations(function).values())
            assert "Trials" not in annotations, function
        tree = ast.parse(Path(each.__file__).read_text(encoding="utf-8"))
        read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {name for name in read if "label" in name}


def test_all_rules_agree_where_nothing_is_missing(trained):
    model, library, trials = trained
    found = [predict(model, trials.inputs, library, InferenceSettings(rule=rule)) for rule in RULES]
    for each in found[1:]:
        assert torch.equal(each.logits, found[0].logits)


@pytest.mark.parametrize("rule", RULES)
def test_hidden_values_play_no_part(trained, rule):
    model, library, trials = trained
    present = torch.tensor([True, False, True]).expand(30, 3)
    features = model.encode(trials.inputs.hiding(present)).detach()
    spoilt = features.clone()
    spoilt[:, 1] = 1e3
    one = infer(model, features, present, library.release(), rule)
    assert torch.equal(one.logits, infer(model, spoilt, present, library.release(), rule).logits)


@pytest.fixture
def small():
    """Three classes with known prototypes, trials that show the fMRI of theirs."""
    from phosphene.federation.state import Agreement

    model = PmcmModel(FederationModelConfig(width=8), Agreement(("a", "b", "c"), 5, 5, 8)).eval()
    held = torch.ones(3, 4).bool()
    vectors = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    prototypes = PrototypeLibrary.of(vectors, held, torch.eye(3)).release()
    features = torch.zeros(3, 3, 8)
    features[:, 0] = prototypes.vectors[0, :, 0] * 2
    return model, features, torch.tensor([True, False, False]).expand(3, 3), prototypes


def with_masks(model, features, present, chosen):
    return model.fuse(features, present, chosen).z


def test_nearest_takes_the_masks_of_the_most_similar_class(small):
    model, features, present, prototypes = small
    expected = with_masks(model, features, present, prototypes.vectors[:3, :, 0].transpose(0, 1))
    assert torch.equal(infer(model, features, present, prototypes, "nearest").z, expected)
    soft = infer(model, features, present, prototypes, "soft", temperature=1e-3).z
    torch.testing.assert_close(soft, expected)


def test_match_takes_the_class_whose_masked_fusion_is_nearest_to_its_prototype(small):
    model, features, present, prototypes = small
    masks = prototypes.vectors[:3, :, 0]
    scores = torch.stack(
        [
            functional.cosine_similarity(
                with_masks(model, features, present, masks[:, c].expand(3, 3, 8)), prototypes.vectors[FUSION, c], dim=1
            )
            for c in range(3)
        ]
    )
    expected = with_masks(model, features, present, masks[:, scores.argmax(dim=0)].transpose(0, 1))
    assert torch.equal(infer(model, features, present, prototypes, "match").z, expected)


def test_token_zero_and_mean(small):
    model, features, present, prototypes = small
    for rule, stand_in in (
        ("token", model.tokens.expand(3, 3, 8)),
        ("zero", torch.zeros(3, 3, 8)),
        ("mean", prototypes.vectors[:3, :, 0].mean(dim=1).expand(3, 3, 8)),
    ):
        expected = with_masks(model, features, present, stand_in)
        torch.testing.assert_close(infer(model, features, present, prototypes, rule).z, expected)


@pytest.mark.parametrize("rule", ["nearest", "soft", "match", "mean"])
def test_without_prototypes_the_learned_token_stands(small, rule):
    model, features, present, _ = small
    nothing = PrototypeLibrary.empty(3, 8).release()
    expected = infer(model, features, present, nothing, "token").z
    assert torch.equal(infer(model, features, present, nothing, rule).z, expected)


def test_unreleased_cells_are_not_used(trained):
    model, library, trials = trained
    inputs = trials.inputs.hiding(torch.tensor([False, True, False]).expand(30, 3))
    token = predict(model, inputs, library, InferenceSettings(rule="token"))
    all_held = predict(model, inputs, library, InferenceSettings(rule="nearest"))
    none = predict(model, inputs, library, InferenceSettings(rule="nearest"), min_count=1e9)
    assert torch.equal(none.logits, token.logits)
    assert not torch.equal(all_held.logits, token.logits)


def test_batches_make_no_difference_and_training_mode_comes_back(trained):
    model, library, trials = trained
    model.train()
    one = predict(model, trials.inputs, library)
    other = predict(model, trials.inputs, library, batch_size=7)
    assert model.training
    model.eval()
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.embedding.norm(dim=1), torch.ones(30))


def test_wrong_calls_are_named(small, trained):
    model, features, present, prototypes = small
    with pytest.raises(InputError, match="unknown rule of inference 'softer'; did you mean 'soft'"):
        infer(model, features, present, prototypes, "softer")
    with pytest.raises(InputError, match="no trial to predict"):
        predict(trained[0], trained[2].inputs.select(torch.empty(0, dtype=torch.int64)), trained[1])
    assert AGREEMENT.width == 16
