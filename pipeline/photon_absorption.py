"""How much more a medium absorbs of a nuclide's photons than soft tissue does, per mass.

Where photons of a fluence Ψ(E) pass, the dose is ∫ Ψ (μ_en/ρ) dE: between two media at the same place,
it differs by the ratio of their mass energy-absorption coefficients (Attix 1986,
chapter 2). The fluence is taken to be that of the nuclide's own photons, by energy; those that were
scattered are softer, and bone absorbs more of them than is reckoned here::

    μ_en/ρ = τ/ρ + (σ_incoh/ρ) ⟨T⟩/E + (κ/ρ) (1 − 2 m c²/E)

⟨T⟩/E: mean part of a photon's energy that Compton scattering hands to the electron (Klein and Nishina).
What the electrons radiate again is neglected, as are fluorescence photons: below 1 MeV and up to
calcium, less than 1 %.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.constants import ELECTRON_REST_KEV
from pipeline.decay import Nuclide
from pipeline.errors import InputRejected
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.decay_data import load_source
from pipeline.montecarlo.materials import LUNG, SOFT_TISSUE, material_map

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]


# Softer photons do not leave the voxels that the electrons reach.
SOFTEST_KEV = 20.0

# A nuclide that emits less than this in photons per decay has more of bremsstrahlung: a thousandth of its
# dose, reckoned at one energy.
LEAST_KEV = 1.0
BREMSSTRAHLUNG_KEV = 100.0


def absorption_relative_to_soft_tissue(of: Nuclide, density: Float32) -> Float32:
    """Dose of the nuclide's photons in each voxel's medium over that in soft tissue.

    density: g/cm³, any shape; it decides the medium as in Monte Carlo; air counts as lung.
    """
    return _ratios(of)[np.maximum(material_map(density), LUNG)]


@lru_cache(maxsize=8)
def _ratios(of: Nuclide) -> Float32:
    """For every medium of Monte Carlo."""
    energy, part = _photons(of)
    data = load_physics()

    def at_lines(table: Float64) -> Float64:
        return np.array(
            [np.exp(np.interp(np.log(energy), np.log(data.energy_kev), row)) for row in np.log(table + 1e-30)]
        )

    absorbed = at_lines(data.photoelectric) + at_lines(data.incoherent) * compton_part(energy)
    absorbed += at_lines(data.pair) * np.maximum(0.0, 1 - 2 * ELECTRON_REST_KEV / energy)
    dose = absorbed @ part
    return np.asarray(dose / dose[SOFT_TISSUE], np.float32)


def _photons(of: Nuclide) -> tuple[Float64, Float64]:
    """Energies, keV, and the energy that a decay emits at each."""
    try:
        source = load_source(of.name)
    except InputRejected:
        return np.array([BREMSSTRAHLUNG_KEV]), np.ones(1)
    far = source.photon_kev > SOFTEST_KEV
    energy, part = source.photon_kev[far], (source.photon_kev * source.photon_yield)[far]
    return (energy, part) if part.sum() > LEAST_KEV else (np.array([BREMSSTRAHLUNG_KEV]), np.ones(1))


def compton_part(energy_kev: Float64) -> Float64:
    """⟨T⟩/E of Compton scattering by a free electron at rest: Klein and Nishina's formula, integrated."""
    cosine, weight = np.polynomial.legendre.leggauss(64)
    left = 1 / (1 + energy_kev[:, None] / ELECTRON_REST_KEV * (1 - cosine))
    section = left**2 * (left + 1 / left - 1 + cosine**2) * weight
    return np.asarray((section * (1 - left)).sum(axis=1) / section.sum(axis=1))
