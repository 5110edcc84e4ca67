"""Any voxel vector finds its way back to a volume or a surface."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.recordings import Recording
from phosphene.table import Table


def person(voxels: Table, **meta) -> Recording:
    return Recording("sub-01", np.zeros((1, len(voxels)), "float32"), Table({"stimulus_id": ["a"]}), voxels, **meta)


def test_volume(tmp_path):
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    voxels = Table({"i": [0, 2, 1], "j": [1, 0, 0], "k": [0, 3, 2]})
    image = person(voxels, affine=affine, volume_shape=(4, 3, 5)).to_nifti([1.0, 2.0, 3.0])
    nibabel.save(image, tmp_path / "map.nii.gz")
    back = nibabel.load(tmp_path / "map.nii.gz")
    assert back.shape == (4, 3, 5)
    np.testing.assert_allclose(back.affine, affine)
    data = back.get_fdata()
    assert (data[0, 1, 0], data[2, 0, 3], data[1, 0, 2]) == (1, 2, 3)
    assert np.count_nonzero(data) == 3


def test_surface(tmp_path):
    voxels = Table({"vertex": [5, 0, 2], "hemisphere": ["L", "R", "R"]})
    surfaces = person(voxels, n_vertices=(8, 4)).to_gifti([1.0, 2.0, 3.0])
    nibabel.save(surfaces["R"], tmp_path / "R.func.gii")
    right = nibabel.load(tmp_path / "R.func.gii").agg_data()
    np.testing.assert_array_equal(right, np.array([2, np.nan, 3, np.nan], np.float32))
    left = surfaces["L"].agg_data()
    assert left[5] == 1
    assert np.isnan(left).sum() == 7


def test_what_does_not_fit_is_refused():
    volume, surface = Table({"i": [0], "j": [0], "k": [9]}), Table({"vertex": [9], "hemisphere": ["L"]})
    with pytest.raises(InputError, match=r"outside of the volume \(2, 2, 2\)"):
        person(volume, volume_shape=(2, 2, 2)).to_nifti([1.0])
    with pytest.raises(InputError, match="vertex 9 is outside of the mesh of 4"):
        person(surface, n_vertices=(4, 4)).to_gifti([1.0])
    with pytest.raises(InputError, match="no surface"):
        person(volume).to_gifti([1.0])
    with pytest.raises(InputError, match="no volume indices"):
        person(surface).to_nifti([1.0])
    with pytest.raises(InputError, match=r"one value a voxel: shape \(1,\), found \(2,\)"):
        person(volume).to_nifti([1.0, 2.0])
