"""Family `harmonic`: a trunk whose organs are star-shaped surfaces with random spherical harmonics.

Nothing of family `trunk` is used: outline and wall are cylindrical harmonics, organs are stars
(`harmonic_shapes`), bowel and vertebrae are unions of small stars, ribs and vessels are tubes. Coordinates
are patient mm, x to the left, y to the back, z to the head, the middle of L1 at the origin. Places and sizes
are written for a muscular outline 150 mm wide and 97 mm deep on either side, and scaled to the patient's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulate import harmonic_organs as organs
from pipeline.simulate import harmonic_skeleton as skeleton
from pipeline.simulate.anatomy import LATTICE, SPACING_MM, Anatomy, Drawing, back_of
from pipeline.simulate.fields import Field, axis_coordinates, smooth_field
from pipeline.simulate.harmonic_body import Body, Wall, wall_of
from pipeline.simulate.harmonic_shapes import Canvas, Star, ball
from pipeline.simulate.lesions import UNEVEN, LesionLaw, Site, scattered
from pipeline.simulate.limbs import arms
from pipeline.simulate.makeup import VariedMakeup
from pipeline.simulate.shapes import Points, cropped, union, within, without
from pipeline.simulate.tissue import Label
from pipeline.simulate.uptake import Texture, multiscale

_BEND_LENGTH_MM = 110.0
_LESIONS_WITHIN_MM = 165.0


@dataclass(frozen=True)
class _Sheet:
    """What every part of the drawing needs."""

    draw: Drawing
    canvas: Canvas
    body: Body
    wall: Wall
    rng: np.random.Generator


def _canvas(rng: np.random.Generator) -> Canvas:
    """The lattice, bent by 3 to 8 mm."""
    axes = axis_coordinates(LATTICE)
    bend = float(rng.uniform(3, 8)) / np.sqrt(3)
    bent, most = [], 0.0
    for axis, coordinates in zip((2, 1, 0), axes[::-1], strict=True):
        sway = np.float32(bend) * smooth_field(rng, LATTICE.shape, SPACING_MM, _BEND_LENGTH_MM)
        sway -= sway.mean()
        most = max(most, float(np.abs(sway).max()))
        shape = [-1 if a == axis else 1 for a in range(3)]
        bent.append(coordinates.astype(np.float32).reshape(shape) + sway)
    return Canvas(Points(*bent), axes, SPACING_MM, most)


def _draw_wall(sheet: _Sheet) -> None:
    draw, wall, p = sheet.draw, sheet.wall, sheet.canvas.p
    draw.add(Label.SKIN, wall.skin)
    draw.add(Label.FAT, wall.skin + 2)
    draw.add(Label.MUSCLE, wall.muscle)
    draw.add(Label.FAT, wall.cavity)
    sheet_of_muscle = within(within(np.abs(wall.dome) - 2.0, wall.cavity), 20 - p.z)
    draw.add(Label.MUSCLE, sheet_of_muscle)
    draw.add(Label.MUSCLE, within(skeleton.back_muscles(sheet.canvas, sheet.body), wall.muscle + 1))


def _draw_chest(sheet: _Sheet, lung_hu: float) -> Field:
    """Returns the lungs' surface."""
    draw, p = sheet.draw, sheet.canvas.p
    heart = organs.heart(sheet.canvas, sheet.body, sheet.wall, sheet.rng)
    lung = organs.lungs(sheet.canvas, sheet.body, sheet.wall, heart, sheet.rng)
    mottle = 25 * smooth_field(sheet.rng, LATTICE.shape, SPACING_MM, 26.0)
    hu = (lung_hu + mottle + 0.45 * p.y).astype(np.float32)
    draw.add(Label.LUNG, lung, hu[cropped(lung).box])
    draw.add(Label.LUNG_VESSEL, organs.lung_vessels(sheet.canvas, sheet.body, lung, sheet.rng))
    draw.add(Label.HEART, heart)
    return lung


