"""Text towers and sentence encoders of transformers over captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from phosphene.encoders.base import CaptionEncoder, EncodedBatch, EncoderConfig
from phosphene.encoders.transformers_source import (
    TransformersEncoder,
    load_network,
    model_facts,
    tower_config,
    transformers,
)
from phosphene.errors import InputError
from phosphene.files import read_json

if TYPE_CHECKING:
    import torch

__all__ = ["TextConfig", "TransformersTextEncoder"]

Pooling = Literal["own", "mean", "cls"]

# model_type of config.json -> transformers class of a text tower with an embedding of its own
_TOWERS = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_SENTENCES_AT_ONCE = 64


class TextConfig(EncoderConfig):
    """Settings of a text encoder.

    Attributes
    ----------
    source : str
        Hub name or local folder. It does not enter the identity; the hashes of weights and tokenizer do.
    normalise : bool
        Whether each caption's embedding is brought to length 1 before the mean over captions.
    """

    source: str
    normalise: bool = True


class TransformersTextEncoder(TransformersEncoder, CaptionEncoder):
    """The mean over a stimulus's captions of their embeddings.

    A CLIP or SigLIP model gives the embedding of its text tower, in the space shared with pictures. Any other model
    is taken as a sentence encoder: the mean of its last hidden states over the words (without padding), or its first
    token where ``1_Pooling/config.json`` says so. Captions longer than the model can read are cut. Pooled is
    (n, width); there are no tokens.
    """

    name: ClassVar[str] = "hf-text"
    Config: ClassVar[type[EncoderConfig]] = TextConfig

    @property
    def _normalise(self) -> bool:
        return bool(self.config.normalise)

    def encode_captions(self, captions: Sequence[Sequence[str]]) -> EncodedBatch:
        counts = [len(texts) for texts in captions]
        if not counts or min(counts) == 0:
            raise InputError(f"encoder {self.label!r} needs at least one caption a stimulus")
        embedded = self._embed([text for texts in captions for text in texts])
        starts = np.cumsum([0, *counts[:-1]])
        means = np.add.reduceat(embedded.astype(np.float64), starts, axis=0) / np.array(counts)[:, None]
        return EncodedBatch(tokens=None, pooled=means.astype(np.float32))

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings (sentences, width); equal sentences once, similar lengths together."""
        import torch

        network = self.network()
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: row for row, text in enumerate(unique)}
        rows = []
        with torch.inference_mode():
            for start in range(0, len(unique), _SENTENCES_AT_ONCE):
                words = self._tokenizer(
                    unique[start : start + _SENTENCES_AT_ONCE],
                    padding=self._padding,
                    truncation=True,
                    max_length=self._longest,
                    return_tensors="pt",
                ).to(self.device)
                embedded = self._forward(network, words)
                if self._normalise:
                    embedded = torch.nn.functional.normalize(embedded, dim=-1)
                rows.append(embedded.float().cpu().numpy())
        return np.concatenate(rows)[[place[text] for text in texts]]

    def _forward(self, network: torch.nn.Module, words: Any) -> torch.Tensor:
        output: Any = network(**words)
        if self._pooling == "own":
            own: torch.Tensor = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
            return own
        hidden: torch.Tensor = output.last_hidden_state
        if self._pooling == "cls":
            return hidden[:, 0]
        mask = words["attention_mask"].to(hidden)[..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def _read_facts(self, folder: Path) -> dict[str, Any]:
        kind, tower = self._tower(folder)
        facts = model_facts(folder, _TOKENIZER_FILES)
        facts["pooling"] = _pooling(folder, kind)
        facts["longest"] = _longest(folder, tower)
        return facts

    def _load(self, folder: Path) -> torch.nn.Module:
        library = transformers(f"encoder {self.label!r}")
        kind, tower = self._tower(folder)
        network = load_network(getattr(library, _TOWERS.get(kind, "AutoModel")), folder, tower)
        self._pooling = _pooling(folder, kind)
        self._longest = _longest(folder, tower)
        # SigLIP was trained on texts padded to full length and reads its last position
        self._padding = "max_length" if kind.startswith("siglip") else "longest"
        self._tokenizer = _load_tokenizer(library, folder)
        return network

    def _tower(self, folder: Path) -> tuple[str, Any]:
        return tower_config(folder, "text_config", f"encoder {self.label!r}")


def _load_tokenizer(library: Any, folder: Path) -> Any:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES if name != "tokenizer_config.json"):
        raise InputError(f"{folder} holds no tokenizer (tokenizer.json, vocab.txt, ...)")
    try:
        return library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"the tokenizer in {folder} cannot be read: {error}") from error


def _pooling(folder: Path, kind: str) -> Pooling:
    if kind in _TOWERS:
        return "own"
    declared = folder / "1_Pooling" / "config.json"
    if not declared.is_file():
        return "mean"
    modes = {key for key, on in read_json(declared).items() if key.startswith("pooling_mode_") and on is True}
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    raise InputError(f"{declared} asks for {', '.join(sorted(modes)) or 'nothing'}; mean_tokens or cls_token is known")


def _longest(folder: Path, config: Any) -> int:
    """Longest sequence in tokens: what the model was made for, within what its positions allow."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    # the positions of RoBERTa and its kin start behind the padding index
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(config.pad_token_id) + 1
    limits = [positions]
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        limit = read_json(folder / name).get(key) if (folder / name).is_file() else None
        limits += [int(limit)] if limit else []
    return min(limits)
