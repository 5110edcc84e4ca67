"""What merging costs and saves on one's own pictures: embeddings against the full tower's, neighbours, speed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from phosphene.encoders.base import Encoder
from phosphene.encoders.cache import checked_device
from phosphene.encoders.merging.encoder import MergeableEncoder
from phosphene.encoders.merging.settings import MergeSettings
from phosphene.encoders.registry import make_encoder, mergeable
from phosphene.errors import InputError, unknown
from phosphene.recordings.readers.progress import track

if TYPE_CHECKING:
    import torch

    from phosphene.stimuli import StimulusSet

__all__ = ["RATES", "Fidelity", "FidelityReport", "fidelity"]

RATES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_LOW = 5  # percentile that stands for the worst pictures


@dataclass(frozen=True)
class Fidelity:
    """One rate of merging against the tower without.

    Attributes
    ----------
    rate : float
        What was asked for.
    rates : tuple of int
        Tokens merged away in each block.
    tokens, remaining : int
        Tokens at the first and after the last block.
    flops : float
        Share of the unmerged tower's operations.
    cosine, cosine_low : float
        Of merged with full pooled embeddings: mean, and 5th percentile over pictures.
    token_cosine : float or None
        Mean over tokens and pictures, every token in its place on the full grid; None without tokens.
    agreement : float
        Share of pictures whose nearest other picture (cosine of pooled) is the same one.
    speed : float
        Time of the full over that of the merged tower.
    """

    rate: float
    rates: tuple[int, ...]
    tokens: int
    remaining: int
    flops: float
    cosine: float
    cosine_low: float
    token_cosine: float | None
    agreement: float
    speed: float


@dataclass(frozen=True)
class FidelityReport:
    """Rates side by side, and the one chosen.

    Attributes
    ----------
    encoder : str
    by : {"flops", "tokens"}
        What the rates are shares of.
    rows : tuple of Fidelity
    protocol : dict
        Pictures, guide and its weights, device, how speed was measured.
    wanted : float or None
        Mean cosine of pooled embeddings that was asked for.
    """

    encoder: str
    by: Literal["flops", "tokens"]
    rows: tuple[Fidelity, ...]
    protocol: dict[str, Any]
    wanted: float | None = None

    @property
    def chosen(self) -> Fidelity | None:
        """The row of the fewest operations that keeps the wanted cosine; None without a wish, or where none does."""
        if self.wanted is None:
            return None
        good = [row for row in self.rows if row.cosine >= self.wanted]
        return min(good, key=lambda row: row.flops, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "encoder": self.encoder,
            "by": self.by,
            "protocol": self.protocol,
            "rows": [asdict(row) for row in self.rows],
            "wanted": self.wanted,
            "chosen": None if self.chosen is None else asdict(self.chosen),
        }

    def text(self) -> str:
        """A table, below what it was measured on, above what was chosen."""
        facts = self.protocol
        head = [
            f"{self.encoder}, merged against full, on {facts['images']} pictures; guide {facts['guide']}, "
            f"{facts['schedule']} schedule",
            f"speed: {facts['clock']} on {facts['device']}, {facts['timed_images']} pictures at once, best of "
            f"{facts['repeats']}; chance of the same neighbour: {facts['chance_agreement']:.1%}",
        ]
        lines = [
            [
                f"{self.by} asked",
                "tokens",
                "operations",
                "cosine",
                f"{_LOW}th pct",
                "of tokens",
                "same neighbour",
                "speed",
            ]
        ]
        for row in self.rows:
            of_tokens = "-" if row.token_cosine is None else f"{row.token_cosine:.4f}"
            cells = [f"{row.rate:g}", f"{row.tokens} -> {row.remaining}", f"{row.flops:.1%}", f"{row.cosine:.4f}"]
            lines.append([*cells, f"{row.cosine_low:.4f}", of_tokens, f"{row.agreement:.1%}", f"{row.speed:.2f}x"])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        table = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*head, "", *table, *([] if self.wanted is None else ["", self._choice(self.wanted)])])

    def _choice(self, wanted: float) -> str:
        row = self.chosen
        if row is None:
            best = max(self.rows, key=lambda row: row.cosine)
            return (
                f"no rate keeps a mean cosine of {wanted:g}: the most is {_below(best.cosine, wanted)}, at {self.by} = "
                f"{best.rate:g}; ask for gentler rates, or merge nothing"
            )
        return (
            f"for a mean cosine of at least {wanted:g}: {self.by} = {row.rate:g} ({row.flops:.0%} of the operations, "
            f"{row.speed:.2f}x); phosphene encode ... --merge-{self.by} {row.rate:g}{self._options()}"
        )

    def _options(self) -> str:
        """The options that encode with the same guide, weights and schedule, as far as they are not the usual ones."""
        guide, texts = self.protocol["guide"], self.protocol.get("texts", [])
        words = "" if guide == "none" else f" --merge-guide {guide}"
        words += "".join(f" --merge-text {shlex.quote(text)}" for text in texts)
        usual = MergeSettings.build().model_dump()
        for key in ("strength", "balance", "schedule", "proportional"):
            if (value := self.protocol.get(key, usual[key])) != usual[key]:
                words += f" --set merge.{key}={str(value).lower()}"
        return words


def _below(value: float, limit: float) -> str:
    """Four decimals, or as many more as it takes to read as less than a limit."""
    said = (f"{value:.{decimals}f}" for decimals in range(4, 17))
    return next((words for words in said if float(words) < limit), f"{value}")


def fidelity(
    stimuli: StimulusSet,
    encoder: str | Encoder,
    rates: Sequence[float] | None = None,
    *,
    by: Literal["flops", "tokens"] = "flops",
    cosine: float | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    repeats: int = 5,
    progress: bool = True,
) -> FidelityReport:
    """Compare an encoder with itself at several rates of token merging.

    Parameters
    ----------
    stimuli : StimulusSet
        At least 3 pictures (of clips, the middle frames).
    encoder : str or Encoder
        A vision encoder whose tokens can be merged, or its name. Its own merge settings say all but the rate: guide,
        strength, schedule.
    rates : sequence of float, optional
        Shares above 0 to 1; of 0.9, 0.8 ... 0.3 those within reach, unless given.
    by : {"flops", "tokens"}
        Of what: the tower's operations, or its tokens.
    cosine : float, optional
        Mean cosine of pooled embeddings to keep: the report then chooses the rate of the fewest operations that does.
    device : str, optional
        ``"cpu"``, ``"cuda"`` ...
    batch_size : int, optional
        Pictures at once, also where speed is measured.
    repeats : int
        Runs of which the fastest counts, all rates in turn: processor time on a CPU, wall time on a GPU.
    progress : bool
        Show a progress bar (only on a terminal).

    Raises
    ------
    InputError
        For an encoder that cannot merge tokens, naming those that can; a rate out of reach; too few pictures.

    Examples
    --------
    >>> from phosphene.stimuli.scenes import scene_set
    >>> report = fidelity(scene_set(8), "hf:FOLDER", [0.7, 0.5], cosine=0.99)  # doctest: +SKIP
    >>> print(report.text())  # doctest: +SKIP
    """
    _check(stimuli, by, cosine, batch_size, repeats)
    full, base = _unmerged(encoder, device)
    asked = [(rate, _merged(full, base, by, rate)) for rate in _reachable(full, base, by, rates)]
    size = min(batch_size or full.batch_size, len(stimuli))
    cosines, token_cosines, pooled = _compare(stimuli, full, [twin for _, twin in asked], size, progress)
    times = _times([full, *(twin for _, twin in asked)], full.prepare(stimuli.frames(slice(0, size))), repeats)
    neighbours = [_nearest(vectors) for vectors in pooled]
    rows = []
    for number, (rate, twin) in enumerate(asked):
        plan = twin.merge_plan()
        found = cosines[number]
        rows.append(
            Fidelity(
                rate=rate,
                rates=plan.rates,
                tokens=plan.tokens,
                remaining=plan.remaining,
                flops=plan.flops,
                cosine=float(found.mean()),
                cosine_low=float(np.percentile(found, _LOW)),
                token_cosine=float(token_cosines[number].mean()),
                agreement=float((neighbours[number + 1] == neighbours[0]).mean()),
                speed=times[0] / times[number + 1],
            )
        )
    protocol = _protocol(full, base, len(stimuli), size, repeats)
    return FidelityReport(full.label, by, tuple(rows), protocol, cosine)


def _check(stimuli: StimulusSet, by: str, cosine: float | None, batch_size: int | None, repeats: int) -> None:
    if by not in ("flops", "tokens"):
        raise unknown("measure of a merging rate", by, ("flops", "tokens"))
    if cosine is not None and not 0 < cosine <= 1:
        raise InputError(f"the wanted cosine must be above 0 and at most 1, found {cosine:g}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, found {repeats}")
    if not stimuli.has_pixels or len(stimuli) < 3:
        raise InputError(
            f"neighbours among pictures need at least 3 of them, found {len(stimuli) if stimuli.has_pixels else 0}"
        )


def _unmerged(encoder: str | Encoder, device: str | None) -> tuple[MergeableEncoder, MergeSettings]:
    """The encoder without merging, and the settings that it would merge with."""
    given = mergeable(make_encoder(encoder) if isinstance(encoder, str) else encoder)
    if device is not None:
        given.device = checked_device(device)
    base = given.merging(given.folder).model_copy(update={"restore": True})
    return given.with_merge(MergeSettings.build()), base


def _merged(full: MergeableEncoder, base: MergeSettings, by: str, rate: float) -> MergeableEncoder:
    share = {"tokens": None, "flops": None, "r": None, by: rate}
    return full.with_merge(MergeSettings.build(base.model_dump(), share))


def _reachable(
    full: MergeableEncoder, base: MergeSettings, by: str, rates: Sequence[float] | None
) -> tuple[float, ...]:
    """The rates: those given, each within reach, or of the usual ones those that are."""
    chosen, last = [], None
    for rate in RATES if rates is None else rates:
        try:
            _merged(full, base, by, rate).merge_plan()
            chosen.append(rate)
        except InputError as error:
            if rates is not None:
                raise
            last = error
    if not chosen:
        raise last or InputError("no rate of merging was given")
    return tuple(chosen)


def _compare(
    stimuli: StimulusSet, full: MergeableEncoder, twins: Sequence[MergeableEncoder], size: int, progress: bool
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Cosines of pooled and of tokens (rates, pictures), and pooled embeddings, the full ones first."""
    import torch

    cosines = np.empty((len(twins), len(stimuli)))
    token_cosines = np.empty_like(cosines)
    pooled: list[list[np.ndarray]] = [[] for _ in range(len(twins) + 1)]
    starts = range(0, len(stimuli), size)
    for start in track(starts, f"{full.label}: {len(twins)} rates of merging", progress):
        rows = slice(start, min(start + size, len(stimuli)))
        pixels = full.prepare(stimuli.frames(rows))
        with torch.inference_mode():
            tokens, vectors = full.embed(pixels)
            pooled[0].append(vectors.float().cpu().numpy())
            for number, twin in enumerate(twins):
                merged_tokens, merged = twin.embed(pixels)
                pooled[number + 1].append(merged.float().cpu().numpy())
                cosines[number, rows] = _cosine(vectors, merged)
                token_cosines[number, rows] = _cosine(tokens, merged_tokens).mean(axis=1)
    return cosines, token_cosines, [np.concatenate(parts) for parts in pooled]


