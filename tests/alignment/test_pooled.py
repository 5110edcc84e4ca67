"""Pooling in scanner order, against PyTorch's adaptive pooling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from people_who_share import shared_study

from phosphene.alignment import make_aligner
from phosphene.alignment.pooled import pooling_matrix
from phosphene.errors import InputError
from phosphene.table import Table


@pytest.mark.parametrize(("n_voxels", "width"), [(7, 3), (3, 7), (8, 8), (100, 1), (31, 30)])
def test_pooling_is_that_of_pytorch(n_voxels: int, width: int) -> None:
    x = np.random.default_rng(0).normal(size=(4, n_voxels)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(x)[:, None], width)[:, 0].numpy()
    np.testing.assert_allclose(x @ pooling_matrix(n_voxels, width), expected, atol=1e-6)


def test_width_is_given_or_that_of_the_smallest() -> None:
    view = shared_study((40, 44, 38)).split("train")
    assert make_aligner("pooled").fit(view).template.size == 38
    assert make_aligner("pooled", width=12).fit(view).template.size == 12


def test_within_regions_nothing_crosses_a_border() -> None:
    view = shared_study((40, 44, 38)).split("train")
    aligner = make_aligner("pooled", within="roi").fit(view)
    assert {name: int(mask.sum()) for name, mask in aligner.template.rois.items()} == {"V1": 19, "V2": 19}
    for subject in view.subjects:
        inside = view.rois(subject)["V1"]
        assert aligner.matrix(subject).toarray()[inside][:, aligner.template.rois["V2"]].sum() == 0
    bare = [Table({"i": np.arange(40)})] * 2
    with pytest.raises(InputError, match="needs a region that everybody has"):
        make_aligner("pooled", within="roi").fit(shared_study((40, 40), tables=bare).split("train"))
