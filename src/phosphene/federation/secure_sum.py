r"""Sums of which nobody sees the summands: pairwise masks in fixed point modulo 2^64.

Every two sites share a seed. Site `i` sends, in whole numbers modulo :math:`2^{64}`,

.. math:: y_i = \mathrm{round}(2^b x_i) + \sum_{j > i} r_{ij} - \sum_{j < i} r_{ij}

with :math:`r_{ij}` a stream of SHAKE-128 from the seed of the pair and the round (Bonawitz et al., 2017, without their
second mask). One :math:`y_i` looks uniform; in the sum of all every stream stands once with each sign and is gone. The
sum of whole numbers is exact: the same bits in any order, and the same as without masks. With the `b` of a library's
grid, sums and counts lose nothing at all.

A site that drops out leaves the streams of its pairs behind. The others tell the server the seeds they share with it,
and the server takes those streams out. A server that calls a site missing that is not could then read it: what that
site sends late is refused here, but against a server that lies the second mask would be needed.

All of this runs in one process, for studies and as a reference: seeds are dealt, not agreed on over a network.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phosphene.errors import FederationError, InputError

__all__ = [
    "Masked",
    "SecureSum",
    "check_compatible",
    "deal",
    "mask",
    "mean_of",
    "of_fixed",
    "to_fixed",
    "unmask",
    "with_weight",
]

BITS = 30  # a library is a multiple of 2^-30
_SUMS = ("fedavg", "fedadam")
_WEIGHT = "weight"

Layout = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Masked:
    """What a site sends.

    Attributes
    ----------
    site : str
    round : int
    layout : tuple of (str, tuple of int)
        Names and shapes of the tensors, in the order of `values`.
    values : ndarray (n,) of uint64
    """

    site: str
    round: int
    layout: Layout
    values: np.ndarray


def check_compatible(aggregator: str, **of_single: object) -> None:
    """Refuse what needs to see single contributions.

    Parameters
    ----------
    aggregator : str
        Only those that rest on a sum will do: ``"fedavg"``, ``"fedadam"``.
    **of_single
        Settings of the server that look at one site's numbers, such as ``max_norm``; None where they are off.

    Raises
    ------
    InputError
        Naming what does not go together, and what to do.
    """
    if aggregator not in _SUMS:
        raise InputError(
            f"secure summation shows the server nothing but the sum, and {aggregator!r} compares single sites: use one "
            f"of {', '.join(_SUMS)}, or do without secure summation"
        )
    if looking := sorted(name for name, value in of_single.items() if value is not None):
        raise InputError(
            f"secure summation shows the server nothing but the sum: {', '.join(looking)} would look at single "
            f"updates. Switch off, or clip at the sites (privacy.update_limit)"
        )


def to_fixed(tensors: Mapping[str, Tensor], sites: int, bits: int = BITS) -> tuple[np.ndarray, Layout]:
    """Tensors as whole numbers modulo 2^64, multiples of ``2**-bits``, in the order of their names.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of floating point.
    sites : int
        How many will be added up: the sum of all must stay below 2^63.
    bits : int
        Behind the point, in 0 to 52.

    Raises
    ------
    InputError
        For numbers that are not finite or too large, and for tensors that are not of floating point.
    """
    if not 0 <= bits <= 52:
        raise InputError(f"bits behind the point lie in 0 to 52, found {bits}")
    if not tensors:
        raise InputError("there is nothing to add up")
    most = 2.0 ** (62 - bits) / sites
    pieces = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if not tensor.is_floating_point():
            raise InputError(f"{name!r} is {tensor.dtype}: only tensors of floating point are added up")
        numbers = tensor.double().numpy().reshape(-1)
        if not np.all(np.abs(numbers) <= most):  # NaN too
            raise InputError(
                f"{name!r} holds numbers that are not finite or above {most:.4g}, the most that {sites} sites can add "
                f"up with {bits} bits behind the point: clip it, or take fewer bits"
            )
        pieces.append(np.rint(numbers * 2.0**bits).astype(np.int64).view(np.uint64))
    layout = tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors))
    return np.concatenate(pieces), layout


def of_fixed(values: np.ndarray, layout: Layout, bits: int = BITS) -> dict[str, Tensor]:
    """Tensors in float64 from whole numbers modulo 2^64; exact for sums below 2^53 steps.

    Examples
    --------
    >>> fixed = to_fixed({"a": torch.tensor([-1.5, 2.0])}, sites=2)
    >>> of_fixed(*fixed)["a"].tolist()
    [-1.5, 2.0]
    """
    numbers = torch.from_numpy(values.view(np.int64).astype(np.float64) * 2.0**-bits)
    pieces = numbers.split([math.prod(shape) for _, shape in layout])
    return {name: piece.reshape(shape).clone() for (name, shape), piece in zip(layout, pieces, strict=True)}


def deal(sites: Iterable[str], seed: int | None = None) -> dict[str, dict[str, bytes]]:
    """A secret of 32 bytes for every two sites: of each site, those it shares, by the other's name.

    Parameters
    ----------
    sites : iterable of str
        At least two.
    seed : int, optional
        For tests alone. By default from the system's cryptographic source; the sum does not depend on it.

    Raises
    ------
    InputError
        For fewer than two sites, or names that occur twice.
    """
    names = sorted(sites)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"secure summation needs at least two sites, each once, found {', '.join(names) or 'none'}")
    dealt: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            words = f"{seed}/{len(one)}:{one}/{other}".encode()
            secret = secrets.token_bytes(32) if seed is None else hashlib.sha256(words).digest()
            dealt[one][other] = dealt[other][one] = secret
    return dealt


def mask(tensors: Mapping[str, Tensor], site: str, shared: Mapping[str, bytes], turn: int, bits: int = BITS) -> Masked:
    """What a site sends: its tensors in fixed point under the masks of all its pairs.

    A mask hides one message: the same secrets in the same round must not be used for another.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    site : str
    shared : mapping of str to bytes
        Secrets it shares with each of the other sites, `deal`.
    turn : int
        The round.
    bits : int
        As of `to_fixed`.
    """
    values, layout = to_fixed(tensors, len(shared) + 1, bits)
    for other, secret in shared.items():
        values = values + _stream(secret, turn, len(values)) * _sign(site, other)
    return Masked(site, turn, layout, values)


def unmask(
    sent: Sequence[Masked],
    sites: Iterable[str],
    revealed: Mapping[tuple[str, str], bytes],
    bits: int = BITS,
) -> dict[str, Tensor]:
    """The sum of what came, without the masks that the missing sites left behind.

    Parameters
    ----------
    sent : sequence of Masked
        Of one round, one a site.
    sites : iterable of str
        All that secrets were dealt to.
    revealed : mapping of (str, str) to bytes
        For every site that came and every one that did not, the secret of the two: what the first one tells.
    bits : int
        As in `mask`.

    Returns
    -------
    dict of str to Tensor
        float64.

    Raises
    ------
    FederationError
        Where a secret is not told that is needed: the sum cannot be read then.
    InputError
        For contributions that do not belong together.
    """
    everyone, came = set(sites), [each.site for each in sent]
    if not sent:
        raise FederationError("no site sent anything: there is no sum")
    if len(set(came)) < len(came) or not set(came) <= everyone:
        raise InputError(f"one contribution of each of {', '.join(sorted(everyone))} is added up, found {came}")
    for each in sent:
        if each.round != sent[0].round or each.layout != sent[0].layout:
            raise InputError(
                f"{each.site} sent other tensors, or those of another round ({each.round}), than {sent[0].site} "
                f"({sent[0].round})"
            )
    total = np.zeros_like(sent[0].values)
    for each in sent:
        total = total + each.values
    for site in sorted(came):
        for missing in sorted(everyone - set(came)):
            if (site, missing) not in revealed:
                raise FederationError(
                    f"{missing} dropped out and {site} does not tell the secret of the two: the sum of round "
                    f"{sent[0].round} cannot be read"
                )
            stream = _stream(revealed[site, missing], sent[0].round, len(total))
            total = total - stream * _sign(site, missing)
    return of_fixed(total, sent[0].layout, bits)


class SecureSum:
    """One round of secure summation in process: deals secrets, masks, recovers from drop-outs, refuses what is unsafe.

    Parameters
    ----------
    sites : iterable of str
        Who takes part.
    turn : int
        The round.
    least : int
        Contributions without which nothing is read, at least 2. In a sum of two, each knows the other's.
    bits : int
        Behind the point.
    seed : int, optional
        For tests alone.

    Examples
    --------
    >>> summation = SecureSum(["a", "b", "c"], turn=1)
    >>> sent = [summation.mask(site, {"x": torch.tensor([0.25])}) for site in "abc"]
    >>> summation.total(sent)["x"].tolist()
    [0.75]
    """

    def __init__(
        self, sites: Iterable[str], turn: int, least: int = 3, bits: int = BITS, seed: int | None = None
    ) -> None:
        self._secrets = deal(sites, seed)
        if not 2 <= least <= len(self._secrets):
            raise InputError(
                f"the least number of contributions lies in 2 to {len(self._secrets)} (the sites), found {least}: the "
                f"sum of one is that one"
            )
        self.turn, self.least, self.bits = turn, least, bits
        self._masked: set[str] = set()
        self._given_up: set[str] = set()

    @property
    def sites(self) -> tuple[str, ...]:
        """Who takes part."""
        return tuple(self._secrets)

    def mask(self, site: str, tensors: Mapping[str, Tensor]) -> Masked:
        """What a site sends, once a round.

        Raises
        ------
        InputError
            For a site that takes no part, one that has masked before (two messages under one mask show their
            difference), and as of `to_fixed`.
        """
        if site not in self._secrets:
            raise InputError(f"{site} takes no part in this sum; those who do: {', '.join(self.sites)}")
        if site in self._masked:
            raise InputError(f"{site} has sent something under the masks of round {self.turn} already")
        made = mask(tensors, site, self._secrets[site], self.turn, self.bits)
        self._masked.add(site)
        return made

    def total(self, sent: Sequence[Masked]) -> dict[str, Tensor]:
        """The sum of what came, in float64. Sites that did not come are given up, and stay so.

        Raises
        ------
        FederationError
            For fewer contributions than `least`, and for one of a site that was given up: the secrets around it
            have been told.
        InputError
            As of `unmask`.
        """
        came = {each.site for each in sent}
        if late := sorted(came & self._given_up):
            raise FederationError(
                f"{', '.join(late)} came too late: the secrets shared with it were told when it was missing"
            )
        if len(came) < self.least:
            raise FederationError(
                f"{len(came)} of {len(self.sites)} sites sent something in round {self.turn}, and no sum of fewer "
                f"than {self.least} is read"
            )
        missing = set(self.sites) - came
        revealed = {
            (site, gone): self._secrets[site][gone] for site in sorted(came & set(self.sites)) for gone in missing
        }
        result = unmask(sent, self.sites, revealed, self.bits)
        self._given_up |= missing
        return result


def with_weight(tensors: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Tensors times a site's weight, and the weight beside them: their sums make a weighted mean, `mean_of`.

    Raises
    ------
    InputError
        For a weight that is not above 0, and for a tensor that is named ``weight``.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(f"the weight of a site is above 0, found {weight}")
    if _WEIGHT in tensors:
        raise InputError(f"no tensor may be named {_WEIGHT!r}: the site's weight is")
    scaled = {name: tensor.detach().double() * weight for name, tensor in tensors.items()}
    return scaled | {_WEIGHT: torch.tensor(float(weight), dtype=torch.float64)}


def mean_of(total: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weighted mean from the sum of what `with_weight` made, float32: `aggregation.fedavg` to rounding.

    Raises
    ------
    InputError
        For a sum without weights.
    """
    if _WEIGHT not in total or not float(total[_WEIGHT]) > 0:
        raise InputError("the sum has no weight: sites send what `with_weight` makes")
    return {name: (tensor / total[_WEIGHT]).float() for name, tensor in total.items() if name != _WEIGHT}


def _stream(secret: bytes, turn: int, count: int) -> np.ndarray:
    """Uniform whole numbers below 2^64: (count,) of uint64."""
    drawn = hashlib.shake_128(secret + turn.to_bytes(8, "little", signed=True)).digest(8 * count)
    return np.frombuffer(drawn, dtype="<u8").astype(np.uint64)


def _sign(site: str, other: str) -> np.uint64:
    """One, or minus one modulo 2^64."""
    return np.uint64(1) if site < other else np.uint64(2**64 - 1)
