import time

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.stimuli.scenes import ScenePixels, render, sample_graphs, scene_set


def test_a_set_carries_pixels_captions_and_labels():
    stimuli = scene_set(20, seed=7, size=32)
    graphs = sample_graphs(20, seed=7)
    assert stimuli.ids[3] == "scene-7-000003"
    assert stimuli.frame_shape == (32, 32, 3)
    assert np.array_equal(stimuli.pixels(), render(graphs, size=32))
    assert np.array_equal(stimuli.pixels([11, 2]), render(graphs.take([11, 2]), size=32))
    expected = graphs.to_table()
    assert stimuli.labels.columns == expected.columns
    for name in expected.columns:
        assert np.array_equal(stimuli.labels[name], expected[name], equal_nan=expected[name].dtype.kind == "f"), name
    assert all(len(texts) == 5 for texts in stimuli.captions)


def test_a_late_part_is_the_same_as_in_the_whole():
    whole, part = scene_set(30, seed=1, size=16), scene_set(10, seed=1, size=16, start=20)
    assert part.ids.tolist() == whole.ids[20:].tolist()
    assert part.captions == whole.captions[20:]
    assert part.hashes.tolist() == whole.hashes[20:].tolist()
    assert np.array_equal(part.pixels(), whole.pixels(slice(20, None)))


def test_nothing_is_rendered_before_it_is_read(monkeypatch):
    rendered = []
    from phosphene.stimuli.scenes import dataset

    def spy(graphs, *settings):
        rendered.append(len(graphs))
        return render(graphs, *settings)

    monkeypatch.setattr(dataset, "render", spy)
    stimuli = scene_set(500, captions=1)
    assert len(set(stimuli.hashes.tolist())) == 500
    assert rendered == []
    stimuli.select(stimuli.ids[[7, 300]]).pixels()
    assert sum(rendered) == 2


def test_hashes_tell_sizes_seeds_and_captions_apart():
    base = scene_set(3, seed=1)
    for other in (scene_set(3, seed=2), scene_set(3, seed=1, size=32), scene_set(3, seed=1, captions=2)):
        assert not set(base.hashes.tolist()) & set(other.hashes.tolist())


def test_roles_of_a_hold_out_have_names_of_their_own():
    train, unseen = (scene_set(50, seed=1, holdout=role, captions=1) for role in ("train", "unseen"))
    assert unseen.ids[0] == "scene-1-shape-colour-unseen-000000"
    assert not set(train.ids.tolist()) & set(unseen.ids.tolist())

    def pairs(stimuli):
        rows = stimuli.labels.to_records()
        return {(row[f"shape_{k}"], row[f"colour_{k}"]) for row in rows for k in range(row["n_objects"])}

    assert not pairs(train) & pairs(unseen)


def test_restricted_scenes_have_names_of_their_own():
    striped = {"only": {"material": ["striped"]}, "objects": 1}
    stimuli = scene_set(20, seed=1, captions=1, **striped)
    others = (
        scene_set(20, seed=1, captions=1, objects=1),
        scene_set(20, seed=1, captions=1, scale=(0.1, 0.2), **striped),
    )
    for other in others:
        assert not set(stimuli.ids.tolist()) & set(other.ids.tolist())
    family, seed, mark, number = stimuli.ids[3].split("-")
    assert (family, seed, len(mark), number) == ("scene", "1", 6, "000003")
    assert set(stimuli.labels["material_0"].tolist()) == {"striped"}
    part = scene_set(10, seed=1, captions=1, start=10, **striped)
    assert part.ids.tolist() == stimuli.ids[10:].tolist()
    role = scene_set(2, seed=1, captions=1, holdout="train", **striped)
    assert role.ids[0] == f"scene-1-shape-colour-train-{mark}-000000"


def test_pixels_are_indexed_like_an_array():
    graphs = sample_graphs(6, seed=3)
    pixels, whole = ScenePixels(graphs, 16), render(graphs, 16)
    assert pixels.shape == (6, 16, 16, 3)
    assert len(pixels) == 6
    for rows in (slice(1, 4), np.array([0, 5]), 2, np.arange(6) % 2 == 0, slice(0, 0)):
        assert np.array_equal(pixels[rows], whole[rows])
    with pytest.raises(IndexError):
        pixels[6]


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="size must be"):
        scene_set(3, size=5)
    with pytest.raises(InputError, match="captions must be"):
        scene_set(3, captions=-1)
    with pytest.raises(InputError, match="train, unseen"):
        scene_set(3, holdout="valid")


def test_rendering_is_not_slow():
    # The stated rate is measured by benchmarks/scene_throughput.py; this notices a fall by an order of magnitude.
    graphs = sample_graphs(128, seed=1)
    render(graphs.take(slice(0, 8)))
    start = time.process_time()
    render(graphs)
    assert 128 / (time.process_time() - start) > 50
