"""Byte-pair tokens of captions, by the ``tokenizers`` library: trained on captions, or read from a saved model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from phosphene.errors import InputError

__all__ = ["END", "PAD", "START", "Tokenizer"]

PAD, START, END = 0, 1, 2
_SPECIAL = ("<pad>", "<start>", "<end>")
_LOGGER = logging.getLogger(__name__)


class Tokenizer:
    """Lower-cased byte-level byte-pair encoding with a start and an end mark; every text can be encoded.

    Parameters
    ----------
    model : tokenizers.Tokenizer
        As made by `train` or `from_json`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        model.encode_special_tokens = True  # a caption that spells a mark is text like any other

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int = 1024) -> Self:
        """Learn merges from training captions.

        Parameters
        ----------
        captions : iterable of str
        vocabulary : int
            Most entries, at least 260 (three marks and all bytes); fewer where the captions give no more.

        Examples
        --------
        >>> tokenizer = Tokenizer.train(["a red ball", "a red box"], 300)
        >>> ids, valid = tokenizer.encode(["a red ball", "a box"], context=16)
        >>> ids.shape == valid.shape and bool(valid[0].all())
        True
        """
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

        model = tokenizers.Tokenizer(models.BPE())
        model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(captions, trainer)
        marks = [(_SPECIAL[START], START), (_SPECIAL[END], END)]
        model.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=marks)
        return cls(model)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, or another file of the tokenizers library with our marks.

        Raises
        ------
        InputError
            For anything else; where the marks do not have the numbers 0, 1, 2 or do not stand around a text; where
            numbers are left out.
        """
        import tokenizers

        try:
            model = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"not a tokenizer of the tokenizers library: {error}") from error
        if [model.token_to_id(mark) for mark in _SPECIAL] != [PAD, START, END]:
            raise InputError(f"the tokenizer does not have the marks {', '.join(_SPECIAL)} as its first entries")
        model.no_padding()  # of its own: here the longest caption decides, and the context
        model.no_truncation()
        ids = model.encode("a").ids
        if (ids[:1], ids[-1:]) != ([START], [END]):
            raise InputError(f"the tokenizer does not put {_SPECIAL[START]} and {_SPECIAL[END]} around a text")
        if max(model.get_vocab().values()) >= model.get_vocab_size():
            raise InputError("the tokenizer leaves out numbers: its entries must be numbered 0, 1, 2 and so on")
        return cls(model)

    def to_json(self) -> str:
        """The tokenizer as JSON text."""
        text: str = self._model.to_str()
        return text

    @property
    def vocabulary(self) -> int:
        """Number of entries."""
        size: int = self._model.get_vocab_size()
        return size

    def encode(self, texts: Sequence[str], context: int, truncate: bool = False) -> tuple[Tensor, Tensor]:
        """Encode captions, padded to the longest of them.

        Parameters
        ----------
        texts : sequence of str
        context : int
            Most tokens of a caption, both marks included.
        truncate : bool
            Cut longer captions, keeping the end mark, and say in the log how many; else they are an error.

        Returns
        -------
        ids : int64 Tensor (captions, tokens)
        valid : bool Tensor (captions, tokens)
            False for padding.

        Raises
        ------
        InputError
            For an empty caption or one that is too long, naming it; where there are none at all.
        """
        if not texts:
            raise InputError("there are no captions to encode")
        empty = [row for row, text in enumerate(texts) if not text.strip()]
        if empty:
            raise InputError(f"{len(empty)} of {len(texts)} captions are empty, the first is number {empty[0]}")
        rows = [encoding.ids for encoding in self._model.encode_batch_fast(list(texts))]
        long = [row for row, ids in enumerate(rows) if len(ids) > context]
        if long and not truncate:
            raise InputError(
                f"{len(long)} of {len(texts)} captions are longer than the context of {context} tokens, for example "
                f"{texts[long[0]][:60]!r} ... with {len(rows[long[0]])}; shorten them, raise text_context, or truncate"
            )
        if long:
            _LOGGER.warning("%d of %d captions were cut to %d tokens", len(long), len(texts), context)
            rows = [ids if len(ids) <= context else [*ids[: context - 1], END] for ids in rows]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows], dtype=torch.int64)
        return ids, ids != PAD
