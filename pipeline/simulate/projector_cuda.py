"""`projector.Runner` on a CUDA card: all views at once, one slab after the other.

A thread computes one value of one view's plane, with the elements of `slab_steps` that the processor's loops
use. Threads of different views add to the same voxels when they project back: the order of those sums, and so
their last digits, differ from run to run.

Imported by `projector` alone, and only when a card is to be used: numba-cuda is optional.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda as numba_cuda
from numpy.typing import NDArray

from pipeline.montecarlo.cuda import driver_faults, require_memory
from pipeline.simulate.slab_steps import Course, between, image_x, image_y, three_point, transmission

Float32 = NDArray[np.float32]
Views = NDArray[np.int64]

cuda: Any = numba_cuda  # it publishes no types

# Threads of a block: along z, where neighbours read neighbouring values, and across.
BLOCK = (32, 4)
# What the context, the code and the fragments of the allocator take beside the arrays.
RESERVE_BYTES = 256 << 20
ONE = np.float32(1.0)

# float32 throughout; the rounding of a contracted sum is far below that of the response's model.
_jit = cuda.jit(fastmath=True)


@_jit  # type: ignore[untyped-decorator]
def blur_pass(old: Float32, new: Float32, course: Course, views: Views, step: int, turn: int) -> None:
    """new = B old for the views that pass `step` and have more than `turn` passes there; a copy for others.

    old, new: [view, across + 2, z + 2]. step: as in `Course.passes`; its last is the way to the face.
    """
    k, j, number = cuda.grid(3)
    if number >= views.size or k >= old.shape[2] - 2:
        return
    view = views[number]
    if j < course.window_low[view] or j >= course.window_high[view]:
        return
    k += 1
    j += 1
    passed = step == course.passes.shape[1] - 1 or course.first[view] <= step < course.last[view]
    if passed and turn < course.passes[view, step]:
        w = course.across[view, step]
        p = old[number]
        before = three_point(p[j - 1, k - 1], p[j, k - 1], p[j + 1, k - 1], w)
        here = three_point(p[j - 1, k], p[j, k], p[j + 1, k], w)
        after = three_point(p[j - 1, k + 1], p[j, k + 1], p[j + 1, k + 1], w)
        new[number, j, k] = three_point(before, here, after, course.along[view, step])
    else:
        new[number, j, k] = old[number, j, k]


@_jit  # type: ignore[untyped-decorator]
def gather_slab(
    planes: Float32, image: Float32, half_path: Float32, course: Course, views: Views, slab: int
) -> None:
    """p ← p · t² + f · t, see `slab_steps.gather`."""
    z, j, number = cuda.grid(3)
    if number >= views.size or z >= image.shape[2]:
        return
    view = views[number]
    if j < course.low[view, slab] or j >= course.high[view, slab]:
        return
    v, u = image_y(course, view, slab, j), image_x(course, view, slab, j)
    y, x = int(v), int(u)
    fy, fx = v - np.float32(y), u - np.float32(x)
    t = transmission(between(half_path, y, x, fy, fx, z))
    k = course.image_z + z
    planes[number, j + 1, k] = (planes[number, j + 1, k] * t + between(image, y, x, fy, fx, z)) * t


@_jit  # type: ignore[untyped-decorator]
def spread_slab(
    planes: Float32, image: Float32, half_path: Float32, course: Course, views: Views, slab: int
) -> None:
    """f += p · t, p ← p · t², see `slab_steps.spread`."""
    z, j, number = cuda.grid(3)
    if number >= views.size or z >= image.shape[2]:
        return
    view = views[number]
    if j < course.low[view, slab] or j >= course.high[view, slab]:
        return
    v, u = image_y(course, view, slab, j), image_x(course, view, slab, j)
    y, x = int(v), int(u)
    fy, fx = v - np.float32(y), u - np.float32(x)
    t = transmission(between(half_path, y, x, fy, fx, z))
    k = course.image_z + z
    p = planes[number, j + 1, k] * t
    planes[number, j + 1, k] = p * t
    cuda.atomic.add(image, (y, x, z), (ONE - fy) * (ONE - fx) * p)
    cuda.atomic.add(image, (y, x + 1, z), (ONE - fy) * fx * p)
    cuda.atomic.add(image, (y + 1, x, z), fy * (ONE - fx) * p)
    cuda.atomic.add(image, (y + 1, x + 1, z), fy * fx * p)


class CardRunner:
    """`projector.Runner` on one card; attenuation and courses stay in its memory."""

    def __init__(self, half_path: Float32, course: Course, plane: tuple[int, int], number: int = 0) -> None:
        """raises: TooLittleMemory, EngineFailed."""
        with driver_faults():
            cuda.select_device(number)
            self._plane = plane
            self._host = course
            self._shape = half_path.shape
            views = course.cosine.size
            planes = 2 * views * (plane[0] + 2) * (plane[1] + 2) * 4
            require_memory(2 * half_path.nbytes + planes + RESERVE_BYTES, _free_bytes())
            self._half_path = cuda.to_device(half_path)
            parts: list[Any] = list(course)
            self._course = Course(*(cuda.to_device(p) if isinstance(p, np.ndarray) else p for p in parts))

    def project(self, image: Float32, views: Views) -> Float32:
        """See `projector.Runner.project`."""
        with driver_faults():
            on_card, chosen = cuda.to_device(np.ascontiguousarray(image)), cuda.to_device(views)
            old, new = self._planes(views.size), self._planes(views.size)
            first, last = self._reach(views)
            for slab in range(last, first - 1, -1):
                if slab < last:
                    old, new = self._blurred(old, new, views, chosen, slab)
                gather_slab[self._blocks(views.size), BLOCK](
                    old, on_card, self._half_path, self._course, chosen, slab
                )
            old, _ = self._blurred(old, new, views, chosen, self._face)
            return np.ascontiguousarray(old.copy_to_host()[:, 1:-1, 1:-1])

    def back_project(self, planes: Float32, views: Views) -> Float32:
        """See `projector.Runner.back_project`."""
        with driver_faults():
            image, chosen = cuda.to_device(np.zeros(self._shape, np.float32)), cuda.to_device(views)
            old = cuda.to_device(self._in_windows(planes, views))
            old, new = self._blurred(old, self._planes(views.size), views, chosen, self._face)
            first, last = self._reach(views)
            for slab in range(first, last + 1):
                spread_slab[self._blocks(views.size), BLOCK](
                    old, image, self._half_path, self._course, chosen, slab
                )
                if slab < last:
                    old, new = self._blurred(old, new, views, chosen, slab)
            return np.asarray(image.copy_to_host())

    @property
    def _face(self) -> int:
        return int(self._host.passes.shape[1]) - 1

    def _reach(self, views: Views) -> tuple[int, int]:
        """Nearest and farthest slab of any of the views."""
        return int(self._host.first[views].min()), int(self._host.last[views].max())

    def _blurred(self, old: Any, new: Any, views: Views, chosen: Any, step: int) -> tuple[Any, Any]:
        """(blurred planes, spare planes)."""
        for turn in range(int(self._host.passes[views, step].max())):
            blur_pass[self._blocks(views.size), BLOCK](old, new, self._course, chosen, step, turn)
            old, new = new, old
        return old, new

    def _planes(self, views: int) -> Any:
        return cuda.to_device(np.zeros((views, self._plane[0] + 2, self._plane[1] + 2), np.float32))

    def _in_windows(self, planes: Float32, views: Views) -> Float32:
        """With an empty row on every side, and without what lies beyond the views' windows."""
        across = np.arange(self._plane[0])
        low, high = self._host.window_low[views, None], self._host.window_high[views, None]
        inside = (across >= low) & (across < high)
        return np.pad(planes * inside[:, :, None], ((0, 0), (1, 1), (1, 1)))

    def _blocks(self, views: int) -> tuple[int, int, int]:
        across, along = self._plane
        return -(-along // BLOCK[0]), -(-across // BLOCK[1]), views


def _free_bytes() -> float:
    return float(cuda.current_context().get_memory_info().free)
