"""TF-IDF of captions, reduced by a truncated SVD: words without any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from phosphene.encoders.base import CaptionEncoder, EncodedBatch, EncoderConfig
from phosphene.errors import InputError
from phosphene.files import digest

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    from phosphene.stimuli import StimulusSet

__all__ = ["TfidfConfig", "TfidfSvdEncoder"]


class TfidfConfig(EncoderConfig):
    """Settings of the TF-IDF encoder.

    Attributes
    ----------
    components : int
        Dimensions kept by the SVD.
    stop_words : {"english", "none"}
        Words that count for nothing ("the", "is").
    sublinear : bool
        Whether a word said n times counts 1 + log n instead of n.
    centre : bool
        Whether the training mean is taken away. Without, all stimuli share one large coordinate, and cosines tell them
        apart poorly.
    """

    components: int = Field(30, ge=1)
    stop_words: Literal["english", "none"] = "english"
    sublinear: bool = True
    centre: bool = True


class TfidfSvdEncoder(CaptionEncoder):
    """All captions of a stimulus joined to one document, TF-IDF, truncated SVD; fitted on training stimuli.

    As scikit-learn does it: words of two and more letters in lower case, smoothed inverse document frequencies, rows of
    length 1. The SVD is computed by ARPACK from a fixed start, and each component's largest weight is made
    positive, so that the same captions give the same encoder. New captions are encoded with the training vocabulary;
    words it lacks count for nothing. Pooled is (n, components); there are no tokens.

    The state is a vocabulary (JSON) and arrays (safetensors), never a pickled scikit-learn object.
    """

    name: ClassVar[str] = "tfidf"
    Config: ClassVar[type[EncoderConfig]] = TfidfConfig
    needs_fit: ClassVar[bool] = True
    batch_size = 4096

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__(config)
        self.vocabulary: tuple[str, ...] = ()
        self.idf = np.zeros(0)
        self.components = np.zeros((0, 0))
        self.mean = np.zeros(0)
        self._documents = ""

    @property
    def label(self) -> str:
        return f"tfidf-svd{self.config.components}"

    def _fit(self, stimuli: StimulusSet) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        documents = sorted(_join(self._captions(stimuli, np.arange(len(stimuli)))))
        vectorizer = TfidfVectorizer(**self._options())
        try:
            counts = vectorizer.fit_transform(documents)
        except ValueError as error:
            raise InputError(f"encoder {self.label!r} found no words in the training captions: {error}") from error
        self.vocabulary = tuple(str(word) for word in vectorizer.get_feature_names_out())
        self.idf = np.asarray(vectorizer.idf_, dtype=np.float64)
        self.components = _svd(counts, self.config.components, self.label)
        mean = np.asarray((counts @ self.components.T).mean(axis=0), dtype=np.float64)
        self.mean = mean if self.config.centre else np.zeros_like(mean)
        self._documents = digest(*documents)
        self._vectorizer_cache = None

    _vectorizer_cache: TfidfVectorizer | None = None

    @property
    def _vectorizer(self) -> TfidfVectorizer:
        """The fitted vectoriser, rebuilt from vocabulary and frequencies."""
        if self._vectorizer_cache is None:
            from sklearn.feature_extraction.text import TfidfVectorizer

            self._vectorizer_cache = TfidfVectorizer(
                vocabulary={word: i for i, word in enumerate(self.vocabulary)}, **self._options()
            )
            self._vectorizer_cache.idf_ = self.idf
        return self._vectorizer_cache

    def _options(self) -> dict[str, Any]:
        words = None if self.config.stop_words == "none" else self.config.stop_words
        return {"stop_words": words, "sublinear_tf": self.config.sublinear}

    def encode_captions(self, captions: Sequence[Sequence[str]]) -> EncodedBatch:
        self._require_fit()
        pooled = self._vectorizer.transform(_join(captions)) @ self.components.T - self.mean
        return EncodedBatch(tokens=None, pooled=np.asarray(pooled, dtype=np.float32))

    # The identity holds the documents that were learnt, not the floats that came of it: the last bit of an SVD
    # depends on the number of threads, the documents do not. The floats have their own checksum on disk.
    def _facts(self) -> dict[str, Any]:
        return {"documents": self._documents, "vocabulary": digest(*self.vocabulary)}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"idf": self.idf, "components": self.components, "mean": self.mean}

    def _notes(self) -> dict[str, Any]:
        return {"vocabulary": list(self.vocabulary), "documents": self._documents}

    def _restore(self, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        self.vocabulary = tuple(notes["vocabulary"])
        self._documents = notes["documents"]
        self.idf, self.components, self.mean = arrays["idf"], arrays["components"], arrays["mean"]
        if self.components.shape != (self.config.components, len(self.vocabulary)):
            raise ValueError(
                f"components have shape {self.components.shape}, the vocabulary {len(self.vocabulary)} words"
            )


def _join(captions: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(texts) for texts in captions]


def _svd(counts: csr_matrix, components: int, label: str) -> np.ndarray:
    """Right singular vectors (components, words), largest singular value first, with a fixed sign."""
    from sklearn.decomposition import TruncatedSVD

    documents, words = counts.shape
    most = min(components, min(documents, words) - 1)
    if most > 0:
        solver = TruncatedSVD(most, algorithm="arpack", random_state=0).fit(counts)
        # beyond the rank of the documents (duplicates) the vectors are noise and would differ from run to run
        most = int((solver.singular_values_ > 1e-9 * solver.singular_values_[0]).sum())
    if components > most:
        raise InputError(
            f"encoder {label!r} asks for {components} components; {documents} training stimuli with {words} words "
            f"allow at most {most}"
        )
    vectors = np.asarray(solver.components_, dtype=np.float64)
    leading = np.abs(vectors).argmax(axis=1)
    return vectors * np.sign(vectors[np.arange(components), leading])[:, None]
