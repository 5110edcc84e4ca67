"""Procedural scenes: graphs drawn from a grammar, their captions and labels, and a renderer."""

from phosphene.stimuli.scenes.captions import captions, chosen_captions, plain_captions
from phosphene.stimuli.scenes.dataset import ScenePixels, scene_set
from phosphene.stimuli.scenes.grammar import HOLDOUTS, SceneGraphs, count_graphs, held_out, sample_graphs
from phosphene.stimuli.scenes.groups import hard_groups
from phosphene.stimuli.scenes.render import render, render_tensor, silhouettes

__all__ = [
    "HOLDOUTS",
    "SceneGraphs",
    "ScenePixels",
    "captions",
    "chosen_captions",
    "count_graphs",
    "hard_groups",
    "held_out",
    "plain_captions",
    "render",
    "render_tensor",
    "sample_graphs",
    "scene_set",
    "silhouettes",
]
