"""The published Lite-Mind layout, rebuilt from its description to be measured against: 15,657,859 parameters.

It keeps what the released network does, faults included (see docs/lite_mind.md): the tail of the voxels is dropped,
the spectrum is cubed as a complex number, the filters collapse into one, the frequency projector stores dense
matrices of which only the diagonals act, and all output tokens lie in one subspace of as many dimensions as there
are patches. It stays outside the package, whose decoders may not hold parameters that nothing reaches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PUBLISHED_PARAMETERS", "PublishedLiteMind"]

PUBLISHED_PARAMETERS = 15_657_859  #: for NSD subject 1: 15,724 voxels, 257 x 768 targets
WIDTHS, DEPTHS = (512, 256, 128, 257), (2, 10, 2, 4)


class PublishedBlock(nn.Module):
    """Spectrum compression, channel MLP and diagonal frequency projector under one residual."""

    def __init__(self, patches: int, width: int, filters: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.filters = nn.Parameter(0.02 * torch.randn(filters, patches // 2 + 1, width, 2))
        k = torch.arange(1, filters + 1)
        self.register_buffer("cosine", torch.cos((2 * k - 1) * math.pi / (2 * filters)), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.real = nn.Parameter(0.02 * torch.randn(width, width))
        self.imaginary = nn.Parameter(0.02 * torch.randn(width, width))
        self.bias = nn.Parameter(0.02 * torch.randn(2, width))
        self.unused = nn.Parameter(0.02 * torch.randn(width))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, patches, width)`` to the same shape."""
        spectrum = torch.fft.rfft(self.norms[0](x), dim=1, norm="ortho")
        power = spectrum * spectrum
        filtered = torch.zeros_like(spectrum)
        for weight, filter_k in zip(self.cosine, self.filters, strict=True):
            filtered = filtered + spectrum * power * torch.view_as_complex(filter_k) * weight
        mixed = self._drop(self.mlp(self.norms[1](torch.fft.irfft(filtered, dim=1, norm="ortho"))))
        spectrum = torch.fft.rfft(self.norms[2](mixed), n=x.shape[1], dim=1, norm="ortho")
        real_by = torch.einsum("bmc,cc->bmc", spectrum.real, self.real)
        real_by = real_by - torch.einsum("bmc,cc->bmc", spectrum.imag, self.imaginary)
        imaginary_by = torch.einsum("bmc,cc->bmc", spectrum.imag, self.real)
        imaginary_by = imaginary_by + torch.einsum("bmc,cc->bmc", spectrum.real, self.imaginary)
        projected = torch.stack([F.relu(real_by + self.bias[0]), F.relu(imaginary_by + self.bias[1])], dim=-1)
        projected = torch.view_as_complex(F.softshrink(projected, 0.01))
        return x + self._drop(torch.fft.irfft(projected, n=x.shape[1], dim=1, norm="ortho"))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class PublishedLiteMind(nn.Module):
    """The released 257 x 768 network: a pyramid of 18 blocks over patches of 450 voxels.

    Parameters
    ----------
    n_voxels : int
    target_shape : (int, int)
        Tokens and their width; the number of tokens is the width of the last stage.
    patch : int
        Voxels in a patch; ``n_voxels % patch`` voxels are dropped.
    filters : int
        Two in the released training script.
    widths : (int, int, int)
        Widths of the first three stages; smaller ones for studies smaller than NSD.
    """

    def __init__(
        self,
        n_voxels: int = 15_724,
        target_shape: tuple[int, int] = (257, 768),
        patch: int = 450,
        filters: int = 2,
        dropout: float = 0.1,
        drop_path: float = 0.15,
        widths: tuple[int, int, int] = WIDTHS[:3],
    ) -> None:
        super().__init__()
        self.patches = n_voxels // patch
        widths = (*widths, target_shape[0])
        self.embed = nn.Conv1d(1, widths[0], kernel_size=patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.patches, widths[0]))
        self.dropout = nn.Dropout(dropout)
        rates = torch.linspace(0, drop_path, sum(DEPTHS)).tolist()
        layers: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True)):
            if stage:
                layers.append(nn.Linear(widths[stage - 1], width))
            layers += [PublishedBlock(self.patches, width, filters, dropout, rates.pop(0)) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(self.patches, target_shape[1])

    def forward(self, responses: Tensor) -> Tensor:
        """``(batch, V)`` to ``(batch, tokens, width)``."""
        tokens = self.embed(responses[:, None]).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(self.dropout(tokens))).transpose(1, 2))
