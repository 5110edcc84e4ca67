import numpy as np
import pytest
import torch
from scene_measures import spectral_slope

from phosphene.stimuli.scenes import sample_graphs
from phosphene.stimuli.scenes.backgrounds import dead_leaves, paint_background
from phosphene.stimuli.scenes.patterns import natural_noise, wave
from phosphene.stimuli.scenes.randoms import lattice_bits, scene_keys
from phosphene.stimuli.scenes.vocabulary import BACKGROUNDS

CPU = torch.device("cpu")
KEYS = torch.from_numpy(scene_keys(0, np.arange(80), "test"))


def test_wave_is_nearly_a_sine():
    turns = torch.linspace(-3, 3, 5001)
    assert (wave(turns) - torch.sin(2 * np.pi * turns)).abs().max() < 1.2e-3


def test_lattice_bits_are_uniform_and_keyed():
    bits = lattice_bits(KEYS, 3, 40, 40)
    assert bits.min() >= 0
    assert bits.max() < 2**32
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((bits >> shift) & 15).numpy().ravel(), minlength=16)
        assert np.abs(counts / counts.mean() - 1).max() < 0.05
    first = (bits & 255).double()
    for other in (first.roll(1, 2), first.roll(1, 1), first.roll(1, 0), (lattice_bits(KEYS, 4, 40, 40) & 255).double()):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("size", [64, 96, 128])
def test_natural_noise_has_a_natural_spectrum(size):
    field = natural_noise(KEYS, size, rise=1.1, grain=0.8).numpy()
    assert -2.4 < spectral_slope(field) < -1.7
    assert 0.8 < field.std() < 1.3
    assert abs(field.mean()) < 0.1


def test_noise_has_no_preferred_direction():
    field = natural_noise(KEYS, 64).numpy()
    across, down = np.diff(field, axis=2).std(), np.diff(field, axis=1).std()
    diagonal = (field[:, 1:, 1:] - field[:, :-1, :-1]).std() / 2**0.5
    assert across == pytest.approx(down, rel=0.02)
    assert diagonal == pytest.approx(across, rel=0.15)


def test_noise_sums_are_exact_in_single_precision(monkeypatch):
    # What a GPU computes in float64 must be what the CPU computes in float32.
    single = natural_noise(KEYS[:8], 64, rise=1.1)
    monkeypatch.setattr(torch, "float32", torch.float64)
    double = natural_noise(KEYS[:8], 64, rise=1.1)
    monkeypatch.undo()
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-6, rtol=0)


def test_dead_leaves_have_heavy_low_frequencies_and_flat_leaves():
    fields = dead_leaves(0, np.arange(100), 64, CPU)[:, 0].numpy()
    assert -3.2 < spectral_slope(fields) < -1.7
    flat = np.abs(np.diff(fields, axis=2)) < 1e-6
    assert flat.mean() > 0.5, "most neighbours lie on the same leaf"
    jumps = np.abs(np.diff(fields, axis=2)) > 0.3
    assert jumps.mean() > 0.03, "and leaves have edges"


def test_every_kind_of_background_is_textured_without_drowning():
    graphs = sample_graphs(300, seed=2)
    picture, _ = paint_background(graphs, 64, CPU)
    brightness = picture.mean(1).numpy()
    for kind, name in enumerate(BACKGROUNDS):
        contrast = brightness[graphs.background == kind].std((1, 2)).mean()
        assert 0.05 < contrast < 0.2, name
    slope = spectral_slope(brightness)
    assert -3.2 < slope < -1.7


def test_kinds_are_told_apart_by_simple_statistics():
    graphs = sample_graphs(1200, seed=3)
    picture, _ = paint_background(graphs, 32, CPU)
    grey = picture.mean(1).numpy()
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    power = np.log(np.abs(np.fft.rfft2(grey)) ** 2 + 1e-3).reshape(len(grey), -1)
    power -= power.mean(0)
    known, asked = slice(0, 900), slice(900, None)
    centroids = np.stack([power[known][graphs.background[known] == k].mean(0) for k in range(len(BACKGROUNDS))])
    guess = ((power[asked][:, None] - centroids) ** 2).sum(-1).argmin(1)
    assert (guess == graphs.background[asked]).mean() > 0.35  # chance is 0.1
