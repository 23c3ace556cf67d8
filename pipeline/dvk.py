"""DVK, the convolution of an activity map with a dose-voxel kernel.

Soft tissue's kernel, S, is the energy that a decay leaves at an offset in homogeneous soft tissue of
1.04 g/cm³, over the mass of that voxel. What other densities change is reckoned in one of two ways:

**density_scaling** (MIRD Pamphlet 17; Li 2022, doi 10.1002/mp.15397, section 2.B)::

    D(o) = Σ_s A(s) · S(o − s) · 1.04 / ρ(o)

A: activity of a voxel, MBq. ρ: density of the target voxel. Energy goes where it would go in soft tissue.

**local_transport**::

    D(o) = E_rays(o) / (ρ(o) V) + κ(ρ(o)) Σ_s A(s) · S_γ(o − s)

Electrons are carried along rays with density-scaled paths (`heterogeneity`). Photons give the dose, not
the energy, that they give in soft tissue, since their fluence changes little over a patient; κ is what
the voxel's medium absorbs in comparison (`photon_absorption`). S_γ = S less the rays' own kernel: what
those lack in soft tissue for being few is convolved with the photons, and homogeneous soft tissue gives
the same in both ways.

Below 0.1 g/cm³ the dose rate is zero: there is next to no mass, and the kernel does not hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.convolve import Offset, convolve, fft_shape, kernel_spectrum
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
from pipeline.kernel_cache import KernelCache
from pipeline.kernels import MGY_G_PER_MBQ_S_KEV, SOFT_TISSUE_G_PER_CM3, kernel_sha256, reach_voxels
from pipeline.lattice import crop_box
from pipeline.volume import Volume

Box = tuple[slice, slice, slice]
Float32 = NDArray[np.float32]


def dvk_dose_rate(request: DoseRequest, progress: Progress = silent) -> DoseRate:
    """Dose rate by convolution with the voxel kernel of soft tissue.

    What activity lies outside the density's grid still gives its photon dose.
    raises: as `pipeline.dose_rate.Engine` says.
    """
    activity, density = request.activity, request.density
    require_computable(activity, density)
    offset = lattice_offset(density.grid, activity.grid)
    sources, targets = crop_box(activity.array > 0), crop_box(density.array >= AIR_BELOW_G_PER_CM3)
    map_ = np.zeros(density.grid.shape, np.float32)
    try:
        map_[targets], used, notes = _dose_rate(request, sources, targets, offset, progress)
    except MemoryError as error:
        raise EngineFailed(
            f"memory did not suffice for a dose-rate map of {density.grid.shape} (z, y, x) voxels",
            "Set a coarser dose grid, or give the node more memory",
        ) from error
    progress("dose rate", 1.0)
    return DoseRate(
        volume=Volume(map_, density.grid, "mGy/h"),
        engine="dvk",
        device=used,
        kernel_sha256=kernel_sha256(request.nuclide, density.grid.spacing_mm),
        parameters=(f"heterogeneity={request.heterogeneity}",),
        notes=notes,
    )


def _dose_rate(
    request: DoseRequest, sources: Box, targets: Box, offset: Offset, tell: Progress
) -> tuple[Float32, str, tuple[str, ...]]:
    """mGy/h on the target box; the device; its notes."""
    local = request.heterogeneity == "local_transport"
    rate, used, notes = _convolved(request, sources, targets, offset, 0.5 if local else 0.95, tell)
    density = request.density.array[targets]
    if local:
        from pipeline.photon_absorption import absorption_relative_to_soft_tissue  # with compiled code

        rate *= absorption_relative_to_soft_tissue(request.nuclide, density)
        tell("electrons", 0.5)
        electrons = _electrons(request, targets, offset)
        rate += np.divide(electrons, density, out=electrons, where=density >= AIR_BELOW_G_PER_CM3)
        if used != "cpu":
            notes += ("the electrons were carried on the CPU",)
    else:
        rate *= np.float32(SOFT_TISSUE_G_PER_CM3)
        np.divide(rate, density, out=rate, where=density >= AIR_BELOW_G_PER_CM3)
    # Rounding falls on both sides of zero, and so does what the rays' kernel lacks.
    np.maximum(rate, 0.0, out=rate)
    rate[density < AIR_BELOW_G_PER_CM3] = 0.0
    return rate, used, notes


def _convolved(
    request: DoseRequest, sources: Box, targets: Box, grid_offset: Offset, end: float, tell: Progress
) -> tuple[Float32, str, tuple[str, ...]]:
    """mGy/h in soft tissue on the target box, without what rays carry; the device; its notes."""
    grid, spacing = request.activity.grid, request.activity.grid.spacing_mm
    mbq = request.activity.array[sources] * np.float32(grid.voxel_volume_ml / BQ_PER_MBQ)
    shape = _shape(targets)
    z, y, x = (at + t.start - s.start for at, t, s in zip(grid_offset, targets, sources, strict=True))
    period = fft_shape(mbq.shape, shape, (z, y, x), reach_voxels(spacing))
    tell("kernel", 0.0)
    on_rays = None
    if request.heterogeneity == "local_transport":
        from pipeline.heterogeneity import ray_kernel  # compiled code, when it is needed

        on_rays = ray_kernel(request.nuclide, spacing)
    spectrum = kernel_spectrum(request.nuclide, spacing, period, KernelCache(request.kernel_cache), on_rays)
    start = 0.4 * end
    tell("convolution", start)
    rate, used, notes = convolve(
        mbq,
        spectrum,
        shape,
        (z, y, x),
        request.device,
        lambda part: tell("convolution", start + (end - start) * part),
    )
    rate *= np.float32(HOUR_S)
    return rate, used, notes


def _electrons(request: DoseRequest, targets: Box, offset: Offset) -> Float32:
    """What rays leave in the target box, over its volume: mGy/h g/cm³.

    Sources count as far around the targets as electrons reach in soft tissue; the density beyond what is
    known is that of the nearest voxel.
    """
    from pipeline.heterogeneity import electron_energy, electron_reach  # compiled code, when it is needed

    activity, known = request.activity, request.surroundings or request.density
    grid = activity.grid
    reach = electron_reach(request.nuclide, grid.spacing_mm)
    start = [t.start - r for t, r in zip(targets, reach, strict=True)]
    z, y, x = (t.stop - t.start + 2 * r for t, r in zip(targets, reach, strict=True))
    becquerel = _cut(activity.array, np.add(start, offset), (z, y, x))
    into_known = lattice_offset(request.density.grid, known.grid)
    box = zip(np.add(start, into_known), (z, y, x), known.grid.shape, strict=True)
    density = known.array[np.ix_(*(np.clip(np.arange(a, a + n), 0, last - 1) for a, n, last in box))]
    kev = electron_energy(request.nuclide, becquerel, density, grid.spacing_mm)
    kev *= np.float32(MGY_G_PER_MBQ_S_KEV / BQ_PER_MBQ * HOUR_S)  # Bq/mL, so keV/mL
    z, y, x = reach
    return kev[z : z + _shape(targets)[0], y : y + _shape(targets)[1], x : x + _shape(targets)[2]]


def _cut(array: Float32, start: NDArray[np.intp], shape: tuple[int, int, int]) -> Float32:
    """The box that begins at `start` of an array; zero where the array does not reach."""
    cut = np.zeros(shape, np.float32)
    box = list(zip(start, shape, array.shape, strict=True))
    inside = tuple(slice(max(a, 0), max(min(a + n, end), 0)) for a, n, end in box)
    place = tuple(slice(max(-a, 0), max(min(n, end - a), max(-a, 0))) for a, n, end in box)
    if all(i.stop > i.start for i in inside):
        cut[place] = array[inside]
    return cut


def _shape(box: Box) -> tuple[int, int, int]:
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x
