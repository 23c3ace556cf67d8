"""DblurDoseNet as published, and the two ablations of its paper.

Li Z, Fessler J A, Mikell J K, Wilderman S J, Dewaraja Y K. DblurDoseNet: a deep residual learning network for
voxel radionuclide dosimetry compensating for SPECT imaging resolution. Med Phys 49 (2022) 1216-1230.

From eleven slices of SPECT and density, three 3D convolutions make features of the middle slice (depth
11 → 9, pooled 5 → 3 → 1), a 2D U-Net makes of these the difference between the dose rate and DVK's::

    dose = max(0, U-Net(extractor(SPECT, density)) + DVK),    0 where density <= 0.1 g/cm3

Tensors are (batch, channel, y, x, z) here, as the authors have them: depth last. The modules are named so
that the keys of a state dict are theirs. This form computes the extractor anew for each window; over a whole
volume `models.streaming` computes the same function faster, and `models.slab` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.errors import ModelRejected
from models.scaling import AIR_BELOW_MG_PER_CM3

Architecture = Literal["dblurdosenet", "no-residual", "2d"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)

WINDOW = 11  # slices of an input
REACH = WINDOW // 2  # slices on either side of the one that is computed
SLOPE = 0.1  # of LeakyReLU
FIRST = 16  # channels of the U-Net at full resolution
DIVISOR = 16  # four poolings by two
MIDDLES = (16, 8)  # widths of the extractor: the paper's, and of the authors' other variant


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm and activation."""

    def __init__(self, inward: int, outward: int, between: int, slope: float) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inward, between, 3, padding=1, bias=False),
            nn.BatchNorm2d(between),
            _activation(slope),
            nn.Conv2d(between, outward, 3, padding=1, bias=False),
            nn.BatchNorm2d(outward),
            _activation(slope),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inward, H, W) -> (N, outward, H, W)."""
        y: Tensor = self.conv(x)
        return y


class Down(nn.Module):
    """Half the resolution, then a double convolution."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inward, outward, outward, SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inward, H, W) -> (N, outward, H/2, W/2)."""
        y: Tensor = self.maxpool_conv(x)
        return y


class Up(nn.Module):
    """Twice the resolution, joined with what `Down` saw there, then a double convolution."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = DoubleConv(inward, outward, inward // 2, 0.0)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """low: (N, C, H/2, W/2). skip: (N, inward - C, H, W). returns: (N, outward, H, W)."""
        y: Tensor = self.conv(torch.cat([skip, self.up(low)], dim=1))
        return y


class OutConv(nn.Module):
    """The last, 1x1 convolution."""

    def __init__(self, inward: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inward, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inward, H, W) -> (N, 1, H, W)."""
        y: Tensor = self.conv(x)
        return y


