"""Interaction tables of photons, ready for transport.

``attenuation`` is XCOM's total with coherent scattering; the shares are its cumulative fractions
(photoelectric, incoherent, coherent, pair), so that one random number chooses the process.

Majorant of Woodcock tracking (Lux and Koblinger, Monte Carlo Particle Transport Methods, 1991, section 2.2):
the largest of μ/ρ times the largest density of each medium on the grid, at each tabulated energy. Between
two energies every table is interpolated linearly with the same weights, and the maximum of sums never
exceeds the sum of the maxima: max_m[(1 − f) a_m + f b_m] ≤ (1 − f) max_m a_m + f max_m b_m. So the
interpolated majorant bounds the interpolated attenuation everywhere, not only at the tabulated energies.

Functions of momentum transfer are tabulated over the root of x = sin(θ/2)/λ: a root costs less than a
logarithm and resolves the origin, where S ~ x².
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import F, compiled_making_arrays
from pipeline.montecarlo.data import PhysicsData
from pipeline.montecarlo.geometry import Geometry

# Below 5 keV the mean free path in soft tissue is under 0.25 mm (XCOM: 42.6 cm²/g for water): a fraction of
# any voxel of CT or SPECT.
CUTOFF_KEV = 5.0
# Largest tabulated x in 1/angstrom; beyond it every electron of these media scatters as if free, and coherent
# scattering has ceased.
MOMENTUM_MAX = 64.0
MOMENTA = 1024
# Rounding of float32: the majorant stays above the attenuation by more than the last digits of either.
MAJORANT_MARGIN = 1.0 + 1e-5
# An empty grid must still be left in one flight that int32 voxel numbers can express.
LEAST_MAJORANT_PER_CM = 1e-5

# K-shell binding energies in keV: X-Ray Data Booklet, LBNL/PUB-490 Rev. 3 (2009), table 1-1. The elements up
# to calcium, whose K shell is open at every energy above the cut-off.
K_BINDING_KEV: Mapping[int, float] = {
    1: 0.0136, 6: 0.2842, 7: 0.4099, 8: 0.5431, 9: 0.6967, 11: 1.0708, 12: 1.3030, 13: 1.5596, 14: 1.8389,
    15: 2.1455, 16: 2.4720, 17: 2.8224, 18: 3.2059, 19: 3.6084, 20: 4.0385,
}  # fmt: skip
# Photoelectric cross section per atom ~ Z^4.5: from carbon to oxygen 4.7, from oxygen to calcium 4.4 (XCOM,
# 30 keV). It only weighs the binding energies of a mixture.
PHOTOELECTRIC_POWER = 4.5


class PhotonTables(NamedTuple):
    """What photon transport looks up; materials M in the order of the physics data, N energies, K momenta."""

    cutoff: np.float32  # keV; a photon at or below it is deposited where it is
    electron_cutoff: np.float32  # keV; an electron at or below it is deposited where it is born
    majorant: NDArray[np.float32]  # [N] 1/cm
    attenuation: NDArray[np.float32]  # [M, N] cm2/g
    photoelectric: NDArray[np.float32]  # [M, N] cumulative share: photoelectric
    incoherent: NDArray[np.float32]  # [M, N] ... and incoherent
    coherent: NDArray[np.float32]  # [M, N] ... and coherent; the rest is pair production
    binding: NDArray[np.float32]  # [M] keV, mean binding energy of the photoelectron
    scattering_function: NDArray[np.float32]  # [M, K] S(x) per electron over its largest value
    coherent_integral: NDArray[np.float32]  # [M, K] integral of F^2 d(x^2) from 0 to x, 1 at the end


def photon_tables(
    physics: PhysicsData,
    geometry: Geometry,
    *,
    cutoff_kev: float = CUTOFF_KEV,
    electron_cutoff_kev: float,
) -> PhotonTables:
    """Tables for the materials of ``physics`` and the densities on the grid of ``geometry``."""
    total = physics.photoelectric + physics.incoherent + physics.coherent + physics.pair
    attenuation = _float32(total)
    largest = largest_densities(geometry.material, geometry.density, len(physics.materials))
    bound = np.max(attenuation * largest[:, None], axis=0) * MAJORANT_MARGIN
    photoelectric = physics.photoelectric / total
    incoherent = photoelectric + physics.incoherent / total
    root = np.linspace(0.0, math.sqrt(MOMENTUM_MAX), MOMENTA)
    return PhotonTables(
        cutoff=F(cutoff_kev),
        electron_cutoff=F(electron_cutoff_kev),
        majorant=_float32(np.maximum(bound, LEAST_MAJORANT_PER_CM)),
        attenuation=attenuation,
        photoelectric=_float32(photoelectric),
        incoherent=_float32(incoherent),
        coherent=_float32(incoherent + physics.coherent / total),
        binding=_float32(np.array([mean_binding_kev(m.composition) for m in physics.materials])),
        scattering_function=_scattering_function(physics, root),
        coherent_integral=_coherent_integral(physics, root),
    )


@compiled_making_arrays
def largest_densities(
    material: NDArray[np.uint8], density: NDArray[np.float32], materials: int
) -> NDArray[np.float32]:
    """Largest density of each material on the grid: [materials] g/cm3, 0 where a material is absent."""
    largest = np.zeros(materials, np.float32)
    for voxel in range(material.size):
        if density[voxel] > largest[material[voxel]]:
            largest[material[voxel]] = density[voxel]
    return largest


def mean_binding_kev(composition: Mapping[int, float]) -> float:
    """Mean K-shell binding energy in keV, weighted by the elements' shares of the absorption.

    composition: mass fractions by atomic number. Elements above calcium, traces in tissue, are left out:
    their K shell is not open at all energies. The quantity only shortens the photoelectron's range.
    """
    elements = [z for z in composition if z in K_BINDING_KEV]
    # A ~ 2 Z turns mass fractions into atoms but for hydrogen, which Z^4.5 leaves without weight.
    shares = [composition[z] / (2 * z) * z**PHOTOELECTRIC_POWER for z in elements]
    return float(np.average([K_BINDING_KEV[z] for z in elements], weights=shares))


def _scattering_function(physics: PhysicsData, root: NDArray[np.float64]) -> NDArray[np.float32]:
    """S(x) of each material over its largest value, at the squares of ``root``: [M, K]."""
    rows = [_at_momenta(physics.momentum_x, s, root, at_origin=0.0) for s in physics.incoherent_function]
    return _float32(np.array([row / row.max() for row in rows]))


def _coherent_integral(physics: PhysicsData, root: NDArray[np.float64]) -> NDArray[np.float32]:
    """Integral of F^2 over x^2 from 0 to the squares of ``root``, 1 at the last: [M, K]."""
    finer = np.linspace(0.0, root[-1], 16 * (len(root) - 1) + 1)
    rows = []
    for f in physics.form_factor_squared:
        f_squared = _at_momenta(physics.momentum_x, f, finer, at_origin=float(f[0]))
        slabs = 0.5 * (f_squared[1:] + f_squared[:-1]) * np.diff(finer**4)
        integral = np.concatenate([[0.0], np.cumsum(slabs)])[::16]
        rows.append(integral / integral[-1])
    return _float32(np.array(rows))


def _at_momenta(
    x: NDArray[np.float64], values: NDArray[np.float64], root: NDArray[np.float64], at_origin: float
) -> NDArray[np.float64]:
    """``values`` given at ``x`` (logarithmic), at the squares of ``root``; constant beyond the last x."""
    wanted = root**2
    inside = wanted >= x[0]
    result = np.empty_like(wanted)
    result[inside] = np.interp(np.log(wanted[inside]), np.log(x), values)
    # Towards x = 0 both functions differ from their limit by a term in x^2.
    result[~inside] = at_origin + (values[0] - at_origin) * (wanted[~inside] / x[0]) ** 2
    return result


def _float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)
