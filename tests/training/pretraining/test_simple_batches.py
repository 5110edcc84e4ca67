"""The first batches of scenes: one object, a plain caption; the later ones as if there had been none."""

from __future__ import annotations

import pytest

from phosphene.errors import InputError
from phosphene.stimuli.scenes import plain_captions, sample_graphs
from phosphene.training.pretraining.settings import DataSettings
from phosphene.training.pretraining.sources import ScenePairs


def test_simple_batches_come_first_and_change_no_later_one() -> None:
    simple = ScenePairs(DataSettings.build({"simple_batches": 2}), 8, 32, seed=3)
    plain = ScenePairs(DataSettings.build({}), 8, 32, seed=3)
    for number in (0, 1):
        chosen = simple.choose(number)
        assert (chosen.pictures.n_objects == 1).all()
        assert [texts[0] for texts in chosen.texts] == list(plain_captions(chosen.pictures))
        assert chosen.texts != plain.choose(number).texts
    for number in (2, 3):
        assert simple.choose(number).texts == plain.choose(number).texts
    assert {row for number in range(4) for row in simple.choose(number).keys.tolist()} == set(range(32))


def test_vocabulary_is_learned_from_both_kinds_of_captions() -> None:
    source = ScenePairs(DataSettings.build({"simple_batches": 1, "pool": 0}), 8, 32, seed=3)
    corpus = set(source.corpus())
    assert set(plain_captions(source.graphs(50))) <= corpus


@pytest.mark.parametrize("other", [{"pool": 64}, {"sampled": 2}])
def test_simple_batches_need_new_scenes_and_one_caption(other: dict) -> None:
    with pytest.raises(InputError, match="simple_batches needs new scenes in each step"):
        ScenePairs(DataSettings.build({"simple_batches": 3, **other}), 8, 32, seed=3)


def test_training_scenes_are_not_those_of_a_study_with_the_same_seed() -> None:
    mine = ScenePairs(DataSettings.build({"hard_share": 0.0, "rule": "none"}), 8, 32, seed=3).graphs(200)
    theirs = sample_graphs(200, seed=3)
    alike = (mine.x[:, 0] == theirs.x[:, 0]) & (mine.background == theirs.background)
    assert alike.mean() < 0.05
