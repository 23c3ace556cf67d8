"""Organs of the abdomen of the reference patient (coordinates as in `torso`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate.fields import Field
from pipeline.simulate.shapes import (
    Points,
    column,
    ellipsoid,
    frame,
    grown_to,
    spline,
    tube,
    union,
    within,
    without,
)
from pipeline.simulate.tissue import Label
from pipeline.simulate.torso import Wall, spine_y


@dataclass(frozen=True)
class Kidney:
    """Nested surfaces of one kidney."""

    whole: Field
    medulla: Field
    pelvis: Field

    def inside(self, room: Field) -> Kidney:
        """The part of it inside another surface."""
        return Kidney(within(self.whole, room), within(self.medulla, room), within(self.pelvis, room))


@dataclass(frozen=True)
class OrganVolumes:
    """Target volumes in mL."""

    liver: float
    spleen: float
    right_kidney: float
    left_kidney: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> OrganVolumes:
        """Adults: liver 1500-1800 mL, spleen about 200, kidneys about 150."""
        return cls(
            liver=float(np.clip(rng.normal(1740, 80), 1580, 1880)),
            spleen=float(np.clip(rng.normal(205, 30), 140, 280)),
            right_kidney=float(np.clip(rng.normal(150, 12), 120, 180)),
            left_kidney=float(np.clip(rng.normal(156, 12), 125, 190)),
        )

    @classmethod
    def varied(cls, rng: np.random.Generator, size: float) -> OrganVolumes:
        """From small and atrophic to enlarged. size: the trunk's volume over the reference's."""
        kidney = 152 * size**0.5 * np.exp(rng.normal(0, 0.18))
        apart = np.exp(rng.normal(0, 0.06))
        return cls(
            liver=float(np.clip(1720 * size**0.6 * np.exp(rng.normal(0, 0.16)), 1050, 2500)),
            spleen=float(np.clip(200 * np.exp(rng.normal(0, 0.4)), 85, 470)),
            right_kidney=float(np.clip(kidney / apart, 85, 250)),
            left_kidney=float(np.clip(kidney * apart, 85, 250)),
        )


def kidney(p: Points, side: int, volume_ml: float, voxel_ml: float, rng: np.random.Generator) -> Kidney:
    """A bean with its upper pole towards spine and back and its hilum towards spine and front.

    side: -1 the patient's right, +1 the left.
    """
    lean = float(rng.uniform(0.18, 0.30))
    axes = frame(long=(-side * lean, 0.16, 1), front=(-side, -0.55, 0))  # u points into the hilum
    centre = (side * 67.0, 40.0, -30.0 if side < 0 else -16.0)
    q = p.turned(centre, axes)
    bean = Points(np.asarray(q.x - 0.0034 * q.z**2 + 3, dtype=np.float32), q.y, q.z)
    solid = ellipsoid(bean, (0, 0, 0), (27, 25.5, 55))
    notch = ellipsoid(q, (29, 0, 0), (19, 10, 20))
    whole = grown_to(without(solid, notch, 6), volume_ml, voxel_ml)
    # Pyramids fan out from the sinus; columns of cortex run between them.
    fan = np.cos(np.arctan2(q.z, 14 - q.x) * 7 + rng.uniform(0, 6))
    pyramids = np.maximum(whole + 8.5, (-0.35 - fan) * 5).astype(np.float32)
    sinus = union(ellipsoid(q, (9, 0, 0), (11, 7, 21)), ellipsoid(q, (20, 0, -3), (13, 8, 13)), 6)
    return Kidney(whole, without(pyramids, sinus), within(sinus, whole + 1.0))


def liver(p: Points, wall: Wall, right_kidney: Field, volume_ml: float, voxel_ml: float) -> Field:
    """Right and left lobe under the diaphragm, cut by an oblique visceral face."""
    lobes = union(ellipsoid(p, (-78, -2, 34), (90, 112, 118)), ellipsoid(p, (10, -52, 78), (84, 44, 42)), 25)
    lobe_step = 66 / (1 + np.exp(-(p.x + 50) / 15))
    visceral_z = 0.35 * (p.x + 100) - 60 + lobe_step + 0.25 * p.y
    above = (0.85 * (visceral_z - p.z)).astype(np.float32)
    hollow = column(p, (32, 58), (78, 72))  # spine, vessels, stomach
    room = within(within(wall.cavity + 2, wall.diaphragm + 2.5), without(lobes, hollow, 16), 5)
    room = without(room, right_kidney - 4, 5)
    room = without(room, ellipsoid(p, (-24, 22, 30), (15, 13, 400)), 4)  # the inferior vena cava
    # The dome is full; the visceral face lies as low as the volume asks.
    face = within(above, 0.35 * lobes - 6, 12)
    return within(grown_to(face, volume_ml, voxel_ml, room), room, 10)


def spleen(p: Points, wall: Wall, left_kidney: Field, volume_ml: float, voxel_ml: float) -> Field:
    """A crescent along the tenth rib, hollow towards the stomach."""
    q = p.turned((112, 34, 58), frame(long=(0.05, -0.5, -0.85), front=(1, 0.35, 0)))
    shape = without(ellipsoid(q, (0, 0, 0), (30, 38, 58)), ellipsoid(q, (-36, -6, -2), (26, 36, 50)), 8)
    room = without(within(wall.cavity + 3, wall.diaphragm + 3.5), left_kidney - 4)
    return grown_to(shape, volume_ml, voxel_ml, room)


def stomach(p: Points, wall: Wall, spleen_surface: Field) -> list[tuple[Label, Field]]:
    """Fundus under the left dome, body and antrum across the midline; gas rises to the front."""
    fundus = ellipsoid(p, (62, -8, 72), (36, 44, 34))
    path = spline([(64, -20, 66), (66, -46, 30), (44, -62, 2), (6, -60, -4), (-22, -48, 4)])
    body = tube(p, path, np.linspace(32, 15, len(path)))
    room = without(within(wall.cavity + 4, wall.diaphragm + 5), spleen_surface - 4)
    whole = within(union(fundus, body, 20), room, 4)
    gas = within(whole + 4, p.y + 46)
    return [(Label.STOMACH, whole), (Label.GAS, np.asarray(gas, dtype=np.float32))]


_COLON = (
    (-98, 12, -215),
    (-104, 10, -150),
    (-108, 14, -95),
    (-98, 0, -62),
    (-72, -44, -70),
    (-38, -74, -88),
    (5, -80, -100),
    (48, -76, -84),
    (88, -48, -40),
    (110, 6, -2),
    (116, 32, -40),
    (116, 28, -110),
    (104, 10, -165),
    (82, 0, -215),
)


def colon(p: Points, wall: Wall, noise: Field, rng: np.random.Generator) -> list[tuple[Label, Field]]:
    """The frame of the large bowel with haustra, filled with stool and gas."""
    path = spline(_COLON)
    s = 2.0 * np.arange(len(path))
    radius = 19 + 3.0 * np.sin(s / 5.5) + 3.5 * np.sin(s / 61 + rng.uniform(0, 6))
    whole = within(tube(p, path, radius), wall.cavity + 4)
    lumen = whole + 3.2
    gas = np.maximum(lumen, 9 - 9 * noise + 0.30 * (p.y + 30)).astype(np.float32)
    return [(Label.BOWEL, whole), (Label.STOOL, lumen), (Label.GAS, gas)]


def _tour(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same points, each followed by the nearest one not yet visited."""
    left = list(points)
    tour = [left.pop(0)]
    while left:
        gaps = [float(np.linalg.norm(q - tour[-1])) for q in left]
        tour.append(left.pop(int(np.argmin(gaps))))
    return np.stack(tour)


