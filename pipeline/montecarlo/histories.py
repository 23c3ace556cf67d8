"""Histories: the electrons of one decay, or its photons, with all that they set free.

Electrons and photons of a decay are separate histories: each kind runs as often as its share of the
uncertainty asks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.bank import ELECTRON, PHOTON, push
from pipeline.montecarlo.compiled import HALF, F, add, compiled
from pipeline.montecarlo.electron_tables import ElectronTables
from pipeline.montecarlo.electrons import electron
from pipeline.montecarlo.geometry import EMITTED, Geometry, deposit, isotropic
from pipeline.montecarlo.photon_tables import PhotonTables
from pipeline.montecarlo.photons import photon
from pipeline.montecarlo.random_numbers import first_draw, uniform
from pipeline.montecarlo.sampling import Source, beta_energy, how_many, line_energy, source_voxel

Float = np.float32
_THIRD = F(1.0 / 3.0)


@compiled
def history(
    photons: bool,
    geometry: Geometry,
    electron_tables: ElectronTables,
    photon_tables: PhotonTables,
    source: Source,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
    bank: NDArray[np.float32],
    number: int,
    stratum: int,
    strata: int,
    key: np.uint64,
) -> None:
    """The photons of one decay (gammas, X-rays, annihilation quanta), or its electrons (beta particles,
    conversion and Auger electrons).

    number: of the history in the whole run. stratum, strata: its place in its batch, and the histories of the
        batch.
    """
    iz, iy, ix, fz, fy, fx, counter = decay_place(geometry, source, stratum, strata, first_draw(number), key)
    local = source.local_photons if photons else source.local_electrons
    add(account, EMITTED, local)
    deposit(geometry, tally, iz, iy, ix, fz, fy, fx, local)
    betas = 0
    if photons:
        lines, counter = how_many(source.photons.per_decay, counter, key)
    else:
        betas, counter = how_many(source.betas_per_decay, counter, key)
        lines, counter = how_many(source.electrons.per_decay, counter, key)
    for particle in range(betas + lines):
        if photons:
            kind = PHOTON
            energy, counter = line_energy(source.photons, counter, key)
        elif particle < betas:
            kind = ELECTRON
            energy, counter = beta_energy(source, counter, key)
        else:
            kind = ELECTRON
            energy, counter = line_energy(source.electrons, counter, key)
        counter = emit(
            geometry, electron_tables, photon_tables, tally, account, bank, kind,
            iz, iy, ix, fz, fy, fx, energy, counter, key,
        )  # fmt: skip


@compiled
def decay_place(
    geometry: Geometry, source: Source, stratum: int, strata: int, counter: np.uint64, key: np.uint64
) -> tuple[int, int, int, Float, Float, Float, np.uint64]:
    """Where a decay happens: voxel, place within it; next counter."""
    if geometry.shells.shape[0] > 0:
        u, v, w, counter = isotropic(counter, key)
        r, counter = uniform(counter, key)
        distance = source.radius * F(math.exp(F(math.log(r)) * _THIRD))
        fz = HALF + w * distance / geometry.dz
        fy = HALF + v * distance / geometry.dy
        fx = HALF + u * distance / geometry.dx
        return 0, 0, 0, fz, fy, fx, counter
    voxel, counter = source_voxel(source, stratum, strata, counter, key)
    fz, counter = uniform(counter, key)
    fy, counter = uniform(counter, key)
    fx, counter = uniform(counter, key)
    ix = voxel % geometry.nx
    iy = (voxel // geometry.nx) % geometry.ny
    iz = voxel // (geometry.nx * geometry.ny)
    return iz, iy, ix, fz, fy, fx, counter


@compiled
def emit(
    geometry: Geometry,
    electron_tables: ElectronTables,
    photon_tables: PhotonTables,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
    bank: NDArray[np.float32],
    kind: np.int32,
    iz: int,
    iy: int,
    ix: int,
    fz: Float,
    fy: Float,
    fx: Float,
    energy: Float,
    counter: np.uint64,
    key: np.uint64,
) -> np.uint64:
    """One particle in a random direction, and all that comes of it; next counter."""
    add(account, EMITTED, energy)
    u, v, w, counter = isotropic(counter, key)
    count = push(bank, 0, kind, iz, iy, ix, fz, fy, fx, u, v, w, energy)
    while count > 0:
        count -= 1
        is_photon = int(bank[count, 0]) == PHOTON
        jz, jy, jx = int(bank[count, 1]), int(bank[count, 2]), int(bank[count, 3])
        gz, gy, gx = bank[count, 4], bank[count, 5], bank[count, 6]
        u, v, w, e = bank[count, 7], bank[count, 8], bank[count, 9], bank[count, 10]
        if is_photon:
            count, counter = photon(
                geometry,
                photon_tables,
                tally,
                account,
                bank,
                count,
                jz,
                jy,
                jx,
                gz,
                gy,
                gx,
                u,
                v,
                w,
                e,
                counter,
                key,
            )
        else:
            count, counter = electron(
                geometry,
                electron_tables,
                tally,
                account,
                bank,
                count,
                jz,
                jy,
                jx,
                gz,
                gy,
                gx,
                u,
                v,
                w,
                e,
                counter,
                key,
            )
    return counter


@compiled
def run_histories(
    photons: bool,
    geometry: Geometry,
    electron_tables: ElectronTables,
    photon_tables: PhotonTables,
    source: Source,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
    bank: NDArray[np.float32],
    first: int,
    begin: int,
    end: int,
    strata: int,
    key: np.uint64,
) -> None:
    """Histories `begin` ... `end` − 1 of a batch of `strata` that begins with history number `first`."""
    for stratum in range(begin, end):
        history(
            photons, geometry, electron_tables, photon_tables, source, tally, account, bank,
            first + stratum, stratum, strata, key,
        )  # fmt: skip
