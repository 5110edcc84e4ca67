"""Without Flower: federation works as ever, and its Flower app says what is missing."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
sys.modules["flwr"] = None
from phosphene.federation import federate
assert not [name for name in sys.modules if name.startswith("phosphene.federation.flower")]
import phosphene.federation.flower
"""


def test_only_the_app_needs_flower() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingDependencyError: federated training between machines needs the package 'flwr'" in last
    assert "pip install 'phosphene[federated]'" in last
