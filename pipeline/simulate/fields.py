"""Smooth random fields, and sampling a coarse lattice on a finer grid.

Everything smooth is computed on a coarse lattice and interpolated: on axial grids interpolation is
separable, so it is three small matrix products::

    fine[z, y, x] = Σ_kji Wz[z, k] Wy[y, j] Wx[x, i] coarse[k, j, i]

A random field is white noise on knots, interpolated by cubic B-splines: the autocorrelation of such a
field is close to a Gaussian whose full width at half maximum is 1.92 knot spacings, and its variance is
(151/315)³ of the noise's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.volume import Grid

Field = NDArray[np.float32]
AnyField = NDArray[np.floating[Any]]
_FWHM_PER_KNOT = 1.92
_SPLINE_VARIANCE = (151 / 315) ** 3  # ∫ β₃² = 151/315, one factor per axis


def axis_coordinates(grid: Grid) -> tuple[NDArray[np.float64], ...]:
    """Patient z, y and x (mm) of the voxel centres along the three axes of an axial grid.

    Raises InputRejected where the grid's axes are not parallel to the patient's.
    """
    axes = np.asarray(grid.direction)[:, ::-1]  # columns in (z, y, x) too
    if not np.allclose(np.abs(axes), np.eye(3), atol=1e-6):
        raise InputRejected(
            f"virtual patients are drawn on axial grids, not on the direction cosines {grid.direction}",
            "Draw on an axial grid and resample",
        )
    steps = np.diag(axes) * grid.spacing_mm
    return tuple(
        o + d * np.arange(n) for o, d, n in zip(grid.origin_mm[::-1], steps, grid.shape, strict=True)
    )


def linear_weights(knots: int, positions: NDArray[np.float64]) -> Field:
    """(positions, knots) weights of linear interpolation; positions in knot indices, clamped."""
    clamped = np.clip(positions, 0, knots - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(clamped[:, None] - np.arange(knots))), dtype=np.float32)


def spline_weights(knots: int, positions: NDArray[np.float64]) -> Field:
    """(positions, knots) weights of the cubic B-spline centred on each knot."""
    t = np.abs(positions[:, None] - np.arange(knots))
    near, far = 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6
    weights = np.where(t < 1, near, np.where(t < 2, far, 0))
    return np.asarray(weights, dtype=np.float32)


def _separable(field: Field, wz: Field, wy: Field, wx: Field) -> Field:
    slabs = (wz @ field.reshape(field.shape[0], -1)).reshape(-1, *field.shape[1:])
    result: Field = np.matmul(np.matmul(wy, slabs), wx.T)
    return result


def sample(field: Field, lattice: Grid, grid: Grid) -> Field:
    """A field on the axial `lattice`, linearly interpolated on the axial `grid`; constant outside."""
    weights = [
        linear_weights(n, (fine - coarse[0]) / step)
        for n, coarse, step, fine in zip(
            lattice.shape, axis_coordinates(lattice), lattice.spacing_mm, axis_coordinates(grid), strict=True
        )
    ]
    return _separable(field, *weights)


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, length_mm: float
) -> Field:
    """A Gaussian field of zero mean and unit variance.

    shape: (z, y, x) of a lattice with isotropic spacing. length_mm: full width at half maximum of its
    autocorrelation; not shorter than about four lattice spacings.
    """
    step = length_mm / _FWHM_PER_KNOT / spacing_mm
    knots = [int(np.ceil((n - 1) / step)) + 4 for n in shape]
    noise = rng.standard_normal(knots, dtype=np.float32) / np.sqrt(_SPLINE_VARIANCE)
    weights = [spline_weights(k, 1 + np.arange(n) / step) for k, n in zip(knots, shape, strict=True)]
    return _separable(noise.astype(np.float32), *weights)
