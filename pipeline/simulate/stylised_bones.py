"""Skeleton of the stylised family: stacked cylinders, cones, and what planes cut out of shells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.shapes import Points, union, within, without
from pipeline.simulate.stylised_quadrics import Part, Space, cylinder, plane, rod, tilt
from pipeline.simulate.stylised_trunk import Frame, Shell
from pipeline.simulate.tissue import Label
from pipeline.volume import Triple


@dataclass(frozen=True)
class Vertebra:
    """One vertebra, mm: middle (z) and height of the body, its half-axes."""

    label: Label
    z: float
    height: float
    half_width: float
    half_depth: float


def vertebrae(f: Frame) -> list[Vertebra]:
    """L5 up to where the lattice ends, stacked on L1 at z = 0."""
    s = f.size
    lumbar = [(Label(Label.L1 + k), (26.0 + 0.5 * k) * s, (8.0 + 0.6 * k) * s) for k in range(5)]
    bones, top = [], 13.0 * s
    for k, (label, height, disc) in enumerate(lumbar):
        bones.append(Vertebra(label, top - height / 2, height, (22 + k) * s, (17 + 0.4 * k) * s))
        top -= height + disc
    bottom, k = 13.0 * s, 0
    while bottom < 250:
        height = (24.5 - 0.6 * k) * s
        z = bottom + 6 * s + height / 2
        half_width = (20 - 0.75 * k) * s
        bones.append(Vertebra(Label.THORACIC_SPINE, z, height, half_width, max(0.76 * half_width, 10.5)))
        bottom, k = z + height / 2, k + 1
    return bones


def _bone(q: Points, v: Vertebra, s: float, down: float) -> Field:
    """A vertebra about the middle of its body: a cut cylinder, a tube for the canal, three cones."""
    flat = np.abs(q.z) - v.height / 2
    body = within(cylinder(q, (0, 0), (v.half_width, v.half_depth)), flat, 3)
    canal_y = v.half_depth + 8 * s
    arch = np.maximum(cylinder(q, (0, canal_y), (14.5 * s, 12.5 * s)), np.abs(q.z + 2) - 0.36 * v.height)
    tip = (0.0, canal_y + 29 * s, -4 - down)
    bone = union(union(body, arch, 3), _cone(q, (0, canal_y + 8 * s, -3), tip, (6 * s, 4 * s)), 3)
    for side in (-1.0, 1.0):
        end = (side * (v.half_width + 12 * s), canal_y + 5 * s, 1.0)
        bone = union(bone, _cone(q, (side * 10 * s, canal_y, 0), end, (5.5 * s, 4 * s)), 3)
    return without(bone, cylinder(q, (0, canal_y), (10.5 * s, 8.5 * s)))


def _cone(q: Points, start: Triple, end: Triple, radii: tuple[float, float]) -> AnyField:
    return rod(start, end, radii).shape(q)


def _vertebra(v: Vertebra, centre: Triple, axes: NDArray[np.float64], s: float, down: float) -> Part:
    return Part(centre, 75 * s, lambda p: _bone(p.turned(centre, axes), v, s, down))


def spine(space: Space, f: Frame, rng: np.random.Generator) -> list[tuple[Label, Field]]:
    """Canal, discs, then every vertebra, each turned a little on its own."""
    p, s = space.points, f.size
    y = f.spine_y(p.z)
    q = Points(p.x, p.y - y, p.z)
    bones = vertebrae(f)
    sacral = np.float32(bones[4].z - bones[4].height / 2 - 11 * s)
    wide = np.interp(p.z, [-160, 0, 200], [24 * s, 20.5 * s, 13 * s]).astype(np.float32)
    across = Points(q.x / wide, q.y / wide, q.z)
    disc = cylinder(across, (0, 0), (1.0, 0.74)) * wide
    layers = [
        (Label.DISC, np.asarray(np.maximum(disc, sacral - p.z), dtype=np.float32)),
        (Label.CANAL, cylinder(q, (0, 25 * s), (10 * s, 8.5 * s))),
    ]
    for v in bones:
        centre = (0.0, float(f.spine_y(v.z)), v.z)
        lean = tilt(f.spine_lean(v.z) + rng.normal(0, 1.5), rng.normal(0, 1.5), rng.normal(0, 2))
        down = 6.0 if v.z < 20 else 20.0  # spinous processes of the chest point to the feet

        layers.append((v.label, space.gathered([_vertebra(v, centre, lean, s, down)])))
    return layers


def ribs(space: Space, f: Frame, wall: Shell, rng: np.random.Generator) -> tuple[Field, Field]:
    """(bone, cartilage): hoops that tilted planes cut out of the cage, open behind the spine."""
    p, s = space.points, f.size
    bone = np.full(p.x.shape, 25.0, dtype=np.float32)
    cartilage = bone.copy()
    back = f.spine + 46 * f.size
    b = (back + f.cavity[1]) / 2
    # How far each hoop reaches to the front, in half-depths of the cage: the last two float.
    reach = (0.55, 0.0, -0.45, -0.58, -0.66)
    for k, v in enumerate(vertebrae(f)[5:]):
        angle = np.radians(rng.uniform(19, 25) + min(k, 4) * 1.5)
        c, t = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dy, dz = p.y - np.float32(back), p.z - np.float32(v.z + 4)
        along, off = dy * c + dz * t, dz * c - dy * t
        hoop = (np.sqrt((wall.cage / 3.6) ** 2 + (off / 6.4) ** 2) - 1) * 4.4 * s
        end = np.float32((reach[min(k, 4)] - 1) * b / c)
        gap = 17 * s - np.abs(p.x)
        bone = np.minimum(bone, np.maximum(np.maximum(hoop, end - along), np.where(p.y > 0, gap, -9)))
        if k > 1:
            cartilage = np.minimum(cartilage, np.maximum(np.maximum(hoop, along - end), gap))
    return bone.astype(np.float32), cartilage.astype(np.float32)


def sternum(p: Points, wall: Shell, size: float) -> Field:
    """A plate cut out of the cage in front, above the xiphoid."""
    plate = np.maximum(np.abs(p.x) - 18 * size, np.abs(wall.cage) - 5.2)
    return np.asarray(np.maximum(np.maximum(plate, 112 * size - p.z), p.y), dtype=np.float32)


def pelvis(space: Space, f: Frame) -> list[tuple[Label, Field]]:
    """Sacrum: a cone cut by planes. Ilium: part of an elliptical shell under an oblique plane."""
    p, s = space.points, f.size
    top = vertebrae(f)[4].z - vertebrae(f)[4].height / 2 - 9 * s
    y = float(f.spine_y(top))
    q = p.turned((0, y + 4, top), tilt(24, 0, 0))
    narrow = np.clip(1 + q.z / 150, 0.3, 1).astype(np.float32)
    sacrum = cylinder(Points(q.x / narrow, q.y / narrow, q.z), (0, 10 * s), (50 * s, 19 * s)) * narrow
    sacrum = within(np.asarray(sacrum, dtype=np.float32), q.z, 4)
    bowl = cylinder(p, (0, y - 14), (f.cavity[0] - 4, 64 * s))
    crest = plane(Points(np.abs(p.x), p.y, p.z), (75 * s, y, top + 40 * s), (0.5, -0.35, 1))
    medial = 36 * s - np.abs(p.x)
    wing = np.maximum(np.maximum(np.abs(bowl) - 5.5 * s, medial), (y - 52 * s) - p.y)
    return [(Label.SACRUM, sacrum), (Label.ILIUM, within(np.asarray(wing, np.float32), crest, 5))]
