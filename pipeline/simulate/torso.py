"""Body wall, chest, diaphragm and bones of the reference patient.

Reference coordinates are millimetres in a patient of half-width 165 and half-depth 110: x to the left,
y to the back, z to the head; x = 0 is the midline, z = 0 the middle of L1. The family scales and warps
them, so that every shape below is drawn once, at one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulate.fields import AnyField, Field
from pipeline.simulate.shapes import (
    Points,
    both_sides,
    capsule,
    column,
    ellipsoid,
    frame,
    normalised,
    spline,
    tube,
    union,
    within,
    without,
)
from pipeline.simulate.tissue import Label

# Middle of the vertebral body (z), height, half-width and half-depth of the body, mm.
# Sizes of vertebrae: Panjabi et al., Spine 1991;16:888 and 1992;17:299, rounded.
VERTEBRAE: tuple[tuple[str, float, float, float, float], ...] = (
    ("T3", 269, 16, 14, 11),
    ("T4", 247, 17, 14, 12),
    ("T5", 224, 18, 14, 13),
    ("T6", 200, 19, 15, 13),
    ("T7", 175, 19, 15, 14),
    ("T8", 149, 20, 16, 14),
    ("T9", 122, 20, 17, 15),
    ("T10", 94, 22, 18, 15),
    ("T11", 65, 23, 20, 16),
    ("T12", 34, 25, 21, 16),
    ("L1", 0, 26, 22, 17),
    ("L2", -36, 27, 23, 17),
    ("L3", -73, 28, 24, 17),
    ("L4", -110, 28, 25, 17),
    ("L5", -147, 27, 26, 17),
)
# Where rib k leaves the spine (z), how far it descends to the front, and how far round it reaches (rad).
RIBS: tuple[tuple[float, float, float], ...] = (
    (327, 50, 2.75),
    (308, 70, 2.70),
    (289, 85, 2.65),
    (269, 95, 2.60),
    (247, 105, 2.55),
    (224, 112, 2.50),
    (200, 118, 2.45),
    (175, 122, 2.35),
    (149, 125, 2.20),
    (122, 120, 2.05),
    (94, 100, 1.60),
    (65, 75, 1.05),
    (34, 45, 0.65),
)


def spine_y(z: AnyField | float) -> Field:
    """The middle of the vertebral bodies: lumbar lordosis, thoracic kyphosis."""
    curve = np.interp(z, [-260, -170, -100, -20, 80, 180, 260], [58, 44, 31, 36, 46, 55, 50])
    return np.asarray(curve, dtype=np.float32)


@dataclass(frozen=True)
class Wall:
    """Nested surfaces of the trunk: skin, muscle, cavity, rib cage and diaphragm (negative below it)."""

    skin: Field
    muscle: Field
    cavity: Field
    cage: Field
    diaphragm: Field


def _trunk(p: Points, half_width: Field, half_depth: Field, spacing_mm: float) -> Field:
    x, y = np.abs(p.x / half_width), p.y / half_depth
    # The back lies flat on the table: a higher exponent there.
    oval = x**2.4 + np.where(y < 0, np.abs(y) ** 2.1, np.abs(y) ** 2.8)
    return normalised((oval ** np.float32(1 / 2.4) - 1) * 100, spacing_mm)


def _diaphragm(p: Points, spacing_mm: float) -> Field:
    height = np.full(np.broadcast_shapes(p.x.shape, p.y.shape, p.z.shape), -1e3, dtype=np.float32)
    rim = 22 + 60 * np.clip(-p.y / 100, 0, 1)
    for (cx, cy), (rx, ry), top in (
        ((-80, -5), (84, 112), 122),
        ((80, 0), (80, 110), 106),
        ((15, -45), (75, 75), 104),
    ):
        q = ((p.x - cx) / rx) ** 2 + ((p.y - cy) / ry) ** 2
        dome = rim + (top - rim) * np.sqrt(np.maximum(1 - q, 0)) - 80 * np.maximum(q - 1, 0)
        height = np.maximum(height, dome)
    return normalised(p.z - height, spacing_mm)


def _wall_thickness(p: Points) -> Field:
    """Muscle between fat and cavity: thick at the back, thin at the linea alba and beside the recti."""
    back = np.clip((p.y - 20) / 50, 0, 1) * np.clip(1.6 - np.abs(p.x) / 70, 0, 1)
    front = np.clip((-p.y - 20) / 30, 0, 1) * np.clip((60 - p.z) / 60, 0, 1)
    seams = 7 * np.exp(-((p.x / 7) ** 2)) + 6 * np.exp(-(((np.abs(p.x) - 76) / 12) ** 2))
    return np.asarray(11.5 + 12 * back - front * seams, dtype=np.float32)


def body_wall(
    p: Points, fat_mm: float, spacing_mm: float, outward_mm: float = 0.0, dome: Points | None = None
) -> Wall:
    """The trunk; fat_mm: thickness of the fat under the skin at the belly, reference mm.

    outward_mm: how much of it lies outside the reference's outline (negative: the skin lies inside).
    dome: the diaphragm's own coordinates where it is not at the reference's place.
    """
    levels = [-260, -190, -120, -50, 40, 140, 260]
    half_width = np.interp(p.z, levels, [172, 174, 166, 158, 160, 165, 168])
    half_depth = np.interp(p.z, levels, [106, 106, 106, 107, 109, 112, 108])
    outline = _trunk(p, half_width.astype(np.float32), half_depth.astype(np.float32), spacing_mm)
    flank = np.clip(np.abs(p.x) / 150, 0, 1) ** 2
    chest = np.clip((p.z - 20) / 100, 0, 1)
    profile = (1 + 0.5 * flank) * (1 - 0.45 * chest)
    muscle = outline + (fat_mm - outward_mm) * profile
    skin = (outline - outward_mm * profile).astype(np.float32) if outward_mm else outline
    cavity = muscle + _wall_thickness(p)
    erectors = both_sides(lambda s: column(p, (s * 30, spine_y(p.z) + 44), (34, 22)))
    cage = without(muscle + 9, erectors, 8)
    diaphragm = _diaphragm(p if dome is None else dome, spacing_mm)
    return Wall(skin, muscle.astype(np.float32), cavity.astype(np.float32), cage, diaphragm)


def back_muscles(p: Points) -> Field:
    """Erectors of the spine and both psoas muscles."""
    y = spine_y(p.z)
    erectors = both_sides(lambda s: column(p, (s * 31, y + 42), (27, 19)))
    down = np.clip((10 - p.z) / 150, 0, 1)
    girth = 4 + 20 * np.sqrt(down)
    psoas = both_sides(lambda s: column(p, (s * (27 + 26 * down), y - 2 - 12 * down), (girth, girth * 1.1)))
    return union(erectors, within(psoas, p.z - 12.0))


def ribs(p: Points, wall: Wall) -> tuple[Field, Field]:
    """(bone, cartilage): bands on the cage's surface that descend from the spine to the front."""
    angle = np.arctan2(np.abs(p.x), p.y - 30)
    bone = np.full(wall.cage.shape, 30.0, dtype=np.float32)
    cartilage = bone.copy()
    radial = (wall.cage - 1) / 0.68
    for start, drop, reach in RIBS:
        fall = 12 + drop * (1 - np.cos(np.minimum(angle, 2.6) * 1.1)) / 1.9
        slope = drop * 1.1 * np.abs(np.sin(angle * 1.1)) / 1.9 / 110
        across = (p.z - (start - fall)) / np.sqrt(1 + slope**2)
        band = np.sqrt(radial**2 + across**2) - 6.6
        bone = np.minimum(bone, np.maximum(band, (angle - reach) * 90))
        if reach > 2.0:
            tip = (reach - angle) * 90
            cartilage = np.minimum(cartilage, np.maximum(band, np.maximum(tip, (angle - 2.95) * 90)))
    return bone.astype(np.float32), cartilage.astype(np.float32)


