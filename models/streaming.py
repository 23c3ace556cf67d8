"""The network over a whole volume, one slice after the other, in the exact form that shares its work.

The decomposition is that of `models.slab`, with what inference allows beside: BatchNorm is folded into the
convolutions before it, conv2 is done once per pooled pair instead of once per window, the up-sampled half of
a U-Net's concatenation is convolved at its own resolution (a 3x3 convolution of an image doubled by
repetition is four 2x2 convolutions, one for each of the four places in a pair of pixels), and only the slices
that some later window needs are held. At the ends of the volume the first and the last slice are repeated; in
the plane, sides that are no multiples of 16 are filled up with neither activity nor matter, which is what the
convolutions themselves assume beyond an image.

``exact`` is float32 throughout, with the short-cuts of the device (TF32, bfloat16) switched off: equal to one
window per slice within 1e-4 of the largest residual. ``fast`` is bfloat16 on a CPU and TF32 on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.dblurdosenet import DIVISOR, SLOPE, WINDOW, DblurDoseNet, Network, UNet
from models.errors import ModelRejected, out_of_memory

Float32 = NDArray[np.float32]
Precision = Literal["exact", "fast"]
Progress = Callable[[str, float], None]

CL = torch.channels_last
STEP = "network"  # what progress calls it
LEAST = DIVISOR  # voxels of a slice along y and x
GPU_BATCH = 16  # slices at once
CPU_BATCH = 1


def silent(_what: str, _part: float) -> None:
    """Nobody asked for progress."""


class Streaming:
    """A network ready to run over volumes.

    network: its weights are copied as they are now, with BatchNorm's running statistics.
    device: ``cpu``, ``cuda`` or ``cuda:N``; afterwards the one that the last volume was computed on.
    precision: see the module. batch: so many slices at once, and where the memory does not suffice
    for them is the caller's affair; None: as many as suit the device, then fewer, then the CPU.
    notes: what a reader of the last result should know, such as that the GPU's memory did not suffice.
    """

    def __init__(
        self,
        network: Network,
        device: str = "cpu",
        precision: Precision = "exact",
        batch: int | None = None,
    ) -> None:
        if precision not in ("exact", "fast"):
            raise ModelRejected(f"there is no precision '{precision}'", "Use exact or fast")
        self.device = device
        self.precision: Precision = precision
        self.notes: tuple[str, ...] = ()
        self._wanted = device
        self._batch = batch
        self._network = network

    def residual(self, spect: Float32, density: Float32, progress: Progress = silent) -> Float32:
        """The U-Net's output for every slice, in the units of `models.scaling`.

        spect, density: (z, y, x), at least 11 slices of 16 x 16. progress: called with (what, 0 ... 1).
        returns: (z, y, x).

        raises: ModelRejected for inputs that are not finite, whose shapes differ or that are smaller than the
            network's field; MemoryError when not even the CPU's memory suffices for single slices;
            with a `batch`, what PyTorch raises when memory does not suffice.
        """
        _require_usable(spect, density)
        if self._batch is not None:
            return self._run(self._wanted, self._batch, spect, density, progress)
        notes: list[str] = []
        for device, batch in self._attempts():
            try:
                result = self._run(device, batch, spect, density, progress)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                _forget(device)
                failed = (device, batch)
            else:
                if notes:
                    self.notes = (f"{notes[-1]}; computed on {device}, {batch} slices at once",)
                else:
                    self.notes = ()
                self.device = device
                return result
            notes.append(f"the memory of {failed[0]} did not suffice for {failed[1]} slices at once")
        raise MemoryError(f"{notes[-1]}; the volume has {' x '.join(map(str, spect.shape))} voxels")

    def _attempts(self) -> Iterator[tuple[str, int]]:
        """Devices and slices at once, in the order in which they are tried."""
        batch = GPU_BATCH
        while self._wanted != "cpu" and batch:
            yield self._wanted, batch
            batch //= 4
        yield "cpu", CPU_BATCH

    @torch.inference_mode()
    def _run(self, device: str, batch: int, spect: Float32, density: Float32, progress: Progress) -> Float32:
        depth, height, width = spect.shape
        half = self.precision == "fast" and device == "cpu"
        form = _folded(self._network, device, torch.bfloat16 if half else torch.float32)
        both = torch.from_numpy(np.stack([spect, density], axis=1))
        both = functional.pad(both, (0, -width % DIVISOR, 0, -height % DIVISOR))
        both = both.to(device=device, dtype=form.dtype).contiguous(memory_format=CL)
        out = np.empty(spect.shape, np.float32)
        with _arithmetic(self.precision):
            progress(STEP, 0.0)
            done = 0
            for features in form.features(both, batch):
                slices = form.unet(features)[:, 0, :height, :width]
                out[done : done + len(slices)] = slices.float().cpu().numpy()
                done += len(slices)
                progress(STEP, done / depth)
        return out


# ── folded weights ───────────────────────────────────────────────────────────────────────────────


class _Conv:
    """A convolution ready to be done: what came after it folded in, in the device's type and order."""

    def __init__(self, weight: Tensor, bias: Tensor | None, like: Tensor) -> None:
        self.weight = weight.to(like).contiguous(memory_format=CL)
        self.bias = None if bias is None else bias.to(like)
        self.padding = weight.shape[-1] // 2

    def __call__(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding=self.padding)


