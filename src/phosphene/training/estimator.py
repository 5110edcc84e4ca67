"""A scikit-learn face, for those who already hold arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from phosphene.encoders import given_targets
from phosphene.recordings import Recording, Study
from phosphene.stimuli import StimulusSet
from phosphene.table import Table
from phosphene.training.fit import fit

__all__ = ["DecoderRegressor"]

_SUBJECT = "sub-01"


class DecoderRegressor(RegressorMixin, BaseEstimator):
    """Any decoder as a scikit-learn regressor from responses to embeddings of one person.

    Every row is taken as the response to a stimulus of its own. `score` is the coefficient of determination, averaged
    over outputs, as of every scikit-learn regressor.

    Parameters
    ----------
    decoder : str
        Name of the decoder, e.g. ``"ridge"``.
    preset : str, optional
        A preset of it.
    settings, training : mapping, optional
        Settings of decoder and training.
    seed : int
        Of everything random.

    Attributes
    ----------
    decoder_ : Decoder
        The fitted decoder.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 20)).astype("float32")
    >>> round(DecoderRegressor("ridge").fit(x, x[:, :2]).score(x, x[:, :2]), 2)
    1.0
    """

    def __init__(
        self,
        decoder: str = "ridge",
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.decoder = decoder
        self.preset = preset
        self.settings = settings
        self.training = training
        self.seed = seed

    def fit(self, X: Any, y: Any) -> DecoderRegressor:
        """Fit to responses ``(n, voxels)`` and embeddings ``(n,)``, ``(n, width)``; all finite."""
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float32, ensure_min_samples=2)
        self._flat_output = y.ndim == 1
        ids = np.array([f"row-{row}" for row in range(len(X))])
        voxels = Table({"voxel": np.arange(X.shape[1])})
        person = Recording(_SUBJECT, X, Table({"stimulus_id": ids}), voxels)
        study = Study(StimulusSet(ids), [person], {"default": {"train": ids}}, scaling="none")
        targets = given_targets(ids, y.reshape(len(y), -1), label="y")
        self.decoder_ = fit(
            self.decoder,
            study,
            targets,
            preset=self.preset,
            seed=self.seed,
            progress=False,
            training=self.training,
            **(self.settings or {}),
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predicted embeddings, ``(n, width)``, or ``(n,)`` where `y` had one axis."""
        check_is_fitted(self, "decoder_")
        X = validate_data(self, X, dtype=np.float32, reset=False)
        predicted = self.decoder_.predict(X, _SUBJECT).astype(np.float64)
        return predicted[:, 0] if self._flat_output else predicted

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
