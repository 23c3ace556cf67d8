"""Hard events of electrons (collisions, bremsstrahlung), followed one by one, and where an electron ends.

Cross sections and their sources: `electron_tables`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.bank import ELECTRON, PHOTON, has_room, push
from pipeline.montecarlo.compiled import HALF, ONE, REST, TWO, TWO_PI, ZERO, F, compiled
from pipeline.montecarlo.electron_tables import (
    HARD_COLLISION_KEV,
    HARD_PHOTON_KEV,
    PHOTON_NODES,
    ElectronTables,
)
from pipeline.montecarlo.energy import E_MIN_KEV, interpolate, place_on_grid
from pipeline.montecarlo.geometry import Geometry, deposit, rotate, voxel_index
from pipeline.montecarlo.random_numbers import uniform

_LEAST_ENERGY = F(E_MIN_KEV)
_COLLISION_CUT = F(HARD_COLLISION_KEV)
_PHOTON_CUT = F(HARD_PHOTON_KEV)
_LAST_NODE = PHOTON_NODES - 1
_QUARTER = F(0.25)
_PI = F(math.pi)

Float = np.float32


@compiled
def ends_here(
    geometry: Geometry,
    tables: ElectronTables,
    iz: int,
    iy: int,
    ix: int,
    fz: Float,
    fy: Float,
    fx: Float,
    energy: Float,
    place: Float,
) -> bool:
    """Whether the electron may leave its energy where it is.

    Its range is below the resolution, or it cannot leave its voxel (in which case nothing is approximated but
    the photons that it might radiate).
    """
    if energy <= _LEAST_ENERGY:
        return True
    voxel = voxel_index(geometry, iz, iy, ix)
    reach = interpolate(tables.csda_range[geometry.material[voxel]], place)
    reach_of = geometry.density[voxel]
    if reach < tables.resolution * reach_of:
        return True
    if energy >= tables.contained_below:
        return False
    nearest = min(min(fz, ONE - fz) * geometry.dz, min(fy, ONE - fy) * geometry.dy)
    nearest = min(nearest, min(fx, ONE - fx) * geometry.dx)
    return bool(reach < nearest * reach_of)


@compiled
def collide(
    geometry: Geometry,
    tables: ElectronTables,
    tally: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    iz: int,
    iy: int,
    ix: int,
    fz: Float,
    fy: Float,
    fx: Float,
    u: Float,
    v: Float,
    w: Float,
    energy: Float,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[int, Float, Float, Float, Float, np.uint64]:
    """A hard collision: (count of the bank, new direction, energy left, next counter)."""
    if energy <= TWO * _COLLISION_CUT:
        return count, u, v, w, energy, counter
    part, counter = moller_transfer(energy, counter, key)
    transfer = part * energy
    left = energy - transfer
    twice = TWO * REST
    r, counter = uniform(counter, key)
    azimuth = r * TWO_PI
    # Of two free electrons; the knocked one leaves opposite in azimuth.
    cosine = F(math.sqrt(left * (energy + twice) / (energy * (left + twice))))
    delta_cosine = F(math.sqrt(transfer * (energy + twice) / (energy * (transfer + twice))))
    place = place_on_grid(transfer)
    if has_room(count) and not ends_here(geometry, tables, iz, iy, ix, fz, fy, fx, transfer, place):
        a, b, c = rotate(u, v, w, min(delta_cosine, ONE), azimuth + _PI)
        count = push(bank, count, ELECTRON, iz, iy, ix, fz, fy, fx, a, b, c, transfer)
    else:
        deposit(geometry, tally, iz, iy, ix, fz, fy, fx, transfer)
    u, v, w = rotate(u, v, w, min(cosine, ONE), azimuth)
    return count, u, v, w, left, counter


@compiled
def moller_transfer(energy: Float, counter: np.uint64, key: np.uint64) -> tuple[Float, np.uint64]:
    """The part ε of the energy that a hard collision transfers, by Møller's formula; next counter.

    Drawn from 1/ε² between the cut and 1/2, accepted with the rest of the formula times ε².
    """
    gamma = ONE + energy / REST
    a = (gamma - ONE) / gamma
    a = a * a
    inverse = energy / _COLLISION_CUT
    part = HALF
    for _ in range(1000):
        r, counter = uniform(counter, key)
        q, counter = uniform(counter, key)
        part = ONE / (inverse - r * (inverse - TWO))
        rest = part / (ONE - part)
        # (2γ−1)/γ² = 1 − a. The bracket is largest at ε = 1/2: 1 + 1 + a/4 − (1 − a) = 1 + 5a/4, or 1.
        accept = ONE + rest * rest + a * part * part - (ONE - a) * rest
        if q * (ONE + (ONE + _QUARTER) * a) <= accept:
            break
    return part, counter


@compiled
def radiate(
    geometry: Geometry,
    tables: ElectronTables,
    tally: NDArray[np.float64],
    bank: NDArray[np.float32],
    count: int,
    iz: int,
    iy: int,
    ix: int,
    fz: Float,
    fy: Float,
    fx: Float,
    u: Float,
    v: Float,
    w: Float,
    energy: Float,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[int, Float, np.uint64]:
    """A bremsstrahlung photon above the cut: (count of the bank, energy left, next counter).

    Its direction is that of a dipole at rest with the electron, 3/8 (1 + cos² θ'), seen from the laboratory,
    the leading term of Kirkpatrick and Wiedmann (Phys Rev 67:321, 1945) as PENELOPE uses it. The electron
    keeps its own.
    """
    if energy <= _PHOTON_CUT:
        return count, energy, counter
    row = int(place_on_grid(energy) + HALF)
    r, counter = uniform(counter, key)
    node = r * F(_LAST_NODE)
    low = int(node)
    above = node - F(low)
    power = tables.photon_energy[row, low] * (ONE - above) + tables.photon_energy[row, low + 1] * above
    photon = min(_PHOTON_CUT * F(math.exp(power * F(math.log(energy / _PHOTON_CUT)))), energy)
    # cos θ' by rejection from (1 + cos² θ')/2.
    cosine = ZERO
    for _ in range(1000):
        r, counter = uniform(counter, key)
        q, counter = uniform(counter, key)
        cosine = TWO * r - ONE
        if TWO * q <= ONE + cosine * cosine:
            break
    total = energy + REST
    beta = F(math.sqrt(energy * (energy + TWO * REST))) / total
    cosine = (cosine + beta) / (ONE + beta * cosine)
    r, counter = uniform(counter, key)
    if has_room(count):
        a, b, c = rotate(u, v, w, min(cosine, ONE), r * TWO_PI)
        count = push(bank, count, PHOTON, iz, iy, ix, fz, fy, fx, a, b, c, photon)
    else:
        deposit(geometry, tally, iz, iy, ix, fz, fy, fx, photon)
    return count, energy - photon, counter
