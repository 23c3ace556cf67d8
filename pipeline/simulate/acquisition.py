"""A SPECT acquisition of a virtual patient, and its reconstruction as a clinic makes it.

::

    primaries    analytic projector on voxels of half a pixel, true density            (no inverse crime)
    scatter      forced detection in three energy windows, true density                (`scatter`)
    counts       Poisson of k · (primaries + scatter) in each window                   (k: Bq to counts)
    TEW          w (C_lower / W_lower + C_upper / W_upper) · W_peak / 2, smoothed      (Ogawa)
    image        OSEM with attenuation of the CT, response and TEW in the model; / (k · voxel volume)

Triple-energy-window estimate: K. Ogawa et al., IEEE Trans. Med. Imaging 10:408, 1991. It is smoothed, as
clinics do, by a Gaussian of 2 pixels FWHM along both axes of a projection: a ninth of its variance is left,
and smoothing more would take scatter away from hot organs and lay it beside them.

The estimate is not the truth, here as in a clinic. Photons in the lower window scattered through wider angles
than those in the photopeak's, and the crystal stops more of them: with w = 1 it is 10 to 20 % too high in
total, though a quarter too low in front of the hottest organs, and part of what lies deep between hot organs
is subtracted away. A site finds w on a uniform cylinder, whose activity must come out right
(`SpectCamera.tew_weight`).

Calibration: counts to Bq by the camera's own sensitivity to a source in air, from whose counts the same
estimate is subtracted (of photons without scatter a few per cent are measured in the narrow windows, and are
subtracted in the patient too). Nothing of the patient enters it.

Attenuation differs between the two halves on purpose. Photons of the simulation do not lose what scatters
coherently, for it arrives; reconstruction attenuates by the narrow-beam coefficients of a CT (`mu_map`), as
clinics do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from pipeline.averaging import averaged
from pipeline.dose_rate import Progress, silent
from pipeline.errors import InputRejected
from pipeline.lattice import Shape, lengthened, recentred, recut
from pipeline.simulate import osem, scatter
from pipeline.simulate.camera import FWHM_PER_SIGMA, SpectCamera
from pipeline.simulate.energy_windows import counts_in_air, photopeak_line
from pipeline.simulate.fields import axis_coordinates
from pipeline.simulate.projector import Projector, mu_map, outline, outline_with_margin
from pipeline.volume import Grid, Triple, Volume

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FINER: Final = 2
"""Voxels of the simulated primaries along a pixel."""
TEW_FWHM_PIXELS: Final = 2.0
LEAST_COUNTS: Final = 1e3
MOST_COUNTS: Final = 1e9
# Activity beyond the field blurs into it; at 25 cm the response's σ is 9 mm.
_BEYOND_FIELD_MM = 40.0


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """What the camera would count on average, in Bq (counts at a sensitivity of one count per Bq and view).

    primary: (views, slices, bins) unscattered photons of the photopeak's line in its window.
    windows: (3, views, slices, bins) all photons in the photopeak, lower and upper window.
    scattered: (views, slices, bins) of the photopeak's window all but `primary`.
    """

    primary: Float32
    windows: Float32
    scattered: Float32

    @property
    def scatter_fraction(self) -> float:
        """Scattered over all counts in the photopeak's window."""
        return float(self.scattered.sum(dtype=np.float64) / self.windows[0].sum(dtype=np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedSpect:
    """An acquisition and its image.

    image: Bq/mL on the grid asked for.
    projections: (3, views, slices, bins) measured counts in the photopeak, lower and upper window.
    scatter_estimate: (views, slices, bins) counts by the triple-energy-window method, as OSEM got them.
    counts: measured in the photopeak's window, all views. seconds_per_view: what they took.
    scatter_fraction: in the photopeak's window, true. tew_ratio: estimated over true scatter, totals.
    image_mbq, true_mbq: activity in the image, and the true activity within its field.
    means: what the noise was drawn about.
    """

    image: Volume
    projections: Float32
    scatter_estimate: Float32
    counts: int
    seconds_per_view: float
    scatter_fraction: float
    tew_ratio: float
    image_mbq: float
    true_mbq: float
    means: Means


def simulated_spect(
    activity: Volume,
    density: Volume,
    camera: SpectCamera,
    grid: Grid,
    counts: float,
    seed: int,
    *,
    ct_density: Volume | None = None,
    photons: int = scatter.PHOTONS,
    iterations: int = osem.ITERATIONS,
    subsets: int = osem.SUBSETS,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> SimulatedSpect:
    """A patient on the camera, and the image.

    activity: Bq/mL, true, averaged over respiration if it moves; density: g/cm³, as true. Both on any axial
    grids; see `scatter.simulated_scatter` for what lies beyond them.
    grid: of the image: slices x bins x bins pixels of the camera, whose axis runs through the grid's middle.
    counts: mean number wanted in the photopeak's window, all views; it sets the time of the acquisition.
    seed: of scatter and noise. ct_density: what the attenuation correction believes; by default the truth.
    photons: followed for scatter. iterations, subsets: of OSEM.
    device: of the projector: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; scatter is always followed on the
    processor. threads: of the processor; all by default. progress: called with (what is done, 0 … 1).
    raises: InputRejected for a grid that is not the camera's, a patient who does not fit into its orbit, and
        values that no patient has.
    """
    _require_counts(counts)
    means = projected(
        activity,
        density,
        camera,
        grid,
        seed,
        photons=photons,
        device=device,
        threads=threads,
        progress=progress,
    )
    return reconstructed(
        means, activity, ct_density or density, camera, grid, counts, seed, iterations=iterations,
        subsets=subsets, device=device, threads=threads, progress=progress,
    )  # fmt: skip


def projected(
    activity: Volume,
    density: Volume,
    camera: SpectCamera,
    grid: Grid,
    seed: int,
    *,
    photons: int = scatter.PHOTONS,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Means:
    """Mean projections of a patient without noise: what realisations of `simulated_spect` share.

    Arguments and errors: see there.
    """
    require_camera_grid(grid, camera)
    scatter.require_activity(activity, density)
    tell = progress or silent
    tell("primaries", 0.0)
    density = _without_beyond_orbit(density, camera, grid)
    primary = _primaries(activity, density, camera, grid, device, threads)
    tell("primaries", 1.0)
    scattered = scatter.simulated_scatter(
        activity,
        density,
        camera,
        _centre(grid),
        seed=seed,
        photons=photons,
        threads=threads,
        progress=progress,
    )
    unscattered = (scattered.spill + scattered.other_lines).astype(np.float32)
    windows = scattered.windows + unscattered[:, None, None, None] * primary
    return Means(primary, windows, windows[0] - primary)


def reconstructed(
    means: Means,
    activity: Volume,
    ct_density: Volume,
    camera: SpectCamera,
    grid: Grid,
    counts: float,
    seed: int,
    *,
    iterations: int = osem.ITERATIONS,
    subsets: int = osem.SUBSETS,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> SimulatedSpect:
    """Noise, scatter estimate and image of mean projections: another seed, other noise.

    Arguments and errors: see `simulated_spect`.
    """
    require_camera_grid(grid, camera)
    projections = measured_counts(means, counts, seed)
    per_bq = counts / float(means.windows[0].sum(dtype=np.float64))
    estimate = tew_estimate(projections, camera)
    projector = _reconstruction_projector(ct_density, camera, grid, device, threads)
    tell = progress or silent
    found = osem.osem(
        projections[0], estimate, projector, iterations, subsets, lambda part: tell("reconstruction", part)
    )
    image = found / np.float32(per_bq * air_sensitivity(camera) * grid.voxel_volume_ml)
    true_scatter = float(means.scattered.sum(dtype=np.float64)) * per_bq
    return SimulatedSpect(
        image=Volume(image, grid, "Bq/mL"),
        projections=projections,
        scatter_estimate=estimate,
        counts=int(projections[0].sum(dtype=np.float64)),
        seconds_per_view=per_bq / camera.sensitivity_cps_per_bq,
        scatter_fraction=means.scatter_fraction,
        tew_ratio=float(estimate.sum(dtype=np.float64)) / max(true_scatter, np.finfo(float).tiny),
        image_mbq=float(image.sum(dtype=np.float64)) * grid.voxel_volume_ml / 1e6,
        true_mbq=_activity_within(activity, grid) / 1e6,
        means=means,
    )


def measured_counts(means: Means, counts: float, seed: int) -> Float32:
    """(3, views, slices, bins) one realisation with `counts` in the photopeak's window on average.

    raises: InputRejected for a number of counts that no acquisition has.
    """
    _require_counts(counts)
    per_bq = counts / float(means.windows[0].sum(dtype=np.float64))
    drawn = np.random.default_rng([seed, 3]).poisson(means.windows.astype(np.float64) * per_bq)
    return np.asarray(drawn, dtype=np.float32)


def _require_counts(counts: float) -> None:
    if not LEAST_COUNTS <= counts <= MOST_COUNTS:
        raise InputRejected(
            f"{counts:g} counts are asked for", f"Ask for {LEAST_COUNTS:g} to {MOST_COUNTS:g} in all views"
        )


def tew_estimate(projections: Float32, camera: SpectCamera) -> Float32:
    """Scatter in the photopeak's window by the triple-energy-window method (module docstring).

    projections: (3, views, slices, bins) counts. returns: (views, slices, bins).
    """
    windows = camera.windows
    estimate = projections[1] / np.float32(windows.lower.width) + projections[2] / np.float32(
        windows.upper.width
    )
    estimate *= np.float32(camera.tew_weight * windows.photopeak.width / 2.0)
    for axis in (1, 2):
        sigma = TEW_FWHM_PIXELS / FWHM_PER_SIGMA
        estimate = gaussian_filter1d(estimate, sigma, axis=axis, mode="nearest")
    return np.asarray(np.maximum(estimate, 0.0), dtype=np.float32)


def air_sensitivity(camera: SpectCamera) -> float:
    """Counts of a source in air less their triple-energy-window estimate, per photopeak count."""
    windows, air = camera.windows, counts_in_air(camera)
    beside = air[1] / windows.lower.width + air[2] / windows.upper.width
    return float(air[0] - camera.tew_weight * beside * windows.photopeak.width / 2.0)


def primary_grid(camera: SpectCamera, grid: Grid) -> Grid:
    """Voxels of half a pixel on which primaries are projected, about the SPECT grid and beyond its ends.

    Volumes drawn on this lattice are taken as they are; others are averaged over its voxels, which widens
    them by a voxel of theirs.
    """
    beyond = FINER * int(np.ceil(_BEYOND_FIELD_MM / camera.pixel_mm))
    shape: Shape = (FINER * camera.slices + 2 * beyond, FINER * camera.bins, FINER * camera.bins)
    return recentred(grid, shape, (camera.pixel_mm / FINER,) * 3)


def on_lattice(volume: Volume, grid: Grid) -> Volume:
    """The same voxels where both share a lattice, means over the grid's voxels elsewhere."""
    try:
        return recut(volume, grid)
    except ValueError:
        return averaged(volume, grid)


def require_camera_grid(grid: Grid, camera: SpectCamera) -> None:
    """raises: InputRejected for a grid that is not made of the camera's pixels along the patient's axes."""
    shape = (camera.slices, camera.bins, camera.bins)
    wanted = (camera.pixel_mm,) * 3
    if grid.shape != shape or not np.allclose(grid.spacing_mm, wanted, rtol=1e-4, atol=0):
        raise InputRejected(
            f"camera {camera.name!r} makes images of {shape} voxels (z, y, x) of {camera.pixel_mm} mm, not "
            f"of {grid.shape} of {grid.spacing_mm} mm",
            "Reconstruct on the camera's own grid and resample, or set its bins, slices and pixel_mm",
        )
    if not np.allclose(grid.direction, np.eye(3)[::-1], atol=1e-6):
        raise InputRejected(
            f"the SPECT grid has the direction cosines {grid.direction}",
            "The camera turns about the patient's axis: give a grid along x, y and z",
        )


def _centre(grid: Grid) -> Triple:
    x, y, z = (float(v) for v in grid.positions((np.array(grid.shape) - 1) / 2.0))
    return x, y, z


def _primaries(
    activity: Volume, density: Volume, camera: SpectCamera, grid: Grid, device: str, threads: int | None
) -> Float32:
    """(views, slices, bins) Bq."""
    fine = primary_grid(camera, grid)
    bq = on_lattice(activity, fine).array * np.float32(fine.voxel_volume_ml)
    longer = on_lattice(lengthened(density, fine), fine)
    mu = scatter.true_attenuation(longer, photopeak_line(camera))
    _require_inside(bq, _within_orbit(camera, fine, _centre(grid)), camera)
    support = outline(mu) | (bq > 0).any(axis=0)
    return _projector(mu, support, camera, device, threads, parts=FINER).forward(bq)


def _reconstruction_projector(
    density: Volume, camera: SpectCamera, grid: Grid, device: str, threads: int | None
) -> Projector:
    mu = mu_map(_without_beyond_orbit(density, camera, grid), grid, camera.photopeak_kev)
    orbit = _within_orbit(camera, grid, _centre(grid))
    return _projector(mu, outline_with_margin(mu, camera.pixel_mm) & orbit, camera, device, threads)


def _within_orbit(camera: SpectCamera, grid: Grid, centre_mm: Triple) -> NDArray[np.bool_]:
    """(y, x) of an axial grid: before the collimator's face in every view; centre_mm lies on the axis."""
    _, y, x = axis_coordinates(grid)
    across, down = x[None, :] - centre_mm[0], y[:, None] - centre_mm[1]
    inside = np.ones((y.size, x.size), dtype=bool)
    for angle, radius in zip(camera.view_angles, camera.radii_mm, strict=True):
        inside &= np.sin(angle) * across - np.cos(angle) * down <= radius
    return inside


def _without_beyond_orbit(density: Volume, camera: SpectCamera, grid: Grid) -> Volume:
    """Nothing stands where heads pass: there a table's edge may lie, which makes way for them."""
    inside = _within_orbit(camera, density.grid, _centre(grid))
    return density.with_array(np.asarray(density.array * inside, dtype=np.float32))


def _require_inside(bq: Float32, orbit: NDArray[np.bool_], camera: SpectCamera) -> None:
    if (bq[:, ~orbit] > 0).any():
        raise InputRejected(
            f"the patient holds activity beyond the collimator's face, "
            f"{camera.radii_mm.min():.0f} to {camera.radii_mm.max():.0f} mm from the axis",
            "Set a greater radius_mm or orbit_mm, or centre the SPECT grid on the patient",
        )


def _projector(
    mu: Float32,
    support: NDArray[np.bool_],
    camera: SpectCamera,
    device: str,
    threads: int | None,
    parts: int = 1,
) -> Projector:
    """For the primaries with the tail through the septa, which reconstruction does not know of."""
    side = camera.pixel_mm / parts
    return Projector(mu, side, camera, support=support, penetration=parts > 1, threads=threads, device=device)


def _activity_within(activity: Volume, grid: Grid) -> float:
    """Bq inside the box of the grid."""
    here = replace(grid, frame_of_reference_uid=activity.grid.frame_of_reference_uid)
    return averaged(activity, here).integral
