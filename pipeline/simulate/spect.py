"""A quick SPECT image of a true activity, made in the image domain.

This is a stand-in: no projections, no attenuation, no scatter, no collimator and no reconstruction are
simulated, the resolution is the same everywhere, and the noise only resembles that of iterative
reconstruction. It serves the demonstration, the tests and the benches of the node. It must not be used to
train or to judge a method of dosimetry; the projector of the virtual patients replaces it there.

::

    image = G_c * Poisson(k · G_p * A) / k,      p² + c² + s² = FWHM²

A is the activity summed into SPECT voxels, each CT voxel shared among the eight voxels round it, so that
activity is conserved in any orientation (that sharing blurs by s); G_p blurs to what the camera sees; k
scales to the wanted number of events; G_c correlates the noise as reconstruction does. The total is
conserved in expectation, the image is never negative.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.simulate.anatomy import Anatomy
from pipeline.simulate.patient import activity_on
from pipeline.volume import Grid, Triple, Volume

_FWHM_PER_SIGMA = 2.3548
_VOXEL_MM = 4.7952


def abdominal_spect_grid(frame_of_reference_uid: str = "") -> Grid:
    """128 x 128 x 81 voxels of 4.7952 mm about the middle of `abdominal_ct_grid`."""
    corner = -_VOXEL_MM * 127 / 2
    return Grid(
        (81, 128, 128),
        (corner, corner + 25, -_VOXEL_MM * 80 / 2),
        (_VOXEL_MM,) * 3,
        frame_of_reference_uid=frame_of_reference_uid,
    )


def surrounding_activity(
    anatomy: Anatomy, grid: Grid, *, margin_mm: float = 20.0, spacing_mm: float = 2.4
) -> Volume:
    """True activity (Bq/mL) of a patient on an axial grid that encloses a SPECT field.

    The patient goes on beyond the CT: what lies there is seen by the camera too. grid: of any direction.
    """
    corners = grid.positions(list(product(*[(0, n - 1) for n in grid.shape])))
    low, high = corners.min(axis=0) - margin_mm, corners.max(axis=0) + margin_mm
    nx, ny, nz = (int(n) for n in np.ceil((high - low) / spacing_mm))
    x, y, z = (float(v) for v in low)
    axial = Grid(
        (nz, ny, nx), (x, y, z), (spacing_mm,) * 3, frame_of_reference_uid=grid.frame_of_reference_uid
    )
    return activity_on(anatomy, axial)


def gathered(activity: Volume, grid: Grid) -> NDArray[np.float64]:
    """(z, y, x) activity in Bq per voxel of `grid`; activity is in Bq/mL on any finer grid.

    Every source voxel is shared among the eight voxels round its centre by the weights of trilinear
    interpolation. What falls outside `grid` is lost, everything else is conserved.
    """
    total = np.zeros(int(np.prod(grid.shape)))
    for k in range(activity.grid.shape[0]):
        rows, columns = np.nonzero(activity.array[k])
        if rows.size:
            indices = np.stack([np.full(rows.size, k), rows, columns], axis=-1)
            where = grid.indices(activity.grid.positions(indices))
            _share(total, where, activity.array[k, rows, columns].astype(np.float64), grid.shape)
    return total.reshape(grid.shape) * activity.grid.voxel_volume_ml


def _share(
    total: NDArray[np.float64],
    where: NDArray[np.float64],
    values: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> None:
    base = np.floor(where).astype(np.int64)
    beyond = where - base
    for corner in product((0, 1), repeat=3):
        target = base + corner
        weight = np.prod(np.where(corner, beyond, 1 - beyond), axis=-1)
        inside = np.all((target >= 0) & (target < shape), axis=-1)
        flat = np.ravel_multi_index(tuple(target[inside].T), shape)
        first = int(flat.min(initial=0))
        sums = np.bincount(flat - first, weights=(weight * values)[inside])
        total[first : first + sums.size] += sums


def _blurred(
    image: NDArray[np.float64], fwhm_mm: NDArray[np.float64], spacing_mm: Triple
) -> NDArray[np.float64]:
    sigma = fwhm_mm / _FWHM_PER_SIGMA / np.asarray(spacing_mm)
    blurred: NDArray[np.float64] = gaussian_filter(image, sigma, mode="constant")
    return blurred


def spect_image(
    activity: Volume,
    grid: Grid,
    seed: int,
    *,
    fwhm_mm: float = 12.0,
    correlation_fwhm_mm: float = 8.0,
    events: float | None = 5e5,
) -> Volume:
    """Bq/mL on `grid`: a stand-in for a reconstructed SPECT (see the module's docstring).

    activity: Bq/mL, on a grid finer than `grid` and, where the patient goes on, larger.
    fwhm_mm: the reconstructed resolution. correlation_fwhm_mm: that of the noise, smaller.
    events: independent Poisson events in the image, far fewer than the camera's counts because
    reconstruction amplifies noise; None for an image without noise.
    Raises ValueError where the two widths and the voxel size cannot be had together.
    """
    spacing = np.asarray(grid.spacing_mm)
    sharing = _FWHM_PER_SIGMA**2 * spacing**2 / 6  # a triangle of half-width h has variance h²/6
    camera = fwhm_mm**2 - correlation_fwhm_mm**2 - sharing
    if camera.min() < 0:
        raise ValueError(
            f"a resolution of {fwhm_mm} mm is too fine for noise correlated over {correlation_fwhm_mm} mm "
            f"in voxels of {grid.spacing_mm} mm"
        )
    seen = _blurred(gathered(activity, grid), np.sqrt(camera), grid.spacing_mm)
    if events is not None and seen.sum() > 0:
        per_bq = events / seen.sum()
        seen = np.random.default_rng([seed, 2]).poisson(seen * per_bq) / per_bq
    image = _blurred(seen, np.full(3, correlation_fwhm_mm), grid.spacing_mm) / grid.voxel_volume_ml
    return Volume(np.maximum(image, 0).astype(np.float32), grid, "Bq/mL")
