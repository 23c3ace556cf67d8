"""Spine, ribs, sternum, pelvis and the muscles of the back of family `harmonic`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.simulate.fields import Field
from pipeline.simulate.harmonic_body import Body
from pipeline.simulate.harmonic_organs import Curve, paths
from pipeline.simulate.harmonic_shapes import Canvas, Dent, Faces, Star, ball, six
from pipeline.simulate.shapes import both_sides, column, frame, spline, union, within, without
from pipeline.simulate.tissue import Label
from pipeline.volume import Triple

_RIBS = 12
_LUMBAR = (Label.L1, Label.L2, Label.L3, Label.L4, Label.L5)


def back_muscles(canvas: Canvas, body: Body) -> Field:
    """Erectors of the spine as columns, psoas muscles as tubes that thicken downwards."""
    p, girth = canvas.p, body.girth
    y = body.spine_y(p.z)
    erectors = both_sides(lambda s: column(p, (s * 31 * girth, y + 43), (26 * girth, 20 * girth)))
    curves: list[tuple[Curve, ArrayLike]] = []
    for side in (-1, 1):
        levels = np.linspace(-5, -240, 7) * body.stretch[2]
        down = np.linspace(0, 1, 7)
        front = body.spine_y(levels) - 2 - 14 * down
        nodes = np.stack([side * (28 + 34 * down) * girth, front, levels], axis=-1)
        curve = spline(nodes)
        curves.append((curve, np.linspace(6, 25, len(curve)) * girth))
    return union(erectors, paths(canvas, curves))


# ── spine ────────────────────────────────────────────────────────────────────────────────────────


def _drum(half_width: float, half_depth: float, half_height: float) -> Faces:
    """Faces of an elliptic drum: sixteen round it, one at either end."""
    faces: list[tuple[Triple, float]] = [((0.0, 0.0, 1.0), half_height), ((0.0, 0.0, -1.0), half_height)]
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
        c, s = float(np.cos(angle)), float(np.sin(angle))
        faces.append(((c, s, 0.0), float(np.hypot(half_width * c, half_depth * s)) * 1.12))
    return tuple(faces)


def _levels(body: Body, rng: np.random.Generator) -> list[tuple[Label, float, float, float, float]]:
    """(label, z, height, half-width, half-depth) of vertebrae from L5 up, mm."""
    z_scale, girth = body.stretch[2], body.girth
    slender = float(rng.uniform(0.92, 1.08))
    rows = []
    z = 0.0
    for k in range(5):  # L1 down to L5
        rows.append((_LUMBAR[k], z, 26.5 * z_scale, (22 + k) * girth * slender, 17 * girth * slender))
        z -= (36.2 + 0.4 * k) * z_scale
    z = 0.0
    for k in range(1, 12):
        z += (35.5 - 1.05 * k) * z_scale
        thinner = girth * slender
        size = (21 - 0.75 * k) * thinner, (16.5 - 0.45 * k) * thinner
        rows.append((Label.THORACIC_SPINE, z, (25.5 - 0.75 * k) * z_scale, max(size[0], 13.0), size[1]))
    return rows


def _vertebra(
    canvas: Canvas, body: Body, rng: np.random.Generator, row: tuple[Label, float, float, float, float]
) -> Field:
    label, z, height, half_width, half_depth = row
    y = float(body.spine_y(z))
    canal = y + half_depth + 9
    lumbar = label in _LUMBAR
    drop = 5.0 if lumbar else 16.0
    stars = [
        Star((0, y, z), _drum(half_width, half_depth, height / 2), 7.0, 0.015),
        Star((0, canal, z - 3), ball(17, 14, height * 0.4), 2.5, 0.03),
        Star(
            (0, canal + 20, z - 4 - drop / 2), ball(4.2, 13, 10 if lumbar else 7), 2.5, 0.06,
            axes=frame((0, drop / 30, 1), (1, 0, 0)),
        ),
    ]  # fmt: skip
    for side in (-1, 1):
        place = (side * (half_width + 2), canal + (0 if lumbar else 6), z)
        stars.append(Star(place, ball(16, 4.8, 6), 2.0, 0.08))
    bone = canvas.stars(stars, rng, blend_mm=3)
    return without(bone, column(canvas.p, (0, body.spine_y(canvas.p.z) + half_depth + 9), (9.5, 8.2)))


def spine(canvas: Canvas, body: Body, rng: np.random.Generator) -> list[tuple[Label, Field]]:
    """Discs and canal as columns, then each vertebra over them."""
    p, girth = canvas.p, body.girth
    y = body.spine_y(p.z)
    half = np.interp(p.z, [-165, 0, 220], np.array([24, 20, 13]) * girth)
    above_sacrum = -168 * body.stretch[2] - p.z
    disc = within(column(p, (0, y), (half, half * 0.73)), above_sacrum.astype(np.float32))
    canal = column(p, (0, y + 17 * girth + 9), (9.5, 8.2))
    rows = _levels(body, rng)
    vertebrae = [(row[0], _vertebra(canvas, body, rng, row)) for row in rows]
    return [(Label.DISC, disc), (Label.CANAL, canal), *vertebrae]


# ── ribs and sternum ─────────────────────────────────────────────────────────────────────────────


def _on_cage(body: Body, turn: NDArray[np.float64], z: NDArray[np.float64], side: int, depth: float) -> Curve:
    """Points `depth` under the muscular outline; turn: from the spine (0) to the sternum (π), rad."""
    angle = np.pi / 2 - side * turn
    beside_spine = 26 * np.exp(-((turn / 0.55) ** 2))  # there ribs lie below the erectors
    radius = body.muscle_radius(angle, z) - depth - beside_spine
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1).astype(np.float64)


def ribs(canvas: Canvas, body: Body, rng: np.random.Generator) -> tuple[Field, Field]:
    """(bone, cartilage): tubes that leave the spine, descend round the cage, and rise to the sternum."""
    bones: list[tuple[Curve, ArrayLike]] = []
    cartilages: list[tuple[Curve, ArrayLike]] = []
    slope = float(rng.uniform(0.85, 1.15))
    for k in range(1, _RIBS + 1):  # rib 12 first
        start = (34 + 27.5 * (k - 1) - 0.25 * (k - 1) ** 2) * body.stretch[2]
        reach = min(0.65 + 0.42 * (k - 1), 2.35 + 0.02 * k)
        drop = min(42 + 22 * k, 118) * slope * body.stretch[2]
        for side in (-1, 1):
            turn = np.linspace(0.22, reach, max(int(reach * 45), 12))
            z = start - 10 - drop * (1 - np.cos(turn * 1.15)) / 2
            bones.append((_on_cage(body, turn, z, side, 9.0), 5.2))
            if k > 3:
                on = np.linspace(reach, 2.92, 30)
                rise = min(30.0 + 3 * (12 - k), 55.0) * np.linspace(0, 1, 30) ** 1.4
                cartilages.append((_on_cage(body, on, z[-1] + rise, side, 9.0), 4.6))
    return paths(canvas, bones), paths(canvas, cartilages)


def sternum(canvas: Canvas, body: Body) -> Field:
    """Three bars side by side behind the skin of the chest."""
    levels = np.arange(128.0, 280.0, 4.0) * body.stretch[2]
    bars: list[tuple[Curve, ArrayLike]] = []
    for side in (-1, 0, 1):
        angle = -np.pi / 2 + side * 0.09
        radius = body.muscle_radius(np.full(levels.shape, angle), levels) - 9
        curve = np.stack([radius * np.cos(angle), radius * np.sin(angle), levels], axis=-1)
        bars.append((curve.astype(np.float64), 6.0))
    return paths(canvas, bars)


# ── pelvis ───────────────────────────────────────────────────────────────────────────────────────


def pelvis(canvas: Canvas, body: Body, rng: np.random.Generator) -> list[tuple[Label, Field]]:
    """The sacrum as a star hollow in front; the wings of the ilia as the shell of one large star."""
    p = canvas.p
    sx, sy, sz = body.stretch
    y = float(body.spine_y(-200.0 * sz)) + 12
    sacrum = Star(
        (0, y, -222 * sz), six(46 * sx, 46 * sx, 20, 26, 70, 54), 2.6, 0.03, (Dent((0, -1, -0.4), 0.3, 4.0),)
    )
    bowl = canvas.star(
        Star((0, 5 * sy, -120 * sz), six(124 * sx, 124 * sx, 90 * sy, 76 * sy, 165, 260), 2.2, 0.02), rng
    )
    thickness = np.float32(rng.uniform(4.5, 6.5))
    crest = p.z + sz * (112 + ((p.y - 12) / 62) ** 2 * 34)
    wings = within(np.abs(bowl) - thickness, np.asarray(crest, dtype=np.float32), 5)
    wings = within(wings, np.asarray(38 * sx - np.abs(p.x), dtype=np.float32), 4)
    wings = within(wings, np.asarray(-46 * sy - p.y, dtype=np.float32), 4)
    return [(Label.SACRUM, canvas.star(sacrum, rng)), (Label.ILIUM, wings)]
