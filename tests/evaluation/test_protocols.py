"""Protocols by name."""

from __future__ import annotations

import numpy as np
import pytest

from phosphene.errors import InputError
from phosphene.evaluation import metrics
from phosphene.evaluation.protocols import Ranking, default_protocols, parse_protocol


@pytest.mark.parametrize(
    ("name", "full", "pool", "draws", "similarity"),
    [
        ("retrieval", "retrieval-full-cosine", None, 1, "cosine"),
        ("retrieval-pearson", "retrieval-full-pearson", None, 1, "pearson"),
        ("retrieval-300x30", "retrieval-300x30-cosine", 300, 30, "cosine"),
        ("retrieval-50x10-pearson", "retrieval-50x10-pearson", 50, 10, "pearson"),
        ("two-way-pearson", "two-way-pearson", None, 1, "pearson"),
        ("two-way-cosine-csls", "two-way-cosine-csls", None, 1, "cosine"),
        ("classification", "classification:label", None, 1, "cosine"),
    ],
)
def test_names(name, full, pool, draws, similarity):
    protocol = parse_protocol(name)
    assert (protocol.name, protocol.pool, protocol.draws, protocol.similarity) == (full, pool, draws, similarity)
    assert protocol.transductive == name.endswith("csls")
    assert protocol.to_dict()["name"] == full


@pytest.mark.parametrize("name", ["", "two-way", "retrieval-300", "retrieval-x30", "retrieval-euclid"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="unknown protocol"):
        parse_protocol(name)


@pytest.mark.parametrize("name", ["retrieval-1x30", "retrieval-300x0"])
def test_senseless_pools_are_refused(name):
    with pytest.raises(InputError, match="at least 2 candidates and 1 draw"):
        parse_protocol(name)


def test_pools_of_the_literature_come_with_large_galleries():
    assert "retrieval-300x30-cosine" not in [p.name for p in default_protocols(300)]
    names = [p.name for p in default_protocols(982, csls=True)]
    assert names == [
        "retrieval-full-cosine",
        "retrieval-300x30-cosine",
        "two-way-cosine",
        "two-way-pearson",
        "retrieval-full-cosine-csls",
    ]


def test_the_null_looks_up_what_predicting_again_would_give():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(20, 6))
    predictions = targets + generator.normal(size=(20, 6))
    permutations = np.stack([generator.permutation(20) for _ in range(5)])
    for name in ("retrieval", "two-way-pearson", "retrieval-8x3"):
        protocol = parse_protocol(name)
        table = metrics.similarity(predictions, targets, protocol.similarity)
        outcome = protocol.score(Ranking(table, np.arange(20)), permutations)
        for row, permutation in enumerate(permutations):
            own = metrics.count_true(metrics.similarity(predictions, targets[permutation], protocol.similarity))
            for metric in protocol.metrics:
                np.testing.assert_allclose(outcome.null[metric.name][row], metric.values(own))
