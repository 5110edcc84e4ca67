"""Readouts: the formula, and that their tokens lie in no small subspace."""

import pytest
import torch
from torch.nn import functional as F

from phosphene.nn.readout import LinearPath, PooledReadout, TokenMixer, TokenReadout


def test_mixer_is_its_formula():
    torch.manual_seed(0)
    mixer, x = TokenMixer(latents=5, width=6, tokens=7, hidden=8, heads=2), torch.randn(5, 3, 6)
    lifted = mixer.lift(mixer.norm(x))
    expected = torch.empty(3, 7, 8)
    for h in range(2):
        channels = slice(4 * h, 4 * h + 4)
        expected[..., channels] = torch.einsum("tj,jbc->btc", mixer.mix[h], lifted[..., channels])
    torch.testing.assert_close(mixer(x), F.silu(expected + mixer.position), atol=1e-5, rtol=1e-4)


def test_tokens_are_not_confined_to_as_many_dimensions_as_there_are_latents():
    torch.manual_seed(1)
    readout = TokenReadout(latents=4, width=16, shape=(30, 24), hidden=32, heads=8).double().eval()
    with torch.no_grad():
        tokens = readout(torch.randn(4, 50, 16, dtype=torch.float64)).reshape(-1, 24)
    values = torch.linalg.svdvals(tokens - tokens.mean(dim=0))
    assert int((values > 1e-6 * values[0]).sum()) == 24


def test_pieces_give_what_the_whole_batch_gives():
    torch.manual_seed(2)
    readout, x = TokenReadout(4, 8, (5, 6), 16, 4).eval(), torch.randn(4, 2 * TokenReadout.piece + 3, 8)
    with torch.no_grad():
        in_pieces = readout(x)
    torch.testing.assert_close(in_pieces, readout(x).detach(), atol=1e-6, rtol=1e-5)
    assert in_pieces.shape == (35, 5, 6)


def test_pooled_readout_reads_every_latent_and_channel():
    torch.manual_seed(3)
    readout = PooledReadout(4, 8, out=3, hidden=16, heads=4, queries=2).eval()
    x = torch.randn(4, 2, 8, requires_grad=True)
    readout(x).square().sum().backward()
    assert readout(x).shape == (2, 3)
    assert bool((x.grad != 0).all())


def test_linear_path_starts_where_it_is_put():
    torch.manual_seed(4)
    path = LinearPath(rank=3, out=5)
    path.add(7)
    basis, weight, x = torch.randn(2, 5), torch.randn(7, 2), torch.randn(4, 7)
    rest = path.basis[2:].detach().clone()
    path.start(basis, [weight])
    extra = x @ path.people[0].weight[2:].T @ rest  # the rows that were not given stay as they are
    torch.testing.assert_close(path(x, 0), x @ weight @ basis + extra, atol=1e-5, rtol=1e-4)


def test_heads_must_divide_the_hidden_width():
    with pytest.raises(ValueError, match="hidden width 10, found 4"):
        TokenMixer(4, 8, 5, hidden=10, heads=4)
