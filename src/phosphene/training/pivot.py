r"""The image as pivot: a projector from image embeddings to the text space, fitted without any brain data.

.. math:: p = W \bar T + b

with :math:`\bar T` the mean over an image's tokens (or its pooled embedding) and :math:`p` compared by cosine with the
embedding of its caption. Applied to embeddings predicted from brain responses it leads from brain to text without one
pair of the two. It starts at the ridge solution and goes on by a contrastive loss in both directions, in which equal
captions are one item.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phosphene.decoders.ridge import RidgeConfig, fit_ridge, ridge_weights
from phosphene.encoders.base import PixelEncoder
from phosphene.errors import InputError, LeakageError
from phosphene.files import FolderFormat, check_keys, read_json, write_json
from phosphene.settings import Settings
from phosphene.training import losses
from phosphene.training.bench import refuse_leakage
from phosphene.training.progress import progress_bar
from phosphene.training.sampling import split_validation
from phosphene.training.validation import retrieval

if TYPE_CHECKING:
    from phosphene.encoders import Encoder, Targets
    from phosphene.recordings import Study

__all__ = ["Pivot", "PivotConfig", "caption_items", "check_text", "fit_pivot"]

log = logging.getLogger(__name__)

FORMAT = "phosphene-pivot"
FOLDER = FolderFormat("a pivot", FORMAT, ("config.json", "pivot.safetensors"))
_FACTS = ("kind", "images", "texts", "provenance")
_BLOCK = 512


class PivotConfig(Settings):
    """Settings of a pivot.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise that predicted image embeddings are expected to have, in units of every
        dimension's own deviation. A pivot fitted to embeddings as they are rests on differences that no decoder
        predicts; 0 does that.
    epochs : int
        Passes over the pairs by the contrastive loss; 0 stays at the ridge solution, and settings of the passes are
        refused beside it.
    batch_size : int
        Pairs of a step.
    learning_rate, weight_decay : float
        Of AdamW.
    temperature : float
        Of the softmax over cosine similarities.
    validation_fraction : float
        Share of the captions set aside to choose the best epoch; the ridge solution is epoch 0.
    patience : int
        Epochs without improvement after which it stops; 0 never stops early. Without validation it has no use.
    """

    noise: float = Field(1.0, ge=0)
    epochs: int = Field(30, ge=0)
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    temperature: float = Field(0.05, gt=0, le=10)
    validation_fraction: float = Field(0.1, ge=0, le=0.5)
    patience: int = Field(5, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        of_passes = ("batch_size", "learning_rate", "weight_decay", "temperature", "patience")
        if not self.epochs and (idle := self.changed(of_passes)):
            raise ValueError(f"{', '.join(idle)}: no use with epochs = 0, which stays at the ridge solution")
        if not self.validation_fraction and (idle := self.changed(["patience"])) and self.patience:
            raise ValueError(f"{idle[0]} needs validation_fraction above 0")
        return self


class Pivot:
    """A fitted projector from image embeddings to text embeddings.

    Attributes
    ----------
    weight, bias : Tensor (E, D) and (E,)
    kind : {"tokens", "pooled"}
        Which image targets it was fitted on; tokens are averaged.
    images, texts : str
        Identities of the two encoders.
    provenance : dict
        Pairs, validation, settings, content of the stimuli it was fitted on by id.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, kind: str, images: str, texts: str, provenance: dict[str, Any]
    ) -> None:
        self.weight, self.bias, self.kind = weight, bias, kind
        self.images, self.texts, self.provenance = images, texts, provenance

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """Text embeddings ``(n, E)`` of image embeddings ``(n, D)`` or tokens ``(n, tokens, D)``, float32."""
        x = _pooled(np.asarray(embeddings))
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise InputError(
                f"the pivot takes embeddings of width {self.weight.shape[1]}, found {np.asarray(embeddings).shape}"
            )
        return (torch.from_numpy(x) @ self.weight.T + self.bias).numpy()

    def check(self, encoder: Encoder, kind: str) -> None:
        """Refuse embeddings of another encoder, or of the other kind, than it was fitted on.

        Raises
        ------
        InputError
        """
        if encoder.identity != self.images:
            raise InputError(
                f"the pivot was fitted on other image embeddings (identity {self.images[:12]}) than those of "
                f"{encoder.label!r} (identity {encoder.identity[:12]})"
            )
        if kind != self.kind:
            raise InputError(f"the pivot was fitted on {self.kind} targets, the decoder predicts {kind}")

    def save(self, path: str | Path) -> Path:
        """Write ``config.json`` and ``pivot.safetensors``, atomically."""
        path = Path(path)
        facts = {name: getattr(self, name) for name in _FACTS}
        with FOLDER.written(path) as temporary:
            write_json(temporary / "config.json", {"format": FORMAT, "version": 1, **facts})
            save_file({"weight": self.weight.contiguous(), "bias": self.bias}, temporary / "pivot.safetensors")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Pivot:
        """Read what `save` wrote; nothing in it is executed.

        Raises
        ------
        InputError
            For files that are missing, damaged, or something else.
        """
        path = Path(path)
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise InputError(f"{path / 'config.json'} is not the config of a pivot")
        check_keys(f"{path / 'config.json'} of the pivot", config, ("format", "version", *_FACTS))
        try:
            tensors = load_file(path / "pivot.safetensors")
            weight, bias = tensors["weight"], tensors["bias"]
        except (FileNotFoundError, SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{path / 'pivot.safetensors'} is not readable: {error}") from error
        return cls(weight, bias, *(config[name] for name in _FACTS))


def caption_items(captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Number of the item each stimulus belongs to, ``(n,)``: those with equal captions are one item.

    Raises
    ------
    InputError
        Where stimuli have no caption.

    Examples
    --------
    >>> caption_items([["a dog"], ["a cat"], ["a dog"]]).tolist()
    [0, 1, 0]
    """
    bare = sum(not any(texts) for texts in captions)
    if bare:
        raise InputError(f"{bare} of {len(captions)} stimuli have no caption: there is no text to go to")
    number: dict[tuple[str, ...], int] = {}
    return np.array([number.setdefault(tuple(sorted(texts)), len(number)) for texts in captions], dtype=np.int64)


def check_text(texts: Targets) -> None:
    """Refuse embeddings of pictures where those of captions are needed.

    Raises
    ------
    InputError
    """
    encoder = texts.encoder
    if isinstance(getattr(encoder, "inner", encoder), PixelEncoder):
        raise InputError(
            f"encoder {encoder.label!r} looks at pictures; embeddings of captions are needed, of z:tfidf-svd30 or "
            "minilm, say, or arrays of your own"
        )


def fit_pivot(
    study: Study,
    images: Targets,
    texts: Targets,
    *,
    ids: Sequence[str] | np.ndarray | None = None,
    kind: str = "pooled",
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Pivot:
    """Fit the projector on pairs of images and captions of a study's training part; responses are not touched.

    Parameters
    ----------
    study : Study
        Its current split says what may be used.
    images, texts : Targets
        Embeddings of the same stimuli: of their pictures, and of their captions. Text embeddings that share a large
        mean are told apart badly by cosine: centre them (``"z:..."`` encoders do).
    ids : sequence of str, optional
        Stimuli to use (default: all of the training part). They need not have been shown to anybody.
    kind : {"pooled", "tokens"}
        Which image targets, those of the decoder it is meant for; tokens are averaged.
    seed : int
    progress : bool
        Show a progress bar, on terminals.
    **settings
        Of `PivotConfig`.

    Returns
    -------
    Pivot

    Raises
    ------
    LeakageError
        For stimuli outside of the training part, or an encoder that was fitted on some.
    InputError
        For stimuli without caption or targets, fewer than three different captions, `texts` that are of pictures.
    """
    config = PivotConfig.build(settings)
    check_text(texts)
    train = study.split("train")
    names = train.stimulus_ids if ids is None else np.unique(np.asarray(ids, dtype=str))
    outside = np.setdiff1d(names, train.stimulus_ids)
    if len(outside):
        raise LeakageError(
            f"{len(outside)} of the {len(names)} pairs are not in the training part of split {train.split_name!r}, "
            f"such as {', '.join(outside[:5])}: a pivot fitted on them would know what it is scored on"
        )
    for targets in (images, texts):
        refuse_leakage(study, train, targets)
    stimuli = study.stimuli.select(names)
    items = caption_items(stimuli.captions)
    if len(np.unique(items)) < 3:
        raise InputError(f"a pivot needs three different captions or more, found {len(np.unique(items))}")
    x, y = _read(images, names, kind), _read(texts, names, "pooled")
    # one scale for all image dimensions and for the text: penalty and learning rate then mean the same everywhere
    deviation, size = x.std(dim=0), float(y.square().mean().sqrt())
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
    pairs = _Pairs(x / deviation, y / size, items)
    aside = split_validation(items.astype(str), config.validation_fraction, seed)
    layer, penalty = _ridge(pairs.take(~aside), config.noise)
    told = _refine(layer, pairs.take(~aside), pairs.take(aside), config, seed, progress)
    provenance = {
        **told,
        "penalty": penalty,
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "study": study.name,
        "split": train.split_name,
        "n_pairs": len(names),
        "n_captions": len(np.unique(items)),
        "training_content": dict(zip(names.tolist(), stimuli.hashes.tolist(), strict=True)),
    }
    weight, bias = layer.weight.detach() / deviation * size, layer.bias.detach() * size
    return Pivot(weight, bias, kind, images.identity, texts.identity, provenance)


class _Pairs:
    """Image embeddings (n, D), text embeddings (n, E), and the item of each pair (n,)."""

    def __init__(self, x: Tensor, y: Tensor, items: np.ndarray) -> None:
        self.x, self.y, self.items = x, y, items

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> _Pairs:
        return _Pairs(self.x[rows], self.y[rows], self.items[rows])

    def distinct(self) -> tuple[Tensor, Tensor]:
        """Text embeddings of the distinct items, and which of them each pair has."""
        _, first, which = np.unique(self.items, return_index=True, return_inverse=True)
        return self.y[first], torch.from_numpy(which)


def _pooled(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float32)
    return values.mean(axis=1) if values.ndim == 3 else values


def _read(targets: Targets, ids: np.ndarray, kind: str) -> Tensor:
    parts = [_pooled(targets.of(ids[start : start + _BLOCK], kind)) for start in range(0, len(ids), _BLOCK)]
    return torch.from_numpy(np.concatenate(parts))


def _ridge(pairs: _Pairs, noise: float) -> tuple[nn.Linear, float]:
    """The linear layer at the ridge solution, equal captions on one side of each inner fold.

    Noise of deviation s on n embeddings is, in expectation, n times s squared on the penalty.
    """
    dtype = torch.float64 if min(pairs.x.shape) <= 3000 else torch.float32
    x, y = pairs.x.to(dtype), pairs.y.to(dtype)
    _, _, penalty = fit_ridge(x, y, pairs.items, RidgeConfig(penalty="shared"), "the pivot")
    size = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    whole = penalty * size + len(x) * noise**2
    weight, intercept = ridge_weights(x, y, torch.full((y.shape[1],), whole, dtype=dtype))
    layer = nn.Linear(pairs.x.shape[1], pairs.y.shape[1])
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(intercept)
    return layer, whole / size


def _refine(
    layer: nn.Linear, train: _Pairs, validation: _Pairs, config: PivotConfig, seed: int, progress: bool
) -> dict[str, Any]:
    """Contrastive passes from the ridge solution on; the best epoch on captions set aside is kept."""
    generator = torch.Generator().manual_seed(seed)

    def noised(x: Tensor) -> Tensor:
        return x + config.noise * torch.randn(x.shape, generator=generator)

    validation = _Pairs(noised(validation.x), validation.y, validation.items)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_epoch, kept = _score(layer, validation), 0, {n: p.clone() for n, p in layer.state_dict().items()}
    curve = [best]
    steps = config.epochs * -(-len(train) // config.batch_size)
    with progress_bar("pivot", steps, progress) as report:
        for epoch in range(1, config.epochs + 1):
            for rows in torch.randperm(len(train), generator=generator).split(config.batch_size):
                if len(rows) < 2:
                    continue
                batch = train.take(rows.numpy())
                text, which = batch.distinct()
                loss = losses.infonce(layer(noised(batch.x)), text, which, config.temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            curve.append(_score(layer, validation))
            report(epoch * steps // config.epochs, f"loss {float(loss.detach()):.3f}")
            if not len(validation) or curve[-1] > best:
                best, best_epoch, kept = curve[-1], epoch, {n: p.clone() for n, p in layer.state_dict().items()}
            if config.patience and epoch - best_epoch >= config.patience:
                break
    layer.load_state_dict(kept)
    found = {"best_epoch": best_epoch}
    return {**found, "validation_top-1": best, "curve": curve} if len(validation) else found


@torch.no_grad()
def _score(layer: nn.Linear, pairs: _Pairs) -> float:
    """Top-1 of distinct captions, mean of both directions; images with one caption are averaged."""
    if not len(pairs):
        return 0.0
    text, which = pairs.distinct()
    said = torch.zeros_like(text).index_add_(0, which, layer(pairs.x)) / which.bincount()[:, None]
    return retrieval(said, text)["top-1"]
