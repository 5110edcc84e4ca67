"""Where Skip-LoRA finds what is not linear: in the voxels it reads, and nowhere if it is linear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from phosphene import virtual
from phosphene.decoders import make_decoder
from phosphene.decoders.adaptable import AdapterConfig
from phosphene.decoders.skip_contributions import has_skips, skip_contributions
from phosphene.errors import InputError
from phosphene.nn.lora import SkipLoRA
from phosphene.recordings import StudyView


@pytest.fixture(scope="module")
def view() -> StudyView:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 1, "repeats": 1}
    people: dict[str, Any] = {"person": {"voxels": 90}, "people": {"sub-02": {"voxels": 90}}}
    study = virtual.study(seed=6, stimuli={"test": 60, "common": 20, "own": 0, "size": 32}, **sizes, **people)
    return study.split("test")


def _decoder(view: StudyView, activation: str, region: str) -> Any:
    """A network whose new person's skips read one region only."""
    torch.manual_seed(0)
    decoder: Any = make_decoder("mindtuner", subjects={"sub-01": 90}, target_shape=(7,), width=16, blocks=1)
    decoder.adopt("sub-02", 90, "skip-lora", AdapterConfig(activation=activation, skip_rank=2))
    mask = torch.from_numpy(view.rois("sub-02")[region])
    for skip in (each for each in decoder.modules() if isinstance(each, SkipLoRA)):
        skip.path.a.data *= 10 * mask
        torch.nn.init.normal_(skip.path.b)
    return decoder


def test_the_region_that_is_read_has_everything(view: StudyView) -> None:
    found = skip_contributions(_decoder(view, "gelu", "V1"), view, "sub-02")
    inside = view.rois("sub-02")["V1"]
    assert found.margin > 0.1
    assert (found.voxels[inside] > 0).all()
    assert not found.voxels[~inside].any()
    assert found.rois["V1"] > 0.5 * found.margin
    assert found.rois["PPA"] == 0


def test_what_is_linear_has_no_part_in_it(view: StudyView) -> None:
    curved, straight = (skip_contributions(_decoder(view, kind, "V1"), view, "sub-02") for kind in ("gelu", "linear"))
    assert straight.margin < 1e-3 * curved.margin
    assert straight.voxels.max() < 1e-3 * curved.voxels.max()


def test_voxels_are_what_a_small_change_of_each_brings(view: StudyView) -> None:
    decoder = _decoder(view, "gelu", "LOC")
    found = skip_contributions(decoder, view, "sub-02")
    # finite differences of the non-linear part, place by place, at one voxel
    from phosphene.decoders.skip_contributions import _NonLinear, _skips

    voxel = int(np.argmax(found.voxels))
    x = decoder._standardised(torch.from_numpy(view.averaged("sub-02")[1]), "sub-02")
    step = torch.zeros_like(x)
    step[:, voxel] = 1e-3 * x[:, voxel]
    total = 0.0
    with torch.no_grad():
        for skip in _skips(decoder, "sub-02"):
            part = _NonLinear(skip, x)
            change = (part.value(x + step) - part.value(x - step)) / 2e-3
            total += float(change.square().sum(dim=1).mean())
    assert found.voxels[voxel] == pytest.approx(total**0.5, rel=0.02)


def test_a_decoder_in_training_stays_in_training(view: StudyView) -> None:
    decoder = _decoder(view, "gelu", "V1").train()
    found = skip_contributions(decoder, view, "sub-02")
    assert all(each.training for each in decoder.modules())
    np.testing.assert_array_equal(skip_contributions(decoder.eval(), view, "sub-02").voxels, found.voxels)
    assert not decoder.training


def test_a_person_without_skips(view: StudyView) -> None:
    decoder = _decoder(view, "gelu", "V1")
    assert has_skips(decoder, "sub-02")
    assert not has_skips(decoder, "sub-01")
    with pytest.raises(InputError, match="sub-01 has no Skip-LoRA"):
        skip_contributions(decoder, view, "sub-01")