def small_bowel(p: Points, wall: Wall, noise: Field, rng: np.random.Generator) -> list[tuple[Label, Field]]:
    """Loops in front of the spine below the stomach, with a little gas."""
    path = spline(_tour(rng.uniform((-92, -80, -225), (92, -2, -48), (135, 3))))
    whole = within(tube(p, path, 11.5), wall.cavity + 4)
    spine = ellipsoid(p, (0, 42, -110), (62, 42, 400))
    whole = without(whole, spine)
    gas = np.maximum(whole + 4, 10 - 6 * noise + 0.2 * (p.y + 30)).astype(np.float32)
    return [(Label.BOWEL, whole), (Label.GAS, gas)]


def vessels(p: Points) -> Field:
    """Aorta, both venae cavae, common iliac, portal, renal and mesenteric vessels."""
    levels = np.arange(-120.0, 262.0, 4.0)
    front = spine_y(levels).astype(np.float64)
    aorta = np.stack([8 + 6 * np.clip(levels / 200, 0, 1), front - 30, levels], axis=-1)
    cava = np.stack([-21 - 0 * levels, front - 26, levels], axis=-1)[levels < 125]
    split_y = float(spine_y(-120.0)) - 30
    curves: list[tuple[NDArray[np.float64], float]] = [(aorta, 10.5), (cava, 11.5)]
    for side in (-1, 1):
        iliac = spline([(-2, split_y, -118), (side * 22, split_y + 8, -155), (side * 48, split_y + 12, -215)])
        curves.append((iliac, 6.5))
        curves.append((spline([(side * 12, 8, -18), (side * 26, 16, -20), (side * 46, 30, -22)]), 4.0))
    curves.append((spline([(4, -16, -20), (-14, -22, 14), (-36, -20, 34), (-62, -18, 48)]), 6.0))
    curves.append((spline([(4, -16, 10), (40, -6, 26), (74, 16, 44), (92, 26, 52)]), 4.0))  # splenic vein
    curves.append((spline([(4, -20, 0), (2, -36, -40), (-8, -40, -90), (-20, -34, -140)]), 4.0))
    curves.append((spline([(8, -30, 165), (-4, -26, 205), (4, -14, 262)]), 15.0))  # ascending aorta
    curves.append((spline([(-26, -14, 160), (-27, -12, 210), (-24, -6, 262)]), 9.5))  # superior vena cava
    return reduce(union, [tube(p, curve, radius) for curve, radius in curves])


