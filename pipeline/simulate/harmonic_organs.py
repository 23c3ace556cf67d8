"""Organs of family `harmonic` (coordinates as in `harmonic`): stars, and tubes between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from pipeline.simulate.fields import Field, smooth_field
from pipeline.simulate.harmonic_body import Body, Wall
from pipeline.simulate.harmonic_shapes import Axes, Canvas, Dent, Star, ball, six
from pipeline.simulate.shapes import column, frame, spline, tube, within, without
from pipeline.volume import Triple

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Kidney:
    """Nested surfaces of one kidney."""

    whole: Field
    medulla: Field
    pelvis: Field


def _near(rng: np.random.Generator, place: Triple, shift_mm: Triple) -> Triple:
    """A place moved at random; `shift_mm` are standard deviations, nothing goes beyond twice as far."""
    moved = np.asarray(place) + np.clip(rng.normal(size=3), -2, 2) * shift_mm
    return float(moved[0]), float(moved[1]), float(moved[2])


def _turned(rng: np.random.Generator, axes: Axes, deviation: float) -> Axes:
    """Axes turned by a random rotation, rad."""
    turned: Axes = axes @ Rotation.from_rotvec(np.clip(rng.normal(size=3), -2, 2) * deviation).as_matrix()
    return turned


def _path(canvas: Canvas, curve: Curve, radius: ArrayLike) -> Field:
    """Distance to a tube, computed in the box that holds it."""
    middle = (curve.min(axis=0) + curve.max(axis=0)) / 2
    half = (curve.max(axis=0) - curve.min(axis=0)) / 2 + float(np.max(radius)) + 12
    box = tuple(
        canvas.box((float(middle[0]), float(middle[1]), float(middle[2])), float(half[axis]))[2 - axis]
        for axis in (2, 1, 0)
    )
    whole = canvas.empty()
    whole[box] = tube(type(canvas.p)(*(c[box] for c in canvas.p)), curve, radius)
    return whole


def paths(canvas: Canvas, curves: Sequence[tuple[Curve, ArrayLike]]) -> Field:
    """Distance to the union of tubes, each a curve and its radius (mm)."""
    whole = canvas.empty()
    for curve, radius in curves:
        np.minimum(whole, _path(canvas, curve, radius), out=whole)
    return whole


# ── chest ────────────────────────────────────────────────────────────────────────────────────────


def heart(canvas: Canvas, body: Body, wall: Wall, rng: np.random.Generator) -> Field:
    """One star for ventricles and atria, flattened below by the diaphragm."""
    axes = _turned(rng, frame(long=(0.72, -0.55, -0.4), front=(0, 0, 1)), 0.08)
    place = body.at(20, -34, max(body.dome_mm) + 38)
    star = Star(_near(rng, place, (4, 3, 3)), six(42, 44, 40, 46, 56, 62), 2.1, 0.05, axes=axes)
    return within(within(canvas.star(star, rng), -wall.dome + 3.5), wall.muscle + 20, 6)


def lungs(canvas: Canvas, body: Body, wall: Wall, heart_surface: Field, rng: np.random.Generator) -> Field:
    """Inside the ribs, above the diaphragm, beside a mediastinum that follows the spine."""
    p = canvas.p
    room = within(wall.muscle + 17, -wall.dome + 2.5, 4)
    y = body.spine_y(p.z)
    sway = np.float32(rng.uniform(4, 9)) * np.sin(p.z / np.float32(rng.uniform(45, 70)))
    middle = column(p, (4 + sway, y - 52), (27, 62))
    spine = column(p, (0, y + 4), (29, 27))
    return without(without(without(room, middle, 10), spine, 10), heart_surface - 3, 8)


def lung_vessels(canvas: Canvas, body: Body, lung: Field, rng: np.random.Generator) -> Field:
    """Branches that leave both hila in random directions and wander, thinner and thinner."""
    height = max(body.dome_mm) + 62
    curves: list[tuple[Curve, ArrayLike]] = []
    for side in (-1, 1):
        for _ in range(13):
            step = rng.normal(size=3) * (1.0, 1.0, 1.3) + (side * 1.1, 0.25, 0)
            nodes = [np.array(body.at(side * 32, 8, height))]
            for _ in range(4):
                step = step / np.linalg.norm(step) + rng.normal(0, 0.28, 3)
                nodes.append(nodes[-1] + 21 * step / np.linalg.norm(step))
            curve = spline(np.stack(nodes))
            curves.append((curve, np.linspace(4.6, 1.2, len(curve))))
    return within(paths(canvas, curves), lung)


# ── abdomen ──────────────────────────────────────────────────────────────────────────────────────


def kidney(canvas: Canvas, body: Body, wall: Wall, side: int, rng: np.random.Generator) -> Kidney:
    """A star with a dent at its hilum; pyramids are small stars in a fan about the sinus.

    side: -1 the patient's right, +1 the left.
    """
    volume = float(np.clip(150 * body.size**0.5 * np.exp(rng.normal(0, 0.19)), 85, 250))
    long, front = (-side * rng.uniform(0.12, 0.36), rng.uniform(0.05, 0.3), 1), (-side, -0.55, 0)
    axes = _turned(rng, frame(long, front), 0.06)  # the first axis points into the hilum
    place = _near(rng, body.at(side * 66, 40, -34 if side < 0 else -18), (4, 3, 10))
    size = float(np.cbrt(volume / 150))
    faces = six(26 * size, 22 * size, 25 * size, 25 * size, 54 * size, 54 * size)
    star = Star(place, faces, 2.2, 0.04, (Dent((1, 0, 0), 0.42, 9.0),), axes)
    whole = canvas.star_of_volume(star, volume, wall.cavity + 2, rng)
    pyramids = _pyramids(star, size, rng)
    sinus = [
        Star(_inside(star, (7 * size, 0, 0)), ball(9 * size, 7 * size, 19 * size), bumps=0.1, axes=axes),
        Star(_inside(star, (19 * size, 0, -2)), ball(14, 7, 9), bumps=0.1, axes=axes),
    ]
    pelvis = within(canvas.stars(sinus, rng, blend_mm=6), whole + 1)
    cortex = float(rng.uniform(5.0, 7.5)) * size
    medulla = within(without(canvas.stars(pyramids, rng), pelvis), whole + cortex)
    return Kidney(whole, medulla, pelvis)


def _inside(star: Star, place: Triple) -> Triple:
    """A place in the frame of a star, in the patient."""
    axes = np.eye(3) if star.axes is None else star.axes
    x, y, z = (np.asarray(star.centre) + np.asarray(place) @ axes).tolist()
    return x, y, z


def _pyramids(star: Star, size: float, rng: np.random.Generator) -> list[Star]:
    """Two rows of five, in front and behind, turned away from the hilum, and one in either pole."""
    stars = []
    for row in (-1, 1):
        for polar in np.linspace(0.35, np.pi - 0.35, 5) + rng.uniform(-0.1, 0.1, 5):
            away = np.sin(polar)
            place = ((2 - 13 * away) * size, row * 10.0 * size, 33 * float(np.cos(polar)) * size)
            radius = size * float(rng.uniform(8.5, 11.0))
            stars.append(Star(_inside(star, place), ball(radius, radius, radius), bumps=0.12))
    poles = ball(9 * size, 9 * size, 9 * size)
    stars += [Star(_inside(star, (-2, 0, pole * 38 * size)), poles) for pole in (-1, 1)]
    return stars


def liver(canvas: Canvas, body: Body, wall: Wall, right_kidney: Field, rng: np.random.Generator) -> Field:
    """A wedge of seven rounded faces under the right dome, its left lobe across the midline."""
    sx, sy, sz = body.stretch
    lobe = float(rng.uniform(95, 135)) * sx
    faces = (
        ((-1.0, 0.0, 0.0), 92 * sx),
        ((-0.1, 0.0, 1.0), 110 * sz),
        ((0.0, -1.0, -0.1), 90 * sy),
        ((-0.1, 1.0, 0.1), 72 * sy),
        ((1.0, -0.45, 0.3), lobe),
        ((0.5, 0.4, -0.75), 44.0),
        ((-0.15, -0.1, -1.0), float(rng.uniform(95, 125)) * sz),
    )
    place = _near(rng, body.at(-58, -6, 40), (4, 3, 5))
    wedge = Star(place, faces, float(rng.uniform(4, 7)), 0.06)
    room = within(within(wall.cavity + 2, wall.dome + 3), -(right_kidney - 4))
    room = without(room, column(canvas.p, (-23, body.spine_y(canvas.p.z) - 26), (14, 13)), 4)
    room = without(room, column(canvas.p, (30, body.spine_y(canvas.p.z) + 4), (62, 48)), 10)
    volume = float(np.clip(1650 * body.size**0.6 * np.exp(rng.normal(0, 0.16)), 1050, 2500))
    return canvas.star_of_volume(wedge, volume, room, rng)


def spleen(canvas: Canvas, body: Body, wall: Wall, left_kidney: Field, rng: np.random.Generator) -> Field:
    """A star along the ribs with its hilum towards the stomach."""
    volume = float(np.clip(200 * np.exp(rng.normal(0, 0.4)), 85, 470))
    axes = _turned(rng, frame(long=(0.1, -0.5, -0.85), front=(-1, -0.35, 0)), 0.15)
    dents = (Dent((1, 0, 0), float(rng.uniform(0.25, 0.5)), 3.0),)
    place = _near(rng, body.at(106, 36, 52), (3, 5, 7))
    size = float(np.cbrt(volume / 200))
    star = Star(place, ball(27 * size, 36 * size, 54 * size), 2.2, 0.06, dents, axes)
    room = without(within(wall.cavity + 3, wall.dome + 3.5), left_kidney - 4)
    return canvas.star_of_volume(star, volume, room, rng)


def stomach(
    canvas: Canvas, body: Body, wall: Wall, spleen_surface: Field, rng: np.random.Generator
) -> tuple[Field, Field]:
    """(whole, gas): fundus, body and antrum as three stars."""
    full = float(rng.uniform(0.8, 1.15)) * body.girth
    parts = (
        ((60, -8, 66), (34, 40, 34), (0, 0, 1)),
        ((56, -44, 24), (25, 24, 46), (-0.3, -0.3, 1)),
        ((10, -58, -4), (18, 17, 40), (1, -0.1, 0.2)),
    )
    stars = [
        Star(
            _near(rng, body.at(*place), (5, 3, 5)), ball(rx * full, ry * full, rz * full),
            bumps=0.08, axes=_turned(rng, frame(long, (0, 1, 0)), 0.1),
        )
        for place, (rx, ry, rz), long in parts
    ]  # fmt: skip
    room = without(within(wall.cavity + 4, wall.dome + 5), spleen_surface - 3)
    whole = within(canvas.stars(stars, rng, blend_mm=18), room, 4)
    level = canvas.p.y + float(rng.uniform(34, 62)) * body.stretch[1]
    return whole, within(whole + 4, np.asarray(level, dtype=np.float32))


def pancreas(canvas: Canvas, body: Body, rng: np.random.Generator) -> Field:
    """Head, body and tail."""
    parts = (
        ((-27, -20, -12), (17, 12, 20), (0, 0, 1)),
        ((10, -26, 8), (9, 9, 30), (1, 0.1, 0.4)),
        ((58, -4, 28), (9, 9, 32), (1, 0.6, 0.3)),
    )
    stars = [
        Star(_near(rng, body.at(*place), (2, 2, 3)), ball(*radii), bumps=0.1, axes=frame(long, (0, 1, 0.01)))
        for place, radii, long in parts
    ]
    return canvas.stars(stars, rng, blend_mm=10)


def duodenum(canvas: Canvas, body: Body, rng: np.random.Generator) -> Field:
    """A loop round the head of the pancreas."""
    nodes = [(-18, -48, 2), (-44, -32, 0), (-48, -14, -34), (-22, -6, -58), (22, -12, -52)]
    curve = spline([_near(rng, body.at(*n), (2, 2, 3)) for n in nodes])
    return paths(canvas, [(curve, 10.5 + 1.5 * np.sin(np.arange(len(curve)) / 4.0))])


def gallbladder(canvas: Canvas, body: Body, rng: np.random.Generator) -> Field:
    """Under the liver, in front."""
    size = float(rng.uniform(0.75, 1.2))
    axes = _turned(rng, frame(long=(0.2, 0.6, 1), front=(1, 0, 0)), 0.15)
    place = _near(rng, body.at(-50, -54, -12), (4, 3, 5))
    return canvas.star(Star(place, ball(14 * size, 14 * size, 27 * size), bumps=0.06, axes=axes), rng)


_COLON: tuple[Triple, ...] = (
    (-100, 10, -235), (-104, 8, -160), (-106, 14, -100), (-100, 4, -64), (-78, -40, -66), (-40, -68, -86),
    (4, -74, -96), (46, -70, -80), (84, -46, -38), (108, 4, 0), (112, 30, -40), (114, 26, -110),
    (104, 10, -170), (84, 0, -235),
)  # fmt: skip


def colon(canvas: Canvas, body: Body, wall: Wall, rng: np.random.Generator) -> tuple[Field, Field, Field]:
    """(whole, stool, gas): a chain of haustra, each a star; gas rises in some stretches."""
    curve = spline([_near(rng, body.at(*place), (5, 5, 7)) for place in _COLON])
    stars, at = [], 0.0
    while at < 2.0 * len(curve) - 2:
        x, y, z = curve[int(at / 2)].tolist()
        radius = float(rng.uniform(16, 25))
        stars.append(Star((x, y, z), ball(radius, radius, radius), bumps=0.1))
        at += radius * float(rng.uniform(0.85, 1.15))
    whole = within(canvas.stars(stars, rng, blend_mm=5), wall.cavity + 3)
    lumen = np.asarray(whole + float(rng.uniform(2.5, 4)), dtype=np.float32)
    noise = smooth_field(rng, canvas.shape, canvas.spacing_mm, 70.0)
    level = 10 * noise + 0.5 * (canvas.p.y / body.stretch[1] + rng.uniform(10, 60))
    return whole, lumen, within(lumen, np.asarray(level, dtype=np.float32))


def small_bowel(canvas: Canvas, body: Body, wall: Wall, rng: np.random.Generator) -> tuple[Field, Field]:
    """(whole, gas): loops as elongated stars in front of the spine."""
    stars = []
    for _ in range(int(rng.integers(60, 95))):
        place = body.at(*rng.uniform((-88, -76, -225), (88, 0, -45)).tolist())
        radius = float(rng.uniform(9, 14))
        faces = ball(radius, radius, radius * float(rng.uniform(1.5, 2.6)))
        stars.append(Star(place, faces, bumps=0.12, axes=_turned(rng, np.eye(3), 1.0)))
    whole = within(canvas.stars(stars, rng), wall.cavity + 4)
    whole = without(whole, column(canvas.p, (0, body.spine_y(canvas.p.z) + 6), (60, 44)))
    noise = smooth_field(rng, canvas.shape, canvas.spacing_mm, 45.0)
    gas = within(whole + 4, np.asarray(14 - 8 * noise + 0.2 * canvas.p.y, dtype=np.float32))
    return whole, gas


def vessels(canvas: Canvas, body: Body) -> Field:
    """Aorta, venae cavae, iliac, renal, portal, splenic and mesenteric vessels."""
    sz, girth = body.stretch[2], body.girth
    top = max(body.dome_mm) * sz
    levels = np.arange(-118.0, 262.0, 4.0) * sz
    front = body.spine_y(levels).astype(np.float64)
    up = np.clip(levels / 220, 0, 1)
    aorta = np.stack([9 + 5 * up, front - 30 * girth, levels], axis=-1)
    cava = np.stack([-21 + 0 * levels, front - 26 * girth, levels], axis=-1)[levels < top + 12]
    fork = float(body.spine_y(-118.0 * sz)) - 30 * girth
    y = front[np.searchsorted(levels, 0)] - 26
    curves: list[tuple[Curve, ArrayLike]] = [(aorta, 10.0 * girth), (cava, 11.0 * girth)]
    for side in (-1, 1):
        ends = [(0, fork, -116 * sz), (side * 24, fork + 8, -155 * sz), (side * 50, fork + 14, -225 * sz)]
        curves.append((spline(ends), 6.0))
        curves.append((spline([(side * 12, y, -16), (side * 28, y + 9, -20), (side * 50, y + 24, -24)]), 3.8))
    for nodes, radius in (
        ([(2, -20, -22), (-16, -24, 12), (-36, -20, 32), (-60, -16, 46)], 6.0),
        ([(2, -18, 8), (40, -8, 24), (76, 14, 42)], 4.0),
        ([(2, -22, 0), (2, -36, -44), (-8, -40, -90), (-20, -36, -140)], 4.0),
    ):
        curves.append((spline([body.at(*n) for n in nodes]), radius))
    curves.append((spline([(8, -30, top + 50), (-2, -26, top + 90), (4, -14, 265)]), 14.5))
    curves.append((spline([(-26, -14, top + 45), (-27, -12, top + 95), (-24, -6, 265)]), 9.5))
    return paths(canvas, curves)
