"""The steps by which counts pass from slab to slab, compiled; `projector` says what they compute.

The first functions are the elements: one value each. The loops below them run on the processor, and
`projector_cuda` calls the same elements for one value a thread of the graphics card.

Images are (y, x, z) with a border of empty voxels, so that interpolation needs no look at their edges; planes
are (across, z) with an empty row on every side: what blurs beyond them is lost. z is the run that a processor
takes several of at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import HALF, ONE, ZERO, F, compiled

Float32 = NDArray[np.float32]

_THIRD = F(1.0 / 3.0)
_QUARTER = F(0.25)


class Course(NamedTuple):
    """Where the slabs of every view lie and how much each blurs. V views, S slabs (0 is nearest).

    Places across count from the first fine bin; a row of the planes lies one further on, see `project`.
    """

    cosine: Float32  # [V] of the view's angle
    sine: Float32  # [V]
    middle_y: np.float32  # the axis of rotation in the image array
    middle_x: np.float32
    first_depth: np.float32  # of slab 0 before the axis, voxels
    middle_across: np.float32  # the axis among the fine bins
    first: NDArray[np.int32]  # [V] nearest and
    last: NDArray[np.int32]  # [V] farthest slab that holds anything
    low: NDArray[np.int32]  # [V, S] where the slab's contents begin across
    high: NDArray[np.int32]  # [V, S] and end
    window_low: NDArray[np.int32]  # [V] where counts may be, once blurred
    window_high: NDArray[np.int32]  # [V]
    passes: NDArray[
        np.int32
    ]  # [V, S + 1] of the blur from slab s + 1 to s; the last: from `first` to the face
    across: Float32  # [V, S + 1] weight w of each pass
    along: Float32  # [V, S + 1]
    image_z: int  # row of the planes at which the image's first slice lies


@compiled
def three_point(before: np.float32, here: np.float32, after: np.float32, weight: np.float32) -> np.float32:
    """One value of the blur B."""
    return here + weight * ((before - here) + (after - here))


@compiled
def transmission(path: np.float32) -> np.float32:
    """exp(−path) for a small path, as a series: processors take several at once."""
    return ONE - path * (ONE - HALF * path * (ONE - _THIRD * path * (ONE - _QUARTER * path)))


@compiled
def image_y(course: Course, view: int, slab: int, across: int) -> np.float32:
    """Row of the image array, in fractions, at a place of a view's slab."""
    depth = course.first_depth - F(slab)
    lateral = F(across) - course.middle_across
    return course.middle_y + lateral * course.sine[view] - depth * course.cosine[view]  # type: ignore[no-any-return]


@compiled
def image_x(course: Course, view: int, slab: int, across: int) -> np.float32:
    """Column of the image array, in fractions, at a place of a view's slab."""
    depth = course.first_depth - F(slab)
    lateral = F(across) - course.middle_across
    return course.middle_x + lateral * course.cosine[view] + depth * course.sine[view]  # type: ignore[no-any-return]


@compiled
def between(image: Float32, y: int, x: int, fy: np.float32, fx: np.float32, z: int) -> np.float32:
    """The image (y, x, z) at fractions fy and fx on from voxel (y, x)."""
    near = (ONE - fx) * image[y, x, z] + fx * image[y, x + 1, z]
    far = (ONE - fx) * image[y + 1, x, z] + fx * image[y + 1, x + 1, z]
    return (ONE - fy) * near + fy * far  # type: ignore[no-any-return]


@compiled
def blur(old: Float32, new: Float32, row: Float32, course: Course, view: int, step: int) -> None:
    """new = B old, one pass."""
    across, along = course.across[view, step], course.along[view, step]
    n = row.size - 1
    for j in range(course.window_low[view] + 1, course.window_high[view] + 1):
        for k in range(1, n):
            row[k] = three_point(old[j - 1, k], old[j, k], old[j + 1, k], across)
        for k in range(1, n):
            new[j, k] = three_point(row[k - 1], row[k], row[k + 1], along)


@compiled
def empty(plane: Float32) -> None:
    """Set to zero."""
    for j in range(plane.shape[0]):
        for k in range(plane.shape[1]):
            plane[j, k] = ZERO


