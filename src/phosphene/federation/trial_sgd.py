"""DP-SGD with the trial as its unit, through Opacus: for the classification loss, which is a sum over trials.

Each trial's gradient is taken by itself, from a batch of one, so that it holds nothing of other trials whatever the
network does with a batch. Opacus clips them, adds noise and hands the result to the optimiser (Abadi et al., 2016).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from phosphene.errors import InputError, require
from phosphene.federation.accounting import Release
from phosphene.federation.randomness import seed_of
from phosphene.settings import Settings

__all__ = ["TrialSgd", "TrialSgdSettings", "check_terms"]

PER_TRIAL = ("task", "proximal")


class TrialSgdSettings(Settings):
    """Settings of private training."""

    gradient_limit: float = Field(
        default=1.0, gt=0, description="Euclidean norm to which a trial's gradient is clipped"
    )
    noise: float = Field(default=1.0, gt=0, description="standard deviation, in limits of the gradient")
    batch_size: int = Field(default=64, ge=1, description="trials in a batch on average; each is in it by chance")

    def rate(self, n_trials: int) -> float:
        """Probability of each of so many trials to be in a batch."""
        return min(1.0, self.batch_size / n_trials)

    def steps(self, n_trials: int, epochs: int) -> int:
        """How many batches so many epochs are.

        Raises
        ------
        InputError
            Without trials or epochs.
        """
        if n_trials < 1 or epochs < 1:
            raise InputError(f"private training needs trials and epochs of at least 1, found {n_trials} and {epochs}")
        return epochs * max(1, round(1 / self.rate(n_trials)))

    def release(self, n_trials: int, epochs: int) -> Release:
        """What so many epochs cost, for `accounting.Accountant.spend`; errors as of `steps`."""
        return Release("gradients", self.noise, steps=self.steps(n_trials, epochs), rate=self.rate(n_trials))


def check_terms(terms: Sequence[str]) -> None:
    """Refuse losses that are no sum over trials.

    Parameters
    ----------
    terms : sequence of str
        Names of the loss's terms, as of `objective.losses`: ``"task"`` and ``"proximal"`` will do.

    Raises
    ------
    InputError
        With the reason.

    Examples
    --------
    >>> check_terms(["task"])
    """
    if wrong := sorted(set(terms) - set(PER_TRIAL)):
        raise InputError(
            f"private training per trial is for the classification loss alone, not with: {', '.join(wrong)}. In a "
            f"contrastive loss every trial is also a negative of the others: the gradient of one holds the whole "
            f"batch, and clipping it bounds nothing. Set its weight to 0, or protect the update (privacy.update_limit)"
        )


class TrialSgd:
    """Makes the steps of an optimiser private.

    Parameters
    ----------
    module : Module
        All its parameters that ask for gradients are trained, those of private adapters too.
    optimiser : Optimizer
        Over these parameters.
    settings : TrialSgdSettings
    n_trials : int
        That the site trains on.
    terms : sequence of str
        Of the loss, see `check_terms`.
    seed : int, optional
        Of batches and noise, for studies only. By default torch's generator starts from the system's cryptographic
        source; it is no cryptographic generator itself.
    *names
        What else the start depends on, such as site and round.

    Raises
    ------
    InputError
        For terms that are no sum over trials, for layers that mix the trials of a batch, without trials, and for
        parameters that the optimiser does not have.
    MissingDependencyError
        Without Opacus.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: TrialSgdSettings,
        n_trials: int,
        terms: Sequence[str] = ("task",),
        seed: int | None = None,
        *names: str | int,
    ) -> None:
        check_terms(terms)
        if n_trials < 1:
            raise InputError("private training needs at least one trial")
        if mixing := sorted(name for name, each in module.named_modules() if isinstance(each, _BatchNorm)):
            raise InputError(f"layers that mix the trials of a batch cannot be trained per trial: {', '.join(mixing)}")
        optimisers = require("opacus.optimizers", "privacy", "private training per trial")
        self._draws = torch.Generator()
        start = secrets.randbits(63) if seed is None else seed_of(seed, "trial-sgd", *names)
        self._draws.manual_seed(start)
        self.settings, self.n_trials = settings, n_trials
        self.rate = settings.rate(n_trials)
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        known = {id(each) for group in optimiser.param_groups for each in group["params"]}
        if {id(each) for each in self._parameters} - known:
            raise InputError("the optimiser lacks parameters of the network: they would be trained without protection")
        self._private = optimisers.DPOptimizer(
            optimiser,
            noise_multiplier=settings.noise,
            max_grad_norm=settings.gradient_limit,
            expected_batch_size=max(1, round(self.rate * n_trials)),
            generator=self._draws,
        )

    def batches(self, epochs: int) -> Iterator[Tensor]:
        """Rows of trials: each is in each batch with probability `rate`. A batch may be empty, and counts."""
        for _ in range(self.settings.steps(self.n_trials, epochs)):
            yield (torch.rand(self.n_trials, generator=self._draws) < self.rate).nonzero().flatten()

    def step(self, rows: Tensor, loss_of: Callable[[int], Tensor]) -> float:
        """One step; the mean loss of the batch, which is not protected, 0 where it is empty.

        Parameters
        ----------
        rows : Tensor (b,) of int
            Of `batches`.
        loss_of : callable
            From one row to its loss, made of that trial and of nothing else that is secret.
        """
        gradients: list[list[Tensor]] = [[] for _ in self._parameters]
        total = 0.0
        for row in rows.tolist():
            loss = loss_of(row)
            total += float(loss.detach())
            found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            for into, gradient, parameter in zip(gradients, found, self._parameters, strict=True):
                into.append(torch.zeros_like(parameter) if gradient is None else gradient)
        self._private.zero_grad(set_to_none=True)
        for parameter, each in zip(self._parameters, gradients, strict=True):
            stacked = torch.stack(each) if each else parameter.new_zeros(0, *parameter.shape)
            parameter.grad_sample = stacked  # type: ignore[attr-defined]  # where Opacus looks for it
        self._private.step()
        self._private.zero_grad(set_to_none=True)
        return total / max(1, len(rows))
