"""MLIP as encoders: pictures through the image tower, captions through the text tower."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from phosphene.encoders.base import CaptionEncoder, EncodedBatch, EncoderConfig
from phosphene.encoders.images import resize
from phosphene.encoders.merging.encoder import MergeableEncoder, MergingConfig
from phosphene.encoders.merging.plan import TowerShape
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.mlip.config import MLIPConfig
from phosphene.encoders.pretrained import PretrainedEncoder
from phosphene.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

    from phosphene.stimuli import StimulusSet

__all__ = [
    "SHIPPED",
    "MLIPEncoder",
    "MLIPImageConfig",
    "MLIPTextConfig",
    "MLIPTextEncoder",
    "find_mlip",
    "find_named_mlip",
    "model_folder",
    "run_name",
]

log = logging.getLogger(__name__)

SHIPPED = ("pocket",)
_MODEL = "model"  # how every run names the folder of what it trained
_SENTENCES_AT_ONCE = 256
_READ_FREQUENCY = ("frequency", "both", "text")  # guides of merging
_UNTRAINED = "nothing trained the frequency embedding of this model, which is random (objective.frequency_weight = 0)"


def find_mlip(source: str) -> Path:
    """Folder of an MLIP model: a shipped one by name, else a folder, here or below ``PHOSPHENE_MODELS``.

    The folder of a run, which holds the model as ``model``, does as well.

    Raises
    ------
    InputError
        When there is none.
    """
    if source in SHIPPED:
        return Path(str(resources.files("phosphene") / "weights" / source))
    for place in _places(source):
        folder = model_folder(place)
        if folder is not None:
            return folder
    raise InputError(
        f"there is no MLIP model {source!r}: neither shipped ({', '.join(SHIPPED)}), nor a folder with config.json as "
        "'phosphene pretrain' writes it, here or in the folder PHOSPHENE_MODELS"
    )


def find_named_mlip(source: str) -> Path:
    """As `find_mlip`, for ``mlip:SOURCE`` and ``--from SOURCE``, which may mean a shipped model or a folder.

    Raises
    ------
    InputError
        When there is none, or a shipped one and a folder of that name.
    """
    folders = [place for place in _places(source) if model_folder(place) is not None] if source in SHIPPED else []
    if folders:
        place = folders[0] if folders[0].is_absolute() else f"./{folders[0]}"
        raise InputError(
            f"{source!r} is a shipped model and a folder: {place} names the folder; the shipped one is the encoder "
            f"plain {source}, and a model to start from where there is no such folder"
        )
    return find_mlip(source)


def model_folder(place: Path) -> Path | None:
    """The folder of a model, which may be that of its run; None where there is none."""
    for folder in (place / _MODEL, place):  # the folder of a run has a config.json too, of its own settings
        if (folder / "config.json").is_file():
            return folder
    return None


def _places(source: str) -> list[Path]:
    """Where a folder is looked for: here, then below ``PHOSPHENE_MODELS``."""
    models = os.environ.get("PHOSPHENE_MODELS")
    return [Path(source).expanduser(), *([Path(models) / source] if models else [])]


def run_name(source: str) -> str:
    """Name by which a model is found again: its folder's, or where that is called ``model`` that of the run."""
    place = Path(source).expanduser()
    if place.is_dir():
        place = place.resolve()
    named = place.parent if place.name == _MODEL and place.parent.name else place
    name = named.name if named.is_absolute() else named.as_posix()
    return "/".join(place.parts[-2:]) if name in SHIPPED else name  # a run called pocket is not the shipped one


class MLIPImageConfig(MergingConfig):
    """Settings of an MLIP image encoder.

    Attributes
    ----------
    source : str
        Shipped model by name, or folder. It does not enter the identity; the hash of the weights does.
    domain : {"spatial", "frequency"}
        Whose tokens and pooled embedding are given.
    projected : bool
        Whether tokens are projected into the space shared with text; False gives the states of the tower. The
        frequency embedding of a model whose objective did not train it is random: it is refused, and states are pooled
        by their own mean.
    merge : MergeSettings, optional
        Token merging in the spatial blocks; without it nothing is merged, also where the model was trained with
        merging. With the domain "frequency", which comes before those blocks, it is refused.
    texts : tuple of str
        What merging guided by text is to spare.
    """

    source: str = "pocket"
    domain: Literal["spatial", "frequency"] = "spatial"
    projected: bool = True


class MLIPTextConfig(EncoderConfig):
    """Settings of an MLIP text encoder: `source` as in `MLIPImageConfig`."""

    source: str = "pocket"


