"""Gradient caching: the gradient of a contrastive loss of a large batch, with the activations of one chunk at a time.

A contrastive loss needs the embeddings of a whole batch at once, but not their graphs (Gao et al., 2021, "Scaling deep
contrastive learning batch size under memory limited setup"). All chunks are embedded without a graph; the loss gives
the gradient of each embedding; each chunk is embedded once more, now with its graph, and takes its part of that
gradient down to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["cached_step"]

Chunk = TypeVar("Chunk")
Features = TypeVar("Features")
Figures = TypeVar("Figures")


def cached_step(
    embed: Callable[[Chunk], Features],
    chunks: Sequence[Chunk],
    loss: Callable[[Features], tuple[Tensor, Figures]],
    parameters: Iterable[Tensor] = (),
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    context: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext(),
) -> tuple[Tensor, Figures]:
    """Add the gradient of ``loss(embed(everything))`` to the weights; equal to that of one large batch.

    Random numbers drawn by `embed` (dropout) are the same both times. A layer whose result depends on the batch, or
    that counts calls, such as batch norm, would not see the same.

    Parameters
    ----------
    embed : callable
        Features of a chunk: a tensor, None, or (named) tuples of them, nested at will, rows on the first axis.
    chunks : sequence
        What `embed` takes, one after the other. Processes have the same number of them.
    loss : callable
        From the features of all chunks, rows in their order, to the loss and anything else worth returning. It may
        gather over processes.
    parameters : iterable of Tensor
        Trainable tensors of `loss` itself, such as a learned temperature.
    backward : callable
        Takes the place of ``Tensor.backward``, such as ``fabric.backward``.
    context : callable
        Makes the context in which a chunk is embedded with its graph and sent back; it is told whether the chunk is
        the last one. With DDP: ``lambda last: nullcontext() if last else ddp.no_sync()``, and `embed` calls the
        wrapped module. The gradients of `parameters` are added together with the last chunk, so that DDP sees all.

    Returns
    -------
    loss : Tensor ()
        Detached.
    figures
        What `loss` gave besides.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 2)
    >>> x = torch.randn(8, 3)
    >>> value, _ = cached_step(layer, x.split(2), lambda rows: (rows.logsumexp(dim=0).sum(), None))
    >>> gradient, layer.weight.grad = layer.weight.grad, None
    >>> layer(x).logsumexp(dim=0).sum().backward()
    >>> torch.allclose(gradient, layer.weight.grad)
    True
    """
    if not chunks:
        raise ValueError("a step needs at least one chunk")
    states, parts = _without_graph(embed, chunks)
    rows = [_leaves(part) for part in parts]
    whole: list[Any] = [None if column[0] is None else torch.cat(column) for column in zip(*rows, strict=True)]
    places = [place for place, leaf in enumerate(whole) if leaf is not None and leaf.is_floating_point()]
    inputs = [whole[place].requires_grad_() for place in places]
    value, figures = loss(_rebuilt(parts[0], iter(whole)))
    own = [tensor for tensor in parameters if tensor.requires_grad]
    gradients = torch.autograd.grad(value, [*inputs, *own], allow_unused=True)
    pulls = [
        [None] * len(chunks) if pull is None else pull.split([len(part[place]) for part in rows])
        for place, pull in zip(places, gradients[: len(places)], strict=True)
    ]
    of_own = list(zip(own, gradients[len(places) :], strict=True))
    with torch.random.fork_rng(_devices()):
        for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            last = number + 1 == len(chunks)
            with context(last):
                _set_random_state(state)
                leaves = _leaves(embed(chunk))
                pairs = [(leaves[place], pull[number]) for place, pull in zip(places, pulls, strict=True)]
                surrogate = _surrogate(pairs + of_own if last else pairs)
                if surrogate is not None:
                    backward(surrogate)
    return value.detach(), figures


def _without_graph(
    embed: Callable[[Chunk], Features], chunks: Sequence[Chunk]
) -> tuple[list[list[Tensor]], list[Features]]:
    """Random state before each chunk, and its features."""
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            parts.append(embed(chunk))
    torch.clear_autocast_cache()  # weights cast in here would cut the graph of the second time
    return states, parts


def _surrogate(pairs: Sequence[tuple[Any, Tensor | None]]) -> Tensor | None:
    """A number whose gradient with respect to each tensor is the one given."""
    terms = [
        (tensor * gradient).sum(dtype=torch.float32)
        for tensor, gradient in pairs
        if gradient is not None and tensor.requires_grad
    ]
    return torch.stack(terms).sum() if terms else None


def _leaves(features: Any) -> list[Any]:
    """Tensors (and None) of nested tuples, in order."""
    if isinstance(features, tuple):
        return [leaf for part in features for leaf in _leaves(part)]
    return [features]


def _rebuilt(like: Any, leaves: Iterator[Any]) -> Any:
    """The same nested (named) tuples around other leaves."""
    if not isinstance(like, tuple):
        return next(leaves)
    parts = [_rebuilt(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _devices())]


def _set_random_state(state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, of_device in zip(_devices(), state[1:], strict=False):
        torch.cuda.set_rng_state(of_device, device)
