"""Which experts work on a sample: gates from who the person is, what was measured, and how their cortex is folded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phosphene.errors import unknown
from phosphene.nn.adapter import Adapter

__all__ = ["Collapse", "Router", "RouterKind", "balance", "collapsed", "information"]

RouterKind = Literal["dense", "top-k", "per-token"]
KINDS: tuple[RouterKind, ...] = ("dense", "top-k", "per-token")


class Router(Adapter):
    r"""Gates over experts, from who the person is, what was measured, and what their cortex looks like.

    .. math:: \pi = \mathrm{softmax}\big((c + U e_s + Q\,\mathrm{norm}(q) + R\,\mathrm{norm}(m)) / \tau\big)

    :math:`e_s` is learned for each person, `q` is a feature of the data, `m` an anatomy vector; any of the three may
    be left out. Somebody without an id, or whose id is dropped in training, has :math:`e_s = 0`: the other inputs must
    then do, and learn to.

    Parameters
    ----------
    n_subjects : int
        People with an embedding of their own; 0 has none. `add_subject` makes room for more.
    experts : int
    data, anatomy : int, optional
        Widths of `q` and `m`.
    temperature : float
    kind : {"dense", "top-k", "per-token"}
        All experts; the `top` strongest alone; all, chosen anew for each token of `q`.
    top : int
        For "top-k".
    id_dropout : float
        Share of samples that lose their id in training.
    width : int
        Of a person's embedding.

    Raises
    ------
    ValueError
        Where no input is left, or a number is out of range.

    Examples
    --------
    >>> gates = Router(n_subjects=2, experts=4)(torch.tensor([0, 1, -1]))
    >>> gates.shape, torch.allclose(gates.sum(dim=1), torch.ones(3))
    (torch.Size([3, 4]), True)
    """

    def __init__(
        self,
        n_subjects: int,
        experts: int,
        data: int | None = None,
        anatomy: int | None = None,
        temperature: float = 1.0,
        kind: RouterKind = "dense",
        top: int = 2,
        id_dropout: float = 0.2,
        width: int = 16,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("kind of router", kind, KINDS)
        _check(n_subjects, experts, data, anatomy, temperature, kind, top, id_dropout)
        self.experts, self.temperature, self.kind, self.top = experts, temperature, kind, top
        self.id_dropout, self.width = id_dropout, width
        self.people = nn.ParameterList([torch.randn(width) for _ in range(n_subjects)])
        self.constant = nn.Parameter(torch.zeros(experts))
        self.of_person = _logits(width, experts) if n_subjects else None
        self.of_data = _logits(data, experts) if data else None
        self.of_anatomy = _logits(anatomy, experts) if anatomy else None

    def add_subject(self) -> int:
        """Give one more person an embedding, and return its index; the others' are not touched."""
        if self.of_person is None:
            raise ValueError("this router was built without people")
        self.people.append(nn.Parameter(torch.randn(self.width, device=self.constant.device)))
        return len(self.people) - 1

    def forward(
        self, subject: Tensor | None = None, data: Tensor | None = None, anatomy: Tensor | None = None
    ) -> Tensor:
        """Gates of samples.

        Parameters
        ----------
        subject : Tensor (batch,) or (1,) of int, optional
            Index of each sample's person; -1 is somebody without an id, and None means that all are.
        data : Tensor (batch, data) or (batch, tokens, data), optional
            The latter for a "per-token" router.
        anatomy : Tensor (batch, anatomy) or (1, anatomy), optional

        Returns
        -------
        Tensor
            ``(batch, K)`` or ``(batch, tokens, K)``, rows that sum to one; ``(1, K)`` where all inputs have one row.

        Raises
        ------
        ValueError
            For an input that the router was built without, or one missing that it was built with.
        """
        self._check_inputs(data, anatomy)
        logits = self.constant.expand(1, -1)
        if self.of_person is not None and subject is not None:
            logits = logits + self.of_person(self._embeddings(subject))
        if self.of_anatomy is not None and anatomy is not None:
            logits = logits + self.of_anatomy(_normed(anatomy))
        if self.of_data is not None and data is not None:
            logits = (logits.unsqueeze(1) if self.kind == "per-token" else logits) + self.of_data(_normed(data))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.kind == "top-k":
            kept = logits.topk(self.top, dim=-1).indices
            logits = logits.masked_fill(torch.ones_like(logits).scatter(-1, kept, 0.0) > 0, -torch.inf)
        return logits.softmax(dim=-1)

    def _check_inputs(self, data: Tensor | None, anatomy: Tensor | None) -> None:
        for name, found, path in (("data", data, self.of_data), ("anatomy", anatomy, self.of_anatomy)):
            if (found is None) != (path is None):
                raise ValueError(f"this router was built {'without' if path is None else 'with'} {name}")
        axes = 3 if self.kind == "per-token" else 2
        if data is not None and data.ndim != axes:
            raise ValueError(f"a {self.kind} router needs data of {axes} axes, found shape {tuple(data.shape)}")

    def _embeddings(self, subject: Tensor) -> Tensor:
        """``(batch, width)``; zero for a person without an id."""
        known = subject >= 0
        if self.training and self.id_dropout:
            known = known & (torch.rand(subject.shape, device=subject.device) >= self.id_dropout)
        table = torch.stack(list(self.people))
        return table[subject.clamp(min=0)] * known.unsqueeze(1).to(table.dtype)


