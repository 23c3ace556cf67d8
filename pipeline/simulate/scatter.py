"""What a gamma camera counts of photons that scattered in the patient, in three energy windows.

Photons of every line that can reach a window are followed from the true activity through the true density
(`forced_detection`). The result is relative to the system sensitivity: an emission that reached the camera
in air unscattered, in the photopeak's window, counts 1. So activity in Bq gives projections in Bq, on the
scale of the analytic projector, and one sensitivity turns both into counts per second.

Scatter is smooth. It is followed for few views and on coarse cells, of which

* a Gaussian of one cell (9.6 mm at pixels of 4.8 mm) along both axes of a projection takes out noise: it
  widens scatter, whose own width is that of organs and more, by a per cent;
* cubic splines bring it to the camera's pixels, and trigonometric interpolation to its views.

Left out: coherent scattering, whose photons keep energy and almost their direction (1 % of the attenuation
at 208 keV; the attenuation here is without it, and so must be that of the primaries), the movement of
electrons in atoms (Doppler broadening), scatter in the collimator and behind the crystal, and photons of
higher lines that leave part of their energy in the crystal (of Lu-177's 321 keV, in the lower window 0.05 %
of the primaries' counts).
"""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter1d
from scipy.signal import resample

from pipeline.averaging import averaged
from pipeline.constants import ELECTRON_REST_KEV
from pipeline.cores import available_cores
from pipeline.dose_rate import Progress
from pipeline.errors import InputRejected
from pipeline.lattice import lengthened
from pipeline.montecarlo import energy
from pipeline.montecarlo.compiled import F
from pipeline.montecarlo.data import PhysicsData, load_physics
from pipeline.montecarlo.decay_data import load_source
from pipeline.montecarlo.geometry import Geometry, voxel_geometry
from pipeline.montecarlo.materials import material_map
from pipeline.montecarlo.photon_tables import MOMENTA, MOMENTUM_MAX, PhotonTables, photon_tables
from pipeline.montecarlo.random_numbers import stream_key
from pipeline.montecarlo.sampling import Source, source_in_voxels
from pipeline.simulate.camera import FWHM_PER_SIGMA, SpectCamera
from pipeline.simulate.energy_windows import (
    SPECTRUM_PER_KEV,
    photopeak_line,
    spectrum,
    spill,
    yield_of,
)
from pipeline.simulate.fields import axis_coordinates
from pipeline.simulate.forced_detection import (
    CHANNELS,
    PRIMARY,
    WINDOWS,
    Detection,
    Emitter,
    optical_depths,
    run_photons,
)
from pipeline.volume import Grid, Triple, Volume

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PHOTONS: Final = 2_000_000
"""Photons followed for a patient unless the caller says otherwise: at 10 million counts their own noise is an
eighth of Poisson's in the image, voxel by voxel, and a thousandth of an organ's mean.
"""
VIEWS: Final = 32
CELL_MM: Final = 9.6
"""About the side of the cells that scatter is counted on: a whole number of pixels."""
VOXEL_MM: Final = 7.2
"""Side of the voxels of transport. Half a mean free path of 208 keV in water is 36 mm."""

# Scatter that starts beyond the outermost pixels is wanted by the smoothing and by the splines.
_MARGIN_CELLS = 3
_SMOOTHING_CELLS = 1.0
# The sum is over parts in their order, whatever thread made them: a seed gives the same numbers everywhere.
_PARTS = 16
_BODY_G_PER_CM3 = 0.05
_SIGMA_TABLE_CM = 120
_STREAM = 7
_POLAR_POINTS = 96


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """Counts of scattered photons, in Bq (see the module's docstring).

    windows: (3, views, slices, bins) photopeak, lower, upper, for every view and pixel of the camera.
    primary: (views of the simulation, slices, bins) Bq, unscattered photons of the photopeak's line in its
        window as the simulation saw them, smoothed as scatter is: only for comparison with a projector.
    primary_bq: their total per view. other_lines: (3,) unscattered photons of all other lines in the windows,
        per unscattered photon of the photopeak's line in its window.
    spill: (3,) photons of the photopeak's line in the windows, per photon in its own.
    photons: how many were followed.
    """

    windows: Float32
    primary: Float32
    primary_bq: float
    other_lines: Float64
    spill: Float64
    photons: int


