"""Shapes of family `harmonic`: star-shaped surfaces r(direction) about a centre.

A `Star` is the gauge of a few faces, rounded, times low spherical harmonics::

    r(u) = [Σ_i max(0, u·n_i / h_i)^p]^(-1/p) · exp(Σ_lm a_lm Y_lm(u)) · Π_k [1 - δ_k exp(κ_k (u·d_k - 1))]

n_i and h_i: normals of the faces and their distances from the centre (six faces with p = 2 are an
ellipsoid with unequal halves; a large p is a body with flat faces); a_lm: random, of degree 1 to 6, smaller
the higher the degree; δ, κ, d: dents, such as the hilum of a kidney. A `Contour` is the same in the plane,
with cylindrical harmonics in angle and height: the outline of a trunk.

Distances are those of `shapes`: first-order, in mm, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.special import lpmv

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.shapes import Points, normalised
from pipeline.volume import Triple

_ROWS, _COLUMNS = 37, 73  # of the table of directions: 5 degrees
_MARGIN_MM = 14.0
OUTSIDE_MM = 60.0  # what a distance is where it was not computed

Axes = NDArray[np.float64]
Faces = tuple[tuple[Triple, float], ...]  # ((nx, ny, nz), distance in mm), ...


@dataclass(frozen=True)
class Dent:
    """A hollow towards `direction`: `depth` is the part of the radius lost, `sharpness` is κ."""

    direction: Triple
    depth: float
    sharpness: float


@dataclass(frozen=True)
class Star:
    """centre: (x, y, z) mm. faces: ((nx, ny, nz), distance in mm), ... in the frame of `axes` (rows).

    power: p of the gauge. bumps: standard deviation of the harmonics' sum.
    """

    centre: Triple
    faces: Faces
    power: float = 2.0
    bumps: float = 0.08
    dents: tuple[Dent, ...] = ()
    axes: Axes | None = None

    def radii(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """(rows, columns) of r over polar angle 0 to π and azimuth -π to π in the star's frame, mm."""
        polar = np.linspace(0, np.pi, _ROWS)[:, None]
        azimuth = np.linspace(-np.pi, np.pi, _COLUMNS)[None, :]
        u = np.stack(
            np.broadcast_arrays(
                np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)
            )
        )
        gauge = np.full(u.shape[1:], 1e-60)  # where no face looks
        for normal, distance in self.faces:
            n = np.asarray(normal) / np.linalg.norm(normal)
            gauge += np.maximum(0, np.tensordot(n, u, 1) / distance) ** self.power
        r = gauge ** (-1 / self.power) * np.exp(_harmonics(rng, polar, azimuth, self.bumps))
        for dent in self.dents:
            d = np.asarray(dent.direction) / np.linalg.norm(dent.direction)
            r *= 1 - dent.depth * np.exp(dent.sharpness * (np.tensordot(d, u, 1) - 1))
        return np.asarray(r)


def six(right: float, left: float, front: float, back: float, foot: float, head: float) -> Faces:
    """Faces of a body by its reach (mm) in six directions of the patient."""
    reach = (right, left, front, back, foot, head)
    normals = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
    return tuple(((float(x), float(y), float(z)), r) for (x, y, z), r in zip(normals, reach, strict=True))


def ball(rx: float, ry: float, rz: float) -> Faces:
    """Faces of an ellipsoid."""
    return six(rx, rx, ry, ry, rz, rz)


def _harmonics(
    rng: np.random.Generator, polar: NDArray[np.float64], azimuth: NDArray[np.float64], deviation: float
) -> NDArray[np.float64]:
    """A random sum of real spherical harmonics of degree 1 to 6 with the given deviation over the sphere."""
    total = np.zeros(np.broadcast_shapes(polar.shape, azimuth.shape))
    power = 0.0
    for degree in range(1, 7):
        fall = 1.0 / (1 + (degree / 2.5) ** 2)
        for order in range(degree + 1):
            legendre = lpmv(order, degree, np.cos(polar))
            legendre = legendre / max(float(np.sqrt(np.mean(legendre**2 * np.sin(polar)) * np.pi / 2)), 1e-12)
            a, b = fall * rng.normal(size=2)
            total += legendre * (a * np.cos(order * azimuth) + b * np.sin(order * azimuth))
            power += fall**2
    return np.asarray(deviation * total / np.sqrt(power))


