"""Anatomy: organs as layers on a lattice, painted one over the other.

`thorax_to_pelvis` is the one family so far. It draws a reference patient (`torso`, `abdomen`), scales it
to a body size and bends it by a smooth random displacement, so that no two seeds give the same shapes.
The patient lies head first, supine; the origin of patient coordinates is the middle of L1 in the middle
of the trunk. The lattice reaches beyond any field of view along z: the patient goes on above and below.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.simulate import abdomen, torso
from pipeline.simulate.fields import Field, axis_coordinates, smooth_field
from pipeline.simulate.lesions import Lesion, LesionShape, draw_lesions
from pipeline.simulate.shapes import Points, Surface, cropped, within
from pipeline.simulate.tissue import CORTICAL_BONE_HU, LESION_HU, NECROSIS_HU, TISSUES, Label, Tissue
from pipeline.simulate.torso import Wall
from pipeline.simulate.uptake import Texture, multiscale
from pipeline.volume import Grid

_SPACING_MM = 3.0
LATTICE = Grid((167, 99, 147), (-219.0, -147.0, -249.0), (_SPACING_MM,) * 3)
_BONES = {Label.RIB, Label.STERNUM, Label.ILIUM, Label.SACRUM, Label.THORACIC_SPINE} | {
    Label.L1,
    Label.L2,
    Label.L3,
    Label.L4,
    Label.L5,
}


@dataclass(frozen=True)
class Layer:
    """One tissue, inside `below_mm` under its surface; it covers what earlier layers painted there.

    hu: CT number; uptake: Bq/mL. Each is a number or a field on the surface's box of the lattice.
    """

    surface: Surface
    label: int
    hu: float | Field
    uptake: float | Field
    below_mm: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """A patient before voxels. back_mm: y of the skin's most posterior point, where a table may begin."""

    layers: tuple[Layer, ...]
    lesions: tuple[Lesion, ...]
    back_mm: float


@dataclass
class _Drawing:
    """Collects layers: `scale` takes reference millimetres to the patient's."""

    rng: np.random.Generator
    scale: float
    texture: Texture
    layers: list[Layer] = field(default_factory=list)
    factors: dict[Tissue | str, float] = field(default_factory=dict)

    def add(self, label: Label, distance: Field, hu: float | Field | None = None) -> None:
        """A tissue of the table, its uptake varied between patients and inside itself."""
        tissue = TISSUES[label]
        hu_here = tissue.hu if hu is None else hu
        surface = self._surface(distance)
        uptake = self._uptake(tissue, surface)
        if label in _BONES:
            self.layers.append(Layer(surface, label, CORTICAL_BONE_HU, uptake))
            self.layers.append(Layer(surface, label, hu_here, uptake, below_mm=1.8))
        else:
            self.layers.append(Layer(surface, label, hu_here, uptake))

    def add_lesion(self, shape: LesionShape) -> None:
        """The lesion, then its core; a bone lesion keeps the density of bone."""
        lesion = shape.lesion
        hu = TISSUES[Label.L3].hu + 150 if lesion.name == "vertebra" else LESION_HU
        for distance, hu_here, mean in ((shape.surface, hu, lesion.uptake), (shape.core, NECROSIS_HU, 0.1e6)):
            if distance is not None:
                surface = self._surface(distance)
                texture = np.exp(self.texture(self.rng, surface.distance.shape, _SPACING_MM, 0.2))
                self.layers.append(Layer(surface, lesion.label, hu_here, np.float32(mean) * texture))

    def _surface(self, distance: Field) -> Surface:
        return cropped(np.asarray(distance * np.float32(self.scale), dtype=np.float32))

    def _uptake(self, tissue: Tissue, surface: Surface) -> Field:
        key = tissue.organ or tissue
        if key not in self.factors:
            self.factors[key] = float(np.exp(np.clip(self.rng.normal(0, 0.2), -0.4, 0.4)))
        log = self.texture(self.rng, surface.distance.shape, _SPACING_MM, tissue.texture)
        return np.asarray(np.float32(tissue.uptake * self.factors[key]) * np.exp(log), dtype=np.float32)


def _warped(rng: np.random.Generator, stretch: tuple[float, float, float]) -> Points:
    """Reference coordinates (mm) of the lattice's points; `stretch`: patient / reference along x, y, z."""
    z, y, x = np.meshgrid(*(c.astype(np.float32) for c in axis_coordinates(LATTICE)), indexing="ij")
    sway = [np.float32(3.0) * smooth_field(rng, LATTICE.shape, _SPACING_MM, 140.0) for _ in range(3)]
    return Points(*((c + s) / np.float32(k) for c, s, k in zip((x, y, z), sway, stretch, strict=True)))


