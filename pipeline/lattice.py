"""Which voxels to compute on: the CT's own lattice, longer, shorter or coarser. No interpolation here.

The box of a grid reaches half a voxel beyond its outermost centres; index coordinates of the box
along an axis of n voxels run from −1/2 to n − 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.volume import Grid, Triple, Volume

# Positions travel as decimal strings; a box that sticks out by less than this is a rounding.
WHOLE_VOXEL_TOLERANCE = 1e-3
Shape = tuple[int, int, int]


def require_same_frame(one: Grid, other: Grid) -> None:
    """raises: InputRejected when positions on the two grids may not be compared (PS3.3 C.7.4.1)."""
    uids = one.frame_of_reference_uid, other.frame_of_reference_uid
    if uids[0] != uids[1]:
        raise InputRejected(
            f"the images do not share a Frame of Reference UID ({uids[0] or 'none'} and {uids[1] or 'none'})",
            "Send a Spatial Registration object that relates the two, or images of one SPECT/CT session",
        )


def box_corners(grid: Grid) -> NDArray[np.float64]:
    """(8, 3): the corners of the grid's box, patient (x, y, z) mm."""
    ends = [(-0.5, n - 0.5) for n in grid.shape]
    return grid.positions(np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T)


def union_grid(ct: Grid, other: Grid) -> Grid:
    """The CT's lattice, longer by whole voxels on every side where `other` reaches beyond it.

    Voxels of the CT keep their positions exactly. raises: InputRejected for different frames.
    """
    require_same_frame(ct, other)
    corners = ct.indices(box_corners(other))
    first = np.floor(corners.min(axis=0) + 0.5 + WHOLE_VOXEL_TOLERANCE).astype(int)
    last = np.ceil(corners.max(axis=0) - 0.5 - WHOLE_VOXEL_TOLERANCE).astype(int)
    start = np.minimum(first, 0)
    return ct.boxed(_shape(start), _shape(np.maximum(last + 1, ct.shape) - start))


def active_box(activity: Volume, neglected: float = 1e-4) -> Grid:
    """The part of the field that holds the activity, one voxel wider on each side.

    A reconstruction leaves traces of nothing in every corner of its field. At most `neglected` of
    the total activity lies outside the box before it is widened.
    """
    start, stop = [], []
    for axis, n in enumerate(activity.grid.shape):
        others = tuple(a for a in range(3) if a != axis)
        share = np.cumsum(activity.array.sum(axis=others, dtype=np.float64))
        share /= share[-1] if share[-1] > 0 else 1.0
        tail = neglected / 6.0  # six faces share what may be left out
        start.append(max(int(np.searchsorted(share, tail)) - 1, 0))
        stop.append(min(int(np.searchsorted(share, 1.0 - tail)) + 2, n))
    return activity.grid.boxed(_shape(start), _shape(np.subtract(stop, start)))


def coarser(grid: Grid, spacing_mm: Triple) -> Grid:
    """A lattice of wanted spacing over the same box, its centre kept.

    spacing_mm: (z, y, x); an axis is never made finer than `grid`. The new box covers the old one
    and exceeds it by less than one new voxel in all.
    """
    spacing = np.maximum(spacing_mm, grid.spacing_mm)
    extent = np.multiply(grid.shape, grid.spacing_mm)
    shape = np.maximum(np.ceil(extent / spacing - WHOLE_VOXEL_TOLERANCE), 1).astype(int)
    return recentred(grid, _shape(shape), _triple(spacing))


def recentred(grid: Grid, shape: Shape, spacing_mm: Triple) -> Grid:
    """Another sampling of `grid`: its centre and directions, a new shape and spacing (z, y, x)."""
    centre = grid.positions((np.array(grid.shape) - 1) / 2.0)
    half = (np.array(shape) - 1) / 2.0 * np.array(spacing_mm)
    origin = centre - half @ np.asarray(grid.direction)
    return replace(grid, shape=shape, spacing_mm=spacing_mm, origin_mm=_triple(origin))


