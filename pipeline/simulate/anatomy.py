"""Anatomy: organs as layers on a lattice, painted one over the other.

Every family of anatomy (`families`) draws on the same lattice: the patient lies head first, supine; the
origin of patient coordinates is the middle of L1 in the middle of the trunk. The lattice reaches beyond
any field of view along z: the patient goes on above and below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.simulate.fields import Field, axis_coordinates
from pipeline.simulate.lesions import Lesion, LesionShape
from pipeline.simulate.makeup import BONES, Makeup, ReferenceMakeup
from pipeline.simulate.shapes import Surface, cropped
from pipeline.simulate.tissue import NECROSIS_HU, TISSUES, Label
from pipeline.simulate.uptake import Texture
from pipeline.volume import Grid

SPACING_MM = 3.0
LATTICE = Grid((167, 99, 147), (-219.0, -147.0, -249.0), (SPACING_MM,) * 3)


@dataclass(frozen=True)
class Layer:
    """One tissue, inside `below_mm` under its surface; it covers what earlier layers painted there.

    hu: CT number; uptake: Bq/mL. Each is a number or a field on the surface's box of the lattice.
    edge_mm: width over which the uptake falls at the surface, beside what the voxel averages; None: both
    images fall within 1.5 mm whatever the voxel. lattice: what the surface's box counts in.
    """

    surface: Surface
    label: int
    hu: float | Field
    uptake: float | Field
    below_mm: float = 0.0
    edge_mm: float | None = None
    lattice: Grid = LATTICE


@dataclass(frozen=True)
class Anatomy:
    """A patient before voxels. back_mm: y of the skin's most posterior point, where a table may begin."""

    layers: tuple[Layer, ...]
    lesions: tuple[Lesion, ...]
    back_mm: float


class KidneyShape(Protocol):
    """The three surfaces of a kidney, whatever family drew them."""

    @property
    def whole(self) -> Field: ...
    @property
    def medulla(self) -> Field: ...
    @property
    def pelvis(self) -> Field: ...


@dataclass
class Drawing:
    """Collects layers: `scale` takes reference millimetres to the patient's.

    grain: generator of the textures where it is not `rng`, so that one seed has one shape under every law.
    """

    rng: np.random.Generator
    scale: float
    texture: Texture
    makeup: Makeup | None = None
    lattice: Grid = LATTICE
    grain: np.random.Generator | None = None
    layers: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._makeup: Makeup = ReferenceMakeup(self.rng) if self.makeup is None else self.makeup

    def add(self, label: Label, distance: Field, hu: float | Field | None = None) -> None:
        """A tissue with this patient's makeup. distance: to its surface on the lattice, reference mm."""
        surface = self._surface(distance)
        if surface.distance.min() >= 0:
            return  # nothing of it here
        hu_here = self._makeup.hu(label) if hu is None else hu
        mean, edge = self._makeup.mean(label), self._makeup.edge_mm(label)
        uptake = self._textured(mean, self._makeup.deviation(label), surface)
        if label in BONES:
            self._layer(surface, label, self._makeup.cortical_hu, uptake, edge_mm=edge)
            self._layer(surface, label, hu_here, uptake, below_mm=self._makeup.shell_mm, edge_mm=edge)
        else:
            self._layer(surface, label, hu_here, uptake, edge_mm=edge)

    def add_kidneys(self, right: KidneyShape, left: KidneyShape) -> None:
        """Both, each from the outside in."""
        for side, kidney in (("RIGHT", right), ("LEFT", left)):
            self.add(Label[f"{side}_KIDNEY_CORTEX"], kidney.whole)
            self.add(Label[f"{side}_KIDNEY_MEDULLA"], kidney.medulla)
            self.add(Label[f"{side}_KIDNEY_PELVIS"], kidney.pelvis)

    def add_lesion(self, shape: LesionShape) -> None:
        """The lesion, then its core; a bone lesion keeps the density of bone."""
        lesion = shape.lesion
        hu = TISSUES[Label.L3].hu + 150 if lesion.name == "vertebra" else shape.hu
        for distance, hu_here, mean in (
            (shape.surface, hu, lesion.uptake),
            (shape.core, NECROSIS_HU, shape.core_uptake),
        ):
            if distance is not None:
                surface = self._surface(distance)
                uptake = self._textured(mean, shape.texture, surface)
                self._layer(surface, lesion.label, hu_here, uptake, edge_mm=shape.edge_mm)

    def _layer(
        self,
        surface: Surface,
        label: int,
        hu: float | Field,
        uptake: Field,
        *,
        below_mm: float = 0.0,
        edge_mm: float | None,
    ) -> None:
        self.layers.append(Layer(surface, label, hu, uptake, below_mm, edge_mm, self.lattice))

    def _surface(self, distance: Field) -> Surface:
        return cropped(np.asarray(distance * np.float32(self.scale), dtype=np.float32))

    def _textured(self, mean: float, deviation: float, surface: Surface) -> Field:
        rng = self.rng if self.grain is None else self.grain
        log = self.texture(rng, surface.distance.shape, self.lattice.spacing_mm[0], deviation)
        return np.asarray(np.float32(mean) * np.exp(log), dtype=np.float32)


def back_of(skin: Field) -> float:
    """y (mm) of the most posterior point on the lattice that lies inside `skin`."""
    _, y, _ = axis_coordinates(LATTICE)
    return float(y[np.flatnonzero((skin < 0).any(axis=(0, 2)))[-1]])
