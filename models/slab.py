"""The network over a slab of consecutive slices at once, differentiable: the form that is trained.

A window of eleven slices shares its 3D convolutions with its neighbours. Over S + 10 slices that give S
results, each convolution is done once per slice, as a 2D convolution whose channels are the taps in depth.
What a window sees only at its own ends is kept apart, so that the result is the same as the windows', not an
approximation. With depth index k, window centre z and conv1's five taps t:

    A(k)    = Σ t=0..4 conv1[t] · slice(k + t - 2)     A_lo: without t = 0,  A_hi: without t = 4
    Q(k)    = max(A(k), A(k+1))                        the pooling of pairs, after BatchNorm
    P0(z)   = max(A_lo(z-4), A(z-3)),  P4(z) = A_hi(z+4)
    conv2 sees [P0(z), Q(z-2), Q(z)], [Q(z-2), Q(z), Q(z+2)], [Q(z), Q(z+2), P4(z)]
    conv3 sees the three results of conv2

since conv1 pads each window by one slice of zeros and the pooling begins at the window. In training mode
BatchNorm's statistics are those of the windows: A(k) counts once for each window that holds it, and running
statistics move as PyTorch moves them.

Under ``torch.autocast("cpu", torch.bfloat16)`` a step in training mode goes through `models.fused`; the same
function otherwise, on a GPU and in evaluation mode, goes through PyTorch's own operations.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.dblurdosenet import REACH, SLOPE, WINDOW, DblurDoseNet, Down, Network, UNet, Up
from models.errors import ModelRejected

CL = torch.channels_last
MARGIN = 4  # slices on either side of the results for which conv1 is needed


def residual(network: Network, spect: Tensor, density: Tensor) -> Tensor:
    """The U-Net's output for the inner slices of a slab: ``network.correction`` of each of its windows.

    spect, density: (N, S + 10, H, W) in the units of `models.scaling`, H and W multiples of 16.
    returns: (N, S, H, W), under autocast in autocast's type; differentiable in the network's parameters.

    raises: ModelRejected for fewer than eleven slices, or shapes that differ.
    """
    if spect.shape != density.shape or spect.ndim != 4 or spect.shape[1] < WINDOW:
        raise ModelRejected(
            f"a slab of SPECT {tuple(spect.shape)} and density {tuple(density.shape)}",
            f"Give both as (N, S + {WINDOW - 1}, y, x) with S of at least 1",
        )
    n, depth, height, width = spect.shape
    unet = cast(UNet, network.UNet)
    fused = _fused(network, spect)
    if isinstance(network, DblurDoseNet):
        features = _features(network.feature.model_3D, spect, density, fused)
    else:
        inner = slice(REACH, depth - REACH)
        features = torch.stack([spect[:, inner], density[:, inner]], dim=2).flatten(0, 1)
        features = features.contiguous(memory_format=CL)
    corrected: Tensor = _unet(unet, features) if fused else unet(features)
    return corrected.view(n, depth - 2 * REACH, height, width)


def seen(slices: int) -> NDArray[np.float64]:
    """In how many of a slab's windows A, A_lo and A_hi of each depth occur.

    slices: results of the slab. returns: (slices + 8, 3), the depths from four before the first result on.
    """
    k = np.arange(-MARGIN, slices + MARGIN)[:, None]
    z = np.arange(slices)
    counts = [(abs(k - z) < MARGIN).sum(1), (k == z - MARGIN).sum(1), (k == z + MARGIN).sum(1)]
    return np.stack(counts, axis=1).astype(np.float64)


def _fused(network: Network, spect: Tensor) -> bool:
    return (
        network.training
        and spect.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


# ── the extractor ────────────────────────────────────────────────────────────────────────────────


def _features(layers: nn.Sequential, spect: Tensor, density: Tensor, fused: bool) -> Tensor:
    """(N, S + 10, H, W) twice -> (N · S, middle, H, W)."""
    conv1, norm1, _, _, conv2, norm2, _, conv3 = layers
    n, slices = spect.shape[0], spect.shape[1] - 2 * REACH
    ends = _first(cast(Tensor, conv1.weight), spect, density)
    pooled = _pooled(norm1, ends, n, slices, fused)
    taps = cast(Tensor, conv2.weight).permute(0, 4, 1, 2, 3).flatten(1, 2)
    second = functional.conv2d(pooled, taps.contiguous(memory_format=CL), padding=3)
    below, middle, above = _norm_act(norm2, second, SLOPE, fused).chunk(3)
    # Three convolutions and two sums: putting the channels side by side would copy them twice.
    weights = cast(Tensor, conv3.weight).permute(4, 0, 1, 2, 3)
    features = functional.conv2d(below, weights[0], cast(Tensor, conv3.bias), padding=3)
    features = features + functional.conv2d(middle, weights[1], padding=3)
    return features + functional.conv2d(above, weights[2], padding=3)


def _first(weight: Tensor, spect: Tensor, density: Tensor) -> Tensor:
    """conv1 as A, A_lo and A_hi, one after the other in the channels.

    returns: (N · (S + 8), 3 · C, H, W), the depths from four before the first result on.
    """
    both = torch.stack([spect, density], dim=-1)
    # One slice more at either end: only the taps that A_lo and A_hi lack would look at it.
    both = functional.pad(both, (0, 0, 0, 0, 0, 0, 1, 1))
    neighbours = both.unfold(1, 5, 1)  # (N, S + 8, H, W, 2, 5)
    inputs = neighbours.flatten(4).flatten(0, 1).permute(0, 3, 1, 2)
    low, high = weight.clone(), weight.clone()
    low[..., 0] = 0
    high[..., 4] = 0
    taps = torch.cat([weight, low, high]).permute(0, 1, 4, 2, 3).flatten(1, 2)
    return functional.conv2d(
        inputs.contiguous(memory_format=CL), taps.contiguous(memory_format=CL), padding=3
    )


def _pooled(norm: nn.Module, ends: Tensor, n: int, slices: int, fused: bool) -> Tensor:
    """BatchNorm, LeakyReLU and pooling of pairs: what conv2 sees at its three depths, one after the other.

    ends: of `_first`. returns: (3 · N · S, 3 · C, H, W).
    """
    if fused:
        # numba compiles at the first import: not for those who do not train on a CPU.
        from models.fused import windows

        return windows(ends, norm, SLOPE, n, slices, seen(slices))
    scale, shift = _scale_shift(cast(nn.BatchNorm3d, norm), ends, n, slices)
    parts = _by_depth(ends, n)
    parts = functional.leaky_relu(
        parts * scale.view(-1, 1, 1).to(ends) + shift.view(-1, 1, 1).to(ends), SLOPE
    )
    a, low, high = parts.unbind(2)
    pairs = torch.maximum(a[:, 2:-2], a[:, 3:-1])  # the first is Q(z-2) of the first result
    first = torch.maximum(low[:, :slices], a[:, 1 : 1 + slices])
    last = high[:, 2 * MARGIN :]
    before, at, after = (pairs[:, i : i + slices] for i in (0, 2, 4))
    groups = ([first, before, at], [before, at, after], [at, after, last])
    pooled = torch.stack([torch.cat(group, dim=2) for group in groups])
    return pooled.flatten(0, 2).contiguous(memory_format=CL)


def _by_depth(ends: Tensor, n: int) -> Tensor:
    """(N · (S + 8), 3 · C, H, W) -> (N, S + 8, 3, C, H, W)."""
    return ends.view(n, ends.shape[0] // n, 3, ends.shape[1] // 3, *ends.shape[2:])


def _scale_shift(norm: nn.BatchNorm3d, ends: Tensor, n: int, slices: int) -> tuple[Tensor, Tensor]:
    """BatchNorm as a factor and a summand for each channel; in training mode of the windows' statistics."""
    running_mean, running_var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    if not norm.training:
        scale = norm.weight * torch.rsqrt(running_var + norm.eps)
        return scale, norm.bias - running_mean * scale
    counts = torch.from_numpy(seen(slices)).to(ends.device)
    values = float(counts.sum()) * n * ends.shape[2] * ends.shape[3]
    wide = ends.to(torch.promote_types(ends.dtype, torch.float32))
    parts = _by_depth(wide, n)
    variances, means = torch.var_mean(parts, dim=(-2, -1), correction=0)
    share = (counts / (counts.sum() * n)).to(wide)[None, :, :, None]
    mean = (share * means).sum((0, 1, 2))
    variance = (share * (variances + (means - mean) ** 2)).sum((0, 1, 2))
    with torch.no_grad():
        cast(Tensor, norm.num_batches_tracked).add_(1)
        running_mean.lerp_(mean, cast(float, norm.momentum))
        running_var.lerp_(variance * (values / (values - 1)), cast(float, norm.momentum))
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


