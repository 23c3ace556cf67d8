"""Elastic scattering of electrons by atoms: transport cross sections by partial waves.

The Dirac equation of an electron of total energy W (natural units, ħ = m = c = 1) in the field of an atom,

    dG/dr = −(κ/r) G + (W − V + 1) F,        dF/dr = (κ/r) F − (W − V − 1) G,
    V(r) = −(Zα/r) Σ A_i exp(−a_i r),

(a superposition of Yukawa potentials, as Salvat, Martínez, Mayol and Parellada have it, Phys Rev A 36:467,
1987; here A_i follow from the Hartree-Fock form factors of Hubbell et al., J Phys Chem Ref Data 4:471,
1975), point nucleus, and the local exchange of Furness and McCarthy (J Phys B 6:2280, 1973: V_x = ½ (T − V)
− ½ √((T − V)² + 4π a_0 e⁴ n), n the density of electrons), gives a phase shift δ_κ for every κ. Scattering
amplitudes (Mott and Massey):

    f = (1/2ik) Σ_l [(l+1)(e^{2iδ_{−l−1}} − 1) + l (e^{2iδ_l} − 1)] P_l(cos θ)
    g = (1/2ik) Σ_l [e^{2iδ_l} − e^{2iδ_{−l−1}}] P_l¹(cos θ),        dσ/dΩ = |f|² + |g|²

    σ_1 = ∫ (1 − P_1) dσ,        σ_2 = ∫ (1 − P_2) dσ

Gauss-Legendre quadrature of more nodes than waves makes these integrals exact. Above
`PARTIAL_WAVES_TO_KEV`, where the number of waves grows into the ten thousands, the same cross section
factorises: dσ = Rutherford · R(θ) · (1 − F(q)/Z)², R the Mott ratio of the bare nucleus, from its own
series (Coulomb phases; three reductions by (1 − cos θ), Yennie, Ravenhall and Wilson, Phys Rev
95:500, 1954), and F the form factor of the same screening. Where both can be computed they agree, see the
tests.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import xraylib  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numba import njit
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import loggamma, spherical_jn, spherical_yn

from pipeline.constants import ELECTRON_REST_KEV, FINE_STRUCTURE

Float64 = NDArray[np.float64]
Complex = NDArray[np.complex128]

COMPTON_CM = 3.8615926796e-11  # ħ/mc
PARTIAL_WAVES_TO_KEV = 200.0
ENERGIES_KEV = np.geomspace(1.0, 3000.0, 41)

# The screening is fitted to the form factor between these, in 1/Å, by functions of fixed ranges: 9 of them,
# each 1.7 times shorter than the one before, from 1/0.7 a_0 on (hydrogen: 1/1.5 a_0).
FITTED_X = np.geomspace(0.02, 12.0, 160)
SCREENING_TERMS = 9
LONGEST_RANGE = {1: 1.5}
BOHR_ANGSTROM = 0.529177210903


def transport_cross_sections(z: int, energy_kev: Float64) -> tuple[Float64, Float64]:
    """σ_1 and σ_2 of one atom, cm2, at `energy_kev` (within `ENERGIES_KEV`)."""
    low = [float(energy) for energy in ENERGIES_KEV if energy <= PARTIAL_WAVES_TO_KEV]
    rows = [by_partial_waves(z, energy) for energy in low]
    # Second-order screening makes the product up to 1 % too large (calcium), nearly level in energy from
    # 250 keV on.
    joint = np.array(rows[-1]) / by_factorisation(z, low[-1])
    rows += [tuple(joint * by_factorisation(z, float(energy))) for energy in ENERGIES_KEV[len(low) :]]
    # Times (p β)², what is left varies like a logarithm.
    smooth = np.log(np.array(rows).T * _rutherford_scale(ENERGIES_KEV))
    splines = CubicSpline(np.log(ENERGIES_KEV), smooth, axis=1)
    first, second = np.exp(splines(np.log(energy_kev))) / _rutherford_scale(energy_kev)
    return first, second


def by_partial_waves(z: int, energy_kev: float) -> tuple[float, float]:
    """σ_1 and σ_2, cm2, from the phase shifts in the screened field."""
    total, k = _kinematics(energy_kev)
    weights, ranges = _screening(z)
    slowest = float(ranges.min())
    radius = 18.0 / slowest
    waves = int(k * 13.0 / slowest) + 12
    kappa = np.concatenate([-np.arange(1, waves + 1), np.arange(1, waves + 1)])
    delta = _phases(kappa, total, k, z * FINE_STRUCTURE, weights, ranges, radius)
    # What the steps add to the phase of a free wave they add to every wave: it is taken off.
    delta -= _phases(kappa, total, k, 0.0, weights, ranges, radius)
    down = np.exp(2j * delta[:waves])  # κ = −l − 1, l = 0 …
    up = np.concatenate([[1.0], np.exp(2j * delta[waves : 2 * waves - 1])])  # κ = l, l = 1 …
    l = np.arange(waves)  # noqa: E741
    return _integrated(k, (l + 1) * (down - 1) + l * (up - 1), up - down)


def _phases(
    kappa: NDArray[np.int64],
    total: float,
    k: float,
    charge: float,
    weights: Float64,
    ranges: Float64,
    radius: float,
) -> Float64:
    """Phase shift of every κ: the wave inside `radius` joined to free waves outside."""
    ratio = _lower_over_upper(kappa, total, k, charge, weights, ranges, radius)
    order = np.arange(np.abs(kappa).max() + 1)
    regular, irregular = spherical_jn(order, k * radius), spherical_yn(order, k * radius)
    upper, lower = np.where(kappa < 0, -kappa - 1, kappa), np.where(kappa < 0, -kappa, kappa - 1)
    momentum = np.sign(kappa) * k / (total + 1.0)
    sine = momentum * regular[lower] - ratio * regular[upper]
    return np.asarray(np.arctan2(sine, momentum * irregular[lower] - ratio * irregular[upper]))


def by_factorisation(z: int, energy_kev: float) -> tuple[float, float]:
    """σ_1 and σ_2, cm2, as Rutherford · Mott ratio · screening."""
    total, k = _kinematics(energy_kev)
    weights, ranges = _screening(z)
    x, w = np.polynomial.legendre.leggauss(600)
    low = math.log(1e-14)
    ln_t = low + (math.log(1.0) - low) * (x + 1) / 2  # t = sin²(θ/2)
    t = np.exp(ln_t)
    jacobian = w * (math.log(1.0) - low) / 2 * t * 4 * math.pi  # dΩ = 4π dt
    q2 = 4 * k * k * t
    form = q2 * np.sum(weights[:, None] / (q2 + ranges[:, None] ** 2), axis=0)
    rutherford = (z * FINE_STRUCTURE * total / (2 * k * k * t)) ** 2
    cross_section = rutherford * form**2 * mott_ratio(z, energy_kev, t) * jacobian
    first = float(np.sum(cross_section * 2 * t))
    second = float(np.sum(cross_section * 6 * t * (1 - t)))
    return first * COMPTON_CM**2, second * COMPTON_CM**2


def mott_ratio(z: int, energy_kev: float, sine_squared: Float64, waves: int = 1500) -> Float64:
    """Cross section of the bare nucleus over Rutherford's; sine_squared: sin²(θ/2)."""
    total, k = _kinematics(energy_kev)
    charge = z * FINE_STRUCTURE
    l = np.arange(waves)  # noqa: E741
    down = _coulomb_phase(-l - 1, charge, total, k)
    up = np.concatenate([[1.0], _coulomb_phase(l[1:], charge, total, k)])
    a, b = (l + 1) * down + l * up, up - down
    for _ in range(3):
        a, b = _reduced(a, b)
    grid = np.linspace(0.0, 1.0, 121)[8:]  # sin(θ/2); below, the series loses digits and the ratio tends to 1
    f, g = _sums(1 - 2 * grid**2, a, b)
    amplitude = (np.abs(f) ** 2 + np.abs(g) ** 2) / (2 * grid**2) ** 6 / (4 * k * k)
    ratio = amplitude / (charge * total / (2 * k * k * grid**2)) ** 2
    sine = np.sqrt(sine_squared)
    spline = CubicSpline(np.concatenate([[0.0], grid]), np.concatenate([[1.0], ratio]))
    return np.asarray(spline(sine))


