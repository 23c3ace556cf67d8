"""What stands between the convolutions in training, in as few passes over memory as there can be.

On a processor with bfloat16 matrix units the convolutions of a training step take less time than BatchNorm,
activation, pooling and concatenation after them, each of which PyTorch does in passes of its own. Here they
are joined: BatchNorm with LeakyReLU, the step from conv1 to conv2 of a slab (`models.slab`),
up-sampling with concatenation. Tensors are bfloat16 in channels_last order; sums, statistics and everything
between two roundings are float32 or better.

BatchNorm of x, channel by channel, with n values, weights w of the values, and scale = γ/σ::

    z = scale · (x - μ) + β,   dx = scale · (dz - w/n · (Σdz + x̂ · Σ dz x̂)),   x̂ = (x - μ)/σ
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CL = torch.channels_last
TILE = 512  # elements that coefficients are repeated to: inner loops long enough for the vector unit
FLUSH = 32  # tiles that are added up in float32 before float64 takes over
BLOCK = 64  # pixels whose depth is worked through at once: they stay in the first cache

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """At the first call; other threads run meanwhile."""
    compiled: Any = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
    dispatcher: Function = compiled(function)
    return dispatcher


def _inline(function: Function) -> Function:
    inlined: Any = numba.njit(inline="always")
    dispatcher: Function = inlined(function)
    return dispatcher


# ── bfloat16: the upper half of a float32 ────────────────────────────────────────────────────────


@_inline
def _wide(half: Any) -> Any:
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


@_inline
def _narrow(value: Any) -> Any:
    """To nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_inline
def _slope(z: Any, slope: Any) -> Any:
    return np.float32(1) if z > np.float32(0) else slope


# ── passes over flat arrays; coefficients are tiled ──────────────────────────────────────────────


@_compiled
def _sum_squares(x: Any, totals: Any) -> None:
    """totals (2, TILE): Σx and Σx² of the elements at each place in a tile."""
    tile = totals.shape[1]
    first, second = np.zeros(tile, np.float32), np.zeros(tile, np.float32)
    for start in range(0, x.size, tile * FLUSH):
        stop = min(start + tile * FLUSH, x.size)
        for base in range(start, stop, tile):
            part = x[base : min(base + tile, stop)]
            for j in range(part.size):
                v = _wide(part[j])
                first[j] += v
                second[j] += v * v
        for j in range(tile):
            totals[0, j] += first[j]
            totals[1, j] += second[j]
            first[j] = second[j] = np.float32(0)


@_compiled
def _activate(x: Any, y: Any, scale: Any, shift: Any, slope: Any) -> None:
    tile = scale.size
    for base in range(0, x.size, tile):
        part, into = x[base : base + tile], y[base : base + tile]
        for j in range(part.size):
            z = _wide(part[j]) * scale[j] + shift[j]
            into[j] = _narrow(z * _slope(z, slope))


@_compiled
def _sum_gradients(x: Any, dy: Any, scale: Any, shift: Any, slope: Any, totals: Any) -> None:
    """totals (2, TILE): Σdz and Σ dz·x. slope 1: dy is dz."""
    tile = scale.size
    first, second = np.zeros(tile, np.float32), np.zeros(tile, np.float32)
    for start in range(0, x.size, tile * FLUSH):
        stop = min(start + tile * FLUSH, x.size)
        for base in range(start, stop, tile):
            part, grad = x[base : min(base + tile, stop)], dy[base : min(base + tile, stop)]
            for j in range(part.size):
                v = _wide(part[j])
                d = _wide(grad[j]) * _slope(v * scale[j] + shift[j], slope)
                first[j] += d
                second[j] += d * v
        for j in range(tile):
            totals[0, j] += first[j]
            totals[1, j] += second[j]
            first[j] = second[j] = np.float32(0)


@_compiled
def _gradient(
    x: Any, dy: Any, dx: Any, scale: Any, shift: Any, slope: Any, linear: Any, constant: Any
) -> None:
    """dx = scale · dz + linear · x + constant."""
    tile = scale.size
    for base in range(0, x.size, tile):
        part, grad, into = x[base : base + tile], dy[base : base + tile], dx[base : base + tile]
        for j in range(part.size):
            v = _wide(part[j])
            d = _wide(grad[j]) * _slope(v * scale[j] + shift[j], slope)
            into[j] = _narrow(scale[j] * d + linear[j] * v + constant[j])


