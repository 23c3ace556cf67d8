"""Phantoms of scintigraphy on voxels, by the part of each voxel that they fill."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
WATER_PER_MM = 0.0135
_SAMPLES = 4  # a side of a voxel


def _samples(shape: tuple[int, ...], voxel_mm: float) -> list[NDArray[np.float64]]:
    """Per axis, the positions of the samples, mm from the middle."""
    return [((np.arange(n * _SAMPLES) + 0.5) / _SAMPLES - n / 2) * voxel_mm for n in shape]


def sphere(
    shape: tuple[int, int, int], voxel_mm: float, centre_mm: tuple[float, float, float], radius_mm: float
) -> Float32:
    """(z, y, x) parts. centre_mm: (z, y, x) from the middle of the image."""
    z, y, x = (a - c for a, c in zip(_samples(shape, voxel_mm), centre_mm, strict=True))
    inside = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius_mm**2
    nz, ny, nx = shape
    parts = inside.reshape(nz, _SAMPLES, ny, _SAMPLES, nx, _SAMPLES).mean(axis=(1, 3, 5), dtype=np.float32)
    return np.asarray(parts, dtype=np.float32)


def cylinder(
    shape: tuple[int, int, int], voxel_mm: float, half_axes_mm: tuple[float, float], half_length_mm: float
) -> Float32:
    """(z, y, x) parts of an elliptical cylinder about the axis. half_axes_mm: (y, x)."""
    z, y, x = _samples(shape, voxel_mm)
    nz, ny, nx = shape
    inside = (y[:, None] / half_axes_mm[0]) ** 2 + (x / half_axes_mm[1]) ** 2 <= 1
    disc = inside.reshape(ny, _SAMPLES, nx, _SAMPLES).mean(axis=(1, 3))
    length = (np.abs(z) <= half_length_mm).reshape(nz, _SAMPLES).mean(axis=1)
    return np.asarray(length[:, None, None] * disc, dtype=np.float32)
