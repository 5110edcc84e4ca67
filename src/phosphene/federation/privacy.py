r"""What a site changes before it sends: clipping, and Gaussian noise on weights, sums and counts.

Two things are released in a round, and each has a bound on what one unit of protection can change in it.

*Weights.* A site's update is clipped to the norm :math:`c` (`aggregation.clip_norm`). A site that is there or not
changes it by at most :math:`c`; a trial that is there or not turns one clipped update into another, at most
:math:`2c` apart.

*Prototypes.* Sums and counts of a site's library are released together, as one vector; see `library_sensitivity`.

Noise is added at the site, so that it also protects from the server. Where the server sees nothing but secure sums of
at least `shares` sites, each need add only its share, :math:`1/\sqrt{shares}` of the deviation: the sum has it all.
What it is worth is reckoned by `phosphene.federation.accounting`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from phosphene.errors import InputError
from phosphene.federation.accounting import Release
from phosphene.federation.aggregation import clip_norm
from phosphene.federation.noise import NoiseSource
from phosphene.federation.trial_sgd import TrialSgdSettings
from phosphene.settings import Settings

__all__ = ["PrivacySettings", "Protection", "clip_labels", "library_sensitivity"]

_GRID = 2.0**-30  # libraries are multiples of it, so that their sums are exact in any order
_FEATURE_ROUNDING = 2.0**-19  # a feature is rounded by at most this before it enters a sum
_RELATIVE = 2.0**-20  # float32 rounding of a clipped vector's norm
_NO_LIMIT = 1e300


class PrivacySettings(Settings):
    """How much a site's contribution is clipped and blurred. Without a limit the part is sent as it is."""

    update_limit: float | None = Field(default=None, gt=0, description="Euclidean norm to which updates are clipped")
    update_noise: float = Field(default=1.0, gt=0, description="standard deviation, in limits of the update")
    feature_limit: float | None = Field(default=None, gt=0, description="norm to which a trial's features are clipped")
    library_noise: float = Field(
        default=1.0, gt=0, description="standard deviation, in what one trial can change in sums and counts"
    )
    classes_per_trial: int = Field(default=1, ge=1, description="classes that a trial may enter; its largest labels")
    count_weight: float | None = Field(
        default=None, gt=0, description="of a count, in feature limits; by default width^-1/4, see library_sensitivity"
    )
    delta: float = Field(default=1e-5, gt=0, lt=0.1, description="well below one over the number of trials")
    epsilon_limit: float | None = Field(default=None, gt=0, description="per trial; a site that reached it is silent")
    shares: int = Field(
        default=1, ge=1, description="sites among whom one noise is split, where only secure sums of so many are seen"
    )
    trial_sgd: TrialSgdSettings | None = Field(default=None, description="train privately per trial, with Opacus")
    seed: int | None = Field(default=None, ge=0, description="of the noise, for studies only; default: cryptographic")

    @classmethod
    def asked(cls, given: Mapping[str, Any]) -> Self | None:
        """What was asked for; None where nothing was.

        Raises
        ------
        InputError
            For unknown settings, and those without a use under the others.

        Examples
        --------
        >>> PrivacySettings.asked({"update_limit": 4.0}).update_noise
        1.0
        """
        if not given:
            return None
        made = cls.build(given)
        if idle := made.idle(given):
            raise InputError("; ".join(f"privacy.{name} has no use: {why}" for name, why in idle.items()))
        return made

    def without_use(self) -> dict[str, str]:
        """Settings that others leave without a use, and why."""
        idle = {}
        if self.update_limit is None:
            idle["update_noise"] = "without update_limit updates are sent as they are"
        if self.feature_limit is None:
            names = ("library_noise", "classes_per_trial", "count_weight")
            idle |= dict.fromkeys(names, "without feature_limit prototypes are sent as they are")
        if self.update_limit is None and self.feature_limit is None:
            idle["shares"] = "no noise is added that could be split"
        return idle


def clip_labels(labels: Tensor, classes: int) -> Tensor:
    """Soft labels (n, C) in [0, 1] of which each row keeps its largest `classes`, the earlier ones where they tie.

    Raises
    ------
    InputError
        For labels outside [0, 1].

    Examples
    --------
    >>> clip_labels(torch.tensor([[0.25, 1.0, 0.25]]), 2).tolist()
    [[0.25, 1.0, 0.0]]
    """
    if not bool(((labels >= 0) & (labels <= 1)).all()):
        raise InputError("labels lie in [0, 1]: only then is it bounded what a trial adds to a count")
    if classes >= labels.shape[1]:
        return labels.clone()
    order = labels.argsort(dim=1, descending=True, stable=True)
    return labels.scatter(1, order[:, classes:], 0.0)