def small_organs(p: Points, wall: Wall) -> list[tuple[Label, Field]]:
    """Pancreas, duodenum, gallbladder."""
    pancreas = spline([(-32, -22, -10), (-8, -26, 6), (26, -20, 20), (62, 0, 34), (84, 16, 44)])
    duodenum = spline([(-24, -48, 4), (-44, -24, -6), (-44, -12, -46), (-12, -6, -58), (24, -14, -50)])
    q = p.turned((-52, -56, -12), frame(long=(0.2, 0.5, 1), front=(1, 0, 0)))
    return [
        (Label.PANCREAS, within(tube(p, pancreas, np.linspace(13, 8, len(pancreas))), wall.cavity + 4)),
        (Label.BOWEL, tube(p, duodenum, 11.0)),
        (Label.GALLBLADDER, ellipsoid(q, (0, 0, 0), (15, 15, 30))),
    ]


def mesentery(p: Points, rng: np.random.Generator) -> Field:
    """Thin branches in the fat between the root of the mesentery and the loops of bowel."""
    root = np.array([2.0, -22.0, -50.0])
    ends = rng.uniform((-80, -70, -190), (80, -15, -60), (22, 3))
    sag = rng.normal(0, 12, ends.shape)
    branches = [spline([root, (root + e) / 2 + s, e]) for e, s in zip(ends, sag, strict=True)]
    return tube(p, np.concatenate(branches), 1.8)
