"""Photons in voxels: Woodcock tracking and the four interactions.

Flight. Distances are drawn with a majorant M(E) ≥ μ(E) of the whole grid; at the end of each the interaction
is real with probability μ/M, else the photon flies on (Woodcock et al., ANL-7050, 1965): no boundary is
searched.

Photoelectric effect. The photoelectron gets E − B, B the K-shell binding energy averaged over the medium's
elements, and a direction after Sauter (Ann. Phys. 11:454, 1931), sampled as in Salvat, PENELOPE-2018
(NEA/MBDAV/R(2019)1), section 2.2. B stays where it is, in place of Auger electrons and fluorescence. That is
justified in these media: their hardest line, K of calcium, has 3.7 keV, comes from 17 % of its vacancies,
and has a mean free path of 0.03 mm in cortical bone, where it arises (XCOM: μ/ρ = 167 cm²/g). Of a cube of
1 mm a quarter of a mean free path below its surface is lost, 5 %, times 17 %: below 1 % of B, itself 6 % of
the energy that a photon of 60 keV leaves. The Auger electrons stop within 1 µm.

Compton scattering. Klein-Nishina times the incoherent scattering function S(x) (Hubbell et al., J. Phys.
Chem. Ref. Data 4:471, 1975), whose integral is XCOM's incoherent cross section. Klein-Nishina is sampled by
composition and rejection (Nelson, Hirayama, Rogers, SLAC-265, section 2.6), S/S_max rejects with it. The
energy lost is that to an electron at rest: Doppler broadening is left out, and the binding energy is not
taken from the recoil electron, whose direction balances the momenta.

Coherent scattering. x² from the integral of the squared form factors of free atoms up to x = E/hc, then
rejection by (1 + cos²θ)/2 (Williamson and Morin, Phys. Med. Biol. 28:991, 1983).

Pair production above 1022 keV. Electron and positron share E − 1022 keV evenly distributed, each at an angle
from (1 − β cos θ)⁻² about the photon's direction (Salvat, section 2.4). The positron is followed as an
electron; it annihilates where it arose, into two photons of 511 keV, back to back. Of the attenuation of
water this is 0.2 % at 1.5 MeV and 1.2 % at 2.2 MeV (XCOM).

Energy is conserved to float32's rounding: what a collision leaves behind is computed as the difference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.bank import ELECTRON, PHOTON, has_room, push
from pipeline.montecarlo.compiled import HALF, ONE, REST, TWO, TWO_PI, F, compiled
from pipeline.montecarlo.energy import interpolate, place_on_grid
from pipeline.montecarlo.geometry import ESCAPED, Geometry, deposit, isotropic, rotate, voxel_index
from pipeline.montecarlo.photon_tables import MOMENTA, MOMENTUM_MAX, PhotonTables
from pipeline.montecarlo.random_numbers import uniform

PI = F(math.pi)
FOUR = F(4.0)
PAIR_THRESHOLD_KEV = TWO * REST
# 1/hc, CODATA 2018: x = sin(θ/2)/λ = E sin(θ/2)/hc in 1/Å.
PER_HC = F(1.0 / 12.398420)
ROOTS_PER_STEP = F((MOMENTA - 1) / math.sqrt(MOMENTUM_MAX))
STEP_IN_ROOT = F(math.sqrt(MOMENTUM_MAX) / (MOMENTA - 1))
X_MAX = F(MOMENTUM_MAX * (1.0 - 1e-6))


class Collision(NamedTuple):
    """A photon where it interacts: voxel, place in it, direction, energy (keV), medium."""

    iz: int
    iy: int
    ix: int
    fz: np.float32
    fy: np.float32
    fx: np.float32
    u: np.float32
    v: np.float32
    w: np.float32
    energy: np.float32
    material: int


@compiled
def photon(
    geometry: Geometry,
    tables: PhotonTables,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    iz: int,
    iy: int,
    ix: int,
    fz: np.float32,
    fy: np.float32,
    fx: np.float32,
    u: np.float32,
    v: np.float32,
    w: np.float32,
    energy: np.float32,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[int, np.uint64]:
    """Follow one photon to its end; (the bank's count with its secondaries, the next counter).

    Adds to ``tally`` what is deposited, keV, and to ``account[ESCAPED]`` what leaves the grid.
    """
    while energy > tables.cutoff:
        place = place_on_grid(energy)
        inside, iz, iy, ix, fz, fy, fx, counter = fly(
            geometry, tables, place, iz, iy, ix, fz, fy, fx, u, v, w, counter, key
        )
        if not inside:
            account[ESCAPED] += energy
            return count, counter
        material = int(geometry.material[voxel_index(geometry, iz, iy, ix)])
        collision = Collision(iz, iy, ix, fz, fy, fx, u, v, w, energy, material)
        r, counter = uniform(counter, key)
        if r < interpolate(tables.photoelectric[material], place):
            return photoelectric(geometry, tables, tally, bank, count, collision, counter, key)
        if r < interpolate(tables.incoherent[material], place):
            cosine, scattered, counter = compton(tables, material, energy, counter, key)
            azimuth, counter = uniform(counter, key)
            count = recoil(geometry, tables, tally, bank, count, collision, cosine, scattered, azimuth)
            u, v, w = rotate(u, v, w, cosine, TWO_PI * azimuth)
            energy = scattered
        elif r < interpolate(tables.coherent[material], place) or energy <= PAIR_THRESHOLD_KEV:
            cosine, counter = rayleigh(tables, material, energy, counter, key)
            azimuth, counter = uniform(counter, key)
            u, v, w = rotate(u, v, w, cosine, TWO_PI * azimuth)
        else:
            return pair(geometry, tables, tally, bank, count, collision, counter, key)
    deposit(geometry, tally, iz, iy, ix, fz, fy, fx, energy)
    return count, counter


@compiled
def fly(
    geometry: Geometry,
    tables: PhotonTables,
    place: np.float32,
    iz: int,
    iy: int,
    ix: int,
    fz: np.float32,
    fy: np.float32,
    fx: np.float32,
    u: np.float32,
    v: np.float32,
    w: np.float32,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[bool, int, int, int, np.float32, np.float32, np.float32, np.uint64]:
    """To the next real interaction: (whether it is in the grid, its voxel and place, the next counter)."""
    majorant = interpolate(tables.majorant, place)
    # Voxels along each axis per unit of ln r.
    per_log = -ONE / majorant
    along_z = per_log * w / geometry.dz
    along_y = per_log * v / geometry.dy
    along_x = per_log * u / geometry.dx
    while True:
        r, counter = uniform(counter, key)
        length = F(math.log(r))
        fz += length * along_z
        fy += length * along_y
        fx += length * along_x
        step_z = F(math.floor(fz))
        step_y = F(math.floor(fy))
        step_x = F(math.floor(fx))
        iz += int(step_z)
        iy += int(step_y)
        ix += int(step_x)
        if iz < 0 or iz >= geometry.nz or iy < 0 or iy >= geometry.ny or ix < 0 or ix >= geometry.nx:
            return False, iz, iy, ix, fz, fy, fx, counter
        fz -= step_z
        fy -= step_y
        fx -= step_x
        voxel = voxel_index(geometry, iz, iy, ix)
        attenuation = interpolate(tables.attenuation[geometry.material[voxel]], place)
        r, counter = uniform(counter, key)
        if r * majorant < geometry.density[voxel] * attenuation:
            return True, iz, iy, ix, fz, fy, fx, counter


@compiled
def release(
    geometry: Geometry,
    tables: PhotonTables,
    tally: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    at: Collision,
    cosine: np.float32,
    azimuth: np.float32,
    kinetic: np.float32,
) -> int:
    """An electron at an angle to the photon, banked, or deposited if it would stop at once; the count."""
    if kinetic <= tables.electron_cutoff or not has_room(count):
        deposit(geometry, tally, at.iz, at.iy, at.ix, at.fz, at.fy, at.fx, kinetic)
        return count
    u, v, w = rotate(at.u, at.v, at.w, cosine, azimuth)
    return push(bank, count, ELECTRON, at.iz, at.iy, at.ix, at.fz, at.fy, at.fx, u, v, w, kinetic)


@compiled
def photoelectric(
    geometry: Geometry,
    tables: PhotonTables,
    tally: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    at: Collision,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[int, np.uint64]:
    """The photon is absorbed: the binding energy stays, the photoelectron goes; (count, the next counter)."""
    kinetic = at.energy - tables.binding[at.material]
    if kinetic <= tables.electron_cutoff:
        deposit(geometry, tally, at.iz, at.iy, at.ix, at.fz, at.fy, at.fx, at.energy)
        return count, counter
    deposit(geometry, tally, at.iz, at.iy, at.ix, at.fz, at.fy, at.fx, at.energy - kinetic)
    cosine, counter = sauter(kinetic, counter, key)
    azimuth, counter = uniform(counter, key)
    count = release(geometry, tables, tally, bank, count, at, cosine, TWO_PI * azimuth, kinetic)
    return count, counter


@compiled
def sauter(kinetic: np.float32, counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.uint64]:
    """(cosine of a photoelectron's angle with the photon, the next counter).

    With ν = 1 − cos θ, A = 1/β − 1: p(ν) ~ (2 − ν) [1/(A + ν) + βγ(γ − 1)(γ − 2)/2] · ν/(A + ν)³; the last
    factor is sampled by inversion, the others, largest at ν = 0, by rejection.
    """
    gamma = ONE + kinetic / REST
    beta = F(math.sqrt(kinetic * (kinetic + TWO * REST))) / (kinetic + REST)
    a = ONE / beta - ONE
    spin = HALF * beta * gamma * (gamma - ONE) * (gamma - TWO)
    largest = TWO * (ONE / a + spin)
    while True:
        r, counter = uniform(counter, key)
        nu = TWO * a * (TWO * r + (a + TWO) * F(math.sqrt(r))) / ((a + TWO) * (a + TWO) - FOUR * r)
        q, counter = uniform(counter, key)
        if q * largest < (TWO - nu) * (ONE / (a + nu) + spin):
            return ONE - nu, counter


@compiled
def compton(
    tables: PhotonTables, material: int, energy: np.float32, counter: np.uint64, key: np.uint64
) -> tuple[np.float32, np.float32, np.uint64]:
    """(cosine of the scattered photon's angle, its energy in keV, the next counter).

    With ε = E'/E from 1/(1 + 2k) to 1: dσ/dε ~ (1/ε + ε) [1 − ε sin²θ/(1 + ε²)] S(x); the two terms of the
    first factor are sampled by inversion, the others by rejection.
    """
    k = energy / REST
    least = ONE / (ONE + TWO * k)
    inverse_weight = -F(math.log(least))
    weight = inverse_weight + HALF * (ONE - least * least)
    while True:
        r, counter = uniform(counter, key)
        q, counter = uniform(counter, key)
        if r * weight < inverse_weight:
            fraction = F(math.exp(-inverse_weight * q))
        else:
            fraction = F(math.sqrt(least * least + (ONE - least * least) * q))
        away = min((ONE - fraction) / (k * fraction), TWO)  # 1 − cos θ
        klein_nishina = ONE - fraction * away * (TWO - away) / (ONE + fraction * fraction)
        x = energy * PER_HC * F(math.sqrt(HALF * away))
        r, counter = uniform(counter, key)
        if r < klein_nishina * at_momentum(tables.scattering_function[material], x):
            return ONE - away, energy * fraction, counter


@compiled
def recoil(
    geometry: Geometry,
    tables: PhotonTables,
    tally: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    at: Collision,
    cosine: np.float32,
    scattered: np.float32,
    azimuth: np.float32,
) -> int:
    """The electron of a Compton collision; cosine, energy and azimuth (turns) are those of the photon."""
    kinetic = at.energy - scattered
    balance = ONE
    if kinetic > tables.electron_cutoff:
        # p_e cos θ_e = E − E' cos θ with (p_e c)² = T (T + 2 mc²).
        momentum = F(math.sqrt(kinetic * (kinetic + TWO * REST)))
        balance = min((at.energy - scattered * cosine) / momentum, ONE)
    return release(geometry, tables, tally, bank, count, at, balance, TWO_PI * azimuth + PI, kinetic)


@compiled
def at_momentum(row: NDArray[np.float32], x: np.float32) -> np.float32:
    """``row`` [K] of a function of momentum transfer at x, 1/Å."""
    place = F(math.sqrt(min(x, X_MAX))) * ROOTS_PER_STEP
    low = int(place)
    return F(row[low] + (place - F(low)) * (row[low + 1] - row[low]))


@compiled
def rayleigh(
    tables: PhotonTables, material: int, energy: np.float32, counter: np.uint64, key: np.uint64
) -> tuple[np.float32, np.uint64]:
    """(cosine of a coherently scattered photon's angle, the next counter)."""
    integral = tables.coherent_integral[material]
    x_of_reversal = energy * PER_HC
    within = integral_to(integral, min(x_of_reversal, X_MAX))
    per_x_squared = TWO / (x_of_reversal * x_of_reversal)
    while True:
        r, counter = uniform(counter, key)
        cosine = ONE - min(per_x_squared * square_at(integral, r * within), TWO)
        r, counter = uniform(counter, key)
        if r < HALF * (ONE + cosine * cosine):
            return cosine, counter


@compiled
def integral_to(integral: NDArray[np.float32], x: np.float32) -> np.float32:
    """∫ F² d(x²) up to x; within a step of the table linear in x²."""
    low = int(F(math.sqrt(x)) * ROOTS_PER_STEP)
    begin = square_of_momentum(low)
    rise = (x * x - begin) / (square_of_momentum(low + 1) - begin)
    return F(integral[low] + rise * (integral[low + 1] - integral[low]))


@compiled
def square_at(integral: NDArray[np.float32], wanted: np.float32) -> np.float32:
    """x² up to which the integral has the wanted value: the inverse of `integral_to`."""
    low = 0
    high = MOMENTA - 1
    while high - low > 1:
        middle = (low + high) // 2
        if integral[middle] > wanted:
            high = middle
        else:
            low = middle
    begin = square_of_momentum(low)
    rise = (wanted - integral[low]) / (integral[high] - integral[low])
    return F(begin + rise * (square_of_momentum(high) - begin))


@compiled
def square_of_momentum(step: int) -> np.float32:
    """x² at a step of the table."""
    root = F(step) * STEP_IN_ROOT
    return root * root * root * root


@compiled
def pair(
    geometry: Geometry,
    tables: PhotonTables,
    tally: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    at: Collision,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[int, np.uint64]:
    """The photon becomes an electron, a positron and two photons of 511 keV; (count, the next counter)."""
    kinetic = at.energy - PAIR_THRESHOLD_KEV
    share, counter = uniform(counter, key)
    first = share * kinetic
    azimuth, counter = uniform(counter, key)
    cosine, counter = pair_cosine(first, counter, key)
    count = release(geometry, tables, tally, bank, count, at, cosine, TWO_PI * azimuth, first)
    cosine, counter = pair_cosine(kinetic - first, counter, key)
    count = release(geometry, tables, tally, bank, count, at, cosine, TWO_PI * azimuth + PI, kinetic - first)
    u, v, w, counter = isotropic(counter, key)
    # Half of what the kinetic energies leave: 511 keV, and the sum is exact.
    quantum = HALF * (at.energy - kinetic)
    for sign in (ONE, -ONE):
        if has_room(count):
            count = push(
                bank, count, PHOTON, at.iz, at.iy, at.ix, at.fz, at.fy, at.fx,
                sign * u, sign * v, sign * w, quantum,
            )  # fmt: skip
        else:
            deposit(geometry, tally, at.iz, at.iy, at.ix, at.fz, at.fy, at.fx, quantum)
    return count, counter


@compiled
def pair_cosine(kinetic: np.float32, counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.uint64]:
    """(cosine of one of a pair with the photon's direction, from (1 − β cos θ)⁻², the next counter)."""
    beta = F(math.sqrt(kinetic * (kinetic + TWO * REST))) / (kinetic + REST)
    r, counter = uniform(counter, key)
    centred = TWO * r - ONE
    return (centred + beta) / (centred * beta + ONE), counter