class _MLIPSource(PretrainedEncoder):
    """What both encoders share: the model folder and its name."""

    suffix: ClassVar[str] = ""

    @property
    def label(self) -> str:
        return f"{self.source}{self.suffix}" if self.source in SHIPPED else f"{self.name}:{run_name(self.source)}"

    @property
    def saved_label(self) -> str:
        return self.label

    def locate(self, folder: str | Path) -> None:
        super().locate(model_folder(Path(folder)) or folder)

    def _find(self) -> Path:
        return find_mlip(self.source)

    def _read_facts(self, folder: Path) -> dict[str, Any]:
        from phosphene.encoders.mlip.store import read_config

        content = read_config(folder)
        pictures = content["facts"].get("data", {}).get("fitted_on")
        if pictures is not None:  # trained on somebody's own pictures: they must not be predicted as if they were new
            self.fitted_on = frozenset(pictures)
        return {key: content[key] for key in ("weights", "tokenizer", "model")}

    def _load(self, folder: Path) -> torch.nn.Module:
        from phosphene.encoders.mlip.store import load_model

        model, self._tokenizer = load_model(folder, self._merge(folder))
        return model

    def remembered(self, stimuli: StimulusSet, cache: Path | None = None) -> frozenset[str] | None:
        """Ids that the model was trained on, and those of the stimuli whose pictures it knows under whatever id."""
        from phosphene.encoders.mlip.seen import SeenPictures, hashes_at
        from phosphene.encoders.mlip.store import read_config

        self._facts()
        content = read_config(self.folder)
        seen = SeenPictures.of_facts(content["facts"])
        if not (seen.knows_pixels and stimuli.has_pixels):
            return self.trained_on
        copies = stimuli.ids[seen.has(hashes_at(stimuli, content["model"]["image_size"], cache))]
        return frozenset(copies.tolist()) | (self.trained_on or frozenset())

    def _merge(self, folder: Path) -> MergeSettings | None:
        """Merge settings to load the model with; None for its own."""
        return None

    def _saved_config(self) -> dict[str, Any]:
        return {
            **super()._saved_config(),
            "source": self.source if self.source in SHIPPED else run_name(self.source),
        }


class MLIPEncoder(_MLIPSource, MergeableEncoder):
    """The image tower of an MLIP model.

    Tokens: (1 + patches, embed) of the spatial domain, the class token first, whose projection is the pooled
    embedding; (patches, embed) of the frequency domain, whose mean it is. Neither is normalised.

    Raises
    ------
    InputError
        For a folder that holds no model, or a model without the wanted domain.
    """

    name: ClassVar[str] = "mlip"
    Config: ClassVar[type[EncoderConfig]] = MLIPImageConfig

    def prepare(self, frames: np.ndarray) -> torch.Tensor:
        model: Any = self.network()
        pixels: torch.Tensor = model.normalise(resize(frames, model.config.image_size, self.device))
        return pixels

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from phosphene.encoders.merging.matching import unmerge

        model: Any = self.network()
        merge = model.config.merge
        texts = self.text_guide() if merge is not None and merge.guide == "text" else None
        states = model.image_states(pixels, None if texts is None else texts.to(self.device))
        if self.config.domain == "spatial":
            projected = model.spatial_projection(states.spatial)
            tokens, merged = projected if self.config.projected else states.spatial, states.merged
            if merged is not None and merge.restore:
                tokens = unmerge(tokens, merged)
            return tokens, projected[:, 0]
        if states.frequency is None or model.frequency_projection is None:
            raise unknown(f"domain of encoder {self.label!r}:", "frequency", ["spatial"])
        if not model.frequency_trained:  # `_read_facts` has seen that states are asked for
            return states.frequency, states.frequency.mean(dim=1)
        projected = model.frequency_projection(states.frequency)
        return projected if self.config.projected else states.frequency, projected.mean(dim=1)

    def tower_shape(self, folder: Path) -> TowerShape:
        from phosphene.encoders.mlip.image import tower_shape

        return tower_shape(self._model_config(folder))

    def text_encoder(self, folder: Path) -> PretrainedEncoder:
        return MLIPTextEncoder(MLIPTextConfig(source=str(folder)))

    def merging(self, folder: Path) -> MergeSettings:
        asked: MergeSettings | None = self.config.merge
        if self.config.domain == "frequency":
            if asked is not None and asked.active:
                raise InputError(
                    f"encoder {self.label!r}: tokens are merged in the spatial stage, which domain = 'frequency' does "
                    "not read; leave merging away, or take domain = 'spatial'"
                )
            return MergeSettings.build()
        return super().merging(folder)

    def _merge(self, folder: Path) -> MergeSettings:
        return self.merging(folder)

    def _load(self, folder: Path) -> torch.nn.Module:
        trained = self._model_config(folder).merge
        if self.config.merge is None and trained is not None and trained.active:
            said = ", ".join(f"merge.{setting}" for setting in trained.changed(MergeSettings.model_fields))
            log.info("%s was trained with token merging, which is left out: %s would take it up", self.label, said)
        if self._guide_falls_back(folder):
            log.warning("encoder %r: %s, so merging is guided without it", self.label, _UNTRAINED)
        return super()._load(folder)

    def _guide_falls_back(self, folder: Path) -> bool:
        """Whether the guide of merging would read the frequency embedding, and nothing trained that."""
        reads = self._model_config(folder).frequency_head and self.merging(folder).guide in _READ_FREQUENCY
        return reads and "frequency" in self._untrained(folder)

    def _untrained(self, folder: Path) -> tuple[str, ...]:
        from phosphene.encoders.mlip.store import read_config, untrained

        return untrained(read_config(folder))

    def with_merge(self, merge: MergeSettings) -> Self:
        twin = super().with_merge(merge)
        network: Any = self.network()
        twin._network = network.with_merge(twin.merging(self.folder))  # the tower holds its schedule
        return twin

    def _read_facts(self, folder: Path) -> dict[str, Any]:
        facts = super()._read_facts(folder) | self.merging_facts(folder)
        if "merging" in facts and self._guide_falls_back(folder):
            facts["merging"]["cue"] = "frequency untrained"
        if self.config.domain == "frequency" and "frequency" in (untrained := self._untrained(folder)):
            beside = self._model_config(folder).arrangement == "parallel"
            random_states = beside and "frequency_token" in untrained  # nothing else reads that branch
            if self.config.projected or random_states:
                raise InputError(
                    f"encoder {self.label!r}: {_UNTRAINED}; take domain = 'spatial'"
                    f"{'' if random_states else ', or projected = False for the states before that projection'}"
                )
            facts["pooled"] = "states"
        return facts

    def _model_config(self, folder: Path) -> MLIPConfig:
        from phosphene.encoders.mlip.store import read_config

        return MLIPConfig.build(read_config(folder)["model"])