def _cosine(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    import torch

    values: np.ndarray = torch.cosine_similarity(one.double(), other.double(), dim=-1).cpu().numpy()
    return values


def _nearest(pooled: np.ndarray, block: int = 1024) -> np.ndarray:
    """The other picture that is most alike, for each: int array (n,); never more than `block` x n cosines at once."""
    unit = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    found = np.empty(len(unit), dtype=np.int64)
    for start in range(0, len(unit), block):
        alike = unit[start : start + block] @ unit.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf
        found[start : start + block] = alike.argmax(axis=1)
    return found


def _times(encoders: Sequence[MergeableEncoder], pixels: torch.Tensor, repeats: int) -> list[float]:
    """Seconds of each encoder's tower, the least of several; in turn, so that a busy moment harms none alone."""
    import torch

    clock = _clock(pixels.device.type)
    best = [float("inf")] * len(encoders)
    with torch.inference_mode():
        for _ in range(repeats):
            for number, encoder in enumerate(encoders):
                start = clock()
                encoder.embed(pixels)
                best[number] = min(best[number], clock() - start)
    return best


def _clock(kind: str) -> Callable[[], float]:
    """Processor time on a CPU: what else runs there does not count."""
    if kind != "cuda":
        return time.process_time
    import torch

    def finished() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return finished


def _protocol(full: MergeableEncoder, base: MergeSettings, images: int, timed: int, repeats: int) -> dict[str, Any]:
    import torch

    gpu, threads = full.device.startswith("cuda"), torch.get_num_threads()
    guide: dict[str, Any] = {"guide": base.guide, "schedule": base.schedule, "proportional": base.proportional}
    if base.guide != "none":
        guide["strength"] = base.strength
    if base.guide == "both":
        guide["balance"] = base.balance
    if base.guide == "text":
        guide["texts"] = list(full.config.texts)
    return {
        **guide,
        "identity": full.identity,
        "images": images,
        "chance_agreement": 1 / (images - 1),
        "device": torch.cuda.get_device_name(full.device) if gpu else f"cpu, {threads} thread{'s' * (threads > 1)}",
        "clock": "wall time" if gpu else "processor time",
        "timed_images": timed,
        "repeats": repeats,
    }
