"""Voxel orders, patches that cover everything, and their embedding."""

import numpy as np
import pytest
import torch

from phosphene.errors import InputError
from phosphene.nn.patches import PatchEmbedding, hilbert_index, patch_index, voxel_order
from phosphene.table import Table


@pytest.mark.parametrize(("n_voxels", "patches"), [(15724, 32), (12682, 32), (100, 100), (7, 3), (5, 16), (1, 4)])
def test_patches_cover_every_voxel_and_are_equally_long(n_voxels, patches):
    index = patch_index(n_voxels, patches)
    assert index.shape == (patches, -(-n_voxels // patches))
    assert set(index.flatten().tolist()) == set(range(n_voxels))
    assert bool((index[:, 1:] - index[:, :-1] == 1).all())


def test_hilbert_curve_visits_every_cell_and_steps_to_neighbours():
    cells = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    index = hilbert_index(cells, bits=3)
    assert sorted(index.tolist()) == list(range(512))
    path = cells[np.argsort(index)]
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()


def test_curve_keeps_neighbours_closer_than_slabs():
    cells = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    cells = cells[np.sort(rng.permutation(len(cells))[:2000])]
    voxels = Table({"i": cells[:, 0], "j": cells[:, 1], "k": cells[:, 2]})

    def spread(order):
        patches = cells[order][patch_index(2000, 20).numpy()]
        return patches.std(axis=1).sum(axis=1).mean()

    assert spread(voxel_order("curve", voxels)) < 0.8 * spread(voxel_order("scanner", voxels))


def test_orders_are_permutations():
    rng = np.random.default_rng(1)
    voxels = Table(
        {
            "x": rng.normal(size=50),
            "y": rng.normal(size=50),
            "z": rng.normal(size=50),
            "hemisphere": np.where(np.arange(50) % 2, "L", "R"),
            "roi_V1": np.arange(50) >= 40,
            "roi_V2": np.arange(50) % 5 == 0,
        }
    )
    for order in ("scanner", "roi", "curve", "random"):
        assert sorted(voxel_order(order, voxels).tolist()) == list(range(50)), order
    assert voxel_order("roi", voxels).tolist()[:12] == [*range(40, 50), 0, 5]
    assert len(set(voxels["hemisphere"][voxel_order("curve", voxels)][:25])) == 1
    assert not np.array_equal(voxel_order("random", voxels), voxel_order("random", voxels, seed=1))


def test_order_without_its_columns_says_what_it_needs():
    voxels = Table({"i": [0, 1], "j": [0, 1]})
    with pytest.raises(InputError, match=r"roi_<NAME>.*found \['i', 'j'\]"):
        voxel_order("roi", voxels)
    with pytest.raises(InputError, match="x, y, z or i, j, k"):
        voxel_order("curve", voxels)


@pytest.mark.parametrize("shared", [True, False])
def test_embedding_is_a_product_for_each_patch(shared):
    torch.manual_seed(0)
    embedding, x = PatchEmbedding(10, patches=4, width=3, shared=shared), torch.randn(2, 10)
    order = np.random.default_rng(0).permutation(10)
    embedding.arrange(order)
    out = embedding(x)
    for patch, places in enumerate(patch_index(10, 4).tolist()):
        expected = x[:, order[places]] @ embedding.weight[0 if shared else patch] + embedding.position[patch]
        torch.testing.assert_close(out[patch], expected)


def test_arrangement_is_saved_and_checked():
    embedding = PatchEmbedding(6, patches=3, width=2)
    with pytest.raises(InputError, match="permutation of 6 voxels"):
        embedding.arrange(np.array([0, 0, 1, 2, 3, 4]))
    embedding.arrange(np.arange(6)[::-1])
    other = PatchEmbedding(6, patches=3, width=2)
    other.load_state_dict(embedding.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(other(x), embedding(x))
