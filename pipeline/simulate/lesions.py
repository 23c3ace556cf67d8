"""Lesions: balls with uneven surfaces, in the liver and elsewhere, one of them with a necrotic core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulate.fields import Field, smooth_field
from pipeline.simulate.shapes import Points, ellipsoid
from pipeline.volume import Triple

# Diameters in the liver, mm: from the size of a voxel of SPECT's resolution to a dominant metastasis.
_LIVER_DIAMETERS_MM = (54.0, 36.0, 28.0, 21.0, 15.0)
_NECROTIC_FROM_MM = 45.0


@dataclass(frozen=True)
class Lesion:
    """name: where it sits. diameter_mm: of the ball it was made from. uptake: Bq/mL of viable tumour.

    label: its code in the label image. necrotic: whether its core is cold.
    """

    name: str
    label: int
    diameter_mm: float
    uptake: float
    necrotic: bool


@dataclass(frozen=True)
class LesionShape:
    """A lesion and its surfaces on the whole lattice; `core` is None where it is not necrotic."""

    lesion: Lesion
    surface: Field
    core: Field | None


def _ball(p: Points, centre: Triple, radius: float, rng: np.random.Generator, spacing_mm: float) -> Field:
    stretch = rng.uniform(0.88, 1.12, 3)
    rx, ry, rz = (radius * stretch / np.cbrt(stretch.prod())).tolist()
    ball = ellipsoid(p, centre, (rx, ry, rz))
    return ball + np.float32(0.16 * radius) * smooth_field(
        rng, ball.shape, spacing_mm, max(radius, 4 * spacing_mm)
    )


def _place(p: Points, organ: Field, room: Field, radius: float, rng: np.random.Generator) -> Triple:
    """A point of `organ` that leaves the lesion mostly inside it and clear of the others."""
    inside = np.flatnonzero((organ < -0.75 * radius) & (room > radius + 5))
    if not inside.size:
        inside = np.flatnonzero(organ < 0)
    z, y, x = np.unravel_index(int(rng.choice(inside)), organ.shape)
    return float(p.x[z, y, x]), float(p.y[z, y, x]), float(p.z[z, y, x])


def _shape(
    p: Points,
    name: str,
    index: int,
    centre: Triple,
    diameter: float,
    rng: np.random.Generator,
    spacing_mm: float,
) -> LesionShape:
    necrotic = diameter >= _NECROTIC_FROM_MM
    # 0.8 to 4.5 MBq/mL: 10 to 50 Gy a cycle.
    uptake = float(np.clip(rng.lognormal(np.log(2.0e6), 0.45), 0.8e6, 4.5e6))
    surface = _ball(p, centre, diameter / 2, rng, spacing_mm)
    core = _ball(p, centre, 0.22 * diameter, rng, spacing_mm) if necrotic else None
    return LesionShape(Lesion(name, 100 + index, diameter, uptake, necrotic), surface, core)


def draw_lesions(p: Points, liver: Field, rng: np.random.Generator, spacing_mm: float) -> list[LesionShape]:
    """Five in the liver, one mesenteric mass, one para-aortic node, one in a vertebra."""
    shapes: list[LesionShape] = []
    room = np.full(liver.shape, 99.0, dtype=np.float32)
    for diameter in _LIVER_DIAMETERS_MM:
        size = float(diameter * rng.uniform(0.9, 1.1))
        centre = _place(p, liver, room, size / 2, rng)
        shape = _shape(p, "liver", len(shapes), centre, size, rng, spacing_mm)
        room = np.minimum(room, shape.surface)
        shapes.append(shape)
    elsewhere: tuple[tuple[str, Triple, float], ...] = (
        ("mesentery", (-6, -34, -84), 30),
        ("node", (29, 8, -62), 19),
        ("vertebra", (-7, 34, -71), 20),
    )
    for name, centre, diameter in elsewhere:
        jitter = rng.uniform(-4, 4, 3)
        moved = (centre[0] + jitter[0], centre[1] + jitter[1], centre[2] + jitter[2])
        shapes.append(_shape(p, name, len(shapes), moved, diameter, rng, spacing_mm))
    return shapes