@dataclass(frozen=True)
class Canvas:
    """The lattice that stars are drawn on. p: its coordinates. z, y, x: those of its axes before bending.

    bend_mm: how far a point of `p` lies from its place on the axes at most.
    """

    p: Points
    axes_mm: tuple[NDArray[np.float64], ...]
    spacing_mm: float
    bend_mm: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x) of the lattice."""
        return self.p.x.shape

    def box(self, centre: Triple, reach_mm: float) -> tuple[slice, ...]:
        """Indices of all points within `reach_mm` of `centre` along each axis."""
        reach = reach_mm + self.bend_mm
        slices = []
        for c, axis in zip(centre[::-1], self.axes_mm, strict=True):
            low, high = np.searchsorted(axis, (c - reach, c + reach))
            low = min(int(low), len(axis) - 2)
            slices.append(slice(low, max(int(high), low + 2)))
        return tuple(slices)

    def empty(self) -> Field:
        """Nothing is inside."""
        return np.full(self.shape, OUTSIDE_MM, dtype=np.float32)

    def star(self, star: Star, rng: np.random.Generator) -> Field:
        """Distance to one star on the whole lattice."""
        return self.stars([star], rng)

    def stars(self, stars: list[Star], rng: np.random.Generator, blend_mm: float = 0.0) -> Field:
        """Distance to the union of stars; with `blend_mm` their seams are rounded."""
        whole = self.empty()
        for star in stars:
            radii = star.radii(rng)
            box = self.box(star.centre, float(radii.max()) + _MARGIN_MM)
            distance = self._distance(star, radii, box)
            if blend_mm:
                h = np.maximum(blend_mm - np.abs(whole[box] - distance), 0) / blend_mm
                whole[box] = np.minimum(whole[box], distance) - h * h * np.float32(blend_mm / 4)
            else:
                np.minimum(whole[box], distance, out=whole[box])
        return whole

    def star_of_volume(self, star: Star, volume_ml: float, room: Field, rng: np.random.Generator) -> Field:
        """Distance to the star, scaled about its centre until its part inside `room` has the volume.

        Where the room is too small for that, the star fills what lies within twice its size.
        """
        radii = star.radii(rng)
        box = self.box(star.centre, 1.8 * float(radii.max()) + _MARGIN_MM)
        length, r = self._rays(star, radii, box)
        inside = np.sort((length / r)[room[box] < 0])
        count = int(np.clip(round(volume_ml * 1000 / self.spacing_mm**3), 1, inside.size - 1))
        level = min(float(inside[count]), 1.8)
        whole = self.empty()
        whole[box] = normalised(length - np.float32(level) * r, self.spacing_mm)
        return np.maximum(whole, room)

    def _distance(self, star: Star, radii: NDArray[np.float64], box: tuple[slice, ...]) -> Field:
        length, r = self._rays(star, radii, box)
        # |q| - r has a slope of one along the ray only.
        return normalised(length - r, self.spacing_mm)

    def _rays(self, star: Star, radii: NDArray[np.float64], box: tuple[slice, ...]) -> tuple[Field, Field]:
        """Distance from the star's centre, and its radius in that direction, at the points of a box."""
        axes = np.eye(3) if star.axes is None else star.axes
        q = Points(*(c[box] for c in self.p)).turned(star.centre, axes)
        across = q.x**2 + q.y**2
        length = np.sqrt(across + q.z**2)
        rows = np.arctan2(np.sqrt(across), q.z) * np.float32((_ROWS - 1) / np.pi)
        columns = (np.arctan2(q.y, q.x) + np.float32(np.pi)) * np.float32((_COLUMNS - 1) / (2 * np.pi))
        r = map_coordinates(radii.astype(np.float32), [rows, columns], order=1, mode="nearest")
        return length, r


def contour(
    angle: AnyField, reach: tuple[AnyField | float, ...], power: float, waves: AnyField | float = 0.0
) -> Field:
    """Radius of an outline at `angle` (0 left, π/2 back) from its reach (right, left, front, back), mm.

    Each reach may vary along z. waves: logarithm of the factor on the radius.
    """
    right, left, front, back = reach
    c, s = np.cos(angle), np.sin(angle)
    across = np.abs(c) / np.where(c < 0, right, left)
    along = np.abs(s) / np.where(s < 0, front, back)
    gauge = across**power + along**power
    return np.asarray(gauge ** (-1 / power) * np.exp(waves), dtype=np.float32)


def cylinder_waves(
    rng: np.random.Generator, angle: AnyField, z: AnyField, deviation: float, length_mm: float = 260.0
) -> Field:
    """Random cylindrical harmonics: order 1 to 4 round the axis, slow along z."""
    total = np.zeros(np.broadcast_shapes(angle.shape, z.shape), dtype=np.float32)
    power = 0.0
    for order in range(1, 5):
        fall = 1 / order
        phase, slope = rng.uniform(-np.pi, np.pi), rng.normal(0, 2 * np.pi / length_mm * 0.6)
        total += np.float32(fall * rng.normal()) * np.cos(
            np.float32(order) * angle + np.float32(phase) + np.float32(slope) * z
        )
        power += fall**2 / 2
    return np.asarray(total * np.float32(deviation / np.sqrt(power)), dtype=np.float32)
