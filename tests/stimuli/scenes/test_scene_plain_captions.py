"""Plain captions: every object with material, colour and shape, whatever its varied captions say."""

from __future__ import annotations

from phosphene.stimuli.scenes import plain_captions, sample_graphs
from phosphene.stimuli.scenes.vocabulary import COLOURS, MATERIALS, RELATIONS, SHAPES


def test_plain_captions_say_what_is_there_and_nothing_else() -> None:
    graphs = sample_graphs(60, seed=4)
    shapes, colours, materials = list(SHAPES.values()), list(COLOURS.values()), list(MATERIALS.values())
    relations = [words[0] for _, words in RELATIONS.values()]
    for row, text in enumerate(plain_captions(graphs)):
        rest = text.lower()
        for slot in range(graphs.n_objects[row]):
            phrase = (
                f"{materials[graphs.material[row, slot]].words[0]} {colours[graphs.colour[row, slot]].words[0]} "
                f"{shapes[graphs.shape[row, slot]].nouns[0]}"
            )
            assert phrase in rest
            rest = rest.replace(phrase, "", 1)
        if graphs.n_objects[row] > 1:
            assert relations[graphs.relation[row]] in rest
        if graphs.n_objects[row] > 2:
            assert f"and {relations[graphs.relation_2[row]]}" in rest
    single = plain_captions(sample_graphs(60, seed=4, objects=1))
    assert all(len(text.split()) <= 6 for text in single)
    assert all(text.startswith(("A ", "An ")) and text.endswith(".") for text in single)