def simulated_scatter(
    activity: Volume,
    density: Volume,
    camera: SpectCamera,
    centre_mm: Triple,
    *,
    seed: int,
    photons: int = PHOTONS,
    views: int = VIEWS,
    primary_every: int = 16,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Scatter:
    """Scatter of a patient in the camera's three windows.

    activity: Bq/mL; density: g/cm³; on axial grids. Where the activity reaches beyond the density's first or
    last slice the patient goes on as there; beyond its sides is nothing, and no activity may be.
    centre_mm: patient (x, y, z) of the axis of rotation and of the field's middle.
    seed: same seed, same result on any number of threads. primary_every: of so many photons one is asked for
    what it gives unscattered. progress: called with (what is done, 0 … 1).
    raises: InputRejected for volumes that do not fit each other, hold no activity or impossible values, and
        for a nuclide without a line in the camera's photopeak window.
    """
    require_activity(activity, density)
    density = lengthened(density, activity.grid)
    decay = load_source(camera.nuclide)
    main, chances, least = spectrum(camera, decay)
    box = transport_grid(activity, density, centre_mm)
    geometry, tables = _medium(density, box)
    views = min(views, camera.views)
    detection = _detection(camera, centre_mm, box, geometry, chances, least, views, threads)
    source = source_in_voxels(activity.array, decay, math.inf, least)
    emitter = _emitter(activity.grid, box)
    tally, account = _run(
        geometry, tables, detection, source, emitter, main, photons, primary_every, seed,
        threads or available_cores(), progress,
    )  # fmt: skip
    total = activity.integral
    # Each photon stands for so many Bq of the photopeak's line.
    per_photon = total * float(source.photons.per_decay) / photons / yield_of(decay, main)
    channels = tally.reshape(CHANNELS, views, detection.rows, detection.bins) * per_photon
    asked = max(account[PRIMARY], np.finfo(float).tiny)
    return Scatter(
        windows=_onto_camera(channels[:WINDOWS], camera, camera.views),
        primary=_onto_camera(channels[PRIMARY:], camera, views)[0],
        primary_bq=float(account[PRIMARY] * per_photon / views),
        other_lines=np.asarray(account[:WINDOWS] / asked),
        spill=spill(camera),
        photons=photons,
    )


def require_activity(activity: Volume, density: Volume) -> None:
    """raises: InputRejected for values that no patient has, and for activity where no density is known."""
    for volume, name, unit in ((activity, "activity", "Bq/mL"), (density, "density", "g/cm3")):
        if volume.unit != unit:
            raise InputRejected(f"the {name} is in {volume.unit}", f"Give it in {unit}")
        wrong = int(np.count_nonzero(~(volume.array >= 0) | ~np.isfinite(volume.array)))
        if wrong:
            raise InputRejected(
                f"the {name} has {wrong} voxels that are negative or not a number",
                f"Correct the {name} map",
            )
    if not activity.array.any():
        raise InputRejected("there is no activity in the patient", "Give an activity map in Bq/mL")
    if activity.grid.frame_of_reference_uid != density.grid.frame_of_reference_uid:
        raise InputRejected(
            "activity and density have different Frame of Reference UIDs",
            "Give both in one frame of reference",
        )
    inside = np.ones(activity.grid.shape[1:], dtype=bool)
    for axis, (low, high) in enumerate(_extent(density.grid)[1:]):
        places = axis_coordinates(activity.grid)[1 + axis]
        within = (places >= low) & (places <= high)
        inside &= within[:, None] if axis == 0 else within[None, :]
    astray = int(np.count_nonzero((activity.array > 0) & ~inside))
    if astray:
        raise InputRejected(
            f"{astray} voxels with activity lie beside the density's grid",
            "Extend the density to where the activity is, or crop the activity",
        )


def true_attenuation(density: Volume, kev: float) -> Float32:
    """(z, y, x) attenuation in 1/mm: that of the transport, without coherent scattering.

    density: g/cm³. raises: InputRejected where it is negative or not a number.
    """
    per_mm = np.take(_per_gram(kev) / np.float32(10.0), material_map(density.array))
    return np.asarray(per_mm * density.array, dtype=np.float32)


def _per_gram(kev: float) -> Float32:
    """[M] μ/ρ of all media without coherent scattering, cm²/g; interpolated as transport does."""
    physics = without_coherent()
    total = physics.photoelectric + physics.incoherent + physics.pair
    place = (math.log(kev) - energy.LN_E_MIN) / energy.STEP
    low = int(place)
    return np.asarray(total[:, low] + (place - low) * (total[:, low + 1] - total[:, low]), dtype=np.float32)


def transport_grid(activity: Volume, density: Volume, centre_mm: Triple) -> Grid:
    """Cubic voxels along the patient's axes that hold the body and all activity.

    centre_mm: of the camera's field, a corner of voxels: so that patients on equal fields share a lattice.
    """
    ranges = []
    coordinates = axis_coordinates(density.grid)
    dense = density.array > _BODY_G_PER_CM3
    active = activity.array > 0
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = [coordinates[axis][dense.any(axis=others)]]
        places.append(axis_coordinates(activity.grid)[axis][active.any(axis=others)])
        half = max(activity.grid.spacing_mm[axis], density.grid.spacing_mm[axis]) / 2
        found = np.concatenate(places)
        middle = centre_mm[2 - axis]
        first = math.floor((found.min() - half - middle) / VOXEL_MM)
        last = math.ceil((found.max() + half - middle) / VOXEL_MM)
        ranges.append((middle + (first + 0.5) * VOXEL_MM, last - first))
    (z, nz), (y, ny), (x, nx) = ranges
    uid = density.grid.frame_of_reference_uid
    return Grid((nz, ny, nx), (x, y, z), (VOXEL_MM,) * 3, frame_of_reference_uid=uid)


@cache
def without_coherent() -> PhysicsData:
    """The physics data with coherent scattering taken for no scattering."""
    physics = load_physics()
    return replace(physics, coherent=np.zeros_like(physics.coherent))


def _extent(grid: Grid) -> list[tuple[float, float]]:
    """The box of an axial grid: (low, high) in mm along z, y, x."""
    return [
        (float(centres.min()) - spacing / 2, float(centres.max()) + spacing / 2)
        for centres, spacing in zip(axis_coordinates(grid), grid.spacing_mm, strict=True)
    ]


def _medium(density: Volume, box: Grid) -> tuple[Geometry, PhotonTables]:
    coarse = averaged(density, box).array
    np.maximum(coarse, 0.0, out=coarse)
    side = VOXEL_MM / 10.0
    geometry = voxel_geometry(material_map(coarse), coarse, (side, side, side))
    return geometry, photon_tables(without_coherent(), geometry, electron_cutoff_kev=0.0)


def _emitter(grid: Grid, box: Grid) -> Emitter:
    """The activity's lattice in voxels of transport, whose corner is 0."""
    start = box.indices(grid.positions((-0.5, -0.5, -0.5))) + 0.5
    step = np.diag(np.linalg.solve(box.affine[:3, :3], grid.affine[:3, :3]))
    return Emitter(grid.shape[1], grid.shape[2], *(F(value) for value in (*start, *step)))


@cache
def _compton_norm() -> Float32:
    """`Detection.norm` of all media."""
    physics = load_physics()
    grid = energy.grid_kev()[:, None]
    # Gauss points in sqrt(1 − cos θ), to which momentum transfer is proportional: S rises at the origin.
    points, weights = np.polynomial.legendre.leggauss(_POLAR_POINTS)
    root = math.sqrt(2.0) * 0.5 * (points + 1.0)
    away, weights = root**2, weights * math.sqrt(2.0) * root
    fraction = 1.0 / (1.0 + grid / ELECTRON_REST_KEV * away)
    klein_nishina = fraction**2 * (fraction + 1.0 / fraction - away * (2.0 - away))
    x = grid / 12.398420 * np.sqrt(away / 2.0)
    tables = _scattering_functions(physics)
    steps = np.linspace(0.0, math.sqrt(MOMENTUM_MAX), MOMENTA)
    rows = [2.0 * math.pi * (klein_nishina * np.interp(np.sqrt(x), steps, row)) @ weights for row in tables]
    return np.ascontiguousarray(rows, dtype=np.float32)


def _scattering_functions(physics: PhysicsData) -> Float32:
    """Of all media as transport reads them."""
    nothing = voxel_geometry(np.zeros((1, 1, 1), np.uint8), np.ones((1, 1, 1), np.float32), (1.0, 1.0, 1.0))
    return photon_tables(physics, nothing, electron_cutoff_kev=0.0).scattering_function


# Views


def _detection(
    camera: SpectCamera,
    centre_mm: Triple,
    box: Grid,
    geometry: Geometry,
    chances: Float32,
    least: float,
    views: int,
    threads: int | None,
) -> Detection:
    angles = 2.0 * np.pi * np.arange(views) / views
    # As `SpectCamera.view_angles` says: the head is at (sin θ, −cos θ), bins go along (cos θ, sin θ).
    sine, cosine = np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)
    cell_cm = _pixels_per_cell(camera) * camera.pixel_mm / 10.0
    rows, bins = (_cells(n, camera) for n in (camera.slices, camera.bins))
    corner = box.positions((-0.5, -0.5, -0.5))
    axis_x, axis_y, middle_z = (np.asarray(centre_mm) - corner) / 10.0
    distances = 10.0 * np.arange(_SIGMA_TABLE_CM)
    main = photopeak_line(camera)
    return Detection(
        views=views,
        rows=rows,
        bins=bins,
        toward_x=sine,
        toward_y=-cosine,
        lateral_x=cosine,
        lateral_y=sine,
        optical_depth=_optical_depth(geometry, main, sine, -cosine, threads),
        centre_y=F(axis_y),
        centre_x=F(axis_x),
        base_z=F(middle_z - rows * cell_cm / 2.0),
        radius=(camera.radius_at(angles) / 10.0).astype(np.float32),
        sigma=(camera.fwhm_mm(distances) / FWHM_PER_SIGMA / 10.0).astype(np.float32),
        per_bin=F(1.0 / cell_cm),
        spectrum=chances,
        least=F(least),
        per_kev=F(SPECTRUM_PER_KEV),
        norm=_compton_norm(),
    )