def _fold(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution followed by BatchNorm in evaluation mode; float64."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.detach().double() * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    return weight, norm.bias.detach().double() - norm.running_mean.double() * scale


class _FoldedUNet:
    def __init__(self, unet: UNet, like: Tensor) -> None:
        self.inc = _pair(unet.inc.conv, like)
        self.down = [_pair(down.maxpool_conv[1].conv, like) for down in unet.down]  # type: ignore[union-attr,index]
        self.up = [_FoldedUp(up.conv.conv, like) for up in unet.up]  # type: ignore[union-attr,arg-type]
        out = unet.outc.conv
        self.out = _Conv(out.weight.detach(), None if out.bias is None else out.bias.detach(), like)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W)."""
        x = self._double(x, self.inc)
        skips = []
        for pair in self.down:
            skips.append(x)
            x = self._double(functional.max_pool2d(x, 2), pair)
        for up in self.up:
            x = up(x, skips.pop())
        return self.out(x)

    @staticmethod
    def _double(x: Tensor, pair: tuple[_Conv, _Conv]) -> Tensor:
        for conv in pair:
            x = functional.leaky_relu_(conv(x), SLOPE)
        return x


class _FoldedUp:
    """Up-sampling, concatenation and two convolutions, the first of them without either."""

    def __init__(self, layers: nn.Sequential, like: Tensor) -> None:
        weight, bias = _fold(layers[0], layers[1])
        half = weight.shape[1] // 2
        self.skip = _Conv(weight[:, :half], bias, like)
        self.low = _Conv(_phases(weight[:, half:]), None, like)
        self.second = _Conv(*_fold(layers[3], layers[4]), like)

    def __call__(self, low: Tensor, skip: Tensor) -> Tensor:
        """low: (B, C, H/2, W/2). skip: (B, C', H, W)."""
        x = self.skip(skip)
        batch, channels, height, width = x.shape
        phases = self.low(low).view(batch, 2, 2, channels, height // 2, width // 2)
        x.view(batch, channels, height // 2, 2, width // 2, 2).add_(phases.permute(0, 3, 4, 1, 5, 2))
        return functional.relu_(self.second(functional.relu_(x)))


def _phases(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) on an image doubled by repetition -> (4 · O, C, 3, 3) on the image itself.

    The four are those of even and odd rows and columns. Of three neighbouring pixels of the doubled image,
    two are the same pixel: their weights add up.
    """
    even = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])  # rows: pixel of the image; columns: tap
    odd = torch.tensor([[0.0, 0, 0], [1, 1, 0], [0, 0, 1]])
    ways = torch.stack([even, odd]).to(weight)
    return torch.einsum("ocij,pai,qbj->pqocab", weight, ways, ways).flatten(0, 2)


def _pair(layers: nn.Module, like: Tensor) -> tuple[_Conv, _Conv]:
    assert isinstance(layers, nn.Sequential)
    return _Conv(*_fold(layers[0], layers[1]), like), _Conv(*_fold(layers[3], layers[4]), like)


@dataclass
class _FoldedPlain:
    """The 2D ablation: features are SPECT and density themselves."""

    unet: _FoldedUNet
    dtype: torch.dtype

    @staticmethod
    def features(both: Tensor, batch: int) -> Iterator[Tensor]:
        """(D, 2, H, W) -> (B, 2, H, W), slice after slice."""
        yield from torch.split(both, batch)


class _FoldedExtractor:
    """The 3D convolutions as 2D ones over the slices that they share; see `models.slab` for the notation."""

    def __init__(self, layers: nn.Sequential, unet: _FoldedUNet, like: Tensor) -> None:
        self.unet = unet
        self.dtype = like.dtype
        weight, bias = _fold(layers[0], layers[1])
        self.width = weight.shape[0]
        parts = [weight.clone(), weight.clone(), weight.clone()]
        parts[1][..., 0] = 0
        parts[2][..., 4] = 0
        self.first = _Conv(torch.cat(parts).permute(0, 4, 1, 2, 3).flatten(1, 2), bias.repeat(3), like)
        weight, bias = _fold(layers[4], layers[5])
        nothing = torch.zeros_like(bias)
        # Each window's depths look at exactly one Q with the middle tap: it brings the bias.
        taps = weight.permute(4, 0, 1, 2, 3).flatten(0, 1)
        self.taps = _Conv(taps, torch.cat([nothing, bias, nothing]), like)
        self.low, self.high = _Conv(weight[..., 0], None, like), _Conv(weight[..., 2], None, like)
        last = layers[7]
        assert isinstance(last, nn.Conv3d)
        assert last.bias is not None
        weight, bias = last.weight.detach(), last.bias.detach()
        self.third = [_Conv(weight[..., t], bias if t == 0 else None, like) for t in range(3)]

    def features(self, both: Tensor, batch: int) -> Iterator[Tensor]:
        """(D, 2, H, W) -> (B, C, H, W), `batch` slices after `batch` slices."""
        depth = len(both)
        ends: dict[int, Tensor] = {}  # k -> A, A_lo, A_hi
        pairs: dict[int, Tensor] = {}  # k -> the three taps of conv2 on Q
        for z in range(0, depth, batch):
            stop = min(z + batch, depth)
            self._fill(ends, both, max(ends, default=z - 5) + 1, stop + 4)
            self._pool(pairs, ends, max(pairs, default=z - 3) + 1, stop + 2)
            yield self._join(pairs, ends, z, stop)
            for held, reach in ((ends, 4), (pairs, 2)):
                for k in [k for k in held if k < stop - reach]:
                    del held[k]

    def _fill(self, ends: dict[int, Tensor], both: Tensor, start: int, stop: int) -> None:
        """conv1 at `start` ... `stop` - 1; slices beyond the ends are the first and the last."""
        k = torch.arange(start, stop)[:, None] + torch.arange(-2, 3)
        inputs = both[k.clamp(0, len(both) - 1).to(both.device)].flatten(1, 2)
        made = self.first(inputs.contiguous(memory_format=CL))
        ends.update(zip(range(start, stop), torch.split(made, 1), strict=True))

    def _pool(self, pairs: dict[int, Tensor], ends: dict[int, Tensor], start: int, stop: int) -> None:
        """Q at `start` ... `stop` - 1, and what conv2 makes of each."""
        w = self.width
        pooled = [torch.maximum(ends[k][:, :w], ends[k + 1][:, :w]) for k in range(start, stop)]
        made = self.taps(functional.leaky_relu_(_joined(pooled), SLOPE))
        pairs.update(zip(range(start, stop), torch.split(made, 1), strict=True))

    def _join(self, pairs: dict[int, Tensor], ends: dict[int, Tensor], z: int, stop: int) -> Tensor:
        """conv2 of the windows, and conv3."""
        w = self.width
        zs = range(z, stop)
        first = _joined([torch.maximum(ends[k - 4][:, w : 2 * w], ends[k - 3][:, :w]) for k in zs])
        last = _joined([ends[k + 4][:, 2 * w :] for k in zs])
        c0 = self.low(functional.leaky_relu(first, SLOPE).contiguous(memory_format=CL))
        c2 = self.high(functional.leaky_relu(last, SLOPE).contiguous(memory_format=CL))
        before = _joined([pairs[k - 2] for k in zs]).chunk(3, dim=1)
        at = _joined([pairs[k] for k in zs]).chunk(3, dim=1)
        after = _joined([pairs[k + 2] for k in zs]).chunk(3, dim=1)
        c0.add_(before[1]).add_(at[2])
        c1 = (before[0] + at[1]).add_(after[2])
        c2.add_(at[0]).add_(after[1])
        # Three convolutions and two sums: putting the channels side by side would copy them.
        made = [
            conv(functional.leaky_relu_(c, SLOPE)) for conv, c in zip(self.third, (c0, c1, c2), strict=True)
        ]
        return made[0].add_(made[1]).add_(made[2])


def _joined(slices: list[Tensor]) -> Tensor:
    return slices[0] if len(slices) == 1 else torch.cat(slices)


def _folded(network: Network, device: str, dtype: torch.dtype) -> _FoldedExtractor | _FoldedPlain:
    like = torch.empty(0, device=device, dtype=dtype)
    unet = network.UNet
    assert isinstance(unet, UNet)
    folded = _FoldedUNet(unet, like)
    if isinstance(network, DblurDoseNet):
        return _FoldedExtractor(network.feature.model_3D, folded, like)
    return _FoldedPlain(folded, dtype)


# ── the device ───────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _arithmetic(precision: Precision) -> Iterator[None]:
    """Of convolutions in float32: IEEE where it must be exact, whatever the process has set; and back."""
    backends: Any = (torch.backends.cudnn.conv, torch.backends.mkldnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        backends[0].fp32_precision = "ieee" if precision == "exact" else "tf32"
        backends[1].fp32_precision = "ieee"
        yield
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting


def _forget(device: str) -> None:
    """Give back what the failed attempt held."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _require_usable(spect: Float32, density: Float32) -> None:
    if spect.shape != density.shape or spect.ndim != 3:
        raise ModelRejected(
            f"SPECT {spect.shape} and density {density.shape} (z, y, x) do not fit each other",
            "Bring both onto the same grid first",
        )
    depth, height, width = spect.shape
    if depth < WINDOW or min(height, width) < LEAST:
        raise ModelRejected(
            f"a volume of {depth} x {height} x {width} voxels (z, y, x) is smaller than the network's field",
            f"It needs at least {WINDOW} slices of {LEAST} x {LEAST} voxels at the network's voxel size",
        )
    for name, array in (("SPECT", spect), ("density", density)):
        # min() of an array with a NaN is NaN: no temporary array.
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            count = int(np.count_nonzero(~np.isfinite(array)))
            raise ModelRejected(
                f"the {name} given to the network holds {count} voxels that are not finite numbers",
                "Check the images that it was made from",
            )