@compiled
def gather(plane: Float32, image: Float32, half_path: Float32, course: Course, view: int, slab: int) -> None:
    """p ← p · t² + f · t for one slab."""
    begin = course.image_z
    for j in range(course.low[view, slab], course.high[view, slab]):
        v, u = image_y(course, view, slab, j), image_x(course, view, slab, j)
        y, x = int(v), int(u)
        fy, fx = v - F(y), u - F(x)
        for z in range(image.shape[2]):
            t = transmission(between(half_path, y, x, fy, fx, z))
            plane[j + 1, begin + z] = (plane[j + 1, begin + z] * t + between(image, y, x, fy, fx, z)) * t


@compiled
def spread(plane: Float32, image: Float32, half_path: Float32, course: Course, view: int, slab: int) -> None:
    """The transpose of `gather`: f += p · t, p ← p · t²."""
    begin = course.image_z
    for j in range(course.low[view, slab], course.high[view, slab]):
        v, u = image_y(course, view, slab, j), image_x(course, view, slab, j)
        y, x = int(v), int(u)
        fy, fx = v - F(y), u - F(x)
        for z in range(image.shape[2]):
            t = transmission(between(half_path, y, x, fy, fx, z))
            p = plane[j + 1, begin + z] * t
            plane[j + 1, begin + z] = p * t
            image[y, x, z] += (ONE - fy) * (ONE - fx) * p
            image[y, x + 1, z] += (ONE - fy) * fx * p
            image[y + 1, x, z] += fy * (ONE - fx) * p
            image[y + 1, x + 1, z] += fy * fx * p


@compiled
def project(
    image: Float32,
    half_path: Float32,
    course: Course,
    views: NDArray[np.int64],
    begin: int,
    step: int,
    planes: Float32,
    row: Float32,
    out: Float32,
) -> None:
    """Every `step`-th of `views` from `begin` on: out[view, across, z].

    image, half_path: (y, x, z) counts, and attenuation of half a voxel's side. planes: two of (across + 2,
    z + 2), whose outermost rows stay empty: what blurs beyond them is lost. row: (z + 2).
    """
    old, new = planes[0], planes[1]
    for number in range(begin, views.size, step):
        view = views[number]
        empty(old)
        empty(new)
        last, face = course.last[view], course.passes.shape[1] - 1
        for slab in range(last, course.first[view] - 1, -1):
            if slab < last:
                for _ in range(course.passes[view, slab]):
                    blur(old, new, row, course, view, slab)
                    old, new = new, old
            gather(old, image, half_path, course, view, slab)
        for _ in range(course.passes[view, face]):
            blur(old, new, row, course, view, face)
            old, new = new, old
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                out[number, j, k] = old[j + 1, k + 1]


@compiled
def back_project(
    image: Float32,
    half_path: Float32,
    course: Course,
    views: NDArray[np.int64],
    begin: int,
    step: int,
    planes: Float32,
    row: Float32,
    projections: Float32,
) -> None:
    """The transpose of `project`: adds to `image` what projections[view, across, z] leave there."""
    old, new = planes[0], planes[1]
    for number in range(begin, views.size, step):
        view = views[number]
        empty(old)
        empty(new)
        for j in range(course.window_low[view], course.window_high[view]):
            for k in range(projections.shape[2]):
                old[j + 1, k + 1] = projections[number, j, k]
        last, face = course.last[view], course.passes.shape[1] - 1
        for _ in range(course.passes[view, face]):
            blur(old, new, row, course, view, face)
            old, new = new, old
        for slab in range(course.first[view], last + 1):
            spread(old, image, half_path, course, view, slab)
            if slab < last:
                for _ in range(course.passes[view, slab]):
                    blur(old, new, row, course, view, slab)
                    old, new = new, old


@compiled
def find_contents(support: NDArray[np.uint8], course: Course) -> None:
    """Fill `low` and `high` (where low < high) by what of `support` (y, x) interpolation touches."""
    rows, columns = support.shape
    for view in range(course.low.shape[0]):
        for slab in range(course.low.shape[1]):
            low, high = 0, 0
            for j in range(course.window_high[view]):
                v, u = image_y(course, view, slab, j), image_x(course, view, slab, j)
                if v < ZERO or u < ZERO:
                    continue
                y, x = int(v), int(u)
                if y > rows - 2 or x > columns - 2:
                    continue
                if support[y, x] + support[y, x + 1] + support[y + 1, x] + support[y + 1, x + 1] > 0:
                    low = j if high == 0 else low
                    high = j + 1
            course.low[view, slab], course.high[view, slab] = low, high
