"""Quadrics and their sections as signed distances in mm: what stylised phantoms are made of.

Ellipsoids, elliptical cylinders and cones, hyperboloids and tori with tilted axes, cut by planes, in the
manner of the equations of MIRD Pamphlet 5 (Snyder et al., revised 1978) and of Cristy and Eckerman,
ORNL/TM-8381 (1987). A quadric f(r) = 1 becomes a distance to first order by k(k - 1)/|∇(k²/2)|, k = √f.

A small part is drawn in the box of the lattice that can hold it: `Space.gathered` unites any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.shapes import Points
from pipeline.volume import Triple

OUTSIDE_MM = 25.0  # what `Space.gathered` says of a point that is in no part's box


def tilt(*degrees: float) -> NDArray[np.float64]:
    """Three orthonormal rows: the patient's axes turned about x, y and z, one after the other."""
    matrix: NDArray[np.float64] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return matrix.T


def plane(p: Points, through: Triple, outward: Triple) -> Field:
    """Distance to a half-space bounded by a plane through a point; `outward` need not have length one."""
    n = np.asarray(outward) / np.linalg.norm(outward)
    x, y, z = (np.float32(a) * (c - t) for a, c, t in zip(n, p, through, strict=True))
    return np.asarray(x + y + z, dtype=np.float32)


def cylinder(p: Points, centre: tuple[float, float], radii: tuple[float, float]) -> Field:
    """Distance to an elliptical cylinder along the third axis of `p`."""
    x, y = p.x - centre[0], p.y - centre[1]
    k = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2)
    slope = np.sqrt((x / radii[0] ** 2) ** 2 + (y / radii[1] ** 2) ** 2)
    return np.asarray(k * (k - 1) / np.maximum(slope, 1e-6), dtype=np.float32)


def cone(p: Points, start: Triple, end: Triple, radii: tuple[float, float], flatness: float = 1.0) -> Field:
    """Distance to a circular cone from one radius to another, its ends round.

    flatness: the section's second axis, in the x-y plane and across the cone, over its first.
    """
    d = [c - s for c, s in zip(p, start, strict=True)]
    axis = np.subtract(end, start)
    length = float(np.linalg.norm(axis))
    w = axis / length
    along = d[0] * np.float32(w[0]) + d[1] * np.float32(w[1]) + d[2] * np.float32(w[2])
    t = np.clip(along / np.float32(length), 0, 1)
    gap2 = sum((c - t * np.float32(a)) ** 2 for c, a in zip(d, axis, strict=True))
    if flatness != 1.0:
        across = np.array([-w[1], w[0], 0.0]) / max(float(np.hypot(w[0], w[1])), 1e-6)
        side = d[0] * np.float32(across[0]) + d[1] * np.float32(across[1])
        gap2 = gap2 + side**2 * np.float32(1 / flatness**2 - 1)
    return np.asarray(np.sqrt(gap2) - (radii[0] + (radii[1] - radii[0]) * t), dtype=np.float32)


def torus(p: Points, ring: tuple[float, float], radius: float) -> Field:
    """Distance to a torus about the third axis of `p`; ring: the two radii of its elliptical hoop."""
    around = cylinder(p, (0, 0), ring)
    return np.asarray(np.sqrt(around**2 + p.z**2) - radius, dtype=np.float32)


def hyperboloid(
    p: Points, centre: tuple[float, float], radii: tuple[float, float], waist: tuple[float, float]
) -> Field:
    """Distance to x²/a² + y²/b² - (z - z₀)²/c² = 1, a trunk with a waist; waist: z₀ and c."""
    width = np.sqrt(1 + ((p.z - np.float32(waist[0])) / np.float32(waist[1])) ** 2)
    shrunk = Points((p.x - np.float32(centre[0])) / width, (p.y - np.float32(centre[1])) / width, p.z)
    return np.asarray(cylinder(shrunk, (0, 0), radii) * width, dtype=np.float32)


class Part(NamedTuple):
    """A small shape: nowhere farther than `reach` from `centre`."""

    centre: Triple
    reach: float
    shape: Callable[[Points], AnyField]


class Space:
    """The patient's coordinates (mm) at every point of the lattice, and where along its axes they lie."""

    def __init__(self, points: Points) -> None:
        self.points = points
        others = ((1, 2), (0, 2), (0, 1))
        self._bounds = [
            (c.min(axis=axes), c.max(axis=axes)) for c, axes in zip(points[::-1], others, strict=True)
        ]

    def box(self, part: Part) -> tuple[slice, ...]:
        """Indices of the lattice that hold every point within a part's reach and a few mm more."""
        reach = part.reach + 8
        box = []
        for (low, high), middle in zip(self._bounds, part.centre[::-1], strict=True):
            hits = np.flatnonzero((low < middle + reach) & (high > middle - reach))
            box.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
        return tuple(box)

    def gathered(self, parts: Iterable[Part]) -> Field:
        """The union of small parts; OUTSIDE_MM away from them all."""
        whole = np.full(self.points.x.shape, OUTSIDE_MM, dtype=np.float32)
        for part in parts:
            box = self.box(part)
            if min(s.stop - s.start for s in box) > 0:
                local = part.shape(Points(*(c[box] for c in self.points)))
                whole[box] = np.minimum(whole[box], local)
        return whole


def rod(start: Triple, end: Triple, radii: tuple[float, float], flatness: float = 1.0) -> Part:
    """A cone as a part."""
    x, y, z = ((a + b) / 2 for a, b in zip(start, end, strict=True))
    reach = max(radii) * max(1.0, flatness) + float(np.linalg.norm(np.subtract(end, start))) / 2
    return Part((x, y, z), reach, lambda q: cone(q, start, end, radii, flatness))


def ring(centre: Triple, axes: NDArray[np.float64], radii: tuple[float, float], radius: float) -> Part:
    """A torus as a part."""
    return Part(centre, max(radii) + radius, lambda q: torus(q.turned(centre, axes), radii, radius))