def library_sensitivity(feature_limit: float, classes: int, width: int, count_weight: float, parts: int = 4) -> float:
    r"""How far one trial can move sums and counts together.

    Sums and counts are released as one vector :math:`(S, \gamma N)`. A trial with labels :math:`s_c` adds
    :math:`s_c h^m` to the sum and :math:`s_c` to the count of class `c` in every part `m` (fMRI, image, text, fusion)
    that it has, in one centre of the class. With :math:`\lVert h^m \rVert \le R`, :math:`0 \le s_c \le 1`, at most `J`
    labels that are not 0 and `G` parts, the trial's being there or not changes the vector by

    .. math:: \Delta^2 = \sum_{m} \sum_c s_c^2 \left(\lVert h^m \rVert^2 + \gamma^2\right)
              \le G J \left(R^2 + \gamma^2\right)

    and a trial of `G` parts, `J` labels of 1 and features of norm `R` reaches it. :math:`\gamma = \beta R`: with noise
    of deviation :math:`z \Delta` on the vector, sums get :math:`z R \sqrt{GJ(1+\beta^2)}` and counts
    :math:`z \sqrt{GJ(1+1/\beta^2)}`. The error of a prototype of norm near `R`, :math:`S/N`, is then least at
    :math:`\beta = d^{-1/4}`: its d numbers share the noise of the sums, the count's falls on all of them.

    It is taken for granted that the centres are not fitted on the trials, that a trial's features depend on no other
    trial of the site (see `Protection`), and that a trial stands in one site, once.

    Parameters
    ----------
    feature_limit : float
        `R`. Rounding of features to the library's grid and to float32 is added to it here.
    classes : int
        `J`.
    width : int
        `d`.
    count_weight : float
        :math:`\beta`.
    parts : int
        `G`.

    Returns
    -------
    float
        :math:`\Delta`, in units of features.
    """
    reach = feature_limit * (1 + _RELATIVE) + math.sqrt(width) * _FEATURE_ROUNDING
    return math.sqrt(parts * classes * (reach**2 + (count_weight * feature_limit) ** 2))


class Protection:
    """Clips and blurs what one site releases in a round, and says what that is for the accountant.

    What a trial's prototypes promise is reckoned for features that other trials of the site have no part in: from
    weights that were received, or trained by `trial_sgd` (`protected.protected_update` sees to it). A private adapter
    trained on the same trials otherwise is such a part; the statement tells it (`accounting.Guarantee`).

    Parameters
    ----------
    settings : PrivacySettings
    width : int
        Of features.
    parts : int
        That a trial can enter: the modalities and the fusion.

    Attributes
    ----------
    update_deviation, sum_deviation, count_deviation : float
        Standard deviation of what one site adds to every number of the update, sums and counts; 0 for what is sent as
        it is.
    """

    def __init__(self, settings: PrivacySettings, width: int, parts: int = 4) -> None:
        self.settings = settings
        self.update_deviation = settings.update_noise * (settings.update_limit or 0.0) / math.sqrt(settings.shares)
        self.sum_deviation = self.count_deviation = 0.0
        if settings.feature_limit:
            weight = settings.count_weight or width**-0.25
            reach = library_sensitivity(settings.feature_limit, settings.classes_per_trial, width, weight, parts)
            self.sum_deviation = settings.library_noise * reach / math.sqrt(settings.shares)
            self.count_deviation = self.sum_deviation / (weight * settings.feature_limit)

    def update(self, update: Mapping[str, Tensor], source: NoiseSource) -> tuple[dict[str, Tensor], float]:
        """The update, clipped and with noise, and its norm before, which is for the site's own eyes.

        Raises
        ------
        InputError
            As of `aggregation.clip_norm`; no noise hides a number that is not finite.
        """
        if self.settings.update_limit is None:
            return clip_norm(update, _NO_LIMIT)
        clipped, norm = clip_norm(update, self.settings.update_limit)
        for name in sorted(clipped):
            noise = source.normal(clipped[name].shape, self.update_deviation).to(clipped[name].device)
            clipped[name] = (clipped[name].double() + noise).float()
        return clipped, norm

    def library(self, sums: Tensor, counts: Tensor, source: NoiseSource) -> tuple[Tensor, Tensor]:
        """Sums (..., d) and counts (...) of clipped features and labels (`clip_labels`), with noise in every cell.

        Classes that the site does not have get noise like all others, or their absence would show; an age is to be
        told from these counts alone. Counts may come out negative. A least count of several `count_deviation` keeps
        cells of noise from being read. Everything is rounded to the library's grid, so that sums stay exact.

        Raises
        ------
        InputError
            For sums or counts that are not finite float64.
        """
        for name, tensor in (("sums", sums), ("counts", counts)):
            if tensor.dtype != torch.float64 or not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"{name} of a library are finite float64, found {tensor.dtype} or numbers that are not"
                )
        if self.settings.feature_limit is None:
            return sums.clone(), counts.clone()
        blurred = [
            tensor + source.normal(tensor.shape, deviation).to(tensor.device)
            for tensor, deviation in ((sums, self.sum_deviation), (counts, self.count_deviation))
        ]
        return tuple((tensor / _GRID).round() * _GRID for tensor in blurred)  # type: ignore[return-value]

    def least_count(self, sites: int) -> float:
        """Three standard deviations of the noise that so many sites' counts add up to: what to release from."""
        return 3 * self.count_deviation * math.sqrt(sites)

    def releases(self, weights: bool = True, library: bool = True, gradients: Sequence[Release] = ()) -> list[Release]:
        """What one round of a site that sends these costs, for `accounting.Accountant.spend`.

        Parameters
        ----------
        weights, library : bool
            Whether they are sent.
        gradients : sequence of Release
            Of `trial_sgd.TrialSgd`, where it trained all that is shared: then weights without an `update_limit` hold
            nothing more.
        """
        made, shares = list(gradients), self.settings.shares
        if weights and (self.settings.update_limit or not gradients):
            made.append(_release("weights", self.settings.update_limit, self.settings.update_noise, shares))
        if library:
            made.append(_release("library", self.settings.feature_limit, self.settings.library_noise, shares))
        return made


def _release(what: Literal["weights", "library"], limit: float | None, noise: float, shares: int) -> Release:
    return Release(what, None) if limit is None else Release(what, noise, shares=shares)
