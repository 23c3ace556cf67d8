"""Organs of the abdomen of the stylised family (coordinates as in `stylised`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.shapes import Points, ellipsoid, grown_to, union, within, without
from pipeline.simulate.stylised_quadrics import Part, Space, cone, cylinder, plane, ring, rod, tilt
from pipeline.simulate.stylised_trunk import Frame, Shell
from pipeline.simulate.tissue import Label
from pipeline.volume import Triple

Organ = tuple[Label, Field]


def _drawn(rng: np.random.Generator, mean: float, deviation: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, deviation), low, high))


@dataclass(frozen=True)
class Kidney:
    """Nested surfaces of one kidney, and its fat, which no other organ enters."""

    whole: Field
    medulla: Field
    pelvis: Field
    fat: Field


def kidney(
    space: Space, f: Frame, side: int, back: Field, voxel_ml: float, rng: np.random.Generator
) -> Kidney:
    """An ellipsoid cut by a plane towards the spine, a torus for its sinus, cones for its pyramids.

    side: -1 the patient's right, +1 the left. back: spine and muscles, which it lies on.
    """
    s = f.size
    volume = _drawn(rng, 158, 26, 105, 215)
    level = rng.uniform(-44, -24) + (rng.uniform(6, 22) if side > 0 else 0)
    centre = (side * (61 + rng.uniform(0, 9)) * s, f.spine + rng.uniform(4, 12), float(level))
    # Upper pole to the spine and the back, the hilum turned to the front.
    axes = tilt(rng.uniform(-14, -4), side * -rng.uniform(8, 20), side * rng.uniform(15, 40))
    axes = np.stack([-side * axes[0], axes[1], axes[2]])  # the first points to the hilum
    size = float(np.cbrt(volume / 150))
    rx, ry, rz = 33 * size * rng.uniform(0.93, 1.07), 27 * size * rng.uniform(0.93, 1.07), 55 * size
    cut, cortex = 0.60 * rx, float(rng.uniform(6.5, 9.0))
    hilum = (cut + 2, 0.0, 0.0)

    def bean(q: Points) -> Field:
        return within(ellipsoid(q, (0, 0, 0), (rx, ry, rz)), plane(q, hilum, (1, 0, 0)), 8)

    def sinus(q: Points) -> Field:
        hoop = Points(q.x - np.float32(cut), q.z, q.y)  # a ring in the kidney's own coronal plane
        along = cylinder(hoop, (0, 0), (0.50 * rx, 0.34 * rz))
        calyces = np.asarray(np.sqrt(along**2 + (q.y * 0.85) ** 2) - 4.6 * size, dtype=np.float32)
        return union(calyces, cone(q, (0.3 * rx, 0, 0), (cut + 12, 0, -6), (6 * size, 8 * size)), 5)

    turns = np.linspace(-2.3, 2.3, int(rng.integers(6, 9)))

    def pyramids(q: Points) -> Field:
        tips = [(-rx * np.cos(a), row * 0.45 * ry, rz * np.sin(a)) for a in turns for row in (-1, 1)]
        heads = [(cut - 0.45 * rx * np.cos(a), 0.0, 0.30 * rz * np.sin(a)) for a in turns for _ in range(2)]
        cones = [cone(q, h, t, (3.0, 13.5 * size)) for h, t in zip(heads, tips, strict=True)]
        return np.asarray(np.minimum.reduce(cones), dtype=np.float32)

    def drawn(shape: Callable[[Points], Field]) -> Field:
        return space.gathered([Part(centre, rz + 14, lambda p: shape(p.turned(centre, axes)))])

    whole = grown_to(drawn(bean), volume, voxel_ml, 2 - back)
    pelvis = within(drawn(sinus), whole + 0.5)
    medulla = without(within(drawn(pyramids), whole + cortex), pelvis - 1)
    fat = space.gathered([Part(centre, rz + 16, lambda p: bean(p.turned(centre, axes)) - 9)])
    return Kidney(whole, medulla, pelvis, np.minimum(fat, whole - 8))


def liver(p: Points, f: Frame, room: Field, voxel_ml: float, rng: np.random.Generator) -> Field:
    """An elliptical cylinder in `room`, cut by an oblique plane where the volume asks."""
    a, b = f.cavity
    volume = _drawn(rng, 1620 * f.size**2, 220, 1150, 2250)
    q = p.turned((-0.16 * a, -2, 40), tilt(rng.uniform(-6, 6), rng.uniform(2, 14), rng.uniform(-8, 8)))
    lobes = cylinder(q, (0, 0), (0.80 * a, 0.90 * b))
    # The left lobe is thin: a slanted cylinder of stomach, vessels and spine lies behind it.
    r = p.turned((0.42 * a, 0.62 * b, 60), tilt(rng.uniform(4, 14), rng.uniform(-12, 0), 0))
    lobes = without(lobes, cylinder(r, (0, 0), (0.66 * a, 0.98 * b)), 10)
    room = within(room, lobes, 4)
    cava = Points(p.x, p.y - f.spine_y(p.z), p.z)
    room = without(room, cylinder(cava, (-20 * f.size, -26 * f.size), (13, 13)), 3)
    fissure = p.turned((0.08 * a, -0.75 * b, 22), tilt(0, 8, 14))
    room = without(room, ellipsoid(fissure, (0, 0, 0), (3, 0.34 * b, 62)), 4)
    slope = (float(rng.uniform(0.55, 1.0)), float(rng.uniform(0.05, 0.35)), -1.0)
    face = plane(p, (0, 0, 0), slope)
    lowest = np.sort(face[room < 0])[min(int(volume / voxel_ml), int((room < 0).sum()) - 1)]
    return within(room, face - lowest, 12)


def spleen(p: Points, f: Frame, room: Field, voxel_ml: float, rng: np.random.Generator) -> Field:
    """An ellipsoid along the tenth rib less a second one on its side towards the stomach."""
    a, b = f.cavity
    volume = float(np.clip(rng.lognormal(np.log(210), 0.35), 95, 480))
    s = float(np.cbrt(volume / 210))
    centre = (0.70 * a, 0.42 * b, 50 + rng.uniform(-8, 10))
    q = p.turned(centre, tilt(rng.uniform(25, 50), rng.uniform(8, 22), rng.uniform(10, 35)))
    outer = ellipsoid(q, (0, 0, 0), (30 * s, 44 * s, 58 * s))
    hollow = ellipsoid(q, (-33 * s, -6 * s, 0), (30 * s, 40 * s, 50 * s))
    return grown_to(without(outer, hollow, 8), volume, voxel_ml, room)


def stomach(
    space: Space, f: Frame, wall: Shell, spleen_surface: Field, rng: np.random.Generator
) -> list[Organ]:
    """A tilted ellipsoid under the left dome and cones to the right; gas above a level of fluid."""
    a, b = f.cavity
    top = f.domes[1] - rng.uniform(38, 48)
    fundus = (0.36 * a, 0.08 * b, top)
    axes = tilt(rng.uniform(-25, -5), rng.uniform(-15, 10), 0)
    full = float(rng.uniform(0.75, 1.1))
    low = float(rng.uniform(-25, 5))
    bend, end = (0.26 * a, -0.52 * b, low), (-0.20 * a, -0.48 * b, low + rng.uniform(6, 16))
    body = space.gathered(
        [
            Part(
                fundus, 50, lambda p: ellipsoid(p.turned(fundus, axes), (0, 0, 0), (36 * full, 42 * full, 44))
            ),
            rod((fundus[0], fundus[1] - 8, top - 10), bend, (30 * full, 25 * full)),
            rod(bend, end, (25 * full, 13)),
        ]
    )
    room = without(within(wall.cavity + 4, wall.below + 4), spleen_surface - 4)
    whole = within(body, room, 4)
    level = -0.50 * b + rng.uniform(-14, 12)
    gas = np.maximum(whole + 4, space.points.y - np.float32(level))
    return [(Label.STOMACH, whole), (Label.GAS, np.asarray(gas, dtype=np.float32))]


def pancreas(space: Space, f: Frame, rng: np.random.Generator) -> Field:
    """A head, and half an ellipsoid to the hilum of the spleen, cut by a plane."""
    a, s = f.cavity[0], f.size
    y, z = float(f.spine_y(0.0)) - 46 * s, float(rng.uniform(-8, 8))
    axes = tilt(0, -rng.uniform(8, 18), rng.uniform(16, 26))
    body = (-16 * s, y, z + 4)

    def half(p: Points) -> Field:
        q = p.turned(body, axes)
        return within(
            ellipsoid(q, (0, 0, 0), (0.80 * a, 14.5 * s, 19 * s)), plane(q, (0, 0, 0), (-1, 0, 0.2)), 4
        )

    head = (-24 * s, y + 2, z - 8)
    return space.gathered(
        [Part(body, 0.85 * a, half), Part(head, 30, lambda p: ellipsoid(p, head, (19 * s, 15 * s, 26 * s)))]
    )


def gallbladder(space: Space, f: Frame, rng: np.random.Generator) -> Field:
    """A ball and a cone under the liver."""
    a, b = f.cavity
    fundus = (-0.36 * a + rng.uniform(-8, 8), -0.62 * b, rng.uniform(-30, -12))
    neck = (fundus[0] + 14, fundus[1] + 38, fundus[2] + 40)
    return space.gathered([rod(fundus, neck, (float(rng.uniform(11, 16)), 4.0))])


def colon(space: Space, f: Frame, wall: Shell, noise: Field, rng: np.random.Generator) -> list[Organ]:
    """Cylinders up the right and down the left, half a torus across, stool and gas inside."""
    a, b = f.cavity
    r = float(rng.uniform(17, 24))
    right, left = -0.76 * a, 0.79 * a
    flexure, spleen_flexure = float(rng.uniform(-75, -50)), float(rng.uniform(-15, 15))
    sag = float(rng.uniform(-30, 30))
    knots: list[Triple] = [
        (right + 8, 4, -225),
        (right, 0.25 * b, -150),
        (right, 0.22 * b, flexure),
        (0.55 * right, -0.40 * b, flexure - 6),
        (0.12 * right, -0.68 * b, -85 + sag),
        (0.40 * left, -0.60 * b, -75 + sag),
        (0.85 * left, -0.12 * b, spleen_flexure - 15),
        (left, 0.34 * b, spleen_flexure),
        (left, 0.40 * b, -90),
        (left - 4, 0.25 * b, -165),
    ]
    radii = r * rng.uniform(0.85, 1.15, len(knots))
    radii[6:] *= 0.8
    parts = [
        rod(k0, k1, (float(r0), float(r1)))
        for k0, k1, r0, r1 in zip(knots[:-1], knots[1:], radii[:-1], radii[1:], strict=True)
    ]
    sigmoid = (left - 38, 0.2 * b, -170.0)
    parts.append(ring(sigmoid, tilt(80, 20, 0), (36, 30), 0.75 * r))
    # Haustra: the wall goes in and out along the gut.
    whole = within(space.gathered(parts) + 1.6 * noise, wall.cavity + 4)
    gas = np.maximum(whole + 3, 11 - 9 * noise + 0.32 * (space.points.y + 0.35 * b))
    return [(Label.BOWEL, whole), (Label.STOOL, whole + 3), (Label.GAS, np.asarray(gas, dtype=np.float32))]


def small_bowel(space: Space, f: Frame, wall: Shell, back: Field, rng: np.random.Generator) -> list[Organ]:
    """Tori at random in front of spine and psoas; some hold gas above a level. And the duodenum."""
    a, b = f.cavity
    y = float(f.spine_y(-60.0))
    loops: list[Part] = []
    levels: list[Part] = []
    for _ in range(int(rng.integers(34, 50))):
        centre = (
            float(rng.uniform(-0.58, 0.58) * a),
            float(rng.uniform(-0.70 * b, y - 34)),
            float(rng.uniform(-228, -22)),
        )
        axes = tilt(*rng.uniform(-70, 70, 3))
        hoop, radius = (float(rng.uniform(18, 34)), float(rng.uniform(15, 28))), float(rng.uniform(9, 13))
        loops.append(ring(centre, axes, hoop, radius))
        if rng.random() < 0.25:
            levels.append(_gas(centre, axes, hoop, radius - 3))
    head = (-30 * f.size, y - 44, -12.0)
    loops += [
        ring((head[0] + 16, head[1] + 6, -22), tilt(0, 0, 8)[[0, 2, 1]], (25, 34), 10.0),
    ]
    room = without(wall.cavity + 4, back - 4)
    whole = within(space.gathered(loops), room)
    return [(Label.BOWEL, whole), (Label.GAS, within(space.gathered(levels), whole + 2.5))]


def _gas(centre: Triple, axes: NDArray[np.float64], hoop: tuple[float, float], radius: float) -> Part:
    """What of a torus lies in front of its middle."""
    loop = ring(centre, axes, hoop, radius)
    return Part(
        centre, loop.reach, lambda p: np.maximum(loop.shape(p), plane(p, (0, centre[1] - 6, 0), (0, 1, 0)))
    )


def bladder(space: Space, f: Frame, rng: np.random.Generator) -> AnyField:
    """The dome of a filled bladder, an ellipsoid at the lattice's lower end."""
    centre = (0.0, -0.30 * f.cavity[1], -268.0)
    radii = (float(rng.uniform(35, 52)), float(rng.uniform(30, 42)), float(rng.uniform(34, 50)))
    return space.gathered([Part(centre, 55, lambda p: ellipsoid(p, centre, radii))])
