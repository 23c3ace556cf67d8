"""Closed planar contours → masks, by the even-odd rule at voxel centres.

A centre lies inside when a ray from it towards smaller x crosses the outline an odd number of times.
Every edge covers the half-open range of rows between its ends, so that no vertex is counted twice, and
a centre on an outline belongs to one side only: areas have no bias. The rule makes inner outlines holes
and lets one outline reach its hole by a keyhole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.volume import Grid

_SAME_PLANE = 0.02  # slices; contours of one plane differ by the rounding of their decimal strings
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


class NotParallel(ValueError):
    """A contour does not lie in a plane of slices."""


def polygon_fill(polygons: Sequence[Points], shape: tuple[int, int]) -> Mask:
    """(rows, columns): centres inside the polygons together, by the even-odd rule.

    polygons: (n, 2) each, fractional (row, column) indices of the vertices; closed implicitly.
    """
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    for polygon in polygons:
        rows, columns = _crossings(polygon, shape[0])
        np.add.at(crossings, (rows, np.clip(np.ceil(columns), 0, shape[1]).astype(int)), 1)
    return np.asarray(np.cumsum(crossings[:, :-1], axis=1) % 2 == 1)


def fill(contours: Sequence[Points], grid: Grid) -> Mask:
    """(z, y, x) on the grid: voxels inside the contours of one region.

    contours: (n, 3) each, patient (x, y, z) mm. A slice takes the contours of the plane nearest to it, if
    that lies within half a slice, or within half the distance between planes where they were drawn
    further apart. A slice just between two planes takes the lower, and one just at the reach of the lowest
    none: as within a plane, what lies on the border belongs to one side only, and volumes have no bias.
    Contours of different planes are never combined.
    raises: NotParallel for a contour that is not in a plane of slices.
    """
    mask = np.zeros(grid.shape, dtype=bool)
    planes = _planes([grid.indices(contour) for contour in contours])
    if not planes:
        return mask
    at = np.array(sorted(planes))
    reach = max(0.5, float(np.median(np.diff(at))) / 2 if len(at) > 1 else 0.5)
    for z in range(grid.shape[0]):
        distance = np.abs(at - (z - _SAME_PLANE))
        nearest = float(at[distance.argmin()])
        if distance.min() <= reach:
            mask[z] = polygon_fill([contour[:, 1:] for contour in planes[nearest]], grid.shape[1:])
    return mask


def _crossings(polygon: Points, rows: int) -> tuple[NDArray[np.int_], Points]:
    """Rows that the outline crosses, and the column of each crossing."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    upper, lower = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.clip(np.ceil(upper), 0, rows).astype(int)
    count = np.clip(np.ceil(lower), 0, rows).astype(int) - first
    edge = np.repeat(np.arange(len(polygon)), count)
    row = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    slope = (end[edge, 1] - start[edge, 1]) / (end[edge, 0] - start[edge, 0])
    return row, start[edge, 1] + (row - start[edge, 0]) * slope


def _planes(contours: Sequence[Points]) -> dict[float, list[Points]]:
    """Contours in (z, y, x) indices, by the slice position of their plane; exact repeats once."""
    planes: dict[float, list[Points]] = {}
    for contour in contours:
        if np.ptp(contour[:, 0]) > 0.5:
            raise NotParallel("a contour is not parallel to the CT slices")
        z = float(contour[:, 0].mean())
        key = next((plane for plane in planes if abs(plane - z) < _SAME_PLANE), z)
        drawn = planes.setdefault(key, [])
        if not any(other.shape == contour.shape and np.allclose(other, contour) for other in drawn):
            drawn.append(contour)
    return planes
