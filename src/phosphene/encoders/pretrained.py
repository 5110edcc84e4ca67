"""What encoders over a network with weights on disk share: finding, identifying and loading it once."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phosphene.encoders.base import Encoder, EncoderConfig
from phosphene.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["PretrainedEncoder"]


class PretrainedEncoder(Encoder):
    """An encoder over a network that is found, identified and loaded once, when first needed.

    A saved encoder holds the model's name and the hashes of its files, not the weights: it is found again by name or
    by `locate`, and refused if the files are others.
    """

    batch_size = 32

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__(config)
        self._folder: Path | None = None
        self._known: dict[str, Any] | None = None
        self._network: torch.nn.Module | None = None

    @property
    def source(self) -> str:
        """Name or folder of the model."""
        return str(self.config.source)

    @property
    def label(self) -> str:
        source = self.source
        return f"{self.name}:{Path(source).name if Path(source).is_absolute() else source}"

    @property
    def saved_label(self) -> str:
        return f"{self.name}:{self._saved_config()['source']}" if "source" in self._saved_config() else self.label

    def locate(self, folder: str | Path) -> None:
        """Say where the model's files are, for a loaded encoder whose model is not where its name says."""
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"{folder} is not the folder of a model: no config.json")
        self._folder, self._network = Path(folder), None

    @property
    def folder(self) -> Path:
        """Folder of the model, checked against the recorded identity."""
        if self._folder is None:
            self._folder = self._find()
        if self._known is not None and self._network is None:
            found = self._read_facts(self._folder)
            if found != self._known:
                wrong = ", ".join(key for key in self._known if found.get(key) != self._known[key])
                raise InputError(
                    f"the model in {self._folder} is not the one encoder {self.label!r} was made with: {wrong} differ"
                )
        return self._folder

    @abstractmethod
    def _find(self) -> Path:
        """Folder of the model, by its name."""

    @abstractmethod
    def _read_facts(self, folder: Path) -> dict[str, Any]:
        """Hashes and preprocessing of the model in a folder."""

    @abstractmethod
    def _load(self, folder: Path) -> torch.nn.Module:
        """Load the network."""

    def network(self) -> torch.nn.Module:
        """The network on the encoder's device; loaded at the first call."""
        if self._network is None:
            folder = self.folder
            self._known = self._facts()
            self._network = self._load(folder)
        return self._network.to(self.device)

    def _facts(self) -> dict[str, Any]:
        if self._known is None:
            self._known = self._read_facts(self.folder)
        return self._known

    def _identity_config(self) -> dict[str, Any]:
        settings = super()._identity_config()
        settings.pop("source", None)
        return settings

    def _saved_config(self) -> dict[str, Any]:
        settings = super()._saved_config()
        if "source" in settings and Path(settings["source"]).expanduser().is_dir():
            settings["source"] = Path(settings["source"]).expanduser().resolve().name
        return settings

    def _notes(self) -> dict[str, Any]:
        return {"facts": self._facts()}

    def _restore(self, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        self._known = dict(notes["facts"])