def _kinematics(energy_kev: float) -> tuple[float, float]:
    total = 1 + energy_kev / ELECTRON_REST_KEV
    return total, math.sqrt(total * total - 1)


def _rutherford_scale(energy_kev: Float64) -> Float64:
    tau = energy_kev / ELECTRON_REST_KEV
    return np.asarray((tau * (tau + 2) / (tau + 1)) ** 2 * 1e24)


@cache
def _screening(z: int) -> tuple[Float64, Float64]:
    """A_i, and a_i in the unit of k (mc/ħ): 1 − F(q)/Z = q² Σ A_i / (q² + a_i²), Σ A_i = 1.

    Least squares of the relative deviation (within 1 %; σ_1 within 0.1 % of that by the form factor
    itself), with a slight penalty on large A_i, which would cancel one another.
    """
    longest = LONGEST_RANGE.get(z, 0.7)
    inverse = np.geomspace(longest, min(40.0, longest * 1.7 ** (SCREENING_TERMS - 1)), SCREENING_TERMS)
    q2 = (4 * math.pi * BOHR_ANGSTROM * FITTED_X[:, None]) ** 2
    unscreened = np.array([1 - xraylib.FF_Rayl(z, float(x)) / z for x in FITTED_X])
    terms = q2 / (q2 + inverse**2) / unscreened[:, None]
    system = np.vstack([terms, np.full(SCREENING_TERMS, 1e3), 1e-2 * np.eye(SCREENING_TERMS)])
    wanted = np.concatenate([np.ones(len(FITTED_X)), [1e3], np.zeros(SCREENING_TERMS)])
    return np.linalg.lstsq(system, wanted, rcond=None)[0], inverse * FINE_STRUCTURE


