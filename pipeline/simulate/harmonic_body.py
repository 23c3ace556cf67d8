"""Outline, wall and diaphragm of family `harmonic`, and how its reference places become the patient's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.harmonic_shapes import Canvas, Star, contour, cylinder_waves, six
from pipeline.simulate.shapes import normalised
from pipeline.volume import Triple

_HALF_WIDTH_MM, _HALF_DEPTH_MM = 150.0, 97.0  # of the reference's muscular outline
_DEEPEST_MM = 132.0  # half-depth with skin: the lattice ends at 147 mm
_SPINE_PERIOD_MM = 560.0


@dataclass(frozen=True)
class Body:
    """half_width_mm, front_mm, back_mm: of the muscular outline, from the axis. fat_mm: under the skin.

    stretch: patient / reference along x, y, z. power: of the outline's gauge. curve_mm: amplitude of the
    spine's curve. dome_mm: height of the right dome of the diaphragm above L1, and of the left one.
    rib_gap_mm: between neighbouring ribs. arms: beside the body.
    """

    half_width_mm: float
    front_mm: float
    back_mm: float
    fat_mm: float
    stretch: Triple
    power: float
    curve_mm: float
    dome_mm: tuple[float, float]
    arms: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Body:
        """Half-width with skin 14 to 20 cm; the wider, the more of it is fat."""
        whole = float(rng.uniform(140, 198))
        fat = float(np.clip(0.3 * (whole - 140) + rng.uniform(4, 20), 4, 36))
        half_width = whole - 1.2 * fat
        depth = half_width * float(rng.uniform(0.58, 0.70))
        depth = float(np.clip(depth, 78, _DEEPEST_MM - 1.1 * fat))
        height = float(rng.uniform(0.92, 1.08))
        right_dome = 112 + float(rng.uniform(-14, 14))
        return cls(
            half_width,
            depth * float(rng.uniform(0.96, 1.06)),
            depth,
            fat,
            (half_width / _HALF_WIDTH_MM, depth / _HALF_DEPTH_MM, height),
            float(rng.uniform(2.2, 2.8)),
            float(rng.uniform(7, 15)),
            (right_dome, right_dome - float(rng.uniform(4, 20))),
            arms=bool(rng.random() < 0.25) and whole < 185,
        )

    def at(self, x: float, y: float, z: float) -> Triple:
        """A reference place in the patient."""
        return x * self.stretch[0], y * self.stretch[1], z * self.stretch[2]

    @property
    def size(self) -> float:
        """The trunk's volume over the reference's."""
        return float(np.prod(self.stretch))

    @property
    def girth(self) -> float:
        """What round things are scaled by."""
        return float(np.cbrt(self.size))

    def spine_y(self, z: AnyField | float) -> Field:
        """The middle of the vertebral bodies: lordosis below, kyphosis above."""
        wave = np.cos(2 * np.pi * (np.asarray(z) / self.stretch[2] + 90) / _SPINE_PERIOD_MM)
        return np.asarray(43 * self.stretch[1] - self.curve_mm * wave, dtype=np.float32)

    def muscle_radius(self, angle: AnyField, z: AnyField) -> Field:
        """Of the muscular outline at `angle` (0 left, π/2 back), narrower at the waist, mm."""
        up = np.asarray(z) / self.stretch[2]
        waist = 1 - 0.05 * np.exp(-(((up + 30) / 70) ** 2)) + 0.05 * np.clip((-110 - up) / 80, 0, 1)
        half = self.half_width_mm * waist
        front = self.front_mm * (1 + 0.06 * np.sin(np.clip((up - 60) / 110, -1.5, 1.5)))
        return contour(angle, (half, half, front, self.back_mm), self.power)


@dataclass(frozen=True)
class Wall:
    """Nested surfaces of the trunk: skin, muscle, cavity; and the diaphragm (negative below it)."""

    skin: Field
    muscle: Field
    cavity: Field
    dome: Field


def wall_of(canvas: Canvas, body: Body, rng: np.random.Generator) -> Wall:
    """The trunk's wall on the lattice."""
    p = canvas.p
    angle, radius = np.arctan2(p.y, p.x), np.sqrt(p.x**2 + p.y**2)
    outline = body.muscle_radius(angle, p.z) * np.exp(cylinder_waves(rng, angle, p.z, 0.012))
    muscle = normalised(radius - outline, canvas.spacing_mm)
    flank = np.cos(angle) ** 2
    chest = np.clip((p.z - 30) / 110, 0, 1)
    layer = body.fat_mm * (0.85 + 0.4 * flank) * (1 - 0.4 * chest)
    layer = layer * np.exp(cylinder_waves(rng, angle, p.z, 0.12))
    cavity = muscle + _thickness(angle) * np.exp(cylinder_waves(rng, angle, p.z, 0.08))
    return Wall(
        np.asarray(muscle - layer, dtype=np.float32),
        muscle,
        np.asarray(cavity, dtype=np.float32),
        _dome(canvas, body, rng),
    )


def _thickness(angle: AnyField) -> Field:
    """Muscle between fat and cavity, mm: thick behind, thin in the midline in front."""
    behind = np.exp(-(((angle - np.pi / 2) / 0.6) ** 2))
    before = np.exp(-(((angle + np.pi / 2) / 0.12) ** 2))
    return np.asarray(12 + 11 * behind - 6 * before, dtype=np.float32)


def _dome(canvas: Canvas, body: Body, rng: np.random.Generator) -> Field:
    """Two domes, open downwards, and a lower saddle between them that carries the heart."""
    stars = []
    for side, height in zip((-1, 1), body.dome_mm, strict=True):
        head = height * body.stretch[2]
        reach = 86 * body.stretch[0]
        faces = six(reach, reach, 108 * body.stretch[1], 100 * body.stretch[1], 320, head)
        stars.append(Star(body.at(side * 68, 2, 0), faces, 2.15, bumps=0.025))
    saddle = min(body.dome_mm) * 0.9 * body.stretch[2]
    faces = six(70, 70, 95 * body.stretch[1], 75 * body.stretch[1], 320, saddle)
    stars.append(Star(body.at(5, -20, 0), faces, 2.4, bumps=0.02))
    return canvas.stars(stars, rng, blend_mm=16)