# ── the U-Net ────────────────────────────────────────────────────────────────────────────────────


def _unet(unet: UNet, x: Tensor) -> Tensor:
    """`UNet.forward` in training mode through `models.fused`."""
    from models.fused import up_cat

    x = _double(unet.inc.conv, x, SLOPE)
    skips = []
    for down in cast("list[Down]", unet.down):
        skips.append(x)
        x = _double(cast(nn.Module, down.maxpool_conv[1].conv), down.maxpool_conv[0](x), SLOPE)
    for up in cast("list[Up]", unet.up):
        x = _double(up.conv.conv, up_cat(x, skips.pop()), 0.0)
    corrected: Tensor = unet.outc(x)
    return corrected


def _double(layers: nn.Module, x: Tensor, slope: float) -> Tensor:
    conv_a, norm_a, _, conv_b, norm_b, _ = cast(nn.Sequential, layers)
    x = _norm_act(norm_a, conv_a(x), slope, fused=True)
    return _norm_act(norm_b, conv_b(x), slope, fused=True)


def _norm_act(norm: nn.Module, x: Tensor, slope: float, fused: bool) -> Tensor:
    """BatchNorm and LeakyReLU. x: (B, C, H, W), also of a BatchNorm over three dimensions."""
    if fused:
        from models.fused import norm_act

        return norm_act(x, norm, slope)
    # BatchNorm3d asks for five dimensions; a depth of one adds nothing to its statistics.
    normed: Tensor = norm(x.unsqueeze(-1)).squeeze(-1) if isinstance(norm, nn.BatchNorm3d) else norm(x)
    return functional.leaky_relu(normed, slope)