def sternum(p: Points, wall: Wall) -> Field:
    """A plate in front, above the xiphoid."""
    plate = np.maximum(np.abs(p.x) - 17, np.abs(wall.cage - 1) - 5.5)
    return np.asarray(np.maximum(np.maximum(plate, 128 - p.z), p.y), dtype=np.float32)


def lungs(p: Points, wall: Wall, heart: Field) -> Field:
    """Above the diaphragm, inside the cage, beside the mediastinum."""
    room = within(wall.cage + 6, 2.5 - wall.diaphragm, 4)
    mediastinum = column(p, (4, -8), (27, 78))
    y = spine_y(p.z)
    spine = column(p, (0, y + 6), (27, 26))
    return without(without(without(room, mediastinum, 10), heart - 3, 8), spine, 8)


def heart(p: Points, wall: Wall) -> Field:
    """Ventricles and atria as one, resting on the diaphragm, its apex to the left."""
    q = p.turned((22, -36, 152), frame(long=(0.75, -0.5, -0.42), front=(0, 0, 1)))
    body = ellipsoid(q, (0, 0, 0), (44, 46, 64))
    return within(within(body, 4 - wall.diaphragm, 4), wall.cage + 6, 4)


def lung_vessels(p: Points, rng: np.random.Generator, lung: Field) -> Field:
    """Branches from both hila to random points of the lungs, thinning on their way."""
    where = np.argwhere((lung < -8) & (p.z < 235))
    curves, radii = [], []
    for z, y, x in where[rng.integers(len(where), size=46)]:
        end = np.array([p.x[z, y, x], p.y[z, y, x], p.z[z, y, x]], dtype=np.float64)
        hilum = np.array([np.copysign(34.0, end[0]), 8.0, 178.0])
        middle = (hilum + end) / 2 + rng.normal(0, 10, 3)
        curves.append(spline([hilum, middle, end]))
        radii.append(np.linspace(4.5, 1.2, len(curves[-1])))
    return within(tube(p, np.concatenate(curves), np.concatenate(radii)), lung)