def _coulomb_phase(kappa: NDArray[np.int64], charge: float, total: float, k: float) -> Complex:
    """e^{2iδ} of the bare nucleus (attractive), without the logarithm that all waves share."""
    nu = charge * total / k
    s = np.sqrt(kappa.astype(float) ** 2 - charge**2)
    l = np.where(kappa < 0, -kappa - 1, kappa)  # noqa: E741
    gamma = np.exp(loggamma(s - 1j * nu) - loggamma(s + 1j * nu))
    return np.asarray((-kappa + 1j * nu / total) / (s + 1j * nu) * gamma * np.exp(1j * np.pi * (l + 1 - s)))


def _reduced(a: Complex, b: Complex) -> tuple[Complex, Complex]:
    """Coefficients of (1 − cos θ) f and (1 − cos θ) g."""
    l = np.arange(1, len(a) - 1, dtype=float)  # noqa: E741
    new_a, new_b = np.zeros(len(a) - 1, complex), np.zeros(len(b) - 1, complex)
    new_a[0] = a[0] - a[1] / 3
    new_a[1:] = a[1:-1] - (l + 1) / (2 * l + 3) * a[2:] - l / (2 * l - 1) * a[:-2]
    new_b[1:] = b[1:-1] - (l - 1) / (2 * l - 1) * b[:-2] - (l + 2) / (2 * l + 3) * b[2:]
    return new_a, new_b


def _integrated(k: float, a: Complex, b: Complex) -> tuple[float, float]:
    nodes, weights = _gauss_legendre(len(a) + 2)
    f, g = _sums(nodes, a, b)
    cross_section = 2 * math.pi * weights * (np.abs(f) ** 2 + np.abs(g) ** 2) / (4 * k * k) * COMPTON_CM**2
    return float(np.sum(cross_section * (1 - nodes))), float(np.sum(cross_section * 1.5 * (1 - nodes**2)))


@njit(cache=True)
def _gauss_legendre(count):  # type: ignore[no-untyped-def]
    """Nodes and weights by Newton's method: for thousands of nodes an eigenvalue solver is too slow."""
    nodes, weights = np.empty(count), np.empty(count)
    for i in range(count):
        x = math.cos(math.pi * (i + 0.75) / (count + 0.5))
        for _ in range(6):
            before, now = 1.0, x
            for n in range(1, count):
                before, now = now, ((2 * n + 1) * x * now - n * before) / (n + 1)
            slope = count * (x * now - before) / (x * x - 1.0)
            x -= now / slope
        nodes[i], weights[i] = x, 2.0 / ((1.0 - x * x) * slope * slope)
    return nodes, weights


