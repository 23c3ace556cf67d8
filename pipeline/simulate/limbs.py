"""Arms beside the body, for patients who cannot raise them: fat, muscle and one bone each.

They lie outside the lattice of the trunk, so they have one of their own. A field of view of 50 cm may cut
them off, as it does in the clinic.
"""

from __future__ import annotations

import numpy as np

from pipeline.simulate.anatomy import LATTICE, SPACING_MM, Drawing, Layer
from pipeline.simulate.fields import Field, axis_coordinates
from pipeline.simulate.makeup import Makeup
from pipeline.simulate.shapes import Points, column, union
from pipeline.simulate.tissue import Label
from pipeline.simulate.uptake import Texture
from pipeline.volume import Grid

_ARMS = Grid((167, 50, 195), (-291.0, -74.0, -249.0), (SPACING_MM,) * 3)
_GAP_MM = 6.0  # between arm and flank
_TABLE_RISES_MM = 45.0  # how much higher than under the back it is under the arms


def arms(
    rng: np.random.Generator, texture: Texture, makeup: Makeup, skin: Field, back_mm: float
) -> list[Layer]:
    """Layers of both arms along z. skin: distance on `LATTICE` to the trunk's; back_mm: as in `Anatomy`."""
    z, y, x = (c.astype(np.float32) for c in axis_coordinates(_ARMS))
    p = Points(x[None, None, :], y[None, :, None], z[:, None, None])
    radius = np.float32(rng.uniform(34, 42)) + np.float32(0.05) * p.z  # the upper arm is thicker
    height = min(float(rng.uniform(0, 30)), back_mm - _TABLE_RISES_MM - 50)
    flank = _half_width(skin)
    draw = Drawing(rng, 1.0, texture, makeup, _ARMS)
    layers = (Label.SKIN, Label.FAT, Label.MUSCLE, Label.RIB)
    shapes: dict[Label, list[Field]] = {label: [] for label in layers}
    for side in (-1, 1):
        lean = float(rng.uniform(-0.05, 0.05))
        outwards = flank + _GAP_MM + 50 + float(rng.uniform(0, 12))
        centre = (side * outwards, np.asarray(height + np.float32(lean) * p.z, dtype=np.float32))
        arm = np.broadcast_to(column(p, centre, (radius, radius * 1.08)), _ARMS.shape)
        fat = float(rng.uniform(4, 10))
        for label, depth in ((Label.SKIN, 0), (Label.FAT, 2), (Label.MUSCLE, 2 + fat)):
            shapes[label].append(np.asarray(arm + depth, dtype=np.float32))
        shapes[Label.RIB].append(np.asarray(arm + radius - 11, dtype=np.float32))
    for label, (right, left) in shapes.items():
        draw.add(label, union(right, left))
    return draw.layers


def _half_width(skin: Field) -> float:
    """Of the trunk where it is widest."""
    _, _, x = axis_coordinates(LATTICE)
    return float(np.abs(x[(skin < 0).any(axis=(0, 1))]).max())