def _draw_abdomen(sheet: _Sheet) -> tuple[Field, Field]:
    """Adds the organs back to front; returns the surfaces of the liver and of both kidneys."""
    draw, canvas, body, wall, rng = sheet.draw, sheet.canvas, sheet.body, sheet.wall, sheet.rng
    right, left = (organs.kidney(canvas, body, wall, side, rng) for side in (-1, 1))
    liver = organs.liver(canvas, body, wall, right.whole, rng)
    spleen = organs.spleen(canvas, body, wall, left.whole, rng)
    stomach, stomach_gas = organs.stomach(canvas, body, wall, spleen, rng)
    bowel, bowel_gas = organs.small_bowel(canvas, body, wall, rng)
    colon, stool, gas = organs.colon(canvas, body, wall, rng)
    for label, distance in (
        (Label.BOWEL, bowel),
        (Label.GAS, bowel_gas),
        (Label.PANCREAS, organs.pancreas(canvas, body, rng)),
        (Label.BOWEL, organs.duodenum(canvas, body, rng)),
        (Label.VESSEL, organs.vessels(canvas, body)),
        (Label.BOWEL, colon),
        (Label.STOOL, stool),
        (Label.GAS, gas),
        (Label.STOMACH, stomach),
        (Label.GAS, stomach_gas),
        (Label.LIVER, liver),
        (Label.GALLBLADDER, organs.gallbladder(canvas, body, rng)),
        (Label.SPLEEN, spleen),
    ):
        draw.add(label, distance)
    draw.add_kidneys(right, left)
    return liver, union(right.whole, left.whole)


def _draw_bones(sheet: _Sheet) -> Field:
    """Returns the surface of vertebrae and pelvis."""
    canvas, body, wall, rng = sheet.canvas, sheet.body, sheet.wall, sheet.rng
    inside = wall.muscle + 2
    bone, cartilage = skeleton.ribs(canvas, body, rng)
    sheet.draw.add(Label.CARTILAGE, within(cartilage, inside))
    sheet.draw.add(Label.RIB, within(bone, inside))
    sheet.draw.add(Label.STERNUM, within(skeleton.sternum(canvas, body), inside))
    whole = canvas.empty()
    for label, distance in (*skeleton.pelvis(canvas, body, rng), *skeleton.spine(canvas, body, rng)):
        part = within(distance, inside)
        sheet.draw.add(label, part)
        if label not in (Label.DISC, Label.CANAL):
            np.minimum(whole, part, out=whole)
    return whole


def _sites(sheet: _Sheet, parts: dict[str, Field], makeup: VariedMakeup) -> list[Site]:
    canvas, body = sheet.canvas, sheet.body
    ends = np.asarray(np.abs(canvas.p.z) - _LESIONS_WITHIN_MM, dtype=np.float32)
    normal_liver = makeup.mean(Label.LIVER)
    nodes = canvas.star(Star(body.at(0, -8, -50), ball(60, 42, 105), bumps=0.1), sheet.rng)
    nodes = without(without(within(nodes, sheet.wall.cavity + 4), parts["kidneys"] - 3), parts["bone"] - 2)
    bone_hu = makeup.hu(Label.L3) + 120
    return [
        Site("liver", within(parts["liver"], ends), normal_liver, share=0.55),
        Site("node", within(nodes, ends), normal_liver, share=0.2, buried=0.4),
        Site("bone", within(parts["bone"], ends), normal_liver, hu=bone_hu, share=0.17, buried=0.35),
        Site("lung", within(parts["lung"], ends), normal_liver, hu=20.0, share=0.08),
    ]


def harmonic(rng: np.random.Generator, texture: Texture = multiscale, law: LesionLaw = UNEVEN) -> Anatomy:
    """A patient of any habitus with lesions in liver, nodes, bones and lungs."""
    body = Body.drawn(rng)
    makeup = VariedMakeup(rng)
    canvas = _canvas(rng)
    wall = wall_of(canvas, body, rng)
    draw = Drawing(rng, 1.0, texture, makeup, grain=np.random.default_rng(rng.integers(2**63)))
    sheet = _Sheet(draw, canvas, body, wall, rng)
    _draw_wall(sheet)
    lung = _draw_chest(sheet, makeup.hu(Label.LUNG))
    liver, kidneys = _draw_abdomen(sheet)
    bone = _draw_bones(sheet)
    sites = _sites(sheet, {"liver": liver, "kidneys": kidneys, "lung": lung, "bone": bone}, makeup)
    shapes = scattered(canvas.p, sites, wall.muscle + 2, rng, 1.0, SPACING_MM, law)
    for shape in shapes:
        draw.add_lesion(shape)
    back = back_of(wall.skin)
    limbs = arms(rng, texture, makeup, wall.skin, back) if body.arms else []
    return Anatomy((*limbs, *draw.layers), tuple(s.lesion for s in shapes), back)
