"""What tests of every room share: a small study of made-up people, and the real data where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phosphene.files import data_root
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.virtual import make_settings, simulate

MAY_LACK = ("GPU", "REAL DATA ABSENT", "CHROMIUM", "MiniLM", "/proc", "/dev/full", "POSIX", "run make federated")
"""In reasons of skips: what a machine that `make test` has set up may lack. Any other skip there hides a fault."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run of `make test`, or `make federated`, that skipped for want of what they install."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("PHOSPHENE_TESTS") != "whole" or reporter is None:
        return
    reasons = {str(report.longrepr[-1]) for report in reporter.stats.get("skipped", ())}
    if hiding := sorted(each for each in reasons if not any(word in each for word in MAY_LACK)):
        reporter.write_line(f"skipped, though everything was set up: {'; '.join(hiding)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def made_study() -> Study:
    """Two people of 30 and 31 voxels, 40 stimuli twice each in two sessions, a linear code, a quarter for test."""
    rng = np.random.default_rng(0)
    n = 40
    stimuli = StimulusSet(
        [f"s{i:02d}" for i in range(n)],
        pixels=rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        captions=[[f"caption {i}", "of a thing"] for i in range(n)],
        labels={"category": ["x", "y"] * (n // 2), "hue": rng.random(n)},
    )
    latent = rng.normal(size=(n, 3))
    people = []
    for number, n_voxels in enumerate((30, 31), start=1):
        shown = np.concatenate([rng.permutation(n), rng.permutation(n)])
        signal = latent[shown] @ rng.normal(size=(3, n_voxels))
        noise = rng.normal(size=signal.shape)
        session = np.repeat([1, 2], n)
        responses = (5.0 * session[:, None] + 2 * signal + noise).astype(np.float32)
        index = np.arange(n_voxels)
        voxels = Table({"i": index, "j": index % 3, "k": index % 2, "roi_V1": index < 10, "roi_V2": index >= 10})
        trials = Table({"stimulus_id": stimuli.ids[shown], "session": session})
        people.append(Recording(f"sub-0{number}", responses, trials, voxels, volume_shape=(31, 3, 2)))
    splits = {"default": {"train": stimuli.ids[:30], "test": stimuli.ids[30:]}}
    return Study(stimuli, people, splits, name="made")


@pytest.fixture(scope="session")
def virtual_people(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a study of virtual people, 50 voxels each, one session without repeats, stimuli of their own."""

    def write(test: int, own: int = 24, subjects: int = 4) -> Path:
        settings = make_settings(
            None,
            subjects=subjects,
            sessions=1,
            repeats=1,
            runs=1,
            stimuli={"test": test, "common": 0, "own": own, "size": 32, "captions": 1},
            person={"voxels": 50},
        )
        return simulate(settings, 0, progress=False).study.save(tmp_path_factory.mktemp("people") / "study.h5")

    return write


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of targets that no other run sees."""
    monkeypatch.setenv("PHOSPHENE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; without it the test is skipped, loudly."""
    root = data_root()
    if root is None or not root.is_dir():
        pytest.skip("REAL DATA ABSENT: set PHOSPHENE_DATA to the folder that holds actions96 and haxby2001_slice")
    return root
