"""`decode`: responses to unknown stimuli -> predicted embeddings and the best matches of a gallery."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene._version import __version__
from phosphene.errors import InputError
from phosphene.files import FolderFormat, write_json
from phosphene.rendering.gallery import Gallery
from phosphene.table import Table

if TYPE_CHECKING:
    from phosphene.decoders import Decoder
    from phosphene.recordings import Study, StudyView

__all__ = ["Decoded", "decode"]

log = logging.getLogger(__name__)

FORMAT = "phosphene-decoded/1"
FOLDER = FolderFormat("decoded responses", FORMAT, ("matches.json", "matches.tsv", "predictions.npz", "report.html"))


@dataclass(frozen=True)
class Decoded:
    """What was decoded.

    Attributes
    ----------
    subjects, names : (n,) arrays of str
        Whose response, and which: the stimulus name where the recording has one, else ``trial-0001`` and so on.
    embeddings : (n, *target_shape) float32
        Predicted.
    similarities : (n, top) float32
        Cosine with the items found, from the largest down.
    rows : (n, top) int64
        Rows of the gallery; -1 where a FAISS search found fewer.
    gallery : Gallery
    facts : dict
        Decoder, encoder, gallery and how responses were averaged, as plain values.
    """

    subjects: np.ndarray
    names: np.ndarray
    embeddings: np.ndarray
    similarities: np.ndarray
    rows: np.ndarray
    gallery: Gallery
    facts: dict[str, Any]

    def table(self) -> Table:
        """One row a response and match: ``subject, response, rank, item, similarity, caption``."""
        lines = [
            (subject, name, place + 1, str(self.gallery.ids[row]), float(similarity), _caption(self.gallery, row))
            for subject, name, rows, values in zip(
                self.subjects.tolist(), self.names.tolist(), self.rows, self.similarities, strict=True
            )
            for place, (row, similarity) in enumerate(zip(rows, values, strict=True))
            if row >= 0
        ]
        columns = ("subject", "response", "rank", "item", "similarity", "caption")
        return Table({name: [line[i] for line in lines] for i, name in enumerate(columns)}, rows=len(lines))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with every caption of the matches."""
        responses = []
        for n, (subject, name) in enumerate(zip(self.subjects.tolist(), self.names.tolist(), strict=True)):
            matches = [
                {
                    "rank": place + 1,
                    "item": str(self.gallery.ids[row]),
                    "similarity": float(self.similarities[n, place]),
                    "captions": list(self.gallery.captions[row]),
                }
                for place, row in enumerate(self.rows[n].tolist())
                if row >= 0
            ]
            responses.append({"subject": subject, "response": name, "matches": matches})
        return {"format": FORMAT, **self.facts, "responses": responses}

    def save(self, path: str | Path) -> Path:
        """Write the folder ``predictions.npz``, ``matches.tsv``, ``matches.json``, atomically."""
        with FOLDER.written(path) as temporary:
            np.savez(
                temporary / "predictions.npz", embeddings=self.embeddings, subjects=self.subjects, responses=self.names
            )
            self.table().write_tsv(temporary / "matches.tsv")
            write_json(temporary / "matches.json", self.to_dict())
        return Path(path)


