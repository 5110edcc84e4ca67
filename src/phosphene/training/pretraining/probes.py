"""What a model can do without training for it: zero-shot attributes of scenes or classes, and retrieval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phosphene.encoders.mlip import MLIP, ImageFeatures, TextFeatures, Tokenizer
from phosphene.encoders.mlip.similarity import similarities
from phosphene.stimuli import StimulusSet
from phosphene.stimuli.scenes import SceneGraphs, chosen_captions, plain_captions, render_tensor, sample_graphs
from phosphene.stimuli.scenes.vocabulary import COLOURS, MATERIALS, SHAPES
from phosphene.training.pretraining.batches import positives
from phosphene.training.pretraining.objective import ObjectiveSettings
from phosphene.training.pretraining.settings import DataSettings
from phosphene.training.pretraining.sources import scene_grammar

__all__ = ["Probe", "Retrieval", "Score", "ZeroShot", "held_out_probes", "scene_probes", "wilson"]

_SEED = 2**40  # of the probes' scenes: the same for every run, out of reach of the seeds of training
_BATCH = 128
_ATTRIBUTES: dict[str, list[str]] = {
    "shape": [entry.nouns[0] for entry in SHAPES.values()],
    "colour": [entry.words[0] for entry in COLOURS.values()],
    "material": [entry.words[0] for entry in MATERIALS.values()],
}


@dataclass(frozen=True)
class Score:
    """One figure of a probe.

    Attributes
    ----------
    probe : str
        ``"zero-shot"`` or ``"retrieval"``.
    part : str
        What it was measured on, such as ``"unseen compositions"``.
    task : str
        ``"shape"``, ``"image to text"`` and the like.
    score : str
        Which embeddings were compared, one of `SCORES`.
    value, low, high : float
        Share of hits and its 95 % interval (Wilson) over pictures; two that tie for the first place get a half each.
    chance : float
    n : int
        Pictures.
    """

    probe: str
    part: str
    task: str
    score: str
    value: float
    low: float
    high: float
    chance: float
    n: int

    @property
    def name(self) -> str:
        """A short name for the log."""
        return f"{self.task}, {self.part}"

    def to_json(self) -> dict[str, Any]:
        """The figure as plain values."""
        return asdict(self)


def wilson(hits: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    Examples
    --------
    >>> [round(edge, 3) for edge in wilson(5, 10)]
    [0.237, 0.763]
    """
    share, spread = hits / n, z * z / n
    centre, half = share + spread / 2, z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max((centre - half) / (1 + spread), 0.0), min((centre + half) / (1 + spread), 1.0)


def _scores(image: ImageFeatures, text: TextFeatures, objective: ObjectiveSettings | None) -> dict[str, Tensor]:
    """(I, C) similarities by name; where there is an objective, of what it trains, with tokens as in training."""
    if objective is None:
        return similarities(image, text, tokens=False)
    weights = objective.weights
    trained = image._replace(
        frequency=image.frequency if weights["frequency"] else None,
        spatial_tokens=image.spatial_tokens if weights["spatial_token"] else None,
        frequency_tokens=image.frequency_tokens if weights["frequency_token"] else None,
    )
    return similarities(trained, text, pool_tokens=objective.pool_tokens, top_tokens=objective.top_tokens)


def _hits(scores: Tensor, right: np.ndarray) -> Tensor:
    """Probability of each row (n,) that a right column comes first, ties broken by chance. NaN is never a hit."""
    best = scores == scores.max(dim=1, keepdim=True).values
    hits = (best & torch.from_numpy(right).to(scores.device)).sum(dim=1)
    return hits.double() / best.sum(dim=1).clamp(min=1)


class _Embedder:
    """A model with its tokenizer, embedding pictures and captions batch by batch."""

    def __init__(self, model: MLIP, tokenizer: Tokenizer, objective: ObjectiveSettings | None) -> None:
        self.model, self.tokenizer, self.objective = model, tokenizer, objective
        self.tokens = objective is not None
        self.device = next(model.parameters()).device

    def images(self, pixels: Tensor) -> ImageFeatures:
        parts = [
            self.model.encode_image(self.model.prepare(block.to(self.device)), tokens=self.tokens)
            for block in pixels.split(_BATCH)
        ]
        return ImageFeatures(*_joined(parts))

    def texts(self, texts: Sequence[str]) -> TextFeatures:
        ids, valid = self.tokenizer.encode(texts, self.model.config.text_context, truncate=True)
        parts = [
            self.model.encode_text(some.to(self.device), mask.to(self.device), tokens=self.tokens)
            for some, mask in zip(ids.split(_BATCH), valid.split(_BATCH), strict=True)
        ]
        return TextFeatures(*_joined(parts))


