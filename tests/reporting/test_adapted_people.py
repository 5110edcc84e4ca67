"""The report of an adapted person shows where Skip-LoRA finds what is not linear."""

from __future__ import annotations

from typing import Any

from phosphene import virtual
from phosphene.encoders import encode
from phosphene.evaluation import evaluate
from phosphene.reporting import compose
from phosphene.training import fit
from phosphene.training.adapt import adapt


def test_a_map_of_skips_beside_that_of_importance() -> None:
    sizes: dict[str, Any] = {"subjects": 2, "sessions": 1, "repeats": 1, "person": {"voxels": 60}}
    people: dict[str, Any] = {"sub-02": {"voxels": 70}}
    study = virtual.study(seed=7, stimuli={"test": 25, "common": 60, "own": 0, "size": 32}, people=people, **sizes)
    train = study.split("train").stimulus_ids
    targets = encode(study.stimuli, "z:gabor", fit_on=train, cache=False, progress=False)
    brief: dict[str, Any] = {"progress": False, "training": {"epochs": 1, "batch_size": 16}}
    before = fit("mindtuner", study, targets, subjects=["sub-01"], width=32, blocks=1, **brief)
    decoder = adapt(before, study, targets, "sub-02", arm="skip-lora", **brief)
    card = evaluate(decoder, study, targets, rivals=(), n_boot=10, n_perm=10, progress=False)
    page = compose(decoder, study, targets, card)
    assert [one.person for one in page.brains] == ["sub-01", "sub-02", "sub-02: Skip-LoRA"]
    skips = page.brains[-1]
    assert skips.views
    assert {bar.name for bar in skips.regions} <= {"V1", "V2", "V3", "V4", "LOC", "FFA", "EBA", "PPA", "NONVIS"}
    assert "Skip-LoRA" in skips.regions_note
    # as many inputs of the skips as stimuli to tell them from: no map, but a report
    wide = adapt(before, study, targets, "sub-02", arm="skip-lora", skip_rank=24, **brief)
    page = compose(wide, study, targets, card)
    assert [one.person for one in page.brains] == ["sub-01", "sub-02", "sub-02: Skip-LoRA"]
    assert not page.brains[-1].views
    assert "25 stimuli of sub-02 are too few for skips of rank 24" in page.brains[-1].absent
