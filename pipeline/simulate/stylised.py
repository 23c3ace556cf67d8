"""A stylised family of virtual patients: quadrics, tori and planes, kept apart to test what was learnt.

The idea is that of the mathematical phantoms of MIRD Pamphlet 5 (Snyder et al., revised 1978) and of
Cristy and Eckerman, ORNL/TM-8381 (1987): every organ an ellipsoid, an elliptical cylinder, a cone or a
torus, cut by planes. The equations and dimensions here are this family's own: each patient draws the
body's size, and each organ its size, place and tilt; a smooth displacement of 3 to 12 mm bends them all.
No organ's shape is shared with the other families, so figures on this one tell how a network does on
anatomy that it has not seen. Its lesions follow a law of their own too (`lobed_lesions`).

Coordinates as everywhere: LPS mm, the origin in the middle of L1 and of the trunk, head to +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulate import stylised_bones as bones
from pipeline.simulate import stylised_organs as organs
from pipeline.simulate import stylised_trunk as trunk
from pipeline.simulate.anatomy import LATTICE, SPACING_MM, Anatomy, Drawing, back_of
from pipeline.simulate.fields import Field, axis_coordinates, smooth_field
from pipeline.simulate.lesions import Site, scattered
from pipeline.simulate.lobed_lesions import LOBED
from pipeline.simulate.makeup import VariedMakeup
from pipeline.simulate.shapes import Points, cropped, ellipsoid, within, without
from pipeline.simulate.stylised_quadrics import OUTSIDE_MM, Space
from pipeline.simulate.stylised_trunk import Frame, Shell
from pipeline.simulate.tissue import Label
from pipeline.simulate.uptake import Texture, multiscale

_LESIONS_WITHIN_MM = 165.0  # of the middle of L1: inside the field of a scan of the abdomen
_LESIONS_IN = {Label.THORACIC_SPINE, Label.L1, Label.L2, Label.L3, Label.L4, Label.L5} | {
    Label.SACRUM,
    Label.ILIUM,
}


def _space(rng: np.random.Generator) -> Space:
    """The lattice's points, displaced smoothly by 3 to 12 mm where they move most."""
    grid = np.meshgrid(*(c.astype(np.float32) for c in axis_coordinates(LATTICE)), indexing="ij")
    sway = [smooth_field(rng, LATTICE.shape, SPACING_MM, float(rng.uniform(120, 200))) for _ in grid]
    most = float(np.sqrt(sum(s * s for s in sway)).max())
    amplitude = np.float32(rng.uniform(3, 12) / most)
    z, y, x = (c + amplitude * s for c, s in zip(grid, sway, strict=True))
    return Space(Points(x, y, z))


@dataclass(frozen=True)
class _Parts:
    """Surfaces where lesions grow, and what they must leave free."""

    liver: Field
    kidneys: Field
    lung: Field
    bone: Field


def _draw_wall(draw: Drawing, space: Space, f: Frame, wall: Shell) -> Field:
    """Returns the muscles along the spine."""
    muscles = np.minimum(trunk.back_muscles(space.points, f), trunk.psoas(space, f))
    for label, distance in (
        (Label.SKIN, wall.skin),
        (Label.FAT, wall.skin + 2),
        (Label.MUSCLE, wall.muscle),
        (Label.FAT, within(wall.cavity, np.minimum(wall.below, wall.mediastinum))),
        (Label.MUSCLE, within(np.abs(wall.below) - 1.8, wall.cavity)),
        (Label.MUSCLE, within(muscles, wall.muscle)),
        (Label.MUSCLE, organs.bladder(space, f, draw.rng)),  # no code of its own; below any field of view
    ):
        draw.add(label, distance)
    return muscles


def _draw_chest(draw: Drawing, space: Space, f: Frame, wall: Shell, lung_hu: float) -> Field:
    """Returns the lungs' surface."""
    p, rng = space.points, draw.rng
    heart = trunk.heart(p, f, wall, rng)
    lung = trunk.lungs(p, f, wall, heart)
    mottle = np.float32(rng.uniform(10, 30)) * smooth_field(rng, LATTICE.shape, SPACING_MM, 24.0)
    # Supine: the back of the lungs carries more blood and less air.
    hu = np.asarray(lung_hu + mottle + np.float32(rng.uniform(0.3, 0.7)) * p.y, dtype=np.float32)
    draw.add(Label.LUNG, lung, hu[cropped(lung).box])
    draw.add(Label.LUNG_VESSEL, trunk.lung_vessels(space, f, lung, rng))
    draw.add(Label.HEART, heart)
    draw.add(Label.GAS, trunk.airways(space, f))
    return lung