def _joined(parts: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    for column in zip(*parts, strict=True):
        yield None if column[0] is None else torch.cat(column)


class ZeroShot:
    """Pictures named by the prompt that is most similar.

    Prompts are all combinations of the attributes' values. One attribute alone is named by the best prompt with each
    of its values, whatever the others are; all together by the best prompt of all.

    Parameters
    ----------
    part : str
        Name of what is shown.
    pixels : uint8 Tensor (n, size, size, 3)
    truth : mapping of str to (n,) int array
        Position of the right value of each attribute.
    prompts : list of lists of str
        For every combination of values (the last attribute varies fastest) one prompt or several, whose similarities
        are averaged.
    sizes : sequence of int
        Values of each attribute.
    """

    def __init__(
        self,
        part: str,
        pixels: Tensor,
        truth: Mapping[str, np.ndarray],
        prompts: Sequence[Sequence[str]],
        sizes: Sequence[int],
    ) -> None:
        self.part, self.pixels, self.truth, self.sizes = part, pixels, dict(truth), tuple(sizes)
        self.texts = [text for several in prompts for text in several]
        self._class = torch.repeat_interleave(torch.tensor([len(several) for several in prompts]))
        self._counts = torch.bincount(self._class).float()

    def measure(self, embedder: _Embedder, texts: TextFeatures) -> list[Score]:
        """Scores of every attribute; `texts` are the embedded prompts."""
        found: list[Score] = []
        for score, similar in _scores(embedder.images(self.pixels), texts, embedder.objective).items():
            mean = torch.zeros(len(similar), len(self._counts)).index_add_(1, self._class, similar.cpu()) / self._counts
            grid = mean.unflatten(1, self.sizes)
            axes = range(1, grid.ndim)
            for axis, (name, truth) in enumerate(self.truth.items(), start=1):
                others = [other for other in axes if other != axis]
                alone = grid.amax(dim=others) if others else grid
                found.append(self._score(name, score, alone, truth))
            if len(self.sizes) > 1:
                together = np.ravel_multi_index(list(self.truth.values()), self.sizes)
                found.append(self._score("all together", score, mean, together))
        return found

    def _score(self, task: str, score: str, similar: Tensor, truth: np.ndarray) -> Score:
        n, options = similar.shape
        hits = float(_hits(similar, np.arange(options)[None] == truth[:, None]).sum())
        return Score("zero-shot", self.part, task, score, hits / n, *wilson(hits, n), 1 / options, n)


class Retrieval:
    """Which caption belongs to a picture, and which picture to a caption, among all of a pool.

    A hit is every caption that is true of the picture, and every picture with the same content. Captions of a picture
    are looked for one by one, and a picture counts by their mean.

    Parameters
    ----------
    part : str
    pixels : uint8 Tensor (n, size, size, 3)
    captions : n lists of str
        All captions of every picture.
    keys : (n,) array, optional
        Equal for equal pictures.
    """

    def __init__(
        self, part: str, pixels: Tensor, captions: Sequence[Sequence[str]], keys: np.ndarray | None = None
    ) -> None:
        self.part, self.pixels = part, pixels
        self.texts = [text for several in captions for text in several]
        self._owner = torch.repeat_interleave(torch.tensor([len(several) for several in captions]))
        self.right = positives(np.arange(len(captions)) if keys is None else keys, captions, captions).numpy()

    def measure(self, embedder: _Embedder, texts: TextFeatures) -> list[Score]:
        """Scores in both directions; `texts` are the embedded captions."""
        found: list[Score] = []
        for score, similar in _scores(embedder.images(self.pixels), texts, embedder.objective).items():
            found.append(self._score("image to text", score, _hits(similar, self.right).cpu(), self.right.mean(axis=1)))
            hits, chances = _hits(similar.T, self.right.T).cpu(), self.right.mean(axis=0)
            found.append(self._score("text to image", score, self._by_picture(hits), self._by_picture(chances)))
        return found

    def _by_picture(self, of_captions: Any) -> Tensor:
        """Mean over the captions of every picture."""
        sums = torch.zeros(len(self.pixels), dtype=torch.float64)
        return sums.index_add_(0, self._owner, torch.as_tensor(of_captions)) / torch.bincount(self._owner)

    def _score(self, task: str, score: str, of_pictures: Tensor, chances: Any) -> Score:
        hits, n = float(of_pictures.sum()), len(self.pixels)
        return Score("retrieval", self.part, task, score, hits / n, *wilson(hits, n), float(chances.mean()), n)


class Probe:
    """A set of probes that share prompts.

    Parameters
    ----------
    parts : sequence of ZeroShot or Retrieval
    """

    def __init__(self, parts: Sequence[ZeroShot | Retrieval]) -> None:
        self.parts = tuple(parts)

    @torch.no_grad()
    def __call__(self, model: MLIP, tokenizer: Tokenizer, objective: ObjectiveSettings | None = None) -> list[Score]:
        """Scores of a model (in eval mode); those with token-level similarity only where an objective tells of it."""
        embedder = _Embedder(model, tokenizer, objective)
        embedded: dict[tuple[str, ...], TextFeatures] = {}
        scores: list[Score] = []
        for part in self.parts:
            if (key := tuple(part.texts)) not in embedded:
                embedded = {key: embedder.texts(part.texts)}
            scores += part.measure(embedder, embedded[key])
        return scores


class _Scenes:
    """Probe scenes of one role, drawn from what the training data are drawn from."""

    def __init__(self, data: DataSettings, n: int, size: int, role: str) -> None:
        self.data, self.n, self.size = data, n, size
        self.part = f"{'seen' if role == 'train' else 'unseen'} compositions"
        self.grammar = scene_grammar(data, role)

    def draw(self, start: int, objects: int | None) -> SceneGraphs:
        """Scenes number `start` and following."""
        return sample_graphs(self.n, _SEED, start=start, **{**self.grammar, "objects": objects})

    def pixels(self, graphs: SceneGraphs) -> Tensor:
        return torch.cat(
            [render_tensor(graphs.take(slice(at, at + _BATCH)), self.size) for at in range(0, self.n, _BATCH)]
        )

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Positions of the values that occur, by attribute."""
        words: dict[str, list[str]] = {"shape": [*SHAPES], "colour": [*COLOURS], "material": [*MATERIALS]}
        return {
            name: np.flatnonzero([word in self.data.only.get(name, known) for word in known])
            for name, known in words.items()
        }

    def zero_shot(self) -> ZeroShot:
        """Shape, colour, material of single objects."""
        graphs, values = self.draw(0, 1), self.values
        words = {name: [_ATTRIBUTES[name][position] for position in values[name]] for name in values}
        prompts = [
            [_prompt(f"{material} {colour} {noun}")]
            for noun in words["shape"]
            for colour in words["colour"]
            for material in words["material"]
        ]
        truth = {name: np.searchsorted(values[name], getattr(graphs, name)[:, 0]) for name in values}
        return ZeroShot(self.part, self.pixels(graphs), truth, prompts, [len(values[name]) for name in values])

    def retrieval(self) -> Retrieval:
        """Scenes as they are trained on, with their first caption (the plain one where training knows no other)."""
        graphs = self.draw(self.n, self.data.objects)
        plain = self.data.plain == 1
        texts = plain_captions(graphs) if plain else chosen_captions(graphs, np.zeros(self.n, dtype=np.int64))
        return Retrieval(self.part, self.pixels(graphs), [[text] for text in texts])


def _prompt(phrase: str) -> str:
    """A caption of the grammar with nothing but one object."""
    return f"{'An' if phrase[0] in 'aeiou' else 'A'} {phrase}."


def scene_probes(data: DataSettings, n: int, size: int) -> Probe:
    """Zero-shot and retrieval on new scenes: compositions that occur in training, and those kept out of it.

    Parameters
    ----------
    data : DataSettings
        Where ``rule = "none"``, every composition occurs in training and there is no second part.
    n : int
        Pictures of each probe.
    size : int
        Pixels a side.
    """
    roles = ("train",) if data.rule == "none" else ("train", "unseen")
    parts = [_Scenes(data, n, size, role) for role in roles]
    return Probe([*(part.zero_shot() for part in parts), *(part.retrieval() for part in parts)])


def held_out_probes(
    stimuli: StimulusSet, n: int, keys: np.ndarray, prompts: Mapping[str, Sequence[str]] | None = None, column: str = ""
) -> Probe:
    """Retrieval on held-out pictures, or zero-shot classification where their captions name classes.

    Parameters
    ----------
    stimuli : StimulusSet
        Square pictures that training has not seen, with captions.
    n : int
        Most pictures of the probe, evenly taken: sets are often sorted by class.
    keys : array of str
        Equal for equal pictures.
    prompts : mapping of str to sequence of str, optional
        Captions of every class.
    column : str
        Label column of the class of each picture.
    """
    rows, part = stimuli.spread(n), "held-out pictures"
    pixels = torch.from_numpy(stimuli.pixels(rows))
    if prompts is None:
        captions = [stimuli.captions[row] for row in rows.tolist()]
        return Probe([Retrieval(part, pixels, captions, keys[rows])])
    place = {name: position for position, name in enumerate(prompts)}
    truth = np.array([place[str(name)] for name in stimuli.labels[column][rows].tolist()])
    return Probe([ZeroShot(part, pixels, {column: truth}, list(prompts.values()), [len(place)])])