@njit(cache=True)
def _sums(cosines, a, b):  # type: ignore[no-untyped-def]
    """Σ a_l P_l and Σ b_l P_l¹ by upward recurrence."""
    f = np.zeros(len(cosines), np.complex128)
    g = np.zeros(len(cosines), np.complex128)
    for i, x in enumerate(cosines):
        before, now = 1.0, x  # P_0, P_1
        before_1, now_1 = 0.0, math.sqrt(max(0.0, 1.0 - x * x))  # P_0¹, P_1¹
        f[i] += a[0] * before + a[1] * now
        g[i] += b[1] * now_1
        for n in range(1, len(a) - 1):
            before, now = now, ((2 * n + 1) * x * now - n * before) / (n + 1)
            before_1, now_1 = now_1, ((2 * n + 1) * x * now_1 - (n + 1) * before_1) / n
            f[i] += a[n + 1] * now
            g[i] += b[n + 1] * now_1
    return f, g


@njit(cache=True)
def _potential(r, total, charge, weights, ranges):  # type: ignore[no-untyped-def]
    """Electrostatic and exchange energy at `r`; 4π a_0 e⁴ n(r) follows by Poisson's equation."""
    if charge == 0.0:
        return 0.0
    static, density = 0.0, 0.0
    for j in range(len(weights)):
        term = weights[j] * math.exp(-ranges[j] * r)
        static -= term
        density += term * ranges[j] * ranges[j]
    static *= charge / r
    local = total - 1.0 - static
    return static + 0.5 * (local - math.sqrt(local * local + max(density, 0.0) * charge / r))


@njit(cache=True)
def _lower_over_upper(kappas, total, k, charge, weights, ranges, radius):  # type: ignore[no-untyped-def]
    """F/G at `radius` for every κ by exponential (Magnus) steps of fourth order."""
    result = np.empty(len(kappas))
    for i, kappa in enumerate(kappas):
        s = math.sqrt(kappa * kappa - charge * charge)
        r = min(abs(kappa) / k, 0.5 * radius) * math.exp(-18.0 / abs(kappa))
        if kappa < 0:
            upper, lower = 1.0, -charge / (s - kappa)
        else:
            upper, lower = charge / (s + kappa), 1.0
        while r < radius:
            step = min(0.04 * r, 0.6 / k, radius - r)
            if radius - r - step < 1e-9 * radius:
                step = radius - r
            half, offset = 0.5 * step, step * 0.28867513459481287  # √3/6
            r_1, r_2 = r + half - offset, r + half + offset
            potential_1 = _potential(r_1, total, charge, weights, ranges)
            potential_2 = _potential(r_2, total, charge, weights, ranges)
            a1, b1, c1 = -kappa / r_1, total - potential_1 + 1.0, -(total - potential_1 - 1.0)
            a2, b2, c2 = -kappa / r_2, total - potential_2 + 1.0, -(total - potential_2 - 1.0)
            commute = 0.14433756729740643 * step * step  # √3/12 h² [A2, A1]
            a = half * (a1 + a2) + commute * (b2 * c1 - b1 * c2)
            b = half * (b1 + b2) + commute * 2.0 * (a2 * b1 - a1 * b2)
            c = half * (c1 + c2) + commute * 2.0 * (c2 * a1 - c1 * a2)
            square = a * a + b * c
            if square > 0.0:
                root = math.sqrt(square)
                even, odd = math.cosh(root), math.sinh(root) / root
            else:
                root = math.sqrt(-square)
                even, odd = math.cos(root), (math.sin(root) / root if root > 1e-12 else 1.0)
            upper, lower = (
                (even + odd * a) * upper + odd * b * lower,
                odd * c * upper + (even - odd * a) * lower,
            )
            r += step
        result[i] = lower / upper
    return result
