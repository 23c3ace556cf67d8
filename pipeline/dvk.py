"""DVK, the convolution of an activity map with a dose-voxel kernel.

(MIRD Pamphlet 17; Li 2022, doi 10.1002/mp.15397, section 2.B)::

    D(o) = Σ_s A(s) · S(o − s) · 1.04 / ρ(o)

A: activity of a voxel, MBq. S: energy that a decay leaves at an offset in homogeneous soft tissue of
1.04 g/cm³, over the mass of that voxel. ρ: density of the target voxel. Below 0.1 g/cm³ the dose rate
is zero: there is next to no mass, and the kernel does not hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.convolve import Offset, convolve, fft_shape, kernel_spectrum
from pipeline.decay import Nuclide
from pipeline.dose_rate import (
    AIR_BELOW_G_PER_CM3,
    BQ_PER_MBQ,
    HOUR_S,
    DoseRate,
    DoseRequest,
    Progress,
    lattice_offset,
    require_computable,
    silent,
)
from pipeline.errors import EngineFailed
from pipeline.kernels import SOFT_TISSUE_G_PER_CM3, kernel_sha256, reach_voxels
from pipeline.lattice import crop_box
from pipeline.volume import Volume

Box = tuple[slice, slice, slice]


def dvk_dose_rate(request: DoseRequest, progress: Progress = silent) -> DoseRate:
    """Dose rate by convolution with the voxel kernel of soft tissue, scaled to the local density.

    What activity lies outside the density's grid still gives its photon dose.
    raises: as `pipeline.dose_rate.Engine` says.
    """
    activity, density = request.activity, request.density
    require_computable(activity, density)
    offset = lattice_offset(density.grid, activity.grid)
    sources, targets = crop_box(activity.array > 0), crop_box(density.array >= AIR_BELOW_G_PER_CM3)
    map_ = np.zeros(density.grid.shape, np.float32)
    try:
        map_[targets], used, notes = _convolved(
            activity, sources, targets, offset, request.nuclide, request.device, progress
        )
    except MemoryError as error:
        raise EngineFailed(
            f"memory did not suffice for a dose-rate map of {density.grid.shape} (z, y, x) voxels",
            "Set a coarser dose grid, or give the node more memory",
        ) from error
    _scale_to_density(map_[targets], density.array[targets])
    progress("dose rate", 1.0)
    return DoseRate(
        volume=Volume(map_, density.grid, "mGy/h"),
        engine="dvk",
        device=used,
        kernel_sha256=kernel_sha256(request.nuclide, density.grid.spacing_mm),
        notes=notes,
    )


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


def _shape(box: Box) -> tuple[int, int, int]:
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x
