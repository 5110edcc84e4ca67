"""Spectral layers: real Fourier transforms over a sequence or a grid of tokens, filters and a complex projector.

Every layer takes ``(tokens, batch, width)``: with the token axis first, a transform over tokens is one large matrix
product whatever the batch. The layers ask of their transform only what `SpectralTransform` lists, so that each works
over a sequence (`FourierAxis`, patches of voxels) and over a grid (`FourierGrid`, patches of a picture).
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ComplexLinear",
    "FilterLibrary",
    "FourierAxis",
    "FourierGrid",
    "FrequencyProjector",
    "GlobalFilter",
    "RadialFilter",
    "SpectralTransform",
    "shrink_modulus",
]

Spectrum = Literal["power", "cube", "linear"]
Gating = Literal["power", "cosine"]


class SpectralTransform(Protocol):
    """What the spectral layers need to know of a transform."""

    length: int  #: number of tokens
    bins: int  #: number of complex bins
    free: slice  #: the bins whose imaginary part is free; it is zero by symmetry in the others
    frequencies: Tensor  #: (bins,) frequency of each bin, 0 (mean) to 1 (highest)

    def __call__(self, x: Tensor) -> Tensor: ...

    def inverse(self, spectrum: Tensor) -> Tensor: ...


class _RealFourier(nn.Module):
    """A real DFT over the leading axis as a matrix product, from the phase of each bin at each token.

    The number of tokens is small (tens to a few hundred), where a dense product is as fast as an FFT and runs in
    every precision and under every compiler.

    Parameters
    ----------
    phase : float64 Tensor (bins, length)
        Phase in turns of one representative of every conjugate pair of bins.
    free : slice
        Bins that are not their own conjugate.
    frequencies : Tensor (bins,)
    """

    analysis: Tensor
    synthesis: Tensor
    frequencies: Tensor

    def __init__(self, phase: Tensor, free: slice, frequencies: Tensor) -> None:
        super().__init__()
        (self.bins, self.length), self.free = phase.shape, free
        angle = 2 * math.pi * phase
        analysis = torch.cat([torch.cos(angle), -torch.sin(angle)]) / math.sqrt(self.length)
        twice = torch.ones(self.bins, dtype=torch.float64)
        twice[free] = 2.0  # each of these stands for its conjugate as well
        synthesis = (analysis * twice.repeat(2)[:, None]).T
        self.register_buffer("analysis", analysis.float(), persistent=False)
        self.register_buffer("synthesis", synthesis.float().contiguous(), persistent=False)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(length, ...)`` to ``(2, bins, ...)``: real and imaginary parts."""
        return (self.analysis @ x.reshape(self.length, -1)).view(2, self.bins, *x.shape[1:])

    def inverse(self, spectrum: Tensor) -> Tensor:
        """``(2, bins, ...)`` to ``(length, ...)``; an imaginary part outside `free` has no effect."""
        shape = spectrum.shape[2:]
        return (self.synthesis @ spectrum.reshape(2 * self.bins, -1)).view(self.length, *shape)


