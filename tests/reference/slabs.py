"""Layers of soft tissue around another medium: where density scaling errs most.

Soft tissue, 30 mm | the medium | soft tissue, 30 mm, 200 x 200 mm wide, vacuum around. The activity is
uniform over the whole width, either in the 12 mm of soft tissue before the first interface (more than the
reach of any beta of Lu-177 or Y-90) or in the medium itself. What is compared is the energy absorbed in
every 1 mm of depth over the whole width, so that width costs no statistics.

Nothing but numpy is imported: PENELOPE runs the same geometry from an environment of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WIDTH_MM = 200.0
LAYER_MM = 1.0
SOFT_MM = 30
SOURCE_IN_SOFT_MM = 12
SOFT_TISSUE = ("soft_tissue", 1.06)

# Medium, density g/cm3, thickness mm. Lung inflated as of ICRU 44, bone and air of their tables.
MEDIA: dict[str, tuple[str, float, int]] = {
    "lung": ("lung", 0.26, 40),
    "bone": ("cortical_bone", 1.92, 20),
    "air": ("air", 1.20479e-3, 20),
}


@dataclass(frozen=True)
class Slabs:
    """One arrangement: what lies between the soft tissue, which nuclide, and where its activity is."""

    medium: Literal["lung", "bone", "air"]
    source: Literal["soft", "medium"]
    nuclide: str

    @property
    def name(self) -> str:
        return f"{self.medium}_{self.source}_{self.nuclide}"

    @property
    def thickness_mm(self) -> int:
        return MEDIA[self.medium][2]

    @property
    def layers(self) -> int:
        return 2 * SOFT_MM + self.thickness_mm

    @property
    def source_layers(self) -> tuple[int, int]:
        """First layer with activity and the first one after it."""
        if self.source == "soft":
            return SOFT_MM - SOURCE_IN_SOFT_MM, SOFT_MM
        return SOFT_MM, SOFT_MM + self.thickness_mm

    def material(self, layer: int) -> tuple[str, float]:
        """Name of the medium and density, g/cm3, of a layer of 1 mm."""
        inside = SOFT_MM <= layer < SOFT_MM + self.thickness_mm
        return MEDIA[self.medium][:2] if inside else SOFT_TISSUE

    def density(self) -> NDArray[np.float64]:
        """(layers,) g/cm3."""
        return np.array([self.material(layer)[1] for layer in range(self.layers)])

    def activity(self) -> NDArray[np.float64]:
        """(layers,) share of the decays, sums to 1."""
        first, end = self.source_layers
        share = np.zeros(self.layers)
        share[first:end] = 1 / (end - first)
        return share


SLABS = tuple(
    Slabs(medium, source, nuclide)  # type: ignore[arg-type]
    for medium, source in (
        ("lung", "soft"),
        ("bone", "soft"),
        ("air", "soft"),
        ("lung", "medium"),
        ("bone", "medium"),
    )
    for nuclide in ("Lu-177", "Y-90")
)
