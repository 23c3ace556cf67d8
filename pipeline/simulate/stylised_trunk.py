"""Body wall, muscles, chest and great vessels of the stylised family (coordinates as in `stylised`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.shapes import Points, both_sides, ellipsoid, union, within, without
from pipeline.simulate.stylised_quadrics import (
    Part,
    Space,
    cylinder,
    hyperboloid,
    plane,
    ring,
    rod,
    tilt,
)
from pipeline.volume import Triple

_LORDOSIS_MM = 460.0  # length of one wave of the spine, lumbar and thoracic curve
_LOW_LUMBAR_Z = -100.0


@dataclass(frozen=True)
class Frame:
    """A patient's size, mm. x = y = 0 is the axis of the trunk, z = 0 the middle of L1.

    half_width, half_depth: of the skin at the waist. cavity: half-axes of what the wall encloses.
    wall: thickness of the muscle. size: of skeleton and organs, 1 in the mean. spine: y of the vertebral
    bodies in the mean. lordosis: how far they leave it. waist: z of the waist and the hyperboloid's third
    axis. domes: z of the top of the right and the left half of the diaphragm.
    """

    half_width: float
    half_depth: float
    cavity: tuple[float, float]
    wall: float
    size: float
    spine: float
    lordosis: float
    waist: tuple[float, float]
    domes: tuple[float, float]

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Frame:
        """Half-width 140 to 200 mm; most of what the wide have more is fat."""
        size = float(rng.uniform(0.93, 1.06))
        half_width = float(rng.uniform(140, 200))
        wall = float(rng.uniform(11, 15))
        a = (112 + 0.33 * (half_width - 140)) * float(rng.uniform(0.97, 1.04))
        a = min(a, half_width - wall - 5)
        b = a * float(rng.uniform(0.69, 0.75))
        fat = float(np.clip(0.7 * (half_width - a - wall), 5, max(5.0, 127 - b - wall)))
        right = float(rng.uniform(100, 126))
        return cls(
            half_width=half_width,
            half_depth=b + wall + fat,
            cavity=(a, b),
            wall=wall,
            size=size,
            spine=b + wall - 62 * size - 6,
            lordosis=float(rng.uniform(3, 9)),
            waist=(float(rng.uniform(-20, 30)), float(rng.uniform(800, 1400))),
            domes=(right, right - float(rng.uniform(6, 20))),
        )

    def spine_y(self, z: AnyField | float) -> Field:
        """The middle of the vertebral bodies: forward in the loins, backward in the chest."""
        phase = np.multiply(z, 2 * np.pi / _LORDOSIS_MM) - 2 * np.pi * _LOW_LUMBAR_Z / _LORDOSIS_MM
        return np.asarray(self.spine - self.lordosis * np.cos(phase), dtype=np.float32)

    def spine_lean(self, z: float) -> float:
        """Angle (degrees) by which the spine's direction turns about x."""
        phase = (z - _LOW_LUMBAR_Z) * 2 * np.pi / _LORDOSIS_MM
        return -float(np.degrees(np.arctan(self.lordosis * 2 * np.pi / _LORDOSIS_MM * np.sin(phase))))


@dataclass(frozen=True)
class Shell:
    """Nested surfaces: skin, muscle, cavity, cage (the ribs' ellipsoid), below (of the diaphragm)."""

    skin: Field
    muscle: Field
    cavity: Field
    cage: Field
    below: Field
    mediastinum: Field


def shell(p: Points, f: Frame) -> Shell:
    """The trunk as hyperboloids with a waist, the back flattened by a plane; the cage an ellipsoid."""
    a, b = f.cavity
    skin = hyperboloid(p, (0, 0), (f.half_width, f.half_depth), f.waist)
    muscle = hyperboloid(p, (0, 0), (a + f.wall, b + f.wall), f.waist)
    fat = f.half_depth - b - f.wall
    skin = np.maximum(skin, np.minimum(p.y - np.float32(f.half_depth - 0.3 * fat), muscle + 4))
    cavity = hyperboloid(p, (0, -2), (a, b), f.waist)
    back, front = f.spine + 46 * f.size, -b - 1
    cage = ellipsoid(p, (0, (back + front) / 2, 25), (a + 5, (back - front) / 2, 370))
    mediastinum = cylinder(p, (3, -6), (29 * f.size, 0.86 * b))
    return Shell(skin, muscle, cavity, cage, _diaphragm(p, f), mediastinum)


def _diaphragm(p: Points, f: Frame) -> Field:
    """Negative below: two half ellipsoids and the central tendon on a plane that falls to the back."""
    a, b = f.cavity
    right, left = f.domes
    base = plane(p, (0, 0, 32), (0, 0.42, 1))
    domes = (
        ellipsoid(p, (-0.49 * a, 2, 30), (0.50 * a, 0.97 * b, right - 30)),
        ellipsoid(p, (0.49 * a, 2, 30), (0.49 * a, 0.97 * b, left - 30)),
        ellipsoid(p, (4, -0.30 * b, 30), (0.50 * a, 0.72 * b, left - 40)),
    )
    return reduce(lambda x, y: union(x, y, 6), domes, base)


def back_muscles(p: Points, f: Frame) -> Field:
    """Erectors as elliptical cylinders that narrow to the head, psoas as cones that widen to the feet."""
    s, y = f.size, f.spine_y(p.z)
    narrow = np.clip(1 - (p.z - 20) / 380, 0.55, 1)
    q = Points(np.abs(p.x) - np.float32(29 * s), p.y - y - np.float32(43 * s), p.z)
    erectors = cylinder(Points(q.x / narrow, q.y / narrow, q.z), (0, 0), (26 * s, 18 * s)) * narrow
    erectors = np.asarray(np.maximum(erectors, np.abs(p.z) - 400), dtype=np.float32)
    quadratus = cylinder(Points(np.abs(p.x), p.y, p.z), (58 * s, f.spine + 38 * s), (20 * s, 9 * s))
    return union(erectors, np.maximum(quadratus, np.abs(p.z + 60) - 75), 4)


