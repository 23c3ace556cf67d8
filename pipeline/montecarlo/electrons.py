"""Electrons: condensed history of class II with a random hinge, voxel by voxel.

A step is a soft loss ΔE, at most a fixed part of the energy, shorter when a hard event comes first. The
electron goes straight until it has lost r·ΔE, r uniform; there (the hinge) it turns by the deflection that
the whole step accumulates, and goes straight for the rest (Fernández-Varea et al., Nucl Instrum Methods B
73:447, 1993; Salvat, PENELOPE-2018 manual, chapter 4). Every voxel takes what is lost within it, by its own
stopping power and density.

Media that differ within a step: the hinge is a point drawn in proportion to the loss, and its medium gives
the deflection, so that the mean deflection is that of the media crossed. Hard events are drawn from a rate
that bounds every medium and energy of the step and are accepted with the true one where the electron then is
(the electrons' form of Woodcock's method). Both are exact in the mean without stopping at a border.

The deflection has the mean cosines <P₁> = exp(−K₁), <P₂> = exp(−K₂) of multiple scattering (Goudsmit and
Saunderson 1940; Lewis 1950), K = ∫ G/S dE, drawn from two adjoining uniform distributions of (1 − cos θ)/2
with those moments (PENELOPE-2018, section 4.1.2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import HALF, ONE, TWO, TWO_PI, ZERO, F, add, compiled
from pipeline.montecarlo.electron_tables import ElectronTables
from pipeline.montecarlo.energy import STEP, interpolate, place_on_grid
from pipeline.montecarlo.geometry import ESCAPED, Geometry, deposit, rotate, shell_index, voxel_index
from pipeline.montecarlo.hard_events import collide, ends_here, radiate
from pipeline.montecarlo.random_numbers import uniform

_THIRD = F(1.0 / 3.0)
_THREE = F(3.0)
_SIX = F(6.0)
_QUARTER = F(0.25)
_PER_STEP = F(1.0 / STEP)
# Above it the cosines are as good as uniform: exp(−6) = 0.002.
_ISOTROPIC_FROM = F(6.0)
_LEAST_COSINE = F(1e-12)
_LEAST_STOPPING = F(1e-20)  # keV/cm; nothing is lost in a vacuum, and nothing is divided by zero

Float = np.float32


@compiled
def electron(
    geometry: Geometry,
    tables: ElectronTables,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
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
) -> tuple[int, np.uint64]:
    """Follow one electron to its end; its secondaries go to the bank.

    returns: (count of the bank, next counter). Deposited + escaped + banked = energy.
    """
    place = place_on_grid(energy)
    while True:
        if ends_here(geometry, tables, iz, iy, ix, fz, fy, fx, energy, place):
            deposit(geometry, tally, iz, iy, ix, fz, fy, fx, energy)
            return count, counter
        loss = tables.step * energy
        bound = interpolate(tables.hard_bound[0], place)
        r, counter = uniform(counter, key)
        event = r > ONE - bound * loss  # exp(−x) is never below 1 − x: the logarithm is rarely needed
        if event:
            to_event = -F(math.log(r)) / bound
            event = to_event < loss
            loss = min(to_event, loss)
        after = energy - loss
        place_after = place_on_grid(after)
        r, counter = uniform(counter, key)
        first = r * loss
        hinge = lower(place, first / energy)
        iz, iy, ix, fz, fy, fx, inside, counter = advance(
            geometry,
            tables,
            tally,
            account,
            iz,
            iy,
            ix,
            fz,
            fy,
            fx,
            u,
            v,
            w,
            energy,
            place,
            first,
            counter,
            key,
        )
        if not inside:
            return count, counter
        material = geometry.material[voxel_index(geometry, iz, iy, ix)]
        k1 = interpolate(tables.deflection[material], place)
        k1 = k1 - interpolate(tables.deflection[material], place_after)
        k2 = interpolate(tables.second_deflection[material], place)
        k2 = k2 - interpolate(tables.second_deflection[material], place_after)
        cosine, counter = deflection_cosine(k1, k2, counter, key)
        r, counter = uniform(counter, key)
        u, v, w = rotate(u, v, w, cosine, r * TWO_PI)
        iz, iy, ix, fz, fy, fx, inside, counter = advance(
            geometry, tables, tally, account, iz, iy, ix, fz, fy, fx, u, v, w,
            energy - first, hinge, loss - first, counter, key,
        )  # fmt: skip
        if not inside:
            return count, counter
        energy = after
        place = place_after
        if event:
            material = geometry.material[voxel_index(geometry, iz, iy, ix)]
            r, counter = uniform(counter, key)
            if r * bound < interpolate(tables.hard[material], place_after):
                r, counter = uniform(counter, key)
                if r < interpolate(tables.collision_share[material], place_after):
                    count, u, v, w, energy, counter = collide(
                        geometry,
                        tables,
                        tally,
                        bank,
                        count,
                        iz,
                        iy,
                        ix,
                        fz,
                        fy,
                        fx,
                        u,
                        v,
                        w,
                        energy,
                        counter,
                        key,
                    )
                else:
                    count, energy, counter = radiate(
                        geometry,
                        tables,
                        tally,
                        bank,
                        count,
                        iz,
                        iy,
                        ix,
                        fz,
                        fy,
                        fx,
                        u,
                        v,
                        w,
                        energy,
                        counter,
                        key,
                    )
                place = place_on_grid(energy)


@compiled
def lower(place: Float, part: Float) -> Float:
    """The place on the energy grid after a loss of `part` of the energy."""
    return max(place - descent(part), ZERO)


@compiled
def descent(part: Float) -> Float:
    """How far the place on the energy grid moves down when `part` (at most a step) of the energy is lost.

    −ln(1 − p) by its series; what is left out is below p⁵/5, 1.5e-5 for 15 %.
    """
    return part * (ONE + part * (HALF + part * (_THIRD + part * _QUARTER))) * _PER_STEP


@compiled
def advance(
    geometry: Geometry,
    tables: ElectronTables,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
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
    place: Float,
    loss: Float,
    counter: np.uint64,
    key: np.uint64,
) -> tuple[int, int, int, Float, Float, Float, bool, np.uint64]:
    """Go straight until `loss` (keV) is lost, across as many voxels as that takes. place: of the energy on
    its grid.

    returns: the place, whether it is inside the grid, the next counter. What leaves is accounted as escaped.
    """
    # cm of path per whole voxel side.
    side_z = geometry.dz / max(abs(w), _LEAST_COSINE)
    side_y = geometry.dy / max(abs(v), _LEAST_COSINE)
    side_x = geometry.dx / max(abs(u), _LEAST_COSINE)
    while True:
        voxel = voxel_index(geometry, iz, iy, ix)
        material = geometry.material[voxel]
        density = geometry.density[voxel]
        per_energy = HALF / energy
        stopping = interpolate(tables.soft_stopping[material], lower(place, loss * per_energy)) * density
        stopping = max(stopping, _LEAST_STOPPING)
        to_z = (ONE - fz if w > ZERO else fz) * side_z
        to_y = (ONE - fy if v > ZERO else fy) * side_y
        to_x = (ONE - fx if u > ZERO else fx) * side_x
        path = min(to_z, min(to_y, to_x))
        if stopping * path >= loss:
            path = loss / stopping
            counter = _deposit_on_path(geometry, tally, voxel, fz, fy, fx, u, v, w, path, loss, counter, key)
            fz, fy, fx = (
                _moved(fz, w, path, geometry.dz),
                _moved(fy, v, path, geometry.dy),
                _moved(fx, u, path, geometry.dx),
            )
            return iz, iy, ix, fz, fy, fx, True, counter
        # Once more at the mean energy of this part of the path: the first estimate was for all of the loss.
        lost = stopping * path
        stopping = interpolate(tables.soft_stopping[material], lower(place, lost * per_energy)) * density
        lost = min(stopping * path, loss)
        place = lower(place, lost / energy)
        counter = _deposit_on_path(geometry, tally, voxel, fz, fy, fx, u, v, w, path, lost, counter, key)
        energy -= lost
        loss -= lost
        fz, fy, fx = (
            _moved(fz, w, path, geometry.dz),
            _moved(fy, v, path, geometry.dy),
            _moved(fx, u, path, geometry.dx),
        )
        if to_x <= path:
            ix, fx = (ix + 1, ZERO) if u > ZERO else (ix - 1, ONE)
        elif to_y <= path:
            iy, fy = (iy + 1, ZERO) if v > ZERO else (iy - 1, ONE)
        else:
            iz, fz = (iz + 1, ZERO) if w > ZERO else (iz - 1, ONE)
        if ix < 0 or iy < 0 or iz < 0 or ix >= geometry.nx or iy >= geometry.ny or iz >= geometry.nz:
            add(account, ESCAPED, energy)
            return iz, iy, ix, fz, fy, fx, False, counter


@compiled
def _moved(f: Float, along: Float, path: Float, side: Float) -> Float:
    return min(max(f + along * path / side, ZERO), ONE)


@compiled
def _deposit_on_path(
    geometry: Geometry,
    tally: NDArray[np.float64],
    voxel: int,
    fz: Float,
    fy: Float,
    fx: Float,
    u: Float,
    v: Float,
    w: Float,
    path: Float,
    energy: Float,
    counter: np.uint64,
    key: np.uint64,
) -> np.uint64:
    """Into the voxel; or, between shells, at a random point of the path, which is right in the mean."""
    if geometry.shells.shape[0] == 0:
        add(tally, voxel, energy)
        return counter
    r, counter = uniform(counter, key)
    part = r * path
    shell = shell_index(
        geometry, fz + w * part / geometry.dz, fy + v * part / geometry.dy, fx + u * part / geometry.dx
    )
    add(tally, shell, energy)
    return counter


@compiled
def deflection_cosine(k1: Float, k2: Float, counter: np.uint64, key: np.uint64) -> tuple[Float, np.uint64]:
    """A cosine whose means are <P₁> = exp(−k1) and <P₂> = exp(−k2); next counter."""
    r, counter = uniform(counter, key)
    q, counter = uniform(counter, key)
    if k1 > _ISOTROPIC_FROM:
        return TWO * r - ONE, counter
    # μ = (1 − cos θ)/2: P₁ = 1 − 2μ, P₂ = 1 − 6μ + 6μ²
    mean = -HALF * F(math.expm1(-k1))
    square = mean + F(math.expm1(-k2)) / _SIX
    border = (TWO * mean - _THREE * square) / (ONE - TWO * mean)
    border = min(max(border, ZERO), ONE)
    below = min(max(ONE + border - TWO * mean, ZERO), ONE)
    mu = q * border if r < below else border + q * (ONE - border)
    return ONE - TWO * mu, counter