def decode(
    decoder: Decoder,
    responses: np.ndarray | Mapping[str, np.ndarray] | Study | StudyView,
    gallery: Gallery,
    *,
    subject: str | None = None,
    top: int = 5,
    average: bool = False,
    zscore: bool = False,
    out_dir: str | Path | None = None,
) -> Decoded:
    """Decode responses whose stimuli need not be known, and look for them in a gallery.

    Parameters
    ----------
    decoder : Decoder
    responses : array, mapping of subject to array, Study or StudyView
        Arrays are (trials, voxels), preprocessed as those the decoder was fitted to. A study is taken whole, a view as
        far as it goes; both are scaled as the study says.
    gallery : Gallery
        Embeddings of the decoder's own encoder.
    subject : str, optional
        Whose responses an array holds; may be left out for a decoder of one person and for `subject_free` ones.
        Of a study: the only person to decode.
    top : int
        Matches a response.
    average : bool
        Study: mean over the trials of each stimulus first. Array: all rows are repeats of one stimulus.
    zscore : bool
        Arrays: z-score every voxel over these very trials first, which should be those of one session. Wanted for raw
        responses where the decoder was fitted on responses z-scored within sessions. Studies are scaled as they say.
    out_dir : path, optional
        Also write the results there (`Decoded.save`).

    Raises
    ------
    InputError
        For an unknown person, a wrong number of voxels, NaN or infinite responses, a gallery of another encoder or
        width.

    Examples
    --------
    >>> found = decode(decoder, responses, gallery, subject="sub-01", out_dir="decoded")   # doctest: +SKIP
    >>> found.table()["item"][0]                                                           # doctest: +SKIP
    """
    if out_dir is not None:
        FOLDER.check(out_dir)
    gallery.require(decoder.encoder)
    if gallery.embeddings.shape[1] != decoder.n_outputs:
        raise InputError(
            f"the gallery has embeddings of width {gallery.embeddings.shape[1]}, the decoder predicts "
            f"{decoder.n_outputs} numbers ({decoder.target_kind} of shape {decoder.target_shape})"
        )
    subjects, names, parts = [], [], []
    for person, of_person, block in _responses(decoder, responses, subject, average, zscore):
        known = person if person in decoder.subjects or not decoder.subject_free else None
        parts.append(decoder.predict(block, known))
        subjects += [person] * len(block)
        names += of_person
    if not parts or not names:
        raise InputError("there are no responses to decode")
    embeddings = np.concatenate(parts)
    similarities, rows = gallery.search(embeddings.reshape(len(embeddings), -1), top)
    facts = {
        "software": f"phosphene {__version__}",
        "decoder": decoder.name,
        "encoder": None if decoder.encoder is None else decoder.encoder.label,
        "target": {"kind": decoder.target_kind, "shape": list(decoder.target_shape)},
        "gallery": {"items": len(gallery), "search": gallery.method},
        "averaged": average,
        "zscored_by_own_trials": zscore,
    }
    decoded = Decoded(np.array(subjects), np.array(names), embeddings, similarities, rows, gallery, facts)
    if out_dir is not None:
        decoded.save(out_dir)
    return decoded


def _responses(
    decoder: Decoder, responses: Any, subject: str | None, average: bool, zscore: bool
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Person, names of the responses, and responses (n, V)."""
    if isinstance(responses, np.ndarray):
        if subject is None:
            if len(decoder.subjects) > 1 and not decoder.subject_free:
                raise InputError(f"name the subject of these responses: {', '.join(decoder.subjects)}")
            subject = "new" if decoder.subject_free else next(iter(decoder.subjects))
        responses = {subject: responses}
    if isinstance(responses, Mapping):
        if decoder.provenance.get("scaling") == "session" and not zscore:
            log.warning(
                "the decoder was fitted on responses z-scored within sessions; arrays are taken as they are "
                "(zscore=True, --zscore: z-score them over their own trials)"
            )
        for person, block in responses.items():
            block = np.asarray(block, dtype=np.float32)
            if block.ndim != 2:
                raise InputError(f"responses of {person} must be (trials, voxels), found shape {block.shape}")
            if zscore and len(block):
                block = _zscored(block)
            if average and len(block):
                yield person, ["average"], block.mean(axis=0, keepdims=True)
            else:
                yield person, [f"trial-{row + 1:04d}" for row in range(len(block))], block
        return
    view = responses if hasattr(responses, "averaged") else responses.split("all")
    for person in view.subjects if subject is None else view.subset([subject]).subjects:
        if average:
            ids, block = view.averaged(person)
            yield person, ids.tolist(), block
        else:
            shown = view.trials(person)["stimulus_id"].tolist()
            for rows, block in view.blocks(person):
                yield person, [f"{shown[row]}/trial-{row + 1:04d}" for row in rows.tolist()], block


def _zscored(block: np.ndarray) -> np.ndarray:
    if len(block) < 2:
        raise InputError("z-scoring over own trials needs at least 2 trials, found 1")
    deviation = block.std(axis=0)
    return np.asarray((block - block.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))


def _caption(gallery: Gallery, row: int) -> str:
    """First caption on one line: a table row must not be broken by it."""
    texts = gallery.captions[row]
    return re.sub(r"\s+", " ", texts[0]).strip() if texts else ""
