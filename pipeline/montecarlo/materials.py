"""The media that radiation is followed in, and which of them a density means.

Compositions are mass fractions. Their sources:

* ICRU 44: ICRU Report 44 (1989), Tissue Substitutes in Radiation Dosimetry and Measurement, adult
  tissues, with the mean excitation energies and densities that NIST tabulates for them (Hubbell and
  Seltzer, NISTIR 5632, tables 1 and 2).
* ICRU 46: ICRU Report 46 (1992), Photon, Electron, Proton and Neutron Interaction Data for Body
  Tissues: skeleton, spongiosa. Its mean excitation energy follows from Bragg's rule with the
  element values of ICRU Report 37 (1984), table 5.1, see `bragg_mean_excitation_ev`.
* ICRU 37: dry air and water.
* ICRU 33: soft tissue of four components (ICRU Report 33, 1980), the medium of the point kernels.

A CT decides the medium by the density of the voxel (`material_map`); every cross section is per mass,
so that the density of the voxel scales it. Only the density effect of collision stopping depends on
density in another way: it is tabulated for `density_g_per_cm3`, for lung that of the tissue itself
(1.05), because the alveoli (0.2 mm) are far larger than the reach of the polarisation (below 1 µm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected


@dataclass(frozen=True, slots=True)
class Material:
    """One medium.

    density_g_per_cm3: the density for which its density effect holds.
    mean_excitation_ev: I of the stopping-power formula, eV.
    composition: mass fraction by atomic number; sums to 1.
    """

    name: str
    density_g_per_cm3: float
    mean_excitation_ev: float
    composition: MappingProxyType[int, float]
    source: str


def _material(
    name: str, density: float, excitation: float, percent: dict[int, float], source: str
) -> Material:
    total = math.fsum(percent.values())
    fractions = {z: share / total for z, share in sorted(percent.items())}
    return Material(name, density, excitation, MappingProxyType(fractions), source)


# ICRU Report 37 (1984), table 5.1: I of the constituents of liquid and solid compounds, eV; elements
# that the table leaves out take 1.13 times their I as an element (table 4.3), as it prescribes.
ICRU37_CONSTITUENT_EV: Final = MappingProxyType(
    {1: 19.2, 6: 81.0, 7: 82.0, 8: 106.0, 9: 112.0, 17: 180.0}
    | {
        z: 1.13 * i
        for z, i in {11: 149.0, 12: 156.0, 15: 173.0, 16: 180.0, 19: 190.0, 20: 191.0, 26: 286.0}.items()
    }
)
ATOMIC_WEIGHT: Final = MappingProxyType(
    {1: 1.00794, 6: 12.011, 7: 14.00674, 8: 15.9994, 11: 22.989768, 12: 24.3050, 15: 30.973762, 16: 32.066,
     17: 35.4527, 18: 39.948, 19: 39.0983, 20: 40.078, 26: 55.847}
)  # fmt: skip


def bragg_mean_excitation_ev(composition: dict[int, float] | MappingProxyType[int, float]) -> float:
    """ln I = Σ w (Z/A) ln I_Z / Σ w (Z/A)  (Bragg additivity; ICRU 37, eq. 5.2), eV."""
    weight = {z: w * z / ATOMIC_WEIGHT[z] for z, w in composition.items()}
    total = math.fsum(weight.values())
    return math.exp(math.fsum(v * math.log(ICRU37_CONSTITUENT_EV[z]) for z, v in weight.items()) / total)


# Skeleton, spongiosa, adult: ICRU Report 46, appendix A.
_SPONGIOSA = {1: 8.5, 6: 40.4, 7: 2.8, 8: 36.7, 11: 0.1, 12: 0.1, 15: 3.4, 16: 0.2, 17: 0.2, 19: 0.1,
              20: 7.4, 26: 0.1}  # fmt: skip

AIR, LUNG, ADIPOSE, SOFT_TISSUE, SPONGIOSA, CORTICAL_BONE, WATER, ICRU_SOFT_TISSUE = range(8)

MATERIALS: Final[tuple[Material, ...]] = (
    _material("air", 1.20479e-3, 85.7, {6: 0.0124, 7: 75.5267, 8: 23.1781, 18: 1.2827}, "ICRU 37"),
    _material(
        "lung", 1.05, 75.2, {1: 10.3, 6: 10.5, 7: 3.1, 8: 74.9, 11: 0.2, 15: 0.2, 16: 0.3, 17: 0.3, 19: 0.2},
        "ICRU 44",
    ),
    _material(
        "adipose", 0.95, 64.8, {1: 11.4, 6: 59.8, 7: 0.7, 8: 27.8, 11: 0.1, 16: 0.1, 17: 0.1}, "ICRU 44"
    ),
    _material(
        "soft_tissue", 1.06, 74.7,
        {1: 10.2, 6: 14.3, 7: 3.4, 8: 70.8, 11: 0.2, 15: 0.3, 16: 0.3, 17: 0.2, 19: 0.3}, "ICRU 44",
    ),
    _material(
        "spongiosa", 1.18, bragg_mean_excitation_ev({z: p / 100 for z, p in _SPONGIOSA.items()}), _SPONGIOSA,
        "ICRU 46; I by Bragg's rule, ICRU 37",
    ),
    _material(
        "cortical_bone", 1.92, 112.0,
        {1: 3.4, 6: 15.5, 7: 4.2, 8: 43.5, 11: 0.1, 12: 0.2, 15: 10.3, 16: 0.3, 20: 22.5}, "ICRU 44",
    ),
    _material("water", 1.0, 75.0, {1: 11.1894, 8: 88.8106}, "ICRU 37"),
    _material("icru_soft_tissue", 1.04, 74.9, {1: 10.1172, 6: 11.1, 7: 2.6, 8: 76.1828}, "ICRU 33"),
)  # fmt: skip

# Upper density of each medium, g/cm3, with the medium above it:
#   0.05   air | lung                 CT number −950 of Schneider et al. 2000 (Phys Med Biol 45:459)
#   0.90   lung | adipose             CT number −120, there
#   1.00   adipose | soft tissue      midway between their densities (0.95, 1.06)
#   1.12   soft tissue | spongiosa    midway between theirs (1.06, 1.18)
#   1.55   spongiosa | cortical bone  midway between theirs (1.18, 1.92)
THRESHOLDS_G_PER_CM3: Final = (0.05, 0.90, 1.00, 1.12, 1.55)


def material_map(density: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Index into `MATERIALS` of the medium of every voxel.

    density: g/cm3, any shape. A voxel at a threshold belongs to the medium above it.
    raises: InputRejected for a density that is negative or not a number.
    """
    if not np.all(density >= 0):  # False for NaN too
        raise InputRejected(
            "a density is negative or not a number",
            "Correct the density map or the CT numbers that it comes from",
        )
    return np.searchsorted(np.asarray(THRESHOLDS_G_PER_CM3), density, side="right").astype(np.uint8)


def index_of(name: str) -> int:
    """Index of the medium called `name`. raises: InputRejected, naming the media that there are."""
    for index, material in enumerate(MATERIALS):
        if material.name == name:
            return index
    raise InputRejected(f"there is no medium {name!r}", f"There are {', '.join(m.name for m in MATERIALS)}")