def vertebra(p: Points, z: float, height: float, half_width: float, half_depth: float) -> Field:
    """Body, arch round the canal, spinous and transverse processes."""
    y = float(spine_y(z))
    h = (p.z - z) / (height / 2)
    waist = 1 - 0.09 * np.clip(1 - h**2, 0, 1)
    ends = np.abs(p.z - z) - height / 2
    body = within(column(p, (0, y), (half_width * waist, half_depth * waist)), ends, 4)
    canal_y = y + half_depth + 8
    ring = np.abs(column(p, (0, canal_y), (12.5, 11))) - 3.5
    arch = within(ring, np.abs(p.z - z + 2) - height * 0.42, 3)
    slope = 8 if z < 20 else 24  # thoracic spinous processes point down
    spinous = capsule(p, (0, canal_y + 13, z - 5), (0, canal_y + 32, z - 5 - slope), 4.0)
    bone = union(union(body, arch, 3), spinous, 3)
    for side in (-1, 1):
        tip = (side * (half_width + 16), canal_y + 6, z)
        bone = union(bone, capsule(p, (side * 13, canal_y + 2, z), tip, 4.2), 3)
    return without(bone, column(p, (0, canal_y), (9.5, 8)))


def _slab(p: Points, low: float, high: float) -> slice:
    """Lattice slices that hold any point with z between two values."""
    hits = np.flatnonzero(((p.z > low) & (p.z < high)).any(axis=(1, 2)))
    return slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0)


def spine(p: Points) -> list[tuple[Label, Field]]:
    """Discs and canal as columns, then each vertebra over them."""
    y = spine_y(p.z)
    above_sacrum = -166 - p.z
    half = np.interp(p.z, [-160, 0, 200], [24, 20, 13])
    layers = [
        (Label.DISC, within(column(p, (0, y), (half, half * 0.72)), above_sacrum)),
        (Label.CANAL, column(p, (0, y + half * 0.3 + 19), (9.5, 8.5))),
    ]
    for name, z, height, half_width, half_depth in VERTEBRAE:
        label = Label[name] if name in Label.__members__ else Label.THORACIC_SPINE
        slab = _slab(p, z - 65, z + 30)
        distance = np.full(p.z.shape, 30.0, dtype=np.float32)
        distance[slab] = vertebra(Points(p.x[slab], p.y[slab], p.z[slab]), z, height, half_width, half_depth)
        layers.append((label, distance))
    return layers


def _wing(p: Points, side: int) -> Field:
    """The wing of one ilium: a bowed plate from the sacroiliac joint to the front, under its crest."""
    dx, dy = side * p.x - 44, p.y - 66
    along = dx * 0.68 - dy * 0.73
    across = -dx * 0.73 - dy * 0.68 + (along - 62) ** 2 / 260 - 12
    crest = p.z + 112 + (along - 62) ** 2 / 75
    thickness = 5.0 + 4.0 * np.clip(1 - along / 60, 0, 1)
    plate = np.maximum(np.abs(across) - thickness, np.abs(along - 62) - 68)
    return within(plate, crest, 6)


def pelvis(p: Points) -> list[tuple[Label, Field]]:
    """The wings of both ilia, from the sacroiliac joints to the front, and the sacrum."""
    wings = both_sides(lambda side: _wing(p, side))
    sacrum = ellipsoid(p, (0, 66, -215), (46, 24, 58))
    return [(Label.SACRUM, within(sacrum, p.z + 165, 4)), (Label.ILIUM, wings)]
