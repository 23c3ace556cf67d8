"""What a rotating gamma camera sees of an activity, and the exact transpose of it.

For each view the image is turned so that slabs lie parallel to the collimator, a voxel thick. Counts of the
farthest slab start, and pass from slab to slab towards the camera::

    p ← B_i p · t_i² + f_i · t_i,     t_i = exp(−µ_i v / 2)        far → near
    p ← B_0 p                                                      from the nearest slab to the face

f_i: counts that start in slab i, half of whose thickness v they pass; B_i: the blur that the response gains
between two slabs. Gaussian widths add in quadrature, so blurring a little at every step gives each slab the
whole width of its distance (A. W. McCarthy and M. I. Miller, IEEE Trans Med Imaging 10:426, 1991; G. L. Zeng
et al., IEEE Trans Nucl Sci 38:693, 1991)::

    σ_i² = σ(z_i)² − σ(z_{i−1})²,     B = (w, 1 − 2w, w) across and along,   w = σ_i² / (2 v²)

A kernel of three points with this w has exactly this variance; it is applied more than once where w would
exceed 1/4.

Voxels are boxes that hold their counts evenly, and pixels count over their area: both together widen a point
by v²/12 + v²/12. The bilinear interpolation that turns the image does so across the patient already, by an
amount that depends on the view; the blur to the face adds what lacks.

`backward` runs every step in reverse order; interpolation and blur are the same numbers, transposed.

Interpolation keeps the sum of whatever is smooth over a voxel or two. One voxel alone in empty space counts
up to 30 % too much or too little in a single view, by where it falls, and rightly in the mean over views.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, gaussian_filter1d

from pipeline.averaging import averaged
from pipeline.cores import available_cores
from pipeline.errors import InputRejected
from pipeline.lattice import lengthened
from pipeline.montecarlo.cuda import device_number, why_unavailable
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.materials import CORTICAL_BONE, MATERIALS, WATER
from pipeline.simulate.camera import FWHM_PER_SIGMA, SpectCamera
from pipeline.simulate.fields import axis_coordinates
from pipeline.simulate.slab_course import BORDER, course_of, fine_bins, layout_of
from pipeline.simulate.slab_steps import Course, back_project, project
from pipeline.volume import Grid, Volume

Float32 = NDArray[np.float32]
Views = NDArray[np.int64]

# Attenuation in one voxel that the series of `transmission` follows to 1e-5.
_LARGEST_PATH = 0.5
# Body or table, a hundredth of water's attenuation: lung has a fifth of it at least, air a thousandth.
_BODY_PER_MM = 1.4e-4
# Respiration, misregistration and noise move activity beyond the outline in the density.
_BODY_MARGIN_MM = 15.0


class Runner(Protocol):
    """What takes counts through the slabs: threads of the processor, or a graphics card."""

    def project(self, image: Float32, views: Views) -> Float32:
        """(views, across, z) planes at the collimator's face. image: (y, x, z) with its border."""
        ...

    def back_project(self, planes: Float32, views: Views) -> Float32:
        """(y, x, z) with its border; the transpose of `project`."""
        ...


class ThreadRunner:
    """`Runner` on threads of the processor, each with views of its own; the loops release the interpreter."""

    def __init__(self, half_path: Float32, course: Course, plane: tuple[int, int], threads: int) -> None:
        self._half_path = half_path
        self._course = course
        self._plane = plane
        self._threads = threads

    def project(self, image: Float32, views: Views) -> Float32:
        """See `Runner.project`."""
        out = np.zeros((views.size, *self._plane), np.float32)

        def work(thread: int) -> None:
            planes, row = self._buffers()
            project(image, self._half_path, self._course, views, thread, self._threads, planes, row, out)

        self._in_threads(work)
        return out

    def back_project(self, planes: Float32, views: Views) -> Float32:
        """See `Runner.back_project`."""
        images = np.zeros((self._threads, *self._half_path.shape), np.float32)

        def work(thread: int) -> None:
            buffers, row = self._buffers()
            back_project(
                images[thread],
                self._half_path,
                self._course,
                views,
                thread,
                self._threads,
                buffers,
                row,
                planes,
            )

        self._in_threads(work)
        return np.asarray(images.sum(axis=0))

    def _buffers(self) -> tuple[Float32, Float32]:
        across, along = self._plane
        return np.zeros((2, across + 2, along + 2), np.float32), np.zeros(along + 2, np.float32)

    def _in_threads(self, work: Callable[[int], None]) -> None:
        if self._threads == 1:
            work(0)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(work, range(self._threads)):
                pass


