"""A setting that was asked for and that nobody reads is told, by name and with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_pairs import coloured, tiny

from phosphene.training.pretraining import pretrain
from phosphene.training.pretraining.settings import PretrainSettings
from phosphene.training.settings import StepSettings

NO_TOKENS = {"spatial_token_weight": 0.0, "frequency_token_weight": 0.0}


def _unused(scenes: bool = True, **tables: dict) -> set[str]:
    return set(PretrainSettings.build(tables).unused(tables, scenes))


@pytest.mark.parametrize(
    ("tables", "names"),
    [
        ({"objective": {"bias": -5.0, "temperature": 0.1}}, {"objective.bias"}),
        ({"objective": {"bias": -5.0, "form": "sigmoid"}}, set()),
        (
            {"objective": {**NO_TOKENS, "pool_tokens": 16, "token_temperature": 0.1}},
            {"objective.pool_tokens", "objective.token_temperature"},
        ),
        (
            {
                "model": {"spectral_blocks": 0, "frequency_head": False, "spectral_filter": "lowpass"},
                "objective": {"frequency_weight": 0.0, "frequency_token_weight": 0.0},
            },
            {"model.spectral_filter"},
        ),
        ({"model": {"merge": {"tokens": 0.5, "balance": 0.2, "schedule": "constant"}}}, {"model.merge.balance"}),
        ({"model": {"merge": {"guide": "both"}}}, {"model.merge.guide"}),
        ({"data": {"hard_share": 0.0, "group_colours": 3, "held_out": 0.2}}, {"data.group_colours", "data.held_out"}),
    ],
)
def test_settings_that_others_leave_without_a_use(tables: dict, names: set[str]) -> None:
    assert _unused(**tables) == names


def test_pictures_read_nothing_of_scenes_and_scenes_nothing_of_pictures() -> None:
    tables = {"data": {"plain": 0.5, "only": {"shape": ["ring"]}, "held_out": 0.2, "sampled": 2}}
    assert _unused(**tables) == {"data.held_out"}
    assert _unused(scenes=False, **tables) == {"data.plain", "data.only"}


def test_a_run_tells_them_in_its_log(tmp_path, caplog) -> None:
    settings = tiny(training={"steps": 1}, objective={"bias": -3.0})
    pretrain(None, coloured(24), out=tmp_path, progress=False, settings=settings)
    words = "without a use: objective.bias (form = 'softmax'), data.group (pictures are not scenes), data.only"
    assert words in caplog.text


@pytest.mark.parametrize("table", PretrainSettings.model_fields)
def test_docs_name_every_setting(table: str) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    (row,) = [line for line in docs.splitlines() if line.startswith(f"| `[{table}]` |")]
    fields = PretrainSettings.model_fields[table].annotation.model_fields
    shared = StepSettings.model_fields if table == "training" else ()  # in training.md
    assert re.findall(r"`(\w+)`", row) == [name for name in fields if name not in shared]
