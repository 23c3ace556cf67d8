"""Energy spectrum of a beta branch.

    dN/dW ∝ p W (W_0 − W)² F(Z, W) L(Z, W) C(W),        natural units (ħ = m = c = 1)

F: Fermi function of a point charge at the nuclear radius; L: Wilkinson's correction for the finite size (Nucl
Instrum Methods A 290:509, 1990, eq. 10, leading terms); screening by Rose's shift of the energy with the
potential V_0 = 1.13 α² Z^(4/3) at the nucleus (Behrens and Bühring, 1982). C = 1 for allowed branches and
for first-forbidden non-unique ones of a large Coulomb energy (αZ/2R ≫ W_0: the ξ approximation); C = q² +
λ_2 p² for first-forbidden unique ones, with λ_2 = F_1/F_0 (Gove and Martin, At Data Nucl Data Tables
10:205, 1971).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma, loggamma

from pipeline.constants import ELECTRON_REST_KEV, FINE_STRUCTURE

Float64 = NDArray[np.float64]
COMPTON_FM = 386.15926796


def spectrum(
    z_daughter: int, mass_number: int, end_kev: float, energy_kev: Float64, unique: bool = False
) -> Float64:
    """Density per keV, of integral 1, of the electrons of a β⁻ branch; zero from `end_kev` on.

    unique: first-forbidden unique; else allowed or first-forbidden non-unique.
    """
    fine = np.linspace(0.0, end_kev, 4001)
    shape = _shape(z_daughter, mass_number, end_kev, fine, unique)
    return np.asarray(np.interp(energy_kev, fine, shape / np.trapezoid(shape, fine), right=0.0))


def _shape(z: int, mass_number: int, end_kev: float, energy_kev: Float64, unique: bool) -> Float64:
    w, w_end = 1 + np.maximum(energy_kev, 1e-3) / ELECTRON_REST_KEV, 1 + end_kev / ELECTRON_REST_KEV
    radius = 1.2 * mass_number ** (1 / 3) / COMPTON_FM
    shifted = w - 1.13 * FINE_STRUCTURE**2 * z ** (4 / 3)
    # Below the screening potential the shift has no meaning; there the unscreened function is kept.
    inside = np.maximum(shifted, 1 + 0.25 * (w - 1))
    p, p_in = np.sqrt(w * w - 1), np.sqrt(inside * inside - 1)
    f_0 = _fermi(1, z, inside, radius) * _finite_size(z, inside, radius) * inside * p_in / (w * p)
    factor = np.ones_like(w)
    if unique:
        factor = (w_end - w) ** 2 + _fermi(2, z, w, radius) / _fermi(1, z, w, radius) * p * p
    return np.asarray(p * w * (w_end - w) ** 2 * f_0 * factor)


def _fermi(k: int, z: int, w: Float64, radius: float) -> Float64:
    """F_{k−1}, 1 when Z → 0."""
    charge = FINE_STRUCTURE * z
    g = math.sqrt(k * k - charge * charge)
    p = np.sqrt(w * w - 1)
    eta = charge * w / p
    scale = (gamma(2 * k + 1) / gamma(2 * g + 1) / gamma(k)) ** 2 * (k + g) / (2 * k)
    # e^{πη} |Γ(g + iη)|², by logarithms: both factors leave the range of floats near zero energy.
    coulomb = np.exp(np.pi * eta + 2 * np.real(loggamma(g + 1j * eta)))
    return np.asarray(scale * (2 * p * radius) ** (2 * (g - k)) * coulomb)


def _finite_size(z: int, w: Float64, radius: float) -> Float64:
    charge = FINE_STRUCTURE * z
    g = math.sqrt(1 - charge * charge)
    return np.asarray(
        1
        + 13 / 60 * charge**2
        - w * radius * charge * (41 - 26 * g) / (15 * (2 * g - 1))
        - charge * radius * g * (17 - 2 * g) / (30 * w * (2 * g - 1))
    )