def _check(
    n_subjects: int,
    experts: int,
    data: int | None,
    anatomy: int | None,
    temperature: float,
    kind: str,
    top: int,
    id_dropout: float,
) -> None:
    if experts < 1 or n_subjects < 0:
        raise ValueError(f"a router needs experts and people to count, found {experts} and {n_subjects}")
    if not (n_subjects or data or anatomy):
        raise ValueError("a router needs an input: people's embeddings (n_subjects), data or anatomy")
    if kind == "per-token" and not data:
        raise ValueError("a per-token router needs data, tokens of some width")
    if kind == "top-k" and not 1 <= top <= experts:
        raise ValueError(f"top must be 1 to {experts} experts, found {top}")
    if temperature <= 0 or not 0 <= id_dropout < 1:
        raise ValueError(f"temperature > 0 and id_dropout in [0, 1) are needed, found {temperature} and {id_dropout}")


def _logits(width: int, experts: int) -> nn.Linear:
    """Logits that spread by about a half over inputs of unit size: a start away from the uniform gate.

    There the balance term has a saddle: all gates alike, no gradient.
    """
    linear = nn.Linear(width, experts, bias=False)
    nn.init.normal_(linear.weight, std=0.5 / math.sqrt(width))
    return linear


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def balance(gates: Tensor, sharpness: float = 0.5) -> Tensor:
    r"""Balance loss: minus the mutual information of expert and sample, :math:`-(H(\bar\pi) - s\,\overline{H(\pi)})`.

    It asks for different experts for different samples, all experts in use, and not for every person to use all of
    them. Least (:math:`-\log K`) where every sample has one expert and all experts have equally many samples.

    Parameters
    ----------
    gates : Tensor (..., K)
        Of a batch in which the people are balanced: gates of several forward passes are to be joined first.
    sharpness : float
        Weight `s` of the entropy of single gates. At 1 the loss is the mutual information itself, but then gates
        harden around their first choice before the experts are shared out, and with few people some experts are left
        over (of 6 experts for 6 people two in three runs, on average; none at 0.3 to 0.7). At 0 it
        only asks for equal use, and lets all gates be alike.

    Examples
    --------
    >>> round(float(balance(torch.eye(4))), 3), abs(round(float(balance(torch.full((8, 4), 0.25), sharpness=1)), 3))
    (-1.386, 0.0)
    """
    gates = gates.flatten(0, -2)
    return sharpness * _entropy(gates).mean() - _entropy(gates.mean(dim=0))


def _entropy(p: Tensor) -> Tensor:
    """In nats, over the last axis; the gradient at zero is large and finite."""
    return -(p * p.clamp(min=1e-9).log()).sum(dim=-1)


def information(gates: Tensor, labels: Sequence[object]) -> float:
    """How much a sample's expert tells of its label, in nats: I(expert; label), all labels equally frequent.

    With people for labels, at most the logarithm of the lesser of experts and people, where every person has experts
    of their own; 0 where all people use them alike.

    Parameters
    ----------
    gates : Tensor (samples, K) or (samples, tokens, K)
    labels : sequence
        Of each sample: its person, or the category of its stimulus.
    """
    if len(labels) != len(gates):
        raise ValueError(f"one label for each sample is needed, found {len(labels)} for {len(gates)}")
    gates = gates.detach().double().reshape(len(gates), -1, gates.shape[-1]).mean(dim=1)
    rows: dict[object, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    usage = torch.stack([gates[those].mean(dim=0) for those in rows.values()])
    return max(0.0, float(_entropy(usage.mean(dim=0)) - _entropy(usage).mean()))


@dataclass(frozen=True)
class Collapse:
    """What is wrong with the use of experts; true where anything is.

    Attributes
    ----------
    usage : tuple of float
        Mean gate of each expert.
    unused : tuple of int
        Experts that next to nothing goes to.
    dominant : int or None
        The expert that next to everything goes to.
    """

    usage: tuple[float, ...]
    unused: tuple[int, ...]
    dominant: int | None

    def __bool__(self) -> bool:
        return bool(self.unused) or self.dominant is not None

    def __str__(self) -> str:
        found = []
        if self.dominant is not None:
            found.append(f"expert {self.dominant} has {self.usage[self.dominant]:.0%} of all gates")
        if self.unused:
            shares = ", ".join(f"{k} ({self.usage[k]:.2%})" for k in self.unused)
            found.append(f"unused of {len(self.usage)} experts: {shares}")
        return "; ".join(found) or f"all {len(self.usage)} experts are used"


def collapsed(gates: Tensor, unused: float = 0.1, dominant: float = 0.9) -> Collapse:
    """Look for experts that are never used, and for one that is always used.

    Parameters
    ----------
    gates : Tensor (..., K)
        Of many samples, people balanced.
    unused : float
        An expert is unused below this share of an equal share.
    dominant : float
        An expert dominates above this share of everything (where there are others).

    Examples
    --------
    >>> print(collapsed(torch.tensor([[0.97, 0.03, 0.0]])))
    expert 0 has 97% of all gates; unused of 3 experts: 1 (3.00%), 2 (0.00%)
    """
    usage = gates.detach().float().flatten(0, -2).mean(dim=0)
    k = len(usage)
    most = int(usage.argmax())
    return Collapse(
        tuple(usage.tolist()),
        tuple(int(each) for each in (usage < unused / k).nonzero().flatten()),
        most if k > 1 and float(usage[most]) > dominant else None,
    )
