"""One run of pretraining that the tests of a file share."""

from __future__ import annotations

import pytest
from tiny_pairs import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run nobody disturbs, with probes on the way."""
    out = tmp_path_factory.mktemp("whole")
    return run(out, training={"probe_steps": 3})
