"""Made-up sites for the tests of the federation: a latent meaning behind brains, images and texts."""

from __future__ import annotations

import numpy as np
import torch

from phosphene.federation.client import client_update
from phosphene.federation.missing import missing_pattern
from phosphene.federation.server import first_state, server_update
from phosphene.federation.settings import FederationSettings
from phosphene.federation.state import Agreement, GlobalState, SiteState
from phosphene.federation.trials import Inputs, Trials

CLASSES, LATENT, IMAGE_WIDTH, TEXT_WIDTH = 4, 6, 10, 7
AGREEMENT = Agreement(tuple("abcd"), IMAGE_WIDTH, TEXT_WIDTH, 16, "image:1", "text:1")
TINY = {
    "model": {"width": 16, "adapter": "learned"},
    "client": {"epochs": 1, "batch_size": 16},
    "library": {"min_count": 1},
}


def settings(preset: str = "default", **changes) -> FederationSettings:
    """A preset at a size for tests."""
    tiny = {part: each for part, each in TINY.items() if (part, preset) != ("library", "modality-dropout")}
    merged = {part: {**tiny.get(part, {}), **changes.get(part, {})} for part in {**tiny, **changes} if part != "seed"}
    return FederationSettings.preset(preset, **merged, **({"seed": changes["seed"]} if "seed" in changes else {}))


def made_trials(seed: int, people: dict[str, int], n: int = 24, noise: float = 0.4, public: int = 0) -> Trials:
    """Trials whose image, text and voxels all come from a class and a latent vector; `public` ones have no brain."""
    world = np.random.default_rng(99)
    centres, to_image, to_text = (
        3 * world.normal(size=(CLASSES, LATENT)),
        world.normal(size=(LATENT, IMAGE_WIDTH)),
        world.normal(size=(LATENT, TEXT_WIDTH)),
    )
    rng = np.random.default_rng(seed)
    subjects = [person for person in people for _ in range(n)] + [""] * public
    classes = rng.integers(CLASSES, size=len(subjects))
    latent = centres[classes] + rng.normal(size=(len(subjects), LATENT))
    image = latent @ to_image + noise * rng.normal(size=(len(subjects), IMAGE_WIDTH))
    text = latent @ to_text + noise * rng.normal(size=(len(subjects), TEXT_WIDTH))
    responses, start = {}, 0
    for person, n_voxels in people.items():
        code = np.random.default_rng(sum(map(ord, person))).normal(size=(LATENT, n_voxels))
        seen = latent[start : start + n] @ code
        responses[person] = tensor(seen / seen.std() + noise * rng.normal(size=(n, n_voxels)))
        start += n
    present = torch.ones(len(subjects), 3, dtype=torch.bool)
    present[len(subjects) - public :, 0] = public == 0
    inputs = Inputs(np.array(subjects, dtype=str), responses, tensor(image), tensor(text), present)
    labels = torch.eye(CLASSES)[torch.from_numpy(classes)]
    return Trials(inputs, np.array([f"s{seed}-{row}" for row in range(len(subjects))]), labels)


def made_sites(rate: float = 0.3, n: int = 24) -> list[SiteState]:
    """Three sites: one person, two people, and one person beside public stimuli without a brain."""
    plans = {"north": ({"p1": 20}, 0), "south": ({"p2": 25, "p3": 30}, 0), "west": ({"p4": 15}, 10)}
    sites = []
    for seed, (name, (people, public)) in enumerate(plans.items()):
        trials = made_trials(seed, people, n, public=public)
        pattern = missing_pattern(trials.ids, rate, seed=3, site=name, available=trials.present.numpy())
        sites.append(SiteState(name, trials.hiding(pattern), AGREEMENT))
    return sites


def run(
    sites: list[SiteState], chosen: FederationSettings, rounds: int, shared: GlobalState | None = None
) -> tuple[GlobalState, list[SiteState], list[list]]:
    """Some rounds in process; the contributions of every round as well."""
    shared = first_state(sites[0].agreement, chosen) if shared is None else shared
    sent = []
    for _ in range(rounds):
        pairs = [client_update(site, shared, chosen) for site in sites]
        sites = [site for _, site in pairs]
        sent.append([contribution for contribution, _ in pairs])
        shared = server_update(shared, sent[-1], chosen)
    return shared, sites, sent


def tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two dictionaries of tensors have the same names and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def interrupting(monkeypatch, place, name: str, at: int) -> None:
    """The call with this number is Ctrl-C."""
    real, calls = getattr(place, name), []

    def called(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, called)
