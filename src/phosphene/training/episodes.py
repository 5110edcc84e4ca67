"""Training in episodes: what is a person's own adapts to some sessions, what is shared learns from the others.

For each person of a step, with own parameters :math:`\\phi_s` and shared ones :math:`\\theta`,

.. math:: \\phi_s' = \\phi_s - \\eta \\sum_{i<k} \\nabla_{\\phi} L_{support}(\\theta, \\phi^{(i)}), \\qquad
          \\min_{\\theta, \\phi} \\sum_s L_{query}(\\theta, \\phi_s')

to first order: the gradient at :math:`\\phi_s'` is taken for that at :math:`\\phi_s` (Finn et al., 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from phosphene.decoders import Decoder, Episodes
from phosphene.errors import InputError
from phosphene.training.data import StepBatch, StepLoader
from phosphene.training.objective import Objective, Outputs, TrainingStep
from phosphene.training.sampling import episode_generator
from phosphene.training.settings import TrainingConfig

__all__ = ["EpisodeBatch", "EpisodeLoader", "EpisodeStep", "check_episodes", "check_sessions"]


def check_episodes(config: TrainingConfig, processes: int) -> None:
    """Refuse settings that mean nothing in episodes.

    Raises
    ------
    InputError
    """
    wrong = {
        "repeats = 'average' (a mean over repeats has no session)": config.repeats == "average",
        "mixing_fraction > 0": config.mixing_fraction > 0,
        "compile = true": config.compile,
        f"{processes} processes": processes > 1,
    }
    found = [words for words, is_so in wrong.items() if is_so]
    if found:
        raise InputError(f"training in episodes of sessions does not go with {', '.join(found)}")


def check_sessions(sessions: Mapping[str, np.ndarray]) -> None:
    """Refuse people, with the sessions of their training trials, who have but a single one.

    Raises
    ------
    InputError
    """
    single = [name for name, each in sessions.items() if len(np.unique(each)) < 2]
    if single:
        raise InputError(f"episodes need two sessions of training trials a person; one only: {', '.join(single)}")


class EpisodeBatch(StepBatch):
    """A step batch of queries, and one of support for each of its calls.

    Attributes
    ----------
    support : list of StepBatch
        Of one person each, from other sessions than the person's queries.
    """

    def __init__(self, query: StepBatch, support: list[StepBatch]) -> None:
        self.__dict__.update(query.__dict__)
        self.support = support

    def to(self, device: torch.device) -> StepBatch:
        """The same batch on a device."""
        return EpisodeBatch(super().to(device), [one.to(device) for one in self.support])


class EpisodeLoader(StepLoader):
    """Makes the episodes of any step: for each person, support from half of the sessions, queries from the others.

    Parameters
    ----------
    loader : StepLoader
        Whose people, targets and shares they are.
    seed : int

    Raises
    ------
    InputError
        For a person with a single session.
    """

    def __init__(self, loader: StepLoader, seed: int) -> None:
        super().__init__(list(loader.people.values()), loader.targets, loader.sampler, ahead=loader.ahead)
        self.seed = seed
        self.sessions = {
            name: np.asarray(samples.view.trials(name)["session"]) for name, samples in loader.people.items()
        }
        check_sessions(self.sessions)

    def draw(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Sample numbers of support and query of each person, a function of (seed, step)."""
        support: dict[str, np.ndarray] = {}
        query: dict[str, np.ndarray] = {}
        for person, (name, sessions) in enumerate(self.sessions.items()):
            generator, share = episode_generator(self.seed, person, step), self.sampler.shares[name]
            order = generator.permutation(np.unique(sessions))
            among = np.isin(sessions, order[: len(order) // 2])
            for part, mask in ((support, among), (query, ~among)):
                pool = np.flatnonzero(mask)
                part[name] = generator.choice(pool, min(share, len(pool)), replace=False)
        return support, query

    def batch(self, step: int) -> EpisodeBatch:
        """The episodes of one step."""
        support, query = self.draw(step)
        return EpisodeBatch(self.assembled(query), [self.assembled({name: rows}) for name, rows in support.items()])


class EpisodeStep(TrainingStep):
    """One step over the episodes of all people.

    Parameters
    ----------
    decoder : Decoder
    objective : Objective
    episodes : Episodes
    """

    def __init__(self, decoder: Decoder, objective: Objective, episodes: Episodes) -> None:
        super().__init__(decoder, objective)
        self.episodes = episodes

    def forward(self, batch: Any, scheduled: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the queries of all people and its parts."""
        adapted = [self.adapted(one, scheduled) for one in batch.support]
        self.decoder.penalties()  # those of the support passes do not count
        predictions = [
            functional_call(self.decoder, own, (responses, subject))
            for own, (subject, responses) in zip(adapted, batch.calls, strict=True)
        ]
        return self._scored(predictions, batch, scheduled)

    def adapted(self, support: StepBatch, scheduled: float) -> dict[str, Tensor]:
        """A person's own parameters after the inner steps; gradients pass through to those before."""
        ((subject, responses),) = support.calls
        known = dict(self.decoder.named_parameters())
        own: dict[str, Tensor] = {name: known[name] for name in self.episodes.own(subject)}
        for _ in range(self.episodes.steps):
            prediction = functional_call(self.decoder, own, (responses, subject))
            with torch.autocast(responses.device.type, enabled=False):
                loss, _ = self.objective(Outputs.of([prediction], support.sizes), support, scheduled)
            gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
            own = {
                name: tensor if gradient is None else tensor - self.episodes.rate * gradient.detach()
                for (name, tensor), gradient in zip(own.items(), gradients, strict=True)
            }
        return own
