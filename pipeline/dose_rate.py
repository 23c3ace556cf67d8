"""From activity and density to a dose-rate map: the engines, and the first of them, DVK.

Dose-voxel-kernel convolution (MIRD Pamphlet 17; Li 2022, doi 10.1002/mp.15397, section 2.B)::

    D(o) = Σ_s A(s) · S(o − s) · 1.04 / ρ(o)

A: activity of a voxel, MBq. S: energy that a decay leaves at an offset in homogeneous soft tissue of
1.04 g/cm³, over the mass of that voxel. ρ: density of the target voxel. Below 0.1 g/cm³ the dose rate
is zero: there is next to no mass, and the kernel does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.convolve import Offset, convolve, fft_shape, kernel_spectrum
from pipeline.decay import Nuclide
from pipeline.errors import EngineFailed, InputRejected
from pipeline.kernels import SOFT_TISSUE_G_PER_CM3, kernel_sha256, reach_voxels
from pipeline.lattice import crop_box, require_same_frame
from pipeline.volume import Grid, Volume

AIR_BELOW_G_PER_CM3 = 0.1
HOUR_S = 3600.0
BQ_PER_MBQ = 1e6

# Part of a voxel by which two cut-outs of one lattice may differ: well above the rounding of DICOM
# decimal strings, and a shift of no consequence for a dose.
LATTICE_TOLERANCE_VOXELS = 0.01

Progress = Callable[[str, float], None]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class DoseRate:
    """A dose-rate map and where it came from.

    volume: mGy/h on the density's grid, at the instant that the activity holds for.
    engine: its name in `ENGINES`. device: what it ran on, ``cpu`` or ``cuda``.
    kernel_sha256: of the kernel's table and the voxel spacing.
    notes: what a reader of the result should know.
    """

    volume: Volume
    engine: str
    device: str
    kernel_sha256: str
    notes: tuple[str, ...] = ()


class Engine(Protocol):
    """What every engine offers."""

    def __call__(
        self,
        activity: Volume,
        density: Volume,
        nuclide: Nuclide,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> DoseRate:
        """Activity (Bq/mL) and density (g/cm³) to mGy/h on the density's grid."""
        ...


def dvk_dose_rate(
    activity: Volume,
    density: Volume,
    nuclide: Nuclide,
    device: str = "cpu",
    progress: Progress | None = None,
) -> DoseRate:
    """Dose rate by convolution with the voxel kernel of soft tissue, scaled to the local density.

    activity: Bq/mL, on any box of the density's lattice; what lies outside the density's grid still
        gives its photon dose. density: g/cm³ on the CT's grid.
    device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``. progress: called with (what is done, 0 ... 1).
    raises: InputRejected for values that cannot be, or grids that do not share a lattice;
        EngineFailed when memory or the GPU fails.
    """
    require_computable(activity, density)
    tell = progress or _silent
    offset = lattice_offset(density.grid, activity.grid)
    sources, targets = crop_box(activity.array > 0), crop_box(density.array >= AIR_BELOW_G_PER_CM3)
    map_ = np.zeros(density.grid.shape, np.float32)
    try:
        map_[targets], used, notes = _convolved(activity, sources, targets, offset, nuclide, device, tell)
    except MemoryError as error:
        raise EngineFailed(
            f"memory did not suffice for a dose-rate map of {density.grid.shape} (z, y, x) voxels",
            "Set a coarser dose grid, or give the node more memory",
        ) from error
    _scale_to_density(map_[targets], density.array[targets])
    tell("dose rate", 1.0)
    return DoseRate(
        volume=Volume(map_, density.grid, "mGy/h"),
        engine="dvk",
        device=used,
        kernel_sha256=kernel_sha256(nuclide, density.grid.spacing_mm),
        notes=notes,
    )


ENGINES: dict[str, Engine] = {"dvk": dvk_dose_rate}


def engine(name: str) -> Engine:
    """The engine of that name. raises: InputRejected, naming those that there are."""
    if name not in ENGINES:
        raise InputRejected(
            f"there is no dose engine {name!r}", f"[dose] engines may hold: {', '.join(ENGINES)}"
        )
    return ENGINES[name]


