"""The simulator's filter bank, and that no encoder of phosphene comes close to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_people import tiny_settings

from phosphene.encoders import make_encoder
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.scenes import scene_set
from phosphene.virtual.filters import CHANNELS, GRID, channel_maps, one_thread
from phosphene.virtual.people import draw_person
from phosphene.virtual.prf import early_responses

N = 900


@pytest.fixture(scope="module")
def scenes() -> StimulusSet:
    lazy = scene_set(N, seed=11, captions=0)
    return StimulusSet(lazy.ids, lazy.pixels(), labels=lazy.labels)


@pytest.fixture(scope="module")
def maps(scenes: StimulusSet) -> torch.Tensor:
    return channel_maps(scenes.pixels())


def gratings(frequency: float, orientation: float) -> np.ndarray:
    y, x = np.mgrid[0:64, 0:64]
    wave = np.cos(2 * np.pi * frequency * (x * np.cos(orientation) + y * np.sin(orientation)))
    return np.clip(127 + 60 * wave, 0, 255).astype(np.uint8)[None, :, :, None].repeat(3, 3)


@pytest.mark.parametrize("channel", [0, 6, 12, 19])
def test_gabor_channels_prefer_their_own_grating(channel: int) -> None:
    picture = gratings(CHANNELS.frequency[channel], CHANNELS.orientation[channel])
    energy = channel_maps(picture)[0, ~CHANNELS.is_colour].mean((1, 2))
    assert int(energy.argmax()) == channel


@pytest.mark.parametrize(
    ("colour", "channel"), [((200, 60, 60), 22), ((60, 200, 60), 23), ((60, 60, 200), 24), ((200, 200, 60), 25)]
)
def test_colour_channels_tell_opponents_apart(colour: tuple[int, int, int], channel: int) -> None:
    picture = np.broadcast_to(np.array(colour, dtype=np.uint8), (1, 64, 64, 3))
    response = channel_maps(picture)[0].mean((1, 2))
    opposite = channel + 1 if channel % 2 == 0 else channel - 1
    assert response[channel] > 5 * response[opposite]


def test_maps_are_positive_of_order_one_and_of_the_stated_shape(maps: torch.Tensor) -> None:
    assert maps.shape == (N, len(CHANNELS), GRID, GRID)
    assert float(maps.min()) >= 0
    means = maps.mean((0, 2, 3))
    assert 0.2 < float(means.min()) < float(means.max()) < 5


def test_picture_size_does_not_matter_much() -> None:
    small, large = scene_set(6, seed=2, size=64).pixels(), scene_set(6, seed=2, size=128).pixels()
    first, second = channel_maps(small).flatten().numpy(), channel_maps(large).flatten().numpy()
    assert np.corrcoef(first, second)[0, 1] > 0.9


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def held_out_r2(features: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Best R2 over penalties of ridge regression on a held-out fifth, by response: generous to the features."""
    test = np.arange(len(features)) % 5 == 0
    mean, deviation = features[~test].mean(0), features[~test].std(0) + 1e-8
    features = (features - mean) / deviation
    left, values, right = np.linalg.svd(features[~test], full_matrices=False)
    offset = responses[~test].mean(0)
    target = left.T @ (responses[~test] - offset)
    truth = responses[test]
    scores = []
    for penalty in 10.0 ** np.arange(-1, 6):
        shrunk = (values / (values**2 + penalty))[:, None] * target
        predicted = features[test] @ (right.T @ shrunk) + offset
        scores.append(1 - ((truth - predicted) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0))
    return np.max(scores, axis=0)


@pytest.mark.parametrize("encoder", ["gabor", "pixels"])
def test_no_encoder_explains_noise_free_early_voxels(encoder: str, scenes: StimulusSet, maps: torch.Tensor) -> None:
    person = draw_person(tiny_settings(person={"voxels": 300}), 0, "sub-01")
    responses = early_responses(maps, person.early).astype(float)
    features = make_encoder(encoder).encode(scenes, np.arange(N)).pooled
    r2 = held_out_r2(np.asarray(features, dtype=float), responses)
    assert r2.max() < 0.9
    # the simulator is not arbitrary either: what the picture shows does say something
    assert np.median(r2) > 0.03
    # the ruler itself can read more than 0.9
    own = maps.mean((2, 3)).numpy().astype(float)
    assert held_out_r2(own, own[:, :5] + 0.1 * own.std(0)[:5]).min() > 0.99