class FourierAxis(_RealFourier):
    """Orthonormal real DFT over a sequence of tokens, equal to ``torch.fft.rfft(x, dim=0, norm="ortho")``.

    Parameters
    ----------
    length : int
        Number of tokens, at least 3 (below, no bin has a phase).

    Examples
    --------
    >>> axis = FourierAxis(8)
    >>> axis(torch.ones(8, 2, 4)).shape
    torch.Size([2, 5, 2, 4])
    """

    def __init__(self, length: int) -> None:
        if length < 3:
            raise ValueError(f"a spectrum over tokens needs at least 3 tokens, found {length}")
        bins = torch.arange(length // 2 + 1, dtype=torch.float64)
        phase = bins[:, None] / length * torch.arange(length, dtype=torch.float64)
        super().__init__(phase, slice(1, (length + 1) // 2), bins / max(len(bins) - 1, 1))


class FourierGrid(_RealFourier):
    """Orthonormal real 2-D DFT over a grid of tokens, row by row: ``torch.fft.fft2`` without what symmetry repeats.

    Bins that are their own conjugate (the mean; the highest frequency of an even side) come first, then one of each
    conjugate pair, by increasing frequency.

    Parameters
    ----------
    height, width : int
        Tokens a side, at least 3 each.

    Examples
    --------
    >>> grid = FourierGrid(4, 4)
    >>> grid.length, grid.bins
    (16, 10)
    """

    def __init__(self, height: int, width: int) -> None:
        if min(height, width) < 3:
            raise ValueError(f"a spectrum over a grid needs at least 3 x 3 tokens, found {height} x {width}")
        own: list[tuple[int, int]] = []
        paired: list[tuple[int, int]] = []
        for u in range(height):
            for v in range(width):
                mirrored = (-u % height, -v % width)
                if mirrored == (u, v):
                    own.append((u, v))
                elif (u, v) < mirrored:
                    paired.append((u, v))

        def radius(uv: tuple[int, int]) -> float:
            u, v = min(uv[0], height - uv[0]), min(uv[1], width - uv[1])
            return math.hypot(u / (height // 2), v / (width // 2)) / math.sqrt(2)

        order = sorted(own, key=radius) + sorted(paired, key=radius)
        bins = torch.tensor(order, dtype=torch.float64)
        y = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
        x = torch.arange(width, dtype=torch.float64).repeat(height)
        phase = bins[:, :1] / height * y + bins[:, 1:] / width * x
        super().__init__(phase, slice(len(own), len(order)), torch.tensor([radius(uv) for uv in order]))


class GlobalFilter(nn.Module):
    r"""One learned complex gain for every bin and channel: :math:`Y = \mathrm{DFT}^{-1}(K \odot \mathrm{DFT}(X))`.

    A circular convolution over all tokens with one kernel a channel (the global filter of GFNet, Rao et al. 2021),
    in `N` real numbers a channel for `N` tokens: bins that symmetry repeats are not stored.

    Parameters
    ----------
    transform : SpectralTransform
    width : int
        Channels.
    spread : float
        Standard deviation of the gains at the start.
    """

    def __init__(self, transform: SpectralTransform, width: int, spread: float = 0.1) -> None:
        super().__init__()
        self.transform = transform
        free = len(range(*transform.free.indices(transform.bins)))
        self.filter = nn.Parameter(spread * torch.randn(transform.bins + free, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        real, imaginary = self.transform(x)
        gain, phase = self.filter[: self.transform.bins, None], self.filter[self.transform.bins :, None]
        return self.transform.inverse(_filtered(real, imaginary, gain, phase, self.transform.free))


class RadialFilter(nn.Module):
    """A fixed low-pass or high-pass over all tokens, with a learned gain a channel: the ablation of `GlobalFilter`.

    Parameters
    ----------
    transform : SpectralTransform
    width : int
        Channels.
    band : {"lowpass", "highpass"}
    cutoff : float
        Frequency, 0 (mean) to 1 (highest), at which half of the amplitude passes.
    """

    mask: Tensor

    def __init__(
        self, transform: SpectralTransform, width: int, band: Literal["lowpass", "highpass"], cutoff: float = 0.35
    ) -> None:
        super().__init__()
        self.transform = transform
        low = 1 / (1 + (transform.frequencies / cutoff) ** 4)
        self.register_buffer("mask", (low if band == "lowpass" else 1 - low)[:, None, None], persistent=False)
        self.gain = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        return self.transform.inverse(self.transform(x) * self.mask) * self.gain


def _filtered(real: Tensor, imaginary: Tensor, gain: Tensor, phase: Tensor, free: slice) -> Tensor:
    """Product of a spectrum and ``gain + i phase``, whose imaginary part is given for the free bins alone."""
    product = torch.stack([real * gain, imaginary * gain])
    product[0, free] -= imaginary[free] * phase
    product[1, free] += real[free] * phase
    return product


class FilterLibrary(nn.Module):
    r"""Spectrum compression by a library of complex filters, chosen for each sample from its power spectrum.

    With :math:`X` the spectrum over tokens, :math:`P = |X|^2` and filters :math:`W_k`,

    .. math:: Y = X \odot \frac{P}{P + \sigma^2} \odot \sum_k g_k(P)\, W_k,
              \qquad g(P) = \mathrm{softmax}(G\, [\overline{\log(1 + P)}_{bins}, \overline{\log(1 + P)}_{width}])

    The real, non-negative :math:`P` enters twice: as a Wiener-like gain with a learned noise floor
    :math:`\sigma^2` for every bin and channel, and through the gates. As the gates differ between samples, the sum
    over filters is no single filter: it cannot be folded into one, unlike a sum with constant weights.

    Parameters
    ----------
    transform : SpectralTransform
    width : int
        Channels.
    filters : int
        Size K of the library, at least 2.
    spectrum : {"power", "cube", "linear"}
        What is filtered: ``X P / (P + floor)``; the complex cube ``X^3`` (as in the released code, for ablation);
        ``X`` alone.
    gating : {"power", "cosine"}
        ``g_k(P)``, or the constants ``cos((2k - 1) pi / 2K)`` (a library that collapses, for ablation).
    """

    weights: Tensor

    def __init__(
        self,
        transform: SpectralTransform,
        width: int,
        filters: int = 4,
        spectrum: Spectrum = "power",
        gating: Gating = "power",
    ) -> None:
        super().__init__()
        if filters < 2:
            raise ValueError(f"a filter library needs at least 2 filters, found {filters}")
        self.transform, self.spectrum = transform, spectrum
        order = torch.arange(1, filters + 1)
        bands = torch.cos((2 * order - 1) * math.pi / 2 * transform.frequencies[:, None])  # (bins, K)
        real = 1 + 0.5 * bands[..., None] + 0.02 * torch.randn(transform.bins, filters, width)
        # An imaginary part where the spectrum is real by symmetry could never matter, so none is stored there.
        imaginary = 0.02 * torch.randn(transform.bins, filters, width)[transform.free]
        self.filters = nn.Parameter(torch.cat([real, imaginary]))
        self.floor = nn.Parameter(torch.full((transform.bins, 1, width), -1.0)) if spectrum == "power" else None
        self.gate = nn.Linear(width + transform.bins, filters) if gating == "power" else None
        weights = torch.cos((2 * order - 1) * math.pi / (2 * filters))[None]
        self.register_buffer("weights", weights, persistent=False)

    def gates(self, power: Tensor) -> Tensor:
        """Weights of the filters, ``(batch, K)``, from the power spectrum ``(bins, batch, width)``."""
        if self.gate is None:
            return self.weights.to(power.dtype)
        level = torch.log1p(power)
        return self.gate(torch.cat([level.mean(0), level.mean(2).T], dim=1)).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        real, imaginary = self.transform(x)
        power = real.square() + imaginary.square()
        mixed = torch.matmul(self.gates(power), self.filters.to(power.dtype))  # (bins + free, batch, width)
        gain, phase = mixed[: self.transform.bins], mixed[self.transform.bins :]
        if self.floor is not None:
            wiener = power / (power + self.floor.exp())
            real, imaginary = real * wiener, imaginary * wiener
        elif self.spectrum == "cube":
            square, cross = real.square() - imaginary.square(), 2 * real * imaginary
            real, imaginary = real * square - imaginary * cross, real * cross + imaginary * square
        return self.transform.inverse(_filtered(real, imaginary, gain, phase, self.transform.free))


class ComplexLinear(nn.Module):
    """Complex linear map over channels, ``Z (A + iB) + c``, dense or in groups, as one real matrix product.

    Parameters
    ----------
    width : int
        Channels in and out.
    groups : int
        Divisor of `width`: 1 is a dense map, `width` one complex gain a channel (which mixes nothing).
    """

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise ValueError(f"groups must divide the width {width}, found {groups}")
        self.groups, each = groups, width // groups
        self.weight = nn.Parameter(torch.randn(groups, each, 2 * each) / math.sqrt(2 * each))
        self.bias = nn.Parameter(torch.zeros(2, 1, 1, width))

    def forward(self, spectrum: Tensor) -> Tensor:
        """``(2, bins, batch, width)`` to the same shape."""
        shape = spectrum.shape
        rows = spectrum.reshape(-1, self.groups, shape[-1] // self.groups).transpose(0, 1)
        product = torch.matmul(rows, self.weight).transpose(0, 1)  # (2 bins batch, groups, 2 width / groups)
        by_real, by_imaginary = product.reshape(*shape[:3], self.groups, 2, -1).unbind(dim=4)
        real = by_real[0] - by_imaginary[1]
        imaginary = by_imaginary[0] + by_real[1]
        return torch.stack([real, imaginary]).reshape(shape) + self.bias


class FrequencyProjector(nn.Module):
    """Residual mixing of channels in the frequency domain: complex map, then shrinkage of the modulus.

    Parameters
    ----------
    transform : SpectralTransform
    width : int
    groups : int
        See `ComplexLinear`.
    """

    def __init__(self, transform: SpectralTransform, width: int, groups: int = 1) -> None:
        super().__init__()
        self.transform = transform
        self.norm = nn.LayerNorm(width)
        self.map = ComplexLinear(width, groups)
        self.threshold = nn.Parameter(torch.full((width,), -2.0))

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, batch, width)`` to the same shape."""
        spectrum = self.map(self.transform(self.norm(x)))
        return x + self.transform.inverse(shrink_modulus(spectrum, F.softplus(self.threshold)))


def shrink_modulus(spectrum: Tensor, threshold: Tensor) -> Tensor:
    """Shorten each complex number by `threshold`, to zero where it is shorter, and keep its phase.

    The proximal map of ``threshold * |Z|``: sparsity in the spectrum without bending phases, which a rectifier on
    real and imaginary parts would fold into one quadrant.

    Parameters
    ----------
    spectrum : Tensor
        ``(2, ...)`` real and imaginary parts.
    threshold : Tensor
        Non-negative, broadcast over the rest.
    """
    modulus = spectrum.square().sum(dim=0).add(1e-12).sqrt()
    return spectrum * (F.relu(modulus - threshold) / modulus)