def psoas(space: Space, f: Frame) -> Field:
    """A cone on either side of the lumbar bodies, outward and forward to the groin."""
    s = f.size
    return space.gathered(
        rod((k * 27 * s, f.spine + 4, 6.0), (k * 62 * s, f.spine - 18, -215.0), (6 * s, 25 * s))
        for k in (-1, 1)
    )


def lungs(p: Points, f: Frame, wall: Shell, heart: Field) -> Field:
    """Two half ellipsoids inside the cage, with the diaphragm, the heart and the spine cut out."""
    a, b = f.cavity
    halves = both_sides(lambda k: ellipsoid(p, (k * 0.50 * a, 0, 20), (0.56 * a, 1.25 * b, 330)))
    room = within(within(halves, wall.cage + 7, 4), 3 - wall.below, 3)
    q = Points(p.x, p.y - f.spine_y(p.z), p.z)
    column = cylinder(q, (0, 10), (27 * f.size, 30 * f.size))
    for cut in (wall.mediastinum, heart - 3, column):
        room = without(room, cut, 6)
    return room


def heart(p: Points, f: Frame, wall: Shell, rng: np.random.Generator) -> Field:
    """Two half ellipsoids on one base: ventricles long and to the left, atria short."""
    s = f.size
    centre = (14.0 + rng.uniform(-5, 5), -0.40 * f.cavity[1], f.domes[1] + 26 * s)
    q = p.turned(centre, tilt(0, rng.uniform(20, 32), -rng.uniform(28, 40)))
    front = ellipsoid(q, (0, 0, 0), (74 * s, 42 * s, 42 * s))
    back = ellipsoid(q, (0, 0, 0), (40 * s, 42 * s, 42 * s))
    body = np.where(q.x > 0, front, back).astype(np.float32)
    return within(within(body, 3 - wall.below, 4), wall.cage + 8, 4)


def lung_vessels(space: Space, f: Frame, lung: Field, rng: np.random.Generator) -> Field:
    """Cones from either hilum to random points of the lungs, with a branch each."""
    p, level = space.points, f.domes[1] + 58
    where = np.flatnonzero((lung < -8) & (p.z < 235))
    parts = []
    for index in rng.choice(where, 44):
        end: Triple = (float(p.x.flat[index]), float(p.y.flat[index]), float(p.z.flat[index]))
        hilum = (float(np.copysign(32.0, end[0])), 6.0, level)
        share = float(rng.uniform(0.3, 0.6))
        fork = np.add(hilum, share * np.subtract(end, hilum)) + rng.normal(0, 6, 3)
        fx, fy, fz = fork.tolist()
        parts.append(rod(hilum, (fx, fy, fz), (4.8, 2.8)))
        parts.append(rod((fx, fy, fz), end, (2.6, 1.2)))
    return within(space.gathered(parts), lung)


def airways(space: Space, f: Frame) -> Field:
    """Trachea and main bronchi."""
    split = (0.0, 2.0, f.domes[1] + 86)
    parts = [rod(split, (0.0, 4.0, 300.0), (8.0, 8.5))]
    parts += [rod(split, (k * 30.0, 6.0, split[2] - 26), (7.0, 5.5)) for k in (-1, 1)]
    return space.gathered(parts)


def vessels(space: Space, f: Frame) -> Field:
    """Aorta with its arch, venae cavae, iliac, renal, portal, splenic and mesenteric vessels."""
    s = f.size
    parts: list[Part] = []
    levels = np.arange(-112.0, 262.0, 20.0)
    front = f.spine_y(levels).astype(float) - 27 * s
    split = float(f.spine_y(-112.0)) - 27 * s
    for z, y0, y1 in zip(levels[:-1], front[:-1], front[1:], strict=True):
        if z < 200:
            parts.append(rod((7 * s, y0, z), (7 * s, y1, z + 20), (10 * s, 10.5 * s)))
        if z < f.domes[0] + 10:
            parts.append(rod((-20 * s, y0 + 2, z), (-20 * s, y1 + 2, z + 20), (11 * s, 11 * s)))
    arch_y = float(f.spine_y(210.0)) - 50 * s
    parts.append(ring((2.0, arch_y, 205.0), tilt(0, 90, 12), (32 * s, 32 * s), 12 * s))
    parts.append(rod((-26 * s, arch_y, 150.0), (-26 * s, arch_y - 2, 262.0), (10 * s, 9 * s)))
    for k in (-1, 1):
        parts.append(rod((k * 2.0, split, -112.0), (k * 44 * s, split + 16, -200.0), (8 * s, 6 * s)))
        parts.append(rod((k * 8.0, split + 4, -20.0), (k * 44 * s, f.spine + 2, -24.0), (4.5, 4.0)))
    portal = [(2.0, split - 6, -30.0), (-14.0, split - 10, 8.0), (-42.0, split - 14, 38.0)]
    parts.append(rod(portal[0], portal[1], (5.5, 6.5)))
    parts.append(rod(portal[1], portal[2], (6.5, 6.0)))
    parts.append(rod(portal[1], (0.62 * f.cavity[0], f.spine - 4, 50.0), (4.5, 4.0)))
    parts.append(rod((4.0, split - 8, 0.0), (-4.0, split - 30, -120.0), (4.5, 3.0)))
    return space.gathered(parts)
