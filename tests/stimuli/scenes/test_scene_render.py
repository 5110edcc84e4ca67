import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scene_measures import single, without

from phosphene.errors import InputError
from phosphene.files import digest
from phosphene.stimuli.scenes import render, render_tensor, sample_graphs, silhouettes
from phosphene.stimuli.scenes.dataset import RENDERING
from phosphene.stimuli.scenes.vocabulary import COLOURS, LIGHTS, MATERIALS, SHAPES

GRAPHS = sample_graphs(48, seed=4)
PICTURES = render(GRAPHS)
# Digest of PICTURES by renderer version: where it changes, RENDERING must be raised and a line added.
KNOWN = {1: "eeb1f3766b82ad0e6754f5dd5369f574"}


def test_pictures_are_those_of_this_renderer_version():
    assert digest(PICTURES) == KNOWN[RENDERING]


def test_batch_and_order_do_not_matter():
    assert np.array_equal(render(GRAPHS, batch=5), PICTURES)
    rows = [40, 3, 17]
    assert np.array_equal(render(GRAPHS.take(rows)), PICTURES[rows])
    assert np.array_equal(render(sample_graphs(3, seed=4, start=30)), PICTURES[30:33])


def test_another_instruction_set_gives_the_same_pictures():
    # Plain scalar kernels differ from vector ones in every fused or re-ordered operation, as a GPU's do.
    code = (
        "from phosphene.stimuli.scenes import render, sample_graphs; from phosphene.files import digest;"
        "print(digest(render(sample_graphs(48, seed=4))))"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(PICTURES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: pictures on CPU and GPU are not compared")
def test_a_gpu_gives_the_same_pictures():
    assert np.array_equal(render(GRAPHS, device="cuda"), PICTURES)


@pytest.mark.parametrize("size", [16, 48, 100])
def test_size_is_a_parameter_and_the_scene_stays(size):
    pictures = render(GRAPHS.take(slice(0, 12)), size=size)
    assert pictures.shape == (12, size, size, 3)
    assert pictures.dtype == np.uint8

    def coarse(stack: np.ndarray) -> np.ndarray:
        # 4 x 4 block means by area, also where 4 does not divide the size
        edges = np.linspace(0, stack.shape[1], 5).astype(int)
        rows = np.stack([stack[:, a:b].mean(1) for a, b in itertools.pairwise(edges)], axis=1)
        return np.stack([rows[:, :, a:b].mean(2) for a, b in itertools.pairwise(edges)], axis=2)

    difference = np.abs(coarse(pictures.astype(float)) - coarse(PICTURES[:12].astype(float)))
    assert difference.mean() < 6.0


def test_tensor_and_array_agree():
    assert np.array_equal(render_tensor(GRAPHS).numpy(), PICTURES)


def test_pictures_use_the_range():
    spread = PICTURES.reshape(len(PICTURES), -1).astype(float).std(1)
    assert spread.min() > 8
    assert ((PICTURES == 0) | (PICTURES == 255)).mean() < 0.10


def test_objects_are_painted_where_the_graph_says():
    graphs = sample_graphs(400, seed=9)
    rows = np.flatnonzero((graphs.n_objects == 2) & (graphs.relation < 4))[:60]
    graphs = graphs.take(rows)
    pictures = render(graphs).astype(float)
    grid = (np.arange(64) + 0.5) / 32 - 1
    centres = np.empty((2, 2, len(rows)))
    for slot in range(2):
        changed = np.abs(render(without(graphs, slot)) - pictures).sum(-1) * (silhouettes(graphs)[:, slot] > 0.5)
        centres[slot, 0] = (changed * grid).sum((1, 2)) / changed.sum((1, 2))
        centres[slot, 1] = (changed * -grid[:, None]).sum((1, 2)) / changed.sum((1, 2))
    x, y = centres[0] - centres[1]
    words = graphs.to_table()["relation"]
    for relation, side in (("left of", -x), ("right of", x), ("above", y), ("below", -y)):
        assert (side[words == relation] > 0.1).all()
    assert np.abs(centres[:, 0].T - graphs.x[:, :2]).max() < 0.25


def test_the_object_in_front_hides_the_other():
    graphs = sample_graphs(400, seed=9)
    graphs = graphs.take(np.flatnonzero((graphs.n_objects == 2) & (graphs.relation >= 4))[:40])
    pictures, cover = render(graphs).astype(int), silhouettes(graphs)
    front = np.where(graphs.to_table()["relation"] == "in front of", 0, 1)
    both = (cover[:, 0] > 0.999) & (cover[:, 1] > 0.999)
    assert both.any((1, 2)).mean() > 0.9
    for slot, changes in ((front, True), (1 - front, False)):
        colour = graphs.colour.copy()
        rows = np.arange(len(graphs))
        colour[rows, slot] = (colour[rows, slot] + 5) % len(COLOURS)
        difference = np.abs(render(replace(graphs, colour=colour)).astype(int) - pictures).sum(-1)[both]
        assert (difference > 0).mean() > 0.95 if changes else difference.max() == 0


def test_shapes_differ_pairwise():
    cover = np.concatenate([silhouettes(single(shape, scale=0.8))[:, 0] for shape in SHAPES])
    inside = cover.reshape(len(SHAPES), -1)
    shared = np.minimum(inside[:, None], inside[None]).sum(-1)
    overlap = shared / np.maximum(inside[:, None], inside[None]).sum(-1)
    np.fill_diagonal(overlap, 0)
    assert overlap.max() < 0.82
    assert inside.mean(1).min() > 0.1, "no shape is a mere sliver"


def test_girths_are_those_of_the_silhouettes():
    for name, shape in SHAPES.items():
        area = silhouettes(single(name, scale=0.8))[0, 0].sum() / (32 * 0.8) ** 2
        assert np.sqrt(area / np.pi) == pytest.approx(shape.girth, abs=0.02), name


def test_shapes_fit_the_unit_disc():
    for shape in SHAPES:
        cover = silhouettes(single(shape, scale=0.5), size=128)[0, 0]
        rows, columns = np.nonzero(cover > 0.5)
        reach = np.hypot(rows - 63.5, columns - 63.5).max() / 64
        assert 0.38 < reach < 0.575, shape


def test_a_nearest_neighbour_reads_shapes_from_tilted_silhouettes():
    graphs = sample_graphs(1200, seed=6)
    graphs = graphs.take(graphs.n_objects == 1)
    # All in the middle and of one size, with the angles as drawn.
    same = {
        name: np.where(np.isnan(getattr(graphs, name)), np.nan, value)
        for name, value in (("x", 0.0), ("y", 0.0), ("scale", 0.8))
    }
    upright = np.array([shape.tilt < 90 for shape in SHAPES.values()])[graphs.shape[:, 0]]
    graphs = replace(graphs, **same).take(upright)
    cover = silhouettes(graphs, size=24)[:, 0].reshape(len(graphs), -1)
    known, asked = cover[::2], cover[1::2]
    nearest = ((asked[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    assert (graphs.shape[::2, 0][nearest] == graphs.shape[1::2, 0]).mean() > 0.7


def test_the_side_towards_the_light_is_brighter():
    graphs = single("ball", n=8, scale=0.7)
    angles = np.array([angle for angle, _ in LIGHTS.values()])
    colour = np.full_like(graphs.colour, list(COLOURS).index("grey"))
    graphs = replace(graphs, light_angle=angles, colour=np.where(graphs.colour >= 0, colour, -1))
    inside = silhouettes(graphs)[:, 0] > 0.9
    grid = (np.arange(64) + 0.5) / 32 - 1
    brightness = render(graphs).mean(-1)
    for row, angle in enumerate(np.deg2rad(angles)):
        towards = np.cos(angle) * grid[None] - np.sin(angle) * grid[:, None]
        lit, dark = (brightness[row][inside[row] & side].mean() for side in (towards > 0.2, towards < -0.2))
        assert lit > dark + 20


def test_the_cast_shadow_falls_away_from_the_light():
    graphs = single("ball", n=8, scale=0.5)
    angles = np.array([angle for angle, _ in LIGHTS.values()])
    graphs = replace(graphs, light_angle=angles)
    darker = render(without(graphs, 0)).astype(float).mean(-1) - render(graphs).astype(float).mean(-1)
    darker[silhouettes(graphs)[:, 0] > 0] = 0
    assert darker.min() > -0.5
    grid = (np.arange(64) + 0.5) / 32 - 1
    weight = darker.sum((1, 2))
    x, y = (darker * grid).sum((1, 2)) / weight, (darker * -grid[:, None]).sum((1, 2)) / weight
    away = np.deg2rad(angles + 180)
    assert (np.cos(away) * x + np.sin(away) * y > 0.2).all()


def test_patterns_live_in_high_frequencies_and_fading_in_low_ones():
    def object_detail(material: str) -> tuple[float, float]:
        graphs = single("box", material, n=12, scale=0.8)
        patch = render(graphs).mean(-1)[:, 16:48, 16:48]
        power = np.abs(np.fft.fft2(patch - patch.mean((1, 2), keepdims=True))) ** 2
        cycles = np.hypot(np.fft.fftfreq(32)[:, None] * 32, np.fft.fftfreq(32))
        return power[:, cycles < 1.5].sum(), power[:, cycles >= 1.5].sum()

    low_plain, high_plain = object_detail("matte")
    for material in ("striped", "dotted", "checkered", "rough"):
        assert object_detail(material)[1] > 3 * high_plain, material
    assert object_detail("faded")[0] > 3 * low_plain


def test_materials_all_look_different():
    pictures = np.concatenate([render(single("ball", material, scale=0.7)) for material in MATERIALS]).astype(float)
    inside = silhouettes(single("ball", scale=0.7))[0, 0] > 0.9
    seen = pictures[:, inside].reshape(len(MATERIALS), -1)
    distance = np.sqrt(((seen[:, None] - seen[None]) ** 2).mean(-1)) + 1e3 * np.eye(len(MATERIALS))
    assert distance.min() > 5


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="16 to 512"):
        render(GRAPHS, size=8)
    with pytest.raises(InputError, match="size must be"):
        render(GRAPHS, size=64.0)
    with pytest.raises(InputError, match="batch must be"):
        render(GRAPHS, batch=0)
    with pytest.raises(InputError, match="device 'warp' cannot be used"):
        render(GRAPHS, device="warp")
    with pytest.raises(InputError, match="SceneGraphs"):
        render([1, 2])
