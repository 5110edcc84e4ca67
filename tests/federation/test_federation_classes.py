"""Classes from labels and from clusters of public stimuli."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from phosphene.encoders import Targets
from phosphene.encoders.pixels import PixelGridEncoder
from phosphene.errors import InputError, LeakageError
from phosphene.federation.classes import ClusterClasses, LabelClasses
from phosphene.table import Table


@pytest.fixture
def targets() -> Targets:
    """Sixty stimuli in three clumps of 30, 20 and 10."""
    rng = np.random.default_rng(0)
    clump = np.repeat([0, 1, 2], [30, 20, 10])
    rows = 5 * np.eye(4)[clump] + 0.3 * rng.normal(size=(60, 4))
    return Targets([f"s{i:02d}" for i in range(60)], None, rows.astype(np.float32), PixelGridEncoder())


def test_labels_become_columns_and_absent_classes_zeros():
    table = Table({"shape_0": ["ball", "box", "cup"], "shape_1": ["none", "ball", "none"]})
    classes = LabelClasses.found(table, ["shape_*"])
    assert classes.names == ("ball", "box", "cup")
    assert classes.labels(table.take(np.array([1]))).tolist() == [[1.0, 1.0, 0.0]]


def test_clusters_are_found_and_listed_by_size(targets):
    public = targets.ids[::2]
    classes = ClusterClasses.fit(targets, public, 3)
    labels = classes.labels(targets, targets.ids)
    assert labels.argmax(axis=1).tolist() == np.repeat([0, 1, 2], [30, 20, 10]).tolist()
    assert labels.sum() == 60
    again = ClusterClasses.fit(targets, public, 3)
    assert np.array_equal(again.centres, classes.centres)
    assert again.names == classes.names
    assert ClusterClasses.fit(targets, targets.ids, 3).names != classes.names


def test_clusters_go_round_and_keep_apart_from_test_stimuli(targets):
    classes = ClusterClasses.fit(targets, targets.ids[:40], 2)
    back = ClusterClasses.from_tensors(*classes.to_tensors())
    assert np.array_equal(back.labels(targets, targets.ids), classes.labels(targets, targets.ids))
    back.check_apart(targets.ids[40:])
    with pytest.raises(LeakageError, match="1 test stimuli were used to fit the clusters, such as s39"):
        back.check_apart(targets.ids[39:])


def test_wrong_numbers_and_other_encoders_are_refused(targets):
    with pytest.raises(InputError, match="no more than the 5 different stimuli"):
        ClusterClasses.fit(targets, targets.ids[:5], 6)
    with pytest.raises(InputError, match="at least 2"):
        ClusterClasses.fit(targets, targets.ids, 1)
    other = ClusterClasses(np.zeros((2, 4), np.float32), frozenset(), "another")
    with pytest.raises(InputError, match="clusters of another cannot be looked up"):
        other.labels(targets, targets.ids)


def test_clusters_are_a_file_that_every_site_has(targets, tmp_path):
    classes = ClusterClasses.fit(targets, targets.ids[:40], 2)
    classes.save(tmp_path / "clusters.safetensors")
    back = ClusterClasses.open(tmp_path / "clusters.safetensors")
    assert np.array_equal(back.centres, classes.centres)
    assert (back.fitted_on, back.encoder, back.digest) == (classes.fitted_on, classes.encoder, classes.digest)
    others = ClusterClasses(classes.centres, classes.fitted_on, "another encoder")
    assert len({classes.digest, others.digest, ClusterClasses.fit(targets, targets.ids[:30], 2).digest}) == 3


def _whole(path: Path) -> dict[str, bytes]:
    centres, told = np.eye(3, 4, dtype=np.float32), {"clusters": '{"fitted_on": [], "encoder": "e"}'}
    places = {
        "nothing": ({}, told),
        "other tensors": ({"weights": centres}, told),
        "no facts": ({"centres": centres}, None),
        "facts that are none": ({"centres": centres}, {"clusters": "{"}),
        "one centre": ({"centres": centres[:1]}, told),
        "a vector": ({"centres": centres[0]}, told),
        "no numbers": ({"centres": centres * np.nan}, told),
    }
    made = {}
    for name, (tensors, facts) in places.items():
        save_file(tensors, path, facts)
        made[name] = path.read_bytes()
    save_file({"centres": centres}, path, told)
    assert len(ClusterClasses.open(path).centres) == 3
    return {**made, "cut": path.read_bytes()[:-9], "text": b"hello"}


def test_files_that_are_no_clusters_are_refused(tmp_path):
    path = tmp_path / "clusters.safetensors"
    for name, content in _whole(path).items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"no readable file of clusters|at least two rows of finite numbers"):
            raise AssertionError(f"{name} was read: {ClusterClasses.open(path)}")
    with pytest.raises(InputError, match="no readable file of clusters"):
        ClusterClasses.open(tmp_path / "none")