class MLIPTextEncoder(_MLIPSource, CaptionEncoder):
    """The text tower of an MLIP model: the mean over a stimulus's captions of their embeddings, each of length 1.

    Pooled is (n, embed), in the space of the image tower's pooled embeddings; there are no tokens. Captions longer
    than the model's context are cut, with a warning.
    """

    name: ClassVar[str] = "mlip-text"
    Config: ClassVar[type[EncoderConfig]] = MLIPTextConfig
    suffix: ClassVar[str] = "-text"

    def encode_captions(self, captions: Sequence[Sequence[str]]) -> EncodedBatch:
        counts = [len(texts) for texts in captions]
        if not counts or min(counts) == 0:
            raise InputError(f"encoder {self.label!r} needs at least one caption a stimulus")
        embedded = self._embed([text for texts in captions for text in texts]).astype(np.float64)
        means = np.add.reduceat(embedded, np.cumsum([0, *counts[:-1]]), axis=0) / np.array(counts)[:, None]
        return EncodedBatch(tokens=None, pooled=means.astype(np.float32))

    def _captions(self, stimuli: StimulusSet, rows: np.ndarray) -> list[tuple[str, ...]]:
        captions = super()._captions(stimuli, rows)
        empty = [
            str(stimuli.ids[row]) for row, texts in zip(rows, captions, strict=True) if not all(map(str.strip, texts))
        ]
        if empty:
            raise InputError(
                f"encoder {self.label!r}: {len(empty)} of {len(captions)} stimuli have an empty caption beside others: "
                f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}"
            )
        return captions

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings of length 1 (captions, embed); equal captions once, similar lengths together."""
        import torch

        model: Any = self.network()
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        place, rows = {text: row for row, text in enumerate(unique)}, []
        with torch.inference_mode():
            for start in range(0, len(unique), _SENTENCES_AT_ONCE):
                chosen = unique[start : start + _SENTENCES_AT_ONCE]
                ids, valid = self._tokenizer.encode(chosen, model.config.text_context, truncate=True)
                pooled = model.encode_text(ids.to(self.device), valid.to(self.device), tokens=False).pooled
                rows.append(torch.nn.functional.normalize(pooled, dim=1).cpu().numpy())
        return np.concatenate(rows)[[place[text] for text in texts]]