def _draw_abdomen(draw: Drawing, space: Space, f: Frame, wall: Shell, back: Field) -> tuple[Field, Field]:
    """Adds the organs back to front; returns the surfaces of the liver and of both kidneys.

    back: spine and muscles, which organs lie on.
    """
    p, rng, voxel_ml = space.points, draw.rng, LATTICE.voxel_volume_ml
    right, left = (organs.kidney(space, f, side, back, voxel_ml, rng) for side in (-1, 1))
    room = without(within(within(wall.cavity + 3, wall.below + 3, 4), 2 - back), right.fat + 5, 5)
    liver = organs.liver(p, f, room, voxel_ml, rng)
    room = without(
        without(within(wall.cavity + 3, wall.below + 4), left.fat + 5), np.minimum(back, liver) - 2
    )
    spleen = organs.spleen(p, f, room, voxel_ml, rng)
    noise = smooth_field(rng, LATTICE.shape, SPACING_MM, 26.0)
    for label, distance in (
        *organs.small_bowel(space, f, wall, back, rng),
        *organs.colon(space, f, wall, noise, rng),
        (Label.FAT, without(within(np.minimum(right.fat, left.fat), wall.cavity), back)),
        (Label.VESSEL, trunk.vessels(space, f)),
        (Label.PANCREAS, organs.pancreas(space, f, rng)),
        *organs.stomach(space, f, wall, spleen, rng),
        (Label.LIVER, liver),
        (Label.GALLBLADDER, organs.gallbladder(space, f, rng)),
        (Label.SPLEEN, spleen),
    ):
        draw.add(label, distance)
    draw.add_kidneys(right, left)
    return liver, np.minimum(right.whole, left.whole)


def _draw_bones(
    draw: Drawing, space: Space, f: Frame, wall: Shell, spine: list[tuple[Label, Field]]
) -> Field:
    """Returns the surface of vertebrae and pelvis."""
    bone, cartilage = bones.ribs(space, f, wall, draw.rng)
    whole = np.full(LATTICE.shape, OUTSIDE_MM, dtype=np.float32)
    for label, distance in (
        (Label.CARTILAGE, cartilage),
        (Label.RIB, bone),
        (Label.STERNUM, bones.sternum(space.points, wall, f.size)),
        *bones.pelvis(space, f),
        *spine,
    ):
        part = within(distance, wall.muscle + 1)
        draw.add(label, part)
        if label in _LESIONS_IN:
            whole = np.minimum(whole, part)
    return whole


def _sites(space: Space, f: Frame, wall: Shell, parts: _Parts, makeup: VariedMakeup) -> list[Site]:
    """Liver most of all; nodes about the aorta and in the mesentery; spine and pelvis; lungs."""
    p, a, b = space.points, *f.cavity
    ends = np.asarray(np.abs(p.z) - _LESIONS_WITHIN_MM, dtype=np.float32)
    nodes = ellipsoid(p, (0, 0.1 * b, -45), (0.55 * a, 0.5 * b, 105))
    nodes = within(nodes, wall.cavity + 4)
    for other in (parts.kidneys, parts.bone, parts.liver):
        nodes = without(nodes, other - 3)
    normal = makeup.mean(Label.LIVER)
    bone_hu = makeup.hu(Label.L3) + 120
    return [
        Site("liver", within(parts.liver, ends), normal, share=0.55),
        Site("node", within(nodes, ends), normal, share=0.2, buried=0.4),
        Site("bone", within(parts.bone, ends), normal, hu=bone_hu, share=0.17, buried=0.35),
        Site("lung", within(parts.lung, ends), normal, hu=20.0, share=0.08),
    ]


def stylised(rng: np.random.Generator, texture: Texture = multiscale) -> Anatomy:
    """A trunk of quadrics from the upper chest to the pelvis, arms out of the field, and its lesions.

    The generator decides the patient, `texture` only how uptake varies inside organs: one state of `rng`
    has one shape under every law.
    """
    f = Frame.drawn(rng)
    makeup = VariedMakeup(rng)
    grain = np.random.default_rng(rng.integers(2**63))
    space = _space(rng)
    wall = trunk.shell(space.points, f)
    spine = bones.spine(space, f, rng)
    column = np.minimum.reduce([distance for _, distance in spine])
    draw = Drawing(rng, 1.0, texture, makeup, grain=grain)
    muscles = _draw_wall(draw, space, f, wall)
    lung = _draw_chest(draw, space, f, wall, makeup.hu(Label.LUNG))
    liver, kidneys = _draw_abdomen(draw, space, f, wall, np.minimum(column, muscles))
    bone = _draw_bones(draw, space, f, wall, spine)
    sites = _sites(space, f, wall, _Parts(liver, kidneys, lung, bone), makeup)
    shapes = scattered(space.points, sites, wall.muscle + 2, rng, 1.0, SPACING_MM, LOBED)
    for shape in shapes:
        draw.add_lesion(shape)
    return Anatomy(tuple(draw.layers), tuple(s.lesion for s in shapes), back_of(wall.skin))
