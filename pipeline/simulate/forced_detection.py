"""Photons in the patient, forced at every interaction towards every view of the gamma camera.

Flight, Compton scattering with binding, and attenuation are those of the Monte Carlo engine
(`pipeline.montecarlo.photons`). What is added is the estimator: at each collision a photon of weight w that
flew along d adds to each view with the direction c towards its head, in each energy window W::

    w · 4π p(d·c | E) · exp(−∫ μ(E') dl) · P(E' in W),     E' = E / [1 + (1 − d·c) E/mc²]

p is Klein-Nishina times the incoherent scattering function, normalised to one, and P the Gaussian energy
resolution with the crystal's efficiency. The factor 4π makes it relative to a photon emitted isotropically:
1 stands for the camera's system sensitivity (Ljungberg and Strand, Comput. Methods Programs Biomed. 29:257,
1989, for the principle; de Jong, Slijpen and Beekman, IEEE Trans. Nucl. Sci. 48:58, 2001, for convolution
instead of tracking through the collimator).

* The optical depth ∫ μ dl to the outside is tabulated for every voxel and view at one energy, and scaled
  with μ of water: from 150 to 320 keV tissues attenuate by Compton scattering, which differs from tissue to
  tissue by the number of electrons alone (cortical bone strays by 3 % at 150 keV).
* A photoelectric absorption lowers the weight instead of ending the photon.
* The response of collimator and detector moves each collision by one draw of a Gaussian of its width at that
  distance: exact in the mean, and without planes of depth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import HALF, ONE, REST, TWO, TWO_PI, F, compiled
from pipeline.montecarlo.energy import interpolate, place_on_grid
from pipeline.montecarlo.geometry import Geometry, isotropic, rotate, voxel_index
from pipeline.montecarlo.photon_tables import PhotonTables
from pipeline.montecarlo.photons import PER_HC, at_momentum, compton, fly
from pipeline.montecarlo.random_numbers import first_draw, uniform
from pipeline.montecarlo.sampling import Source, line_energy, source_voxel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

WINDOWS = 3
"""Photopeak, lower, upper: in this order everywhere."""
PRIMARY = 3
"""The channel of unscattered photons of the main line, in the photopeak window."""
CHANNELS = 4
MU_COLUMN = 3  # of `Detection.spectrum`

FOUR_PI = F(4.0 * math.pi)
_MOST_ORDERS = 12  # 208 keV falls below the lower window in two wide-angle collisions, 321 keV in four


class Emitter(NamedTuple):
    """The activity's own lattice, finer than the transport's: voxels to places in cm.

    nz, ny, nx: voxels; z, y, x: position of the corner of voxel 0 in the transport's voxel coordinates;
    dz, dy, dx: signed sides in transport voxels.
    """

    ny: int
    nx: int
    z: np.float32
    y: np.float32
    x: np.float32
    dz: np.float32
    dy: np.float32
    dx: np.float32


class Detection(NamedTuple):
    """What forced detection looks up; V views, voxels of the transport's geometry.

    toward_x, toward_y: [V] direction towards the head; lateral_x, lateral_y: [V] that of rising bins.
    optical_depth: [ny · nx · nz · V] at the reference energy, from a voxel's centre to the outside.
    centre_y, centre_x: cm, the axis of rotation; base_z: cm, where row 0 begins; from the grid's corner.
    radius: [V] cm, from the axis to the head's face.
    sigma: [D] cm, of the response at distances 0, 1, 2 … cm.
    per_bin: bins per cm along both axes of the projection.
    spectrum: [E, 4] at energies from `least` in steps of 1/`per_kev`: P in three windows, μ over that at the
        reference energy. Beyond the last energy, the last.
    norm: [M, N] ∫ (Klein-Nishina · S) dΩ in units of r²/2, over `energy.grid_kev`.
    """

    views: int
    rows: int
    bins: int
    toward_x: Float32
    toward_y: Float32
    lateral_x: Float32
    lateral_y: Float32
    optical_depth: Float32
    centre_y: np.float32
    centre_x: np.float32
    base_z: np.float32
    radius: Float32
    sigma: Float32
    per_bin: np.float32
    spectrum: Float32
    least: np.float32
    per_kev: np.float32
    norm: Float32


class Photon(NamedTuple):
    """A photon at a place: its voxel, the place in it, direction, energy (keV) and weight."""

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
    weight: np.float32


@compiled
def optical_depths(
    mu: Float32,
    ny: int,
    nx: int,
    nz: int,
    toward_x: Float32,
    toward_y: Float32,
    first: int,
    last: int,
    column: Float32,
    depth: Float32,
) -> None:
    """Rows `first` … `last` − 1 (along y) of `Detection.optical_depth`.

    mu: [ny · nx · nz], attenuation per voxel side. column: [nz], scratch. Midpoints of steps of one voxel,
    bilinear in the plane: all slices at once, which is why z runs fastest.
    """
    views = toward_x.shape[0]
    for iy in range(first, last):
        for ix in range(nx):
            for view in range(views):
                for k in range(nz):
                    column[k] = F(0.0)
                y = F(iy) + HALF * toward_y[view]
                x = F(ix) + HALF * toward_x[view]
                while y > -ONE and x > -ONE and y < F(ny) and x < F(nx):
                    _add_column(mu, ny, nx, nz, y, x, column)
                    y += toward_y[view]
                    x += toward_x[view]
                start = (iy * nx + ix) * nz * views + view
                for k in range(nz):
                    depth[start + k * views] = column[k]


@compiled
def _add_column(
    mu: Float32, ny: int, nx: int, nz: int, y: np.float32, x: np.float32, column: Float32
) -> None:
    """Add μ at (y, x), voxel centres at whole numbers, of all slices; nothing outside."""
    low_y = floor(y)
    low_x = floor(x)
    above_y = y - F(low_y)
    above_x = x - F(low_x)
    for jy in range(2):
        for jx in range(2):
            at_y = low_y + jy
            at_x = low_x + jx
            if at_y >= 0 and at_x >= 0 and at_y < ny and at_x < nx:
                share = (above_y if jy else ONE - above_y) * (above_x if jx else ONE - above_x)
                start = (at_y * nx + at_x) * nz
                for k in range(nz):
                    column[k] += share * mu[start + k]


@compiled
def run_photons(
    geometry: Geometry,
    tables: PhotonTables,
    detection: Detection,
    source: Source,
    emitter: Emitter,
    main: np.float32,
    tally: Float64,
    account: Float64,
    depth: Float32,
    begin: int,
    end: int,
    strata: int,
    primary_every: int,
    key: np.uint64,
) -> None:
    """Photons `begin` … `end` − 1 of `strata`, one from each stratum of the activity.

    main: keV, the photopeak's line.
    tally: [CHANNELS · V · rows · bins] of scattered photons in the windows; the last channel holds the
        primaries of the main line.
    account: [CHANNELS]: unscattered photons of the other lines in the windows, and those of the main line
        (`PRIMARY`), all that fall on the projections. Every `primary_every`-th photon is asked, with that
        weight.
    depth: [V], scratch.
    """
    for number in range(begin, end):
        counter = first_draw(number)
        iz, iy, ix, fz, fy, fx, counter = _emitted(source, emitter, number, strata, counter, key)
        energy, counter = line_energy(source.photons, counter, key)
        if iz < 0 or iz >= geometry.nz or iy < 0 or iy >= geometry.ny or ix < 0 or ix >= geometry.nx:
            continue
        if number % primary_every == 0:
            at = Photon(iz, iy, ix, fz, fy, fx, ONE, F(0.0), F(0.0), energy, F(primary_every))
            counter = _detect_primary(
                geometry, detection, tally, account, depth, at, energy == main, counter, key
            )
        u, v, w, counter = isotropic(counter, key)
        at = Photon(iz, iy, ix, fz, fy, fx, u, v, w, energy, ONE)
        _follow(geometry, tables, detection, tally, depth, at, counter, key)


@compiled
def _emitted(
    source: Source, emitter: Emitter, number: int, strata: int, counter: np.uint64, key: np.uint64
) -> tuple[int, int, int, np.float32, np.float32, np.float32, np.uint64]:
    """Where a photon is emitted: the transport's voxel, the place in it; the next counter."""
    voxel, counter = source_voxel(source, number, strata, counter, key)
    jx = voxel % emitter.nx
    jy = (voxel // emitter.nx) % emitter.ny
    jz = voxel // (emitter.nx * emitter.ny)
    r, counter = uniform(counter, key)
    z = emitter.z + (F(jz) + r) * emitter.dz
    r, counter = uniform(counter, key)
    y = emitter.y + (F(jy) + r) * emitter.dy
    r, counter = uniform(counter, key)
    x = emitter.x + (F(jx) + r) * emitter.dx
    iz = floor(z)
    iy = floor(y)
    ix = floor(x)
    return iz, iy, ix, z - F(iz), y - F(iy), x - F(ix), counter


@compiled
def _follow(
    geometry: Geometry,
    tables: PhotonTables,
    detection: Detection,
    tally: Float64,
    depth: Float32,
    at: Photon,
    counter: np.uint64,
    key: np.uint64,
) -> None:
    """From collision to collision, each forced into all views, until the photon leaves or is too weak."""
    iz, iy, ix, fz, fy, fx = at.iz, at.iy, at.ix, at.fz, at.fy, at.fx
    u, v, w, energy, weight = at.u, at.v, at.w, at.energy, at.weight
    for _ in range(_MOST_ORDERS):
        place = place_on_grid(energy)
        inside, iz, iy, ix, fz, fy, fx, counter = fly(
            geometry, tables, place, iz, iy, ix, fz, fy, fx, u, v, w, counter, key
        )
        if not inside:
            return
        material = int(geometry.material[voxel_index(geometry, iz, iy, ix)])
        weight *= ONE - interpolate(tables.photoelectric[material], place)
        here = Photon(iz, iy, ix, fz, fy, fx, u, v, w, energy, weight)
        norm = interpolate(detection.norm[material], place)
        counter = _detect_scattered(
            geometry, detection, tables.scattering_function[material], tally, depth, here, norm, counter, key
        )
        cosine, energy, counter = compton(tables, material, energy, counter, key)
        if energy <= detection.least:
            return
        azimuth, counter = uniform(counter, key)
        u, v, w = rotate(u, v, w, cosine, TWO_PI * azimuth)


@compiled
def _detect_scattered(
    geometry: Geometry,
    detection: Detection,
    scattering_function: Float32,
    tally: Float64,
    depth: Float32,
    at: Photon,
    norm: np.float32,
    counter: np.uint64,
    key: np.uint64,
) -> np.uint64:
    """One collision in all views and windows; the next counter."""
    _depths_at(geometry, detection, at, depth)
    along, across, counter = _two_normals(counter, key)
    y, x, z = _place_cm(geometry, detection, at)
    k = at.energy / REST
    momentum = at.energy * PER_HC
    scale = at.weight * FOUR_PI / norm
    channel = detection.views * detection.rows * detection.bins
    for view in range(detection.views):
        cosine = at.u * detection.toward_x[view] + at.v * detection.toward_y[view]
        away = max(ONE - cosine, F(0.0))
        fraction = ONE / (ONE + k * away)
        scattered = at.energy * fraction
        step = int((scattered - detection.least) * detection.per_kev)
        if step < 0:
            continue
        cell = _cell(detection, view, y, x, z, along, across)
        if cell < 0:
            continue
        step = min(step, detection.spectrum.shape[0] - 1)
        binding = at_momentum(scattering_function, momentum * F(math.sqrt(HALF * away)))
        angular = fraction * fraction * (fraction + ONE / fraction - away * (TWO - away)) * binding
        value = scale * angular * F(math.exp(-depth[view] * detection.spectrum[step, MU_COLUMN]))
        for window in range(WINDOWS):
            tally[window * channel + cell] += value * detection.spectrum[step, window]
    return counter


@compiled
def _detect_primary(
    geometry: Geometry,
    detection: Detection,
    tally: Float64,
    account: Float64,
    depth: Float32,
    at: Photon,
    main: bool,
    counter: np.uint64,
    key: np.uint64,
) -> np.uint64:
    """One emission in all views: the main line to its channel, others to the account; the next counter."""
    _depths_at(geometry, detection, at, depth)
    along, across, counter = _two_normals(counter, key)
    y, x, z = _place_cm(geometry, detection, at)
    channel = detection.views * detection.rows * detection.bins
    step = int((at.energy - detection.least) * detection.per_kev)
    step = min(step, detection.spectrum.shape[0] - 1)
    for view in range(detection.views):
        cell = _cell(detection, view, y, x, z, along, across)
        if cell < 0:
            continue
        value = at.weight * F(math.exp(-depth[view] * detection.spectrum[step, MU_COLUMN]))
        if main:
            tally[PRIMARY * channel + cell] += value * detection.spectrum[step, 0]
            account[PRIMARY] += value * detection.spectrum[step, 0]
        else:
            for window in range(WINDOWS):
                account[window] += value * detection.spectrum[step, window]
    return counter


@compiled
def _place_cm(
    geometry: Geometry, detection: Detection, at: Photon
) -> tuple[np.float32, np.float32, np.float32]:
    """(y, x) from the axis of rotation, z from the beginning of row 0; cm."""
    y = (F(at.iy) + at.fy) * geometry.dy - detection.centre_y
    x = (F(at.ix) + at.fx) * geometry.dx - detection.centre_x
    z = (F(at.iz) + at.fz) * geometry.dz - detection.base_z
    return y, x, z


@compiled
def _cell(
    detection: Detection,
    view: int,
    y: np.float32,
    x: np.float32,
    z: np.float32,
    along: np.float32,
    across: np.float32,
) -> int:
    """Which cell [view, row, bin] of a channel a place falls into, blurred by the response; −1: none."""
    distance = detection.radius[view] - (x * detection.toward_x[view] + y * detection.toward_y[view])
    sigma = detection.sigma[min(max(int(distance + HALF), 0), detection.sigma.shape[0] - 1)]
    lateral = x * detection.lateral_x[view] + y * detection.lateral_y[view] + across * sigma
    place = lateral * detection.per_bin + HALF * F(detection.bins)
    row_place = (z + along * sigma) * detection.per_bin
    if place < F(0.0) or row_place < F(0.0):
        return -1
    column = int(place)
    row = int(row_place)
    if column >= detection.bins or row >= detection.rows:
        return -1
    return (view * detection.rows + row) * detection.bins + column


@compiled
def _depths_at(geometry: Geometry, detection: Detection, at: Photon, depth: Float32) -> None:
    """Optical depths of a place towards all views, [V], interpolated between the eight voxels round it."""
    views = detection.views
    for view in range(views):
        depth[view] = F(0.0)
    low_y, above_y = _between(at.iy, at.fy, geometry.ny)
    low_x, above_x = _between(at.ix, at.fx, geometry.nx)
    low_z, above_z = _between(at.iz, at.fz, geometry.nz)
    for jy in range(2):
        for jx in range(2):
            share = (above_y if jy else ONE - above_y) * (above_x if jx else ONE - above_x)
            at_y = min(low_y + jy, geometry.ny - 1)
            at_x = min(low_x + jx, geometry.nx - 1)
            start = ((at_y * geometry.nx + at_x) * geometry.nz + low_z) * views
            next_z = start + (views if low_z + 1 < geometry.nz else 0)
            here, above = share * (ONE - above_z), share * above_z
            for view in range(views):
                depth[view] += (
                    here * detection.optical_depth[start + view]
                    + above * detection.optical_depth[next_z + view]
                )


@compiled
def floor(value: np.float32) -> int:
    """The whole number not above a value; compiled, math.floor gives a float."""
    below = F(math.floor(value))
    return int(below)


@compiled
def _between(index: int, inside: np.float32, n: int) -> tuple[int, np.float32]:
    """(the voxel whose centre lies below a place, how far above it), held within the grid."""
    place = F(index) + inside - HALF
    if place <= F(0.0):
        return 0, F(0.0)
    low = min(int(place), n - 1)
    return low, place - F(low)


@compiled
def _two_normals(counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.float32, np.uint64]:
    """Two standard normal numbers (Box and Muller, Ann. Math. Stat. 29:610, 1958); the next counter."""
    r, counter = uniform(counter, key)
    q, counter = uniform(counter, key)
    length = F(math.sqrt(-TWO * F(math.log(r))))
    return length * F(math.cos(TWO_PI * q)), length * F(math.sin(TWO_PI * q)), counter