# ── BatchNorm and LeakyReLU ──────────────────────────────────────────────────────────────────────


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any, slope: float) -> Tensor:
        flat, channels = _flat(x), x.shape[1]
        count = flat.size // channels
        ctx.held, mean, variance = _statistics(
            norm, lambda: _folded_sums(_sum_squares, flat, channels), float(count)
        )
        ctx.mean, ctx.inverse = mean, 1.0 / np.sqrt(variance + norm.eps)
        ctx.scale = weight.detach().double().numpy() * ctx.inverse
        ctx.shift = bias.detach().double().numpy() - mean * ctx.scale
        ctx.slope = np.float32(slope)
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        tiled = (_tiled(ctx.scale), _tiled(ctx.shift), ctx.slope)
        _shared(lambda a, b: _activate(a, b, *tiled), channels, flat, _flat(y))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        channels = x.shape[1]
        flat, grad = _flat(x), _flat(dy.contiguous(memory_format=CL))
        tiled = (_tiled(ctx.scale), _tiled(ctx.shift), ctx.slope)
        sums = _folded_sums(lambda a, b, t: _sum_gradients(a, b, *tiled, t), flat, channels, grad)
        dbias, dweight = sums[0], (sums[1] - ctx.mean * sums[0]) * ctx.inverse
        linear, constant = _coefficients(ctx, dbias, dweight, flat.size // channels)
        more = (*tiled, _tiled(linear), _tiled(constant))
        dx = torch.empty_like(x)
        _shared(lambda a, b, c: _gradient(a, b, c, *more), channels, flat, grad, _flat(dx))
        return dx, _tensor(dweight), _tensor(dbias), None, None


def norm_act(x: Tensor, norm: nn.Module, slope: float) -> Tensor:
    """LeakyReLU of BatchNorm.

    x: (B, C, H, W) bfloat16, channels_last. norm: its layer; in training mode it normalises by the batch and
    its running statistics move, else it holds still. slope: of negative values, 0 for ReLU.
    """
    apply: Any = _NormAct.apply
    y: Tensor = apply(x.contiguous(memory_format=CL), norm.weight, norm.bias, norm, slope)
    return y


def _coefficients(ctx: Any, dbias: Float64, dweight: Float64, count: float) -> tuple[Float64, Float64]:
    """What BatchNorm's gradient has beside scale · dz: a part that goes with x, and a constant."""
    if ctx.held:  # its statistics do not depend on x
        return np.zeros_like(ctx.scale), np.zeros_like(ctx.scale)
    linear = -ctx.scale * ctx.inverse * dweight / count
    return linear, -ctx.scale * dbias / count - linear * ctx.mean


def _statistics(norm: Any, sums: Callable[[], Float64], count: float) -> tuple[bool, Float64, Float64]:
    """Whether the layer holds still, and the mean and variance that it normalises by.

    sums: of x and of x² for each channel over `count` values; asked for in training mode alone.
    """
    if not norm.training:
        return True, norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    totals = sums()
    mean = totals[0] / count
    variance = np.maximum(totals[1] / count - mean**2, 0.0)
    _moved(norm, mean, variance, count)
    return False, mean, variance


def _moved(norm: Any, mean: Float64, variance: Float64, count: float) -> None:
    """Running statistics, as PyTorch moves them: the variance of the population estimated from the sample."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(_tensor(mean), norm.momentum)
    norm.running_var.lerp_(_tensor(variance * (count / (count - 1))), norm.momentum)


# ── from conv1 to conv2 of a slab ────────────────────────────────────────────────────────────────


class _Windows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, norm: Any, shape: Any) -> Tensor:
        n, slices, slope, seen = shape
        width = weight.shape[0]
        depth, pixels = slices + 8, y.shape[2] * y.shape[3]
        count = float(seen.sum()) * n * pixels
        images = _flat(y).reshape(n * depth, -1)

        def sums() -> Float64:
            each = np.stack([_folded_sums(_sum_squares, image, 3 * width) for image in images])
            found: Float64 = np.einsum("nkspc,kp->sc", each.reshape(n, depth, 2, 3, width), seen)
            return found

        ctx.held, mean, variance = _statistics(norm, sums, count)
        ctx.mean, ctx.inverse = mean, 1.0 / np.sqrt(variance + norm.eps)
        ctx.scale = weight.detach().double().numpy() * ctx.inverse
        ctx.shift = bias.detach().double().numpy() - mean * ctx.scale
        ctx.count, ctx.seen, ctx.slope = count, seen, np.float32(slope)
        ctx.save_for_backward(y)
        out = torch.empty((3 * n * slices, 3 * width, *y.shape[2:]), dtype=y.dtype, memory_format=CL)
        source = images.reshape(n, depth, pixels, 3 * width)
        target = _flat(out).reshape(3, n, slices, pixels, 3 * width)
        constants = (width, ctx.scale.astype(np.float32), ctx.shift.astype(np.float32), ctx.slope)
        for one, into in zip(source, target.swapaxes(0, 1), strict=True):
            _pixels(partial(_gather, one, into, *constants), pixels)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        width = len(ctx.mean)
        depth, pixels = len(ctx.seen), y.shape[2] * y.shape[3]
        n = y.shape[0] // depth
        source = _flat(y).reshape(n, depth, pixels, 3 * width)
        given = _flat(grad.contiguous(memory_format=CL)).reshape(3, n, depth - 8, pixels, 3 * width)
        dy = torch.empty_like(y)
        target = _flat(dy).reshape(source.shape)
        constants = (width, ctx.scale.astype(np.float32), ctx.shift.astype(np.float32), ctx.slope)
        for one, above, into in zip(source, given.swapaxes(0, 1), target, strict=True):
            _pixels(partial(_scatter, one, above, into, *constants), pixels)

        # From here on dy holds dz: a slope of 1 leaves it as it is.
        tiled = (_tiled(np.tile(ctx.scale, 3)), _tiled(np.tile(ctx.shift, 3)), np.float32(1))
        flat, dz = _flat(y), _flat(dy)
        sums = _folded_sums(lambda a, b, t: _sum_gradients(a, b, *tiled, t), flat, 3 * width, dz)
        sums = sums.reshape(2, 3, width).sum(axis=1)
        dbias, dweight = sums[0], (sums[1] - ctx.mean * sums[0]) * ctx.inverse
        linear, constant = _coefficients(ctx, dbias, dweight, ctx.count)

        def finish(i: int) -> None:
            seen = ctx.seen[i % depth]  # of A, A_lo, A_hi at this depth
            more = (_tiled(np.outer(seen, linear).ravel()), _tiled(np.outer(seen, constant).ravel()))
            _gradient(images[i], gradients[i], gradients[i], *tiled, *more)

        images, gradients = flat.reshape(n * depth, -1), dz.reshape(n * depth, -1)
        _all(finish, range(n * depth))
        return dy, _tensor(dweight), _tensor(dbias), None, None


def windows(y: Tensor, norm: nn.Module, slope: float, n: int, slices: int, seen: Float64) -> Tensor:
    """BatchNorm over the windows, LeakyReLU and pooling of pairs: what conv2 sees of what conv1 made.

    y: (n · (slices + 8), 3 · C, H, W) bfloat16, channels_last: A, A_lo, A_hi of the slices -4 ... slices + 3.
    seen: (slices + 8, 3), in how many windows each of them occurs.
    returns: (3 · n · slices, 3 · C, H, W): [P0, Q(z-2), Q(z)], then [Q(z-2), Q(z), Q(z+2)], then
        [Q(z), Q(z+2), P4], each for all n · slices.
    """
    shape = (n, slices, slope, seen)
    apply: Any = _Windows.apply
    out: Tensor = apply(y.contiguous(memory_format=CL), norm.weight, norm.bias, norm, shape)
    return out


@_inline
def _higher(y: Any, first: int, second: int, p: int, c: int, other: int, scale: Any, shift: Any) -> Any:
    """The higher of A or A_lo at depth `first` (channel `other`) and A at `second`, after BatchNorm."""
    a = _wide(y[first, p, other]) * scale[c] + shift[c]
    b = _wide(y[second, p, c]) * scale[c] + shift[c]
    return a if a > b else b


@_compiled
def _gather(y: Any, out: Any, width: int, scale: Any, shift: Any, slope: Any, first: int, last: int) -> None:
    """Pixels `first` ... of one slab. y: (S + 8, P, 3 · C). out: (3, S, P, 3 · C)."""
    for r in range(out.shape[1]):
        for p in range(first, last):
            for c in range(width):
                low = _higher(y, r, r + 1, p, c, width + c, scale, shift)
                before = _higher(y, r + 2, r + 3, p, c, c, scale, shift)
                at = _higher(y, r + 4, r + 5, p, c, c, scale, shift)
                after = _higher(y, r + 6, r + 7, p, c, c, scale, shift)
                high = _wide(y[r + 8, p, 2 * width + c]) * scale[c] + shift[c]
                q_before = _narrow(before * _slope(before, slope))
                q_at = _narrow(at * _slope(at, slope))
                q_after = _narrow(after * _slope(after, slope))
                out[0, r, p, c] = _narrow(low * _slope(low, slope))
                out[0, r, p, width + c] = q_before
                out[0, r, p, 2 * width + c] = q_at
                out[1, r, p, c] = q_before
                out[1, r, p, width + c] = q_at
                out[1, r, p, 2 * width + c] = q_after
                out[2, r, p, c] = q_at
                out[2, r, p, width + c] = q_after
                out[2, r, p, 2 * width + c] = _narrow(high * _slope(high, slope))


@_compiled
def _scatter(
    y: Any, grad: Any, dz: Any, width: int, scale: Any, shift: Any, slope: Any, first: int, last: int
) -> None:
    """The gradient before the activation; shapes as in `_gather`.

    Where two are equal the first of them has it, as in PyTorch's pooling.
    """
    slices, depth = grad.shape[1], y.shape[0]
    # A and A_lo before the activation, the gradients of Q and of P0; with room at either end, so that no
    # index needs a question.
    z = np.empty((depth + 2, BLOCK, 2 * width), np.float32)
    z[0], z[-1] = np.float32(0), np.float32(0)
    pooled = np.empty((depth + 2, BLOCK, width), np.float32)
    lowest = np.empty((depth + 2, BLOCK, width), np.float32)
    for begin in range(first, last, BLOCK):
        end = min(begin + BLOCK, last)
        for k in range(depth):
            _before_activation(y[k, begin:end], z[k + 1], width, scale, shift)
        pooled[:], lowest[:] = np.float32(0), np.float32(0)
        for r in range(slices):
            _unpooled(
                grad[:, r, begin:end], lowest[r + 1], pooled[r + 3], pooled[r + 5], pooled[r + 7], width
            )
        for k in range(depth):
            _winners(z[k : k + 3], pooled[k : k + 2], lowest[k : k + 2], dz[k, begin:end], width, slope)
            if k < 8:
                dz[k, begin:end, 2 * width :] = np.uint16(0)
            else:
                _highest(
                    y[k, begin:end], grad[2, k - 8, begin:end], dz[k, begin:end], width, scale, shift, slope
                )


@_compiled
def _before_activation(y: Any, z: Any, width: int, scale: Any, shift: Any) -> None:
    for p in range(y.shape[0]):
        for c in range(width):
            z[p, c] = _wide(y[p, c]) * scale[c] + shift[c]
            z[p, width + c] = _wide(y[p, width + c]) * scale[c] + shift[c]


@_compiled
def _unpooled(grad: Any, lowest: Any, before: Any, at: Any, after: Any, width: int) -> None:
    """Gradients of P0, Q(z-2), Q(z), Q(z+2) of one result. grad: (3, pixels, 3 · C)."""
    for p in range(grad.shape[1]):
        for c in range(width):
            b, a = width + c, 2 * width + c
            lowest[p, c] = _wide(grad[0, p, c])
            before[p, c] += _wide(grad[0, p, b]) + _wide(grad[1, p, c])
            at[p, c] += _wide(grad[0, p, a]) + _wide(grad[1, p, b]) + _wide(grad[2, p, c])
            after[p, c] += _wide(grad[1, p, a]) + _wide(grad[2, p, b])


@_compiled
def _winners(z: Any, pooled: Any, lowest: Any, dz: Any, width: int, slope: Any) -> None:
    """The gradients of A and A_lo at one depth: z, pooled, lowest from the depth before it on."""
    zero = np.float32(0)
    for p in range(dz.shape[0]):
        for c in range(width):
            own = z[1, p, c]
            d = pooled[1, p, c] if own >= z[2, p, c] else zero
            d += pooled[0, p, c] if own > z[0, p, c] else zero
            d += lowest[0, p, c] if own > z[0, p, width + c] else zero
            dz[p, c] = _narrow(d * _slope(own, slope))
            own = z[1, p, width + c]
            d = lowest[1, p, c] if own >= z[2, p, c] else zero
            dz[p, width + c] = _narrow(d * _slope(own, slope))


@_compiled
def _highest(y: Any, grad: Any, dz: Any, width: int, scale: Any, shift: Any, slope: Any) -> None:
    for p in range(y.shape[0]):
        for c in range(width):
            i = 2 * width + c
            own = _wide(y[p, i]) * scale[c] + shift[c]
            dz[p, i] = _narrow(_wide(grad[p, i]) * _slope(own, slope))


# ── up-sampling and concatenation ────────────────────────────────────────────────────────────────


@_compiled
def _join(skip: Any, low: Any, out: Any, first: int, last: int) -> None:
    """Rows `first` ... of all images; arrays (rows, columns, words of four values)."""
    kept, added = skip.shape[2], low.shape[2]
    for y in range(first, last):
        for x in range(skip.shape[1]):
            for c in range(kept):
                out[y, x, c] = skip[y, x, c]
            for c in range(added):
                out[y, x, kept + c] = low[y // 2, x // 2, c]


@_compiled
def _part(grad: Any, dskip: Any, dlow: Any, first: int, last: int) -> None:
    """Rows `first` ... of the lower resolution; arrays (rows, columns, channels)."""
    kept, added = dskip.shape[2], dlow.shape[2]
    for y in range(first, last):
        for x in range(dlow.shape[1]):
            for j in range(2):
                for i in range(2):
                    for c in range(kept):
                        dskip[2 * y + j, 2 * x + i, c] = grad[2 * y + j, 2 * x + i, c]
            for c in range(added):
                dlow[y, x, c] = _narrow(
                    _wide(grad[2 * y, 2 * x, kept + c])
                    + _wide(grad[2 * y, 2 * x + 1, kept + c])
                    + _wide(grad[2 * y + 1, 2 * x, kept + c])
                    + _wide(grad[2 * y + 1, 2 * x + 1, kept + c])
                )


class _UpCat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, skip: Tensor) -> Tensor:
        batch, channels, height, width = skip.shape
        ctx.shapes = (low.shape, skip.shape)
        out = torch.empty((batch, channels + low.shape[1], height, width), dtype=skip.dtype, memory_format=CL)
        a, b, c = (_rows(t).view(np.uint64) for t in (skip, low, out))
        _pixels(lambda i, j: _join(a, b, c, i, j), batch * height)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dlow, dskip = (torch.empty(s, dtype=grad.dtype, memory_format=CL) for s in ctx.shapes)
        a, b, c = (_rows(t) for t in (grad.contiguous(memory_format=CL), dskip, dlow))
        _pixels(lambda i, j: _part(a, b, c, i, j), c.shape[0])
        return dlow, dskip


def up_cat(low: Tensor, skip: Tensor) -> Tensor:
    """[skip, low at twice its resolution]; bfloat16, channels_last, channels multiples of four."""
    apply: Any = _UpCat.apply
    out: Tensor = apply(low.contiguous(memory_format=CL), skip.contiguous(memory_format=CL))
    return out


# ── arrays and threads ───────────────────────────────────────────────────────────────────────────


def _flat(x: Tensor) -> Any:
    """The memory of a channels_last tensor, in its order: pixels, then channels."""
    return x.detach().permute(0, 2, 3, 1).view(torch.int16).numpy().view(np.uint16).reshape(-1)


def _rows(x: Tensor) -> Any:
    """(B, C, H, W) -> (B · H, W, C)."""
    return _flat(x).reshape(-1, x.shape[3], x.shape[1])


def _tiled(values: Float64) -> Float32:
    """Channel by channel, again and again."""
    return np.tile(values, max(1, TILE // len(values))).astype(np.float32)


def _tensor(values: Float64) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _folded_sums(kernel: Callable[..., None], flat: Any, channels: int, *others: Any) -> Float64:
    """(2, channels): what `kernel` adds up, over all threads and tiles."""
    length = channels * max(1, TILE // channels)
    totals: list[Float64] = []

    def add(*parts: Any) -> None:
        mine = np.zeros((2, length))
        totals.append(mine)
        kernel(*parts, mine)

    _shared(add, channels, flat, *others)
    sums: Float64 = np.sum(totals, axis=0).reshape(2, -1, channels).sum(axis=1)
    return sums


def _shared(work: Callable[..., None], channels: int, *arrays: Any) -> None:
    """The arrays cut into as many parts as there are threads, at multiples of a tile."""
    threads = torch.get_num_threads()
    tile = channels * max(1, TILE // channels)
    step = -(-arrays[0].size // (threads * tile)) * tile
    cuts = [slice(start, start + step) for start in range(0, arrays[0].size, step)]
    _all(lambda cut: work(*(array[cut] for array in arrays)), cuts)


def _pixels(work: Callable[[int, int], None], count: int) -> None:
    step = -(-count // torch.get_num_threads())
    _all(lambda start: work(start, min(start + step, count)), range(0, count, step))


def _all(work: Callable[[Any], None], parts: Any) -> None:
    if len(parts) == 1:
        work(parts[0])
    else:
        list(_pool(torch.get_num_threads()).map(work, parts))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fused")