def _pixels_per_cell(camera: SpectCamera) -> int:
    return max(1, round(CELL_MM / camera.pixel_mm))


def _cells(pixels: int, camera: SpectCamera) -> int:
    return math.ceil(pixels / _pixels_per_cell(camera)) + 2 * _MARGIN_CELLS


def _optical_depth(
    geometry: Geometry,
    kev: float,
    toward_x: Float32,
    toward_y: Float32,
    threads: int | None,
) -> Float32:
    nz, ny, nx = geometry.nz, geometry.ny, geometry.nx
    mu = np.take(_per_gram(kev), geometry.material) * geometry.density * geometry.dx
    mu = np.ascontiguousarray(mu.reshape(nz, ny, nx).transpose(1, 2, 0)).reshape(-1)
    depth = np.empty(mu.size * toward_x.size, np.float32)

    def rows(first: int) -> None:
        last = min(first + 4, ny)
        optical_depths(mu, ny, nx, nz, toward_x, toward_y, first, last, np.zeros(nz, np.float32), depth)

    with ThreadPoolExecutor(threads or available_cores()) as pool:
        list(pool.map(rows, range(0, ny, 4)))
    return depth


def _run(
    geometry: Geometry,
    tables: PhotonTables,
    detection: Detection,
    source: Source,
    emitter: Emitter,
    main: float,
    photons: int,
    primary_every: int,
    seed: int,
    threads: int,
    progress: Progress | None,
) -> tuple[Float64, Float64]:
    """(tally, account) of `run_photons`."""
    key = stream_key(seed, _STREAM)
    size = CHANNELS * detection.views * detection.rows * detection.bins
    bounds = [photons * part // _PARTS for part in range(_PARTS + 1)]
    stop = threading.Event()

    def part(begin: int, end: int) -> tuple[Float64, Float64]:
        tally, account = np.zeros(size), np.zeros(CHANNELS)
        if not stop.is_set():
            run_photons(
                geometry, tables, detection, source, emitter, F(main), tally, account,
                np.zeros(detection.views, np.float32), begin, end, photons, primary_every, key,
            )  # fmt: skip
        return tally, account

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(part, begin, end) for begin, end in itertools.pairwise(bounds)]
        try:
            for done, _ in enumerate(as_completed(futures), start=1):
                if progress is not None:
                    progress("scatter", done / _PARTS)
        except BaseException:  # Ctrl-C, or the caller's progress: do not wait for what has not begun
            stop.set()
            raise
    results = [future.result() for future in futures]
    tally, account = np.zeros(size), np.zeros(CHANNELS)
    for one_tally, one_account in results:
        tally += one_tally
        account += one_account
    return tally, account


def _onto_camera(channels: Float64, camera: SpectCamera, views: int) -> Float32:
    """(n, views, slices, bins) per pixel, from (n, views, rows, bins) per cell."""
    per_cell = _pixels_per_cell(camera)
    smooth = channels / per_cell**2
    for axis, pixels in ((2, camera.slices), (3, camera.bins)):
        smooth = gaussian_filter1d(smooth, _SMOOTHING_CELLS, axis=axis, mode="nearest")
        cells = np.arange(smooth.shape[axis]) - (smooth.shape[axis] - 1) / 2.0
        wanted = (np.arange(pixels) - (pixels - 1) / 2.0) / per_cell
        smooth = make_interp_spline(cells, smooth, k=3, axis=axis)(wanted)
    if smooth.shape[1] != views:
        smooth = resample(smooth, views, axis=1)
    return np.ascontiguousarray(np.maximum(smooth, 0.0), dtype=np.float32)