def recut(volume: Volume, onto: Grid, outside: float = 0.0) -> Volume:
    """The same voxels on a longer or shorter box of the same lattice; `outside` where there is none.

    raises: ValueError when `onto` is not made of whole voxels of the volume's lattice.
    """
    start = np.round(volume.grid.indices(onto.origin_mm)).astype(int)
    if not volume.grid.boxed(_shape(start), onto.shape).same_as(onto, tolerance_mm=1e-2):
        raise ValueError("the grids do not share a lattice: resample instead")
    array = np.full(onto.shape, outside, dtype=np.float32)
    into, of = zip(*_overlaps(start, onto.shape, volume.grid.shape), strict=True)
    array[into] = volume.array[of]
    return Volume(array, onto, volume.unit)


def lengthened(volume: Volume, onto: Grid) -> Volume:
    """With its end slices repeated by whole voxels, as far as `onto` reaches along their normal."""
    ends = volume.grid.indices(box_corners(onto))[:, 0]
    before = max(0, int(np.ceil(-0.5 - ends.min() - WHOLE_VOXEL_TOLERANCE)))
    after = max(0, int(np.ceil(ends.max() - (volume.grid.shape[0] - 0.5) - WHOLE_VOXEL_TOLERANCE)))
    if not before and not after:
        return volume
    array = np.pad(volume.array, ((before, after), (0, 0), (0, 0)), mode="edge")
    shape = (array.shape[0], volume.grid.shape[1], volume.grid.shape[2])
    return Volume(array, volume.grid.boxed((-before, 0, 0), shape), volume.unit)


def crop_box(mask: NDArray[np.bool_], margin: Shape = (0, 0, 0)) -> tuple[slice, slice, slice]:
    """The smallest box (z, y, x slices) around a mask, `margin` voxels wider where the grid allows.

    raises: ValueError for an empty mask.
    """
    box = []
    for axis, n in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if inside.size == 0:
            raise ValueError("an empty mask has no box")
        box.append(slice(max(int(inside[0]) - margin[axis], 0), min(int(inside[-1]) + 1 + margin[axis], n)))
    return box[0], box[1], box[2]


def field_of_view(field: Grid, onto: Grid) -> NDArray[np.bool_]:
    """(z, y, x) on `onto`: whether a voxel's centre lies inside the box of `field`."""
    require_same_frame(field, onto)
    mask = np.ones(onto.shape, dtype=bool)
    for axis, n in enumerate(field.shape):
        index = index_along(field, onto, axis)
        mask &= (index >= -0.5) & (index <= n - 0.5)
    return mask


def index_along(grid: Grid, at: Grid, axis: int) -> NDArray[np.float32]:
    """(z, y, x) of `at`: its voxel centres as fractional indices along one axis of `grid`."""
    origin = grid.indices(at.origin_mm)[axis]
    steps = np.linalg.solve(grid.affine[:3, :3], at.affine[:3, :3])[axis]
    z, y, x = (np.arange(n) * step for n, step in zip(at.shape, steps, strict=True))
    plane = (origin + z[:, None] + y).astype(np.float32)
    return np.asarray(plane[:, :, None] + x.astype(np.float32), dtype=np.float32)


def _overlaps(start: NDArray[np.int_], onto: Shape, of: Shape) -> Iterator[tuple[slice, slice]]:
    """Per axis: where the shared voxels stand in the target and in the source."""
    for first, n_onto, n_of in zip(start, onto, of, strict=True):
        low, high = max(0, -int(first)), min(n_onto, n_of - int(first))
        high = max(low, high)
        yield slice(low, high), slice(low + int(first), high + int(first))


def _shape(values: NDArray[np.int_] | list[int]) -> Shape:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _triple(values: NDArray[np.float64]) -> Triple:
    first, second, third = (float(v) for v in values)
    return first, second, third
