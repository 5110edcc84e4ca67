"""Made-up hospitals for the tests of the missing-modality matrix: a class and a latent behind brains, images, texts."""

from __future__ import annotations

import numpy as np
import torch

from phosphene.evaluation.hospitals import Hospitals
from phosphene.federation.trials import Inputs, Trials

CLASSES, LATENT, IMAGE, TEXT = 3, 5, 8, 6
COMMON = {"model": {"width": 16, "adapter": "learned"}, "client": {"epochs": 2, "batch_size": 32}}


def made_hospitals(
    n: int = 80, n_test: int = 40, sites: int = 3, noise: float = 0.5, several: bool = False
) -> Hospitals:
    """One person a site; everybody sees the same test stimuli. With `several`, a stimulus may have more classes."""
    world = np.random.default_rng(5)
    centres = 3 * world.normal(size=(CLASSES, LATENT))
    to_image, to_text = world.normal(size=(LATENT, IMAGE)), world.normal(size=(LATENT, TEXT))
    train, test = {}, {}
    shared = _stimuli(world, centres, n_test, several)
    for number in range(sites):
        rng = np.random.default_rng(100 + number)
        code = rng.normal(size=(LATENT, 20 + number))
        for part, role, seen in (("s", train, _stimuli(rng, centres, n, several)), ("t", test, shared)):
            latent, labels = seen
            picture, words = latent @ to_image, latent @ to_text  # the same for whoever sees it
            brain = latent @ code / 3 + noise * rng.normal(size=(len(latent), code.shape[1]))
            name = f"p{number}"
            inputs = Inputs(
                np.full(len(latent), name),
                {name: _tensor(brain)},
                _tensor(picture),
                _tensor(words),
                torch.ones(len(latent), 3, dtype=torch.bool),
            )
            lead = f"{part}{number}" if part == "s" else part
            role[f"site-{number}"] = Trials(inputs, np.array([f"{lead}-{row}" for row in range(len(latent))]), labels)
    ids = test["site-0"].ids.tolist()
    return Hospitals(train, test, (IMAGE, "image:1"), (TEXT, "text:1"), tuple("abc"), {name: name for name in ids})


def _stimuli(rng: np.random.Generator, centres: np.ndarray, n: int, several: bool) -> tuple[np.ndarray, torch.Tensor]:
    of = rng.integers(CLASSES, size=n)
    labels = torch.eye(CLASSES)[torch.from_numpy(of)]
    if several:
        labels[: n // 3, 0] = 1.0
    return centres[of] + rng.normal(size=(n, LATENT)), labels


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
