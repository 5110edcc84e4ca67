"""The main job on real people, by the general way: example script, study folder, import, encode, fit, evaluate.

Bars are below what was measured (docs/benchmarks.md) by more than its interval.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import phosphene as ph
from phosphene.recordings import Study
from phosphene.recordings.readers.folder import import_folder

EXAMPLES = Path(__file__).parents[2] / "examples"


def imported(script: str, data: Path, folder: Path, **options) -> Study:
    subprocess.run(
        [sys.executable, EXAMPLES / script, folder / "study", "--data", data], check=True, capture_output=True
    )
    return Study.open(import_folder(folder / "study", folder / "study.h5", **options))


def evaluated(study: Study, encoder: str, decoder: str, folds: list[str], **settings) -> ph.Scorecard:
    targets = {
        fold: ph.encode(
            study.stimuli, encoder, fit_on=study.using(fold).split("train").stimulus_ids, cache=False, progress=False
        )
        for fold in folds
    }
    fitted = {fold: ph.fit(decoder, study.using(fold), targets[fold], progress=False, **settings) for fold in folds}
    return ph.evaluate(fitted, study, targets, rivals=(), n_boot=100, n_perm=100, progress=False)


@pytest.fixture(scope="module")
def actions96(real_data, tmp_path_factory) -> Study:
    return imported("actions96.py", real_data / "actions96", tmp_path_factory.mktemp("actions96"), image_size=64)


def test_haxby_runs_left_out(real_data, tmp_path):
    study = imported("haxby2001.py", real_data / "haxby2001_slice", tmp_path, folds_column="run")
    assert len(study.split_names) == 12
    card = evaluated(study, "labels", "ridge", study.split_names)
    accuracy = next(s for s in card.scores if s.metric == "accuracy" and s.subject == "mean")
    assert accuracy.chance == pytest.approx(1 / 8)
    assert accuracy.value >= 0.70


def test_actions96_is_what_was_published(actions96):
    assert len(actions96.subjects) == 9
    assert len(actions96.stimuli) == 96
    assert actions96.recordings["sub-01"].n_voxels == 8125
    for fold in actions96.split_names:
        train, test = (set(actions96.using(fold).split(role).units) for role in ("train", "test"))
        assert train & test == set()
        assert 18 <= len(actions96.using(fold).split("test").stimulus_ids) <= 20


def test_actions96_pooled_decoders(actions96):
    """Two of the five folds: a fold more costs half a minute and tells nothing new."""
    folds = actions96.split_names[:2]
    ridge = evaluated(actions96, "tfidf-svd30", "ridge", folds, pool_subjects=True)
    shared = evaluated(
        actions96,
        "tfidf-svd30",
        "shared-response",
        folds,
        pool_subjects=True,
        whitening=(2.0,),
        sharpness=(8.0,),
        own=(8.0,),
    )
    two_way = [card.get("two-way", similarity="cosine", subject="mean") for card in (ridge, shared)]
    assert 0.70 <= two_way[0].value <= 0.77
    assert two_way[1].value >= 0.77
    assert two_way[1].null["p"] <= 0.01
