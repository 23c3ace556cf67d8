"""The smallest phantom: a block of water with a hot cube at a known position, on any grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.volume import Grid, Triple, Volume


def inside_box(grid: Grid, centre_mm: Triple, size_mm: Triple) -> NDArray[np.bool_]:
    """(z, y, x) voxels whose centres lie in a box along the patient's axes; size_mm: (x, y, z)."""
    indices = np.moveaxis(np.indices(grid.shape), 0, -1)
    offsets = np.abs(grid.positions(indices) - np.asarray(centre_mm))
    return np.asarray(np.all(offsets < np.asarray(size_mm) / 2, axis=-1))


def water_block(grid: Grid, margin_voxels: int = 4) -> Volume:
    """CT numbers: water, with a margin of air round it within each slice and none at the end slices."""
    hu = np.full(grid.shape, -1000, dtype=np.float32)
    inner = slice(margin_voxels, -margin_voxels or None)
    hu[:, inner, inner] = 0
    return Volume(hu, grid, "[hnsf'U]")


def hot_cube(grid: Grid, centre_mm: Triple, side_mm: float, bq_per_ml: float = 1e6) -> Volume:
    """Activity of a cube along the patient's axes: `bq_per_ml` times the share of each voxel inside it.

    The share is counted at 6 x 6 x 6 points of the voxel, so that the cube's centre and volume hold on
    coarse and on tilted grids too.
    """
    reach = side_mm + 2 * float(np.linalg.norm(grid.spacing_mm))
    near = np.argwhere(inside_box(grid, centre_mm, (reach,) * 3))
    steps = (np.arange(6) - 2.5) / 6
    within = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points = grid.positions(near[:, None, :] + within)
    share = np.mean(np.all(np.abs(points - np.asarray(centre_mm)) < side_mm / 2, axis=-1), axis=-1)
    array = np.zeros(grid.shape, dtype=np.float32)
    array[tuple(near.T)] = bq_per_ml * share
    return Volume(array, grid, "Bq/mL")