class UNet(nn.Module):
    """inward | 16 | 32 64 128 128 down | 64 32 16 16 up | 1."""

    def __init__(self, inward: int) -> None:
        super().__init__()
        widths = [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 8 * FIRST]
        self.inc = DoubleConv(inward, FIRST, FIRST, SLOPE)
        self.down = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Up(2 * skip, max(skip // 2, FIRST)) for skip in reversed(widths[:-1]))
        self.outc = OutConv(FIRST)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inward, H, W) -> (N, 1, H, W); H and W multiples of 16."""
        x = self.inc(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up in self.up:
            x = up(x, skips.pop())
        y: Tensor = self.outc(x)
        return y


class Extractor(nn.Module):
    """Features of the middle slice from eleven slices of SPECT and density."""

    def __init__(self, middle: int) -> None:
        super().__init__()
        self.model_3D = nn.Sequential(
            nn.Conv3d(2, middle // 2, (7, 7, 5), padding=(3, 3, 1), bias=False),
            nn.BatchNorm3d(middle // 2),
            nn.LeakyReLU(SLOPE),
            nn.MaxPool3d((1, 1, 2), ceil_mode=True),
            nn.Conv3d(middle // 2, middle, (7, 7, 3), padding=(3, 3, 0), bias=False),
            nn.BatchNorm3d(middle),
            nn.LeakyReLU(SLOPE),
            nn.Conv3d(middle, middle, (7, 7, 3), padding=(3, 3, 0)),
        )

    def forward(self, window: Tensor) -> Tensor:
        """(N, 2, H, W, 11) -> (N, middle, H, W)."""
        y: Tensor = self.model_3D(window).squeeze(-1)
        return y


class Network(nn.Module):
    """What the architectures have in common.

    architecture: its name in `ARCHITECTURES`. middle: width of the extractor, 0 without one.
    residual: whether the U-Net's output is added to DVK's map or is the dose rate itself.
    """

    architecture: Architecture
    middle: int
    residual: bool

    def correction(self, spect: Tensor, density: Tensor) -> Tensor:
        """The U-Net's output. spect, density: (N, 1, H, W, 11). returns: (N, 1, H, W)."""
        raise NotImplementedError

    def forward(self, spect: Tensor, density: Tensor, dvk: Tensor) -> Tensor:
        """The dose rate of the middle slice, in the units of `models.scaling`.

        spect, density: (N, 1, H, W, 11). dvk: (N, 1, H, W), not looked at without residual.
        returns: (N, 1, H, W); H and W are multiples of 16.
        """
        dose = self.correction(spect, density)
        if self.residual:
            dose = dose + dvk
        air = density[..., REACH] <= AIR_BELOW_MG_PER_CM3
        return dose.clamp(min=0).masked_fill(air, 0.0)

    @property
    def parameters_in_all(self) -> int:
        """How many numbers training changes."""
        return sum(p.numel() for p in self.parameters())


class DblurDoseNet(Network):
    """The network of the paper; with ``residual=False`` its first ablation.

    middle: 16 as in the paper (1,143,233 parameters), 8 as in the authors' other variant (1,097,753).

    raises: ModelRejected for another width.
    """

    def __init__(self, middle: int = 16, residual: bool = True) -> None:
        super().__init__()
        if middle not in MIDDLES:
            raise ModelRejected(f"DblurDoseNet has no variant with {middle} middle channels", "Use 16 or 8")
        self.middle = middle
        self.residual = residual
        self.architecture = "dblurdosenet" if residual else "no-residual"
        self.feature = Extractor(middle)
        self.UNet = UNet(middle)

    def correction(self, spect: Tensor, density: Tensor) -> Tensor:
        """The U-Net's output. spect, density: (N, 1, H, W, 11). returns: (N, 1, H, W)."""
        y: Tensor = self.UNet(self.feature(torch.cat([spect, density], dim=1)))
        return y


class Plain2d(Network):
    """The second ablation: the U-Net alone, from SPECT and density of the one slice; residual."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = 0
        self.residual = True
        self.architecture = "2d"
        self.UNet = UNet(2)

    def correction(self, spect: Tensor, density: Tensor) -> Tensor:
        """The U-Net's output. spect, density: (N, 1, H, W, 11). returns: (N, 1, H, W)."""
        y: Tensor = self.UNet(torch.cat([spect[..., REACH], density[..., REACH]], dim=1))
        return y


def build(architecture: str, middle: int = 16) -> Network:
    """A network with fresh weights. architecture: of `ARCHITECTURES`. middle: not looked at for ``2d``.

    raises: ModelRejected for an architecture or a width that there is not.
    """
    if architecture == "2d":
        return Plain2d()
    if architecture not in ARCHITECTURES:
        raise ModelRejected(
            f"there is no architecture '{architecture}'", f"Use one of {', '.join(ARCHITECTURES)}"
        )
    return DblurDoseNet(middle, residual=architecture == "dblurdosenet")


def middle_of(state: Mapping[str, Tensor]) -> int:
    """The extractor's width in a state dict; 0 for the U-Net alone.

    raises: ModelRejected where the first convolutions are not DblurDoseNet's.
    """
    first, inc = state.get("feature.model_3D.4.weight"), state.get("UNet.inc.conv.0.weight")
    if inc is None or inc.ndim != 4:
        raise ModelRejected(
            "the weights hold no UNet.inc.conv.0.weight", "Give a state dict of DblurDoseNet or its ablations"
        )
    middle = 0 if first is None else int(first.shape[0])
    if (middle and middle not in MIDDLES) or int(inc.shape[1]) != (middle or 2):
        raise ModelRejected(
            f"the weights have {middle} middle channels and a U-Net for {int(inc.shape[1])}",
            "DblurDoseNet has 16 or 8, and its 2D ablation takes SPECT and density",
        )
    return middle


def _activation(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope) if slope else nn.ReLU()