def require_computable(activity: Volume, density: Volume) -> None:
    """raises: InputRejected for what no engine can compute from; see the texts."""
    _require_unit(activity, "activity", "Bq/mL")
    _require_unit(density, "density", "g/cm3")
    _require_not_negative(activity, "activity", "Check the SPECT's reconstruction and its rescale values")
    _require_not_negative(density, "density", "Check the CT's pixel data and [density] curve")
    if not activity.array.any():
        raise InputRejected(
            "the activity map is empty: no voxel holds activity",
            "Check that the right SPECT series was sent and that it overlaps the CT",
        )
    if not (density.array >= AIR_BELOW_G_PER_CM3).any():
        raise InputRejected(
            f"the CT shows no tissue: every density is below {AIR_BELOW_G_PER_CM3} g/cm3",
            "Check the CT's RescaleSlope and RescaleIntercept and [density] curve",
        )


def lattice_offset(of: Grid, within: Grid) -> Offset:
    """Where voxel [0, 0, 0] of `of` lies in `within`, voxels (z, y, x); any part may be negative.

    raises: InputRejected when the two do not cut the same lattice.
    """
    require_same_frame(of, within)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in of.shape])).reshape(3, -1).T
    shifts = within.indices(of.positions(corners)) - corners
    offset = np.rint(shifts[0])
    astray = float(np.abs(shifts - offset).max())
    if astray > LATTICE_TOLERANCE_VOXELS:
        raise InputRejected(
            f"activity and density do not share a lattice: spacings {within.spacing_mm} and "
            f"{of.spacing_mm} mm (z, y, x), voxel centres up to {astray:.3g} voxels apart",
            "Resample the SPECT onto the CT's lattice first",
        )
    z, y, x = (int(v) for v in offset)
    return z, y, x


def _convolved(
    activity: Volume,
    sources: Box,
    targets: Box,
    grid_offset: Offset,
    nuclide: Nuclide,
    device: str,
    tell: Progress,
) -> tuple[NDArray[np.float32], str, tuple[str, ...]]:
    """mGy/h in soft tissue on the target box; the device; its notes."""
    grid = activity.grid
    mbq = activity.array[sources] * np.float32(grid.voxel_volume_ml / BQ_PER_MBQ)
    shape = _shape(targets)
    z, y, x = (at + t.start - s.start for at, t, s in zip(grid_offset, targets, sources, strict=True))
    period = fft_shape(mbq.shape, shape, (z, y, x), reach_voxels(grid.spacing_mm))
    tell("kernel", 0.0)
    spectrum = kernel_spectrum(nuclide, grid.spacing_mm, period)
    tell("convolution", 0.4)
    rate, used, notes = convolve(
        mbq, spectrum, shape, (z, y, x), device, lambda part: tell("convolution", 0.4 + 0.55 * part)
    )
    rate *= np.float32(HOUR_S)
    return rate, used, notes


def _scale_to_density(rate: NDArray[np.float32], density: NDArray[np.float32]) -> None:
    """In place: soft tissue's dose rate to the local density's; zero in air."""
    tissue = density >= AIR_BELOW_G_PER_CM3
    np.maximum(rate, 0.0, out=rate)  # the FFT's rounding falls on both sides of zero
    rate *= np.float32(SOFT_TISSUE_G_PER_CM3)
    np.divide(rate, density, out=rate, where=tissue)
    rate[~tissue] = 0.0


def _require_unit(volume: Volume, what: str, unit: str) -> None:
    if volume.unit != unit:
        raise ValueError(f"{what} must come in {unit}, not {volume.unit}")


def _require_not_negative(volume: Volume, what: str, remedy: str) -> None:
    # min() of an array with a NaN is NaN, and max() finds what is infinite: no temporary arrays.
    lowest, highest = float(volume.array.min()), float(volume.array.max())
    if not np.isfinite(lowest) or not np.isfinite(highest):
        count = int(np.count_nonzero(~np.isfinite(volume.array)))
        raise InputRejected(f"the {what} map holds {count} voxels that are not finite numbers", remedy)
    if lowest < 0:
        count = int(np.count_nonzero(volume.array < 0))
        raise InputRejected(
            f"the {what} map is negative in {count} voxels (lowest {lowest:.4g} {volume.unit})", remedy
        )


def _shape(box: Box) -> tuple[int, int, int]:
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x


def _silent(_what: str, _part: float) -> None:
    """Nobody asked for progress."""