class Projector:
    """The camera round one patient.

    The image lies about the camera's axis and about the middle of its field: their centres coincide. It may
    be finer than the pixels (by a whole number), longer or shorter than the field, and wider than high.

    shape: (z, y, x) of the images. voxel_mm: (z, y, x). camera: as given. support: (y, x).
    device: what it runs on.
    """

    def __init__(
        self,
        mu: ArrayLike,
        voxel_mm: float | tuple[float, float, float],
        camera: SpectCamera,
        radius_mm: ArrayLike | None = None,
        *,
        support: NDArray[np.bool_] | None = None,
        penetration: bool = True,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Prepare the views.

        mu: (z, y, x) attenuation at the photopeak, 1/mm, see `mu_map`; zeros for a source in air.
        voxel_mm: side, or sides (z, y, x); y and x alike, and whole parts of `camera.pixel_mm`.
        radius_mm: of rotation, or (views,) of each view; none: the camera's.
        support: (y, x) where counts may start in any slice; none: inside the outline of `mu` and 15 mm round
            it, or the inscribed circle where `mu` is zero throughout.
        penetration: whether counts come through the septa. Reconstruction knows of none.
        threads: of the processor; none: every core.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a card where there is one.
        raises: InputRejected for a map that is not finite or is negative, voxels that do not fit the pixels,
            a patient who reaches beyond the collimator's face, and a card that is not there; EngineFailed
            when the card fails.
        """
        mu = np.asarray(mu, dtype=np.float32)
        sides = (voxel_mm,) * 3 if isinstance(voxel_mm, int | float) else voxel_mm
        self.camera = camera
        self.voxel_mm: tuple[float, float, float] = sides
        self.shape: tuple[int, int, int] = mu.shape
        self._penetration = penetration and camera.penetration_fraction > 0
        self._fine = fine_bins(self.shape, sides, camera)
        _require_attenuation(mu, sides[1])
        self.support = _support(mu, sides[1]) if support is None else np.asarray(support, dtype=bool)
        if self.support.shape != self.shape[1:] or not self.support.any():
            raise InputRejected(
                f"a support of shape {self.support.shape} with {np.count_nonzero(self.support)} voxels does "
                f"not serve images of {self.shape[1:]} (y, x)",
                "Give a mask of the image's rows and columns that holds a voxel at least",
            )
        given = camera.radii_mm if radius_mm is None else np.asarray(radius_mm, dtype=np.float64)
        if given.shape not in ((), (camera.views,)):
            raise InputRejected(
                f"radius_mm of shape {given.shape} was given for {camera.views} views",
                "Give one, or one a view",
            )
        radii = np.broadcast_to(given, camera.views)
        self._layout = layout_of(self.shape, sides, camera, radii, self.support)
        course = course_of(self._layout, sides, camera, radii, self.support)
        half_path = self._inside(mu * np.float32(sides[1] / 2))
        self.device, self._runner = _runner(
            device, half_path, course, self._layout.plane, threads or available_cores()
        )

    @property
    def views(self) -> Views:
        """Numbers of all views."""
        return np.arange(self.camera.views)

    def forward(self, image: ArrayLike, views: ArrayLike | None = None) -> Float32:
        """Mean counts of each pixel.

        image: (z, y, x) counts that start in each voxel towards the camera, within the support; activity
            in Bq times `sensitivity_cps_per_bq` and seconds, for instance. views: numbers; none: all.
        returns: (views, slices, bins) in the unit of `image`; without attenuation every view holds the sum of
            the image.
        raises: InputRejected for an image of another shape, that is not finite, or outside the support.
        """
        array = np.asarray(image, dtype=np.float32)
        self._require_image(array)
        chosen = self._chosen(views)
        planes = self._runner.project(self._inside(array), chosen)
        return self._through_septa(self._binned(planes))

    def backward(self, projections: ArrayLike, views: ArrayLike | None = None) -> Float32:
        """The transpose of `forward`: Σ forward(f) · p = Σ f · backward(p), for f within the support.

        projections: (views, slices, bins). views: numbers; none: all. returns: (z, y, x).
        raises: InputRejected for projections of another shape.
        """
        chosen = self._chosen(views)
        array = np.asarray(projections, dtype=np.float32)
        wanted = (chosen.size, self.camera.slices, self.camera.bins)
        if array.shape != wanted:
            raise InputRejected(
                f"projections have shape {array.shape} and the camera makes {wanted} (views, slices, bins)",
                "Give as many projections as views, of this camera",
            )
        planes = self._spread(self._through_septa(array))
        return self._outside(self._runner.back_project(planes, chosen))

    def _require_image(self, image: Float32) -> None:
        if image.shape != self.shape:
            raise InputRejected(
                f"an image of shape {image.shape} was given to a projector for {self.shape} (z, y, x)",
                "Make the projector with the attenuation map of the image's grid",
            )
        columns = image.max(axis=0)  # NaN where any is
        if not np.all(np.isfinite(columns)):
            raise InputRejected("an image to be projected is not finite", "Correct the activity map")
        astray = int(np.count_nonzero(columns[~self.support]))
        if astray:
            raise InputRejected(
                f"{astray} columns of the image hold counts outside the body's outline",
                "Give a support that holds all activity, or the attenuation map that belongs to it",
            )

    def _chosen(self, views: ArrayLike | None) -> Views:
        chosen = self.views if views is None else np.atleast_1d(np.asarray(views, dtype=np.int64))
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.camera.views):
            raise InputRejected(
                f"views {chosen.min()} to {chosen.max()} were asked of a camera that has {self.camera.views}",
                "Count views from 0",
            )
        return chosen

    def _inside(self, image: Float32) -> Float32:
        """(y, x, z) with an empty border, without the slices that cannot reach the field."""
        first, stop = self._layout.slices
        inner = np.moveaxis(image[first:stop], 0, 2)
        return np.pad(inner, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)))

    def _outside(self, image: Float32) -> Float32:
        """The reverse of `_inside`, zero outside the support."""
        first, stop = self._layout.slices
        result = np.zeros(self.shape, np.float32)
        inner = image[BORDER:-BORDER, BORDER:-BORDER] * self.support[:, :, None]
        result[first:stop] = np.moveaxis(inner, 2, 0)
        return result

    def _binned(self, planes: Float32) -> Float32:
        """(views, slices, bins) from fine planes (views, across, z)."""
        c, f = self._layout, self._fine
        field = planes[:, c.field_across : c.field_across + f.across, c.field_z : c.field_z + f.along]
        pixels = field.reshape(len(planes), self.camera.bins, f.per_bin, self.camera.slices, f.per_slice).sum(
            axis=(2, 4)
        )
        return np.ascontiguousarray(np.moveaxis(pixels, 1, 2))

    def _spread(self, projections: Float32) -> Float32:
        """The transpose of `_binned`."""
        c, f = self._layout, self._fine
        planes = np.zeros((len(projections), *c.plane), np.float32)
        pixels = np.moveaxis(projections, 2, 1).repeat(f.per_bin, axis=1).repeat(f.per_slice, axis=2)
        planes[:, c.field_across : c.field_across + f.across, c.field_z : c.field_z + f.along] = pixels
        return planes

    def _through_septa(self, projections: Float32) -> Float32:
        """With the tail of the response; its own transpose, since the kernel is even."""
        if not self._penetration:
            return projections
        share = np.float32(self.camera.penetration_fraction)
        sigma = self.camera.penetration_fwhm_mm / FWHM_PER_SIGMA / self.camera.pixel_mm
        tail = projections
        for axis in (1, 2):
            tail = gaussian_filter1d(tail, sigma, axis=axis, mode="constant")
        return projections + share * (tail - projections)


def _runner(
    device: str, half_path: Float32, course: Course, plane: tuple[int, int], threads: int
) -> tuple[str, Runner]:
    """(what it runs on, what runs). numba-cuda is optional, and loaded when a card is to be used."""
    if device != "cpu":
        number = device_number(device)
        reason = why_unavailable(number)
        if reason is None:
            cuda = import_module("pipeline.simulate.projector_cuda")
            return f"cuda:{number}" if number else "cuda", cuda.CardRunner(half_path, course, plane, number)
        if device != "auto":
            raise InputRejected(f"{reason}, and {device} was asked for", "Choose the device cpu or auto")
    return "cpu", ThreadRunner(half_path, course, plane, threads)


def _require_attenuation(mu: Float32, voxel_mm: float) -> None:
    if not np.all(np.isfinite(mu)) or mu.min() < 0:
        raise InputRejected(
            "the attenuation map is negative or not finite", "Correct the density map or its CT"
        )
    if float(mu.max()) * voxel_mm > _LARGEST_PATH:
        raise InputRejected(
            f"attenuation of {mu.max() * 10:.2g} /cm in a voxel of {voxel_mm} mm is more than any tissue has",
            "Give 1/mm, and limit the density of metal implants",
        )


def outline(mu: Float32) -> NDArray[np.bool_]:
    """(y, x): where anything attenuates in any slice. mu: (z, y, x) 1/mm."""
    return np.asarray((mu > _BODY_PER_MM).any(axis=0))


def outline_with_margin(mu: Float32, voxel_mm: float) -> NDArray[np.bool_]:
    """(y, x): likewise, and 15 mm round it. voxel_mm: side of a voxel in y and x."""
    reach = int(np.ceil(_BODY_MARGIN_MM / voxel_mm))
    step = np.arange(-reach, reach + 1)
    disc = np.hypot(step[:, None], step[None, :]) <= reach
    return np.asarray(binary_dilation(outline(mu), disc))


def _support(mu: Float32, voxel_mm: float) -> NDArray[np.bool_]:
    """(y, x): the body and a margin; the inscribed circle without a body."""
    around = outline_with_margin(mu, voxel_mm)
    if around.any():
        return around
    y, x = (np.arange(n) - (n - 1) / 2 for n in mu.shape[1:])
    return np.asarray(np.hypot(y[:, None], x[None, :]) <= min(mu.shape[1:]) / 2)


def mu_map(density: Volume, grid: Grid, energy_kev: float = 208.37) -> Float32:
    """Linear attenuation of a patient for narrow beams, 1/mm.

    density: g/cm3, on any axial grid; beyond its first and last slice the patient goes on as there, beyond
        its sides is air. The mean over each voxel of `grid` is taken: (z, y, x).

    Up to water's density tissue is water, thinned; above it attenuation runs straight to cortical bone's::

        µ = ρ (µ/ρ)_water,                                            ρ ≤ 1
        µ = µ_water + (ρ − 1) (µ_bone − µ_water) / (ρ_bone − 1),      ρ > 1

    µ/ρ is XCOM's total with coherent scattering.
    raises: InputRejected for a density that is negative or not finite, or grids that are not parallel.
    """
    if not (np.all(np.isfinite(density.array)) and density.array.min() >= 0):
        raise InputRejected("the density map is negative or not finite", "Correct the density map or its CT")
    for each in (density.grid, grid):
        axis_coordinates(each)  # refuses oblique grids
    rho = averaged(lengthened(density, grid), grid).array
    water, bone = (_mass_attenuation(medium, energy_kev) / 10.0 for medium in (WATER, CORTICAL_BONE))
    bone_density = MATERIALS[CORTICAL_BONE].density_g_per_cm3
    slope = (bone * bone_density - water) / (bone_density - 1.0)
    return np.where(rho <= 1.0, np.float32(water) * rho, np.float32(water) + np.float32(slope) * (rho - 1))


def _mass_attenuation(medium: int, energy_kev: float) -> float:
    """cm2/g, total with coherent scattering."""
    physics = load_physics()
    total = sum(
        part[medium] for part in (physics.photoelectric, physics.incoherent, physics.coherent, physics.pair)
    )
    return float(np.exp(np.interp(np.log(energy_kev), np.log(physics.energy_kev), np.log(total))))
