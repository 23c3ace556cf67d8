"""Implicit surfaces: arrays of signed distance in mm, negative inside.

Distances are first-order: right at the surface and close to it, which is where they are used (to
place an edge, or a second surface a few millimetres below the first).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from pipeline.simulate.fields import AnyField, Field
from pipeline.volume import Triple

FAR_MM = 60.0


class Points(NamedTuple):
    """Coordinates (mm) at the points of a lattice; each broadcasts to (z, y, x)."""

    x: AnyField
    y: AnyField
    z: AnyField

    def turned(self, centre: Triple, axes: NDArray[np.float64]) -> Points:
        """Coordinates about `centre` along three orthonormal rows of `axes`."""
        d = (self.x - centre[0], self.y - centre[1], self.z - centre[2])
        u, v, w = (
            (np.float32(a[0]) * d[0] + np.float32(a[1]) * d[1] + np.float32(a[2]) * d[2]) for a in axes
        )
        return Points(u, v, w)


@dataclass(frozen=True)
class Surface:
    """The part of a signed distance that matters: `start` is its (z, y, x) index in the lattice."""

    distance: Field
    start: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, ...]:
        """The lattice's indices that it covers."""
        return tuple(slice(s, s + n) for s, n in zip(self.start, self.distance.shape, strict=True))


def cropped(distance: AnyField, margin_mm: float = 6.0) -> Surface:
    """The box of the lattice that holds every point less than `margin_mm` outside the surface."""
    inside = distance < margin_mm
    bounds = []
    for axis in range(3):
        hits = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append((int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, 1))
    box = tuple(slice(*b) for b in bounds)
    return Surface(
        np.ascontiguousarray(distance[box], dtype=np.float32), (bounds[0][0], bounds[1][0], bounds[2][0])
    )


def frame(long: ArrayLike, front: ArrayLike) -> NDArray[np.float64]:
    """Orthonormal rows (front, side, long): `front` made perpendicular to `long`."""
    w = np.asarray(long, dtype=np.float64)
    w = w / np.linalg.norm(w)
    u = np.asarray(front, dtype=np.float64)
    u = u - (u @ w) * w
    u = u / np.linalg.norm(u)
    return np.stack([u, np.cross(w, u), w])


def ellipsoid(p: Points, centre: Triple, radii: Triple) -> Field:
    """Distance to an ellipsoid along the axes of `p`: k(k-1)/|∇k²/2| with k = |p/r|."""
    x, y, z = p.x - centre[0], p.y - centre[1], p.z - centre[2]
    rx, ry, rz = radii
    k = np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
    slope = np.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + (z / rz**2) ** 2)
    return np.asarray(k * (k - 1) / np.maximum(slope, 1e-6), dtype=np.float32)


Extent = float | AnyField


def column(p: Points, centre: tuple[Extent, Extent], radii: tuple[Extent, Extent]) -> Field:
    """Distance to an elliptic column along z; centre and radii may vary with z."""
    x, y = (p.x - centre[0]) / radii[0], (p.y - centre[1]) / radii[1]
    return np.asarray((np.sqrt(x**2 + y**2) - 1) * np.minimum(*radii), dtype=np.float32)


def capsule(p: Points, start: Triple, end: Triple, radius: float) -> Field:
    """Distance to a straight rod with round ends."""
    x, y, z = p.x - start[0], p.y - start[1], p.z - start[2]
    ax, ay, az = (e - s for s, e in zip(start, end, strict=True))
    t = np.clip((x * ax + y * ay + z * az) / (ax**2 + ay**2 + az**2), 0, 1)
    gap = np.sqrt((x - t * ax) ** 2 + (y - t * ay) ** 2 + (z - t * az) ** 2)
    return np.asarray(gap - radius, dtype=np.float32)


def spline(points: ArrayLike, step_mm: float = 2.0) -> NDArray[np.float64]:
    """A smooth curve through (n, 3) points, as (m, 3) points about `step_mm` apart."""
    nodes = np.asarray(points, dtype=np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))])
    curve: NDArray[np.float64] = CubicSpline(lengths, nodes)(np.arange(0, lengths[-1] + step_mm, step_mm))
    return curve


def tube(p: Points, curve: NDArray[np.float64], radius: ArrayLike) -> Field:
    """Distance to a tube about (m, 3) points close to each other; radius in mm, one or one per point."""
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(curve))
    reach = float(radii.max()) + 10
    shape = np.broadcast_shapes(p.x.shape, p.y.shape, p.z.shape)
    xyz = [np.broadcast_to(c, shape) for c in p]
    near = np.ones(shape, dtype=bool)
    for values, low, high in zip(xyz, curve.min(axis=0) - reach, curve.max(axis=0) + reach, strict=True):
        near &= (values > low) & (values < high)
    gap, index = cKDTree(curve).query(np.stack([c[near] for c in xyz], axis=-1), distance_upper_bound=reach)
    result = np.full(shape, 10.0, dtype=np.float32)
    found = np.isfinite(gap)
    inner = np.full(gap.shape, 10.0, dtype=np.float32)
    inner[found] = gap[found] - radii[index[found]]
    result[near] = inner
    return result


def _rounding(a: AnyField, b: AnyField, blend_mm: float) -> Field:
    """How far a rounded seam lies from the sharp one: h² blend / 4 with h = 1 - |a - b| / blend."""
    h = np.abs(a - b)
    np.subtract(blend_mm, h, out=h)
    np.maximum(h, 0, out=h)
    h *= h
    h *= 1 / (4 * blend_mm)
    return np.asarray(h)


def union(a: AnyField, b: AnyField, blend_mm: float = 0.0) -> Field:
    """Both; with `blend_mm` the seam is rounded."""
    both = np.minimum(a, b)
    return np.asarray(both if blend_mm == 0 else both - _rounding(a, b, blend_mm), dtype=np.float32)


def both_sides(shape: Callable[[int], AnyField]) -> Field:
    """A shape of the patient's right (-1) and left (+1)."""
    return union(shape(-1), shape(1))


def within(a: AnyField, b: AnyField, blend_mm: float = 0.0) -> Field:
    """The part of `a` inside `b`."""
    part = np.maximum(a, b)
    return np.asarray(part if blend_mm == 0 else part + _rounding(a, b, blend_mm), dtype=np.float32)


def without(a: AnyField, b: AnyField, blend_mm: float = 0.0) -> Field:
    """The part of `a` outside `b`."""
    return within(a, -b, blend_mm)


def normalised(f: AnyField, spacing_mm: float) -> Field:
    """Any implicit function as a first-order distance: f / |∇f|."""
    gradient = np.gradient(f, np.float32(spacing_mm))
    steep = np.sqrt(sum(g * g for g in gradient))
    return np.asarray(np.clip(f / np.maximum(steep, 1e-6), -FAR_MM, FAR_MM), dtype=np.float32)


def grown_to(shape: AnyField, volume_ml: float, voxel_ml: float, room: AnyField | None = None) -> Field:
    """`shape` grown or shrunk until the part of it inside `room` has the given volume."""
    candidates = shape if room is None else shape[room < 0]
    count = min(max(round(volume_ml / voxel_ml), 1), candidates.size - 1)
    level = np.partition(candidates.ravel(), count)[count]
    grown = np.asarray(shape - level, dtype=np.float32)
    return grown if room is None else within(grown, room)