def _draw_trunk(draw: _Drawing, p: Points, wall: Wall) -> None:
    diaphragm = within(np.abs(wall.diaphragm) - 2.0, wall.cavity)
    draw.add(Label.SKIN, wall.skin)
    draw.add(Label.FAT, wall.skin + 2)
    draw.add(Label.MUSCLE, wall.muscle)
    draw.add(Label.FAT, wall.cavity)
    draw.add(Label.MUSCLE, within(diaphragm, np.asarray(25 - p.z, dtype=np.float32)))
    draw.add(Label.MUSCLE, within(torso.back_muscles(p), wall.muscle + 1))


def _draw_chest(draw: _Drawing, p: Points, wall: Wall) -> None:
    heart = torso.heart(p, wall)
    lung = torso.lungs(p, wall, heart)
    mottle = 22 * smooth_field(draw.rng, LATTICE.shape, _SPACING_MM, 20.0)
    # Supine: the back of the lungs carries more blood and less air.
    hu = (TISSUES[Label.LUNG].hu + mottle + 0.5 * p.y).astype(np.float32)
    draw.add(Label.LUNG, lung, hu[cropped(lung * np.float32(draw.scale)).box])
    draw.add(Label.LUNG_VESSEL, torso.lung_vessels(p, draw.rng, lung))
    draw.add(Label.HEART, heart)


def _draw_abdomen(draw: _Drawing, p: Points, wall: Wall, voxel_ml: float) -> Field:
    """Adds the organs back to front; returns the liver's surface, where lesions grow."""
    rng = draw.rng
    target = abdomen.OrganVolumes.drawn(rng)
    right = abdomen.kidney(p, -1, target.right_kidney, voxel_ml, rng)
    left = abdomen.kidney(p, +1, target.left_kidney, voxel_ml, rng)
    liver = abdomen.liver(p, wall, right.whole, target.liver, voxel_ml)
    spleen = abdomen.spleen(p, wall, left.whole, target.spleen, voxel_ml)
    noise = smooth_field(rng, LATTICE.shape, _SPACING_MM, 30.0)
    draw.add(Label.VESSEL, abdomen.mesentery(p, rng))
    for label, distance in (
        *abdomen.small_bowel(p, wall, noise, rng),
        *abdomen.small_organs(p, wall)[:2],
        (Label.VESSEL, abdomen.vessels(p)),
        *abdomen.colon(p, wall, -noise, rng),
        *abdomen.stomach(p, wall, spleen),
        (Label.LIVER, liver),
        *abdomen.small_organs(p, wall)[2:],
        (Label.SPLEEN, spleen),
    ):
        draw.add(label, distance)
    for side, kidney in (("RIGHT", right), ("LEFT", left)):
        draw.add(Label[f"{side}_KIDNEY_CORTEX"], kidney.whole)
        draw.add(Label[f"{side}_KIDNEY_MEDULLA"], kidney.medulla)
        draw.add(Label[f"{side}_KIDNEY_PELVIS"], kidney.pelvis)
    return liver


def _draw_bones(draw: _Drawing, p: Points, wall: Wall) -> None:
    bone, cartilage = torso.ribs(p, wall)
    draw.add(Label.CARTILAGE, within(cartilage, wall.muscle + 3))
    draw.add(Label.RIB, within(bone, wall.muscle + 3))
    draw.add(Label.STERNUM, torso.sternum(p, wall))
    for label, distance in (*torso.pelvis(p), *torso.spine(p)):
        draw.add(label, within(distance, wall.muscle + 1))


def thorax_to_pelvis(rng: np.random.Generator, texture: Texture = multiscale) -> Anatomy:
    """A trunk from the upper chest to the pelvis, arms raised out of the field."""
    stretch = (rng.uniform(0.96, 1.12), rng.uniform(0.95, 1.12), rng.uniform(0.96, 1.04))
    scale = float(np.cbrt(np.prod(stretch)))
    p = _warped(rng, stretch)
    spacing = _SPACING_MM / scale
    wall = torso.body_wall(p, float(rng.uniform(8, 18)), spacing)
    draw = _Drawing(rng, scale, texture)
    _draw_trunk(draw, p, wall)
    _draw_chest(draw, p, wall)
    liver = _draw_abdomen(draw, p, wall, LATTICE.voxel_volume_ml)
    _draw_bones(draw, p, wall)
    shapes = draw_lesions(p, liver, rng, spacing)
    for shape in shapes:
        draw.add_lesion(shape)
    _, y, _ = axis_coordinates(LATTICE)
    back = float(y[np.flatnonzero((wall.skin < 0).any(axis=(0, 2)))[-1]])
    return Anatomy(tuple(draw.layers), tuple(s.lesion for s in shapes), back)
