"""Low-passed and high-passed pictures, and which attributes of scenes survive them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from phosphene.errors import InputError
from phosphene.stimuli import band_limited
from phosphene.stimuli.scenes import render, sample_graphs
from phosphene.stimuli.scenes.vocabulary import MATERIALS

RANDOM = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)


def wave(cycles, size=64):
    """A cosine that mirrors seamlessly, of amplitude 100 around 128."""
    row = 128 + 100 * np.cos(2 * np.pi * cycles * (np.arange(size) + 0.5) / size)
    return np.broadcast_to(np.rint(row).astype(np.uint8)[None, None, :, None], (1, size, size, 3)).copy()


def amplitude(frames):
    return np.sqrt(2) * frames[..., 0].astype(float).std()


@pytest.mark.parametrize("cycles", [1, 2, 5, 12])
def test_amplitudes_follow_the_formula(cycles):
    whole = amplitude(wave(cycles))
    for cut in (1.5, 5.0, 20.0):
        gain = 2 ** -((cycles / cut) ** 2)
        assert amplitude(band_limited(wave(cycles), high=cut)) == pytest.approx(whole * gain, abs=1.0)
        assert amplitude(band_limited(wave(cycles), low=cut)) == pytest.approx(whole * (1 - gain), abs=1.0)


def test_the_low_pass_is_a_gaussian_blur():
    # 2^-(f/cut)^2 is the transfer function of a Gaussian of deviation sqrt(2 ln 2) / (2 pi cut) of the side
    square = RANDOM[:, :, :24]
    sigma = np.sqrt(2 * np.log(2)) / (2 * np.pi * 4.0) * 24
    expected = gaussian_filter(square.astype(float), (0, sigma, sigma, 0), mode="reflect", truncate=8.0)
    assert np.abs(band_limited(square, high=4.0) - expected).max() < 0.6


def test_low_and_high_add_up_and_means_stay():
    soft = (RANDOM // 4 + 96).astype(np.uint8)  # nothing is clipped
    low, high = band_limited(soft, high=3.0).astype(float), band_limited(soft, low=3.0).astype(float)
    mean = soft.mean((1, 2), keepdims=True)
    assert np.abs(low + high - mean - soft).max() <= 1.001
    for copy in (low, high):
        assert np.abs(copy.mean((1, 2), keepdims=True) - mean).max() < 0.2
    assert np.array_equal(band_limited(RANDOM), RANDOM)


def test_many_pictures_are_filtered_one_by_one():
    many = np.concatenate([RANDOM] * 30)
    assert np.array_equal(band_limited(many, 1.0, 6.0)[-3:], band_limited(RANDOM, 1.0, 6.0))


def test_stripes_live_in_high_frequencies_and_illumination_in_low_ones():
    n = 120
    small = sample_graphs(n, seed=3, objects=1, scale=(0.18, 0.3), only={"background": ["mist", "dead-leaves"]})
    names = list(MATERIALS)

    def painted(material):
        return render(replace(small, material=np.where(small.material >= 0, names.index(material), -1)))

    def lit(angle):
        return render(replace(small, light_angle=np.full(n, float(angle))))

    def kept(one, other, **band):
        whole, part = (
            np.square(a.astype(float) - b).mean()
            for a, b in ((one, other), (band_limited(one, **band), band_limited(other, **band)))
        )
        return part / whole

    stripes, light = (painted("matte"), painted("striped")), (lit(0), lit(180))
    assert kept(*stripes, low=6.0) > 0.4 > 0.25 > kept(*stripes, high=3.0)
    assert kept(*light, high=3.0) > 0.6 > 0.15 > kept(*light, low=6.0)


@pytest.mark.parametrize(
    ("frames", "band", "words"),
    [
        (RANDOM.astype(float), {}, r"uint8 array \(n, H, W, 3\), found float64"),
        (RANDOM[0], {}, r"found uint8 \(24, 32, 3\)"),
        ([1], {}, "found list"),
        (RANDOM, {"low": 0.0}, "low must be a positive number of cycles per picture, found 0.0"),
        (RANDOM, {"high": float("nan")}, "high must be a positive number"),
        (RANDOM, {"low": 4.0, "high": 4.0}, "low must be below high"),
    ],
)
def test_wrong_arguments_are_refused(frames, band, words):
    with pytest.raises(InputError, match=words):
        band_limited(frames, **band)
