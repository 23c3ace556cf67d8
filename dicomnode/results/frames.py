"""A grid as a stack of DICOM frames.

Array axes (z, y, x) become (frame, row, column). Frames are written in the direction of the
normal, row cosines x column cosines, so that offsets along it ascend (PS3.3 C.8.8.3.2)::

    position(frame k) = ImagePositionPatient + k · spacing_z · (row cosines x column cosines)

A grid whose slices run the other way is stored from its last slice to its first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.volume import Grid

Scalar = TypeVar("Scalar", bound=np.generic)


def normal(grid: Grid) -> NDArray[np.float64]:
    """(x, y, z) unit vector: row cosines x column cosines."""
    vector = np.cross(grid.direction[2], grid.direction[1])
    return vector / np.linalg.norm(vector)


def runs_against_normal(grid: Grid) -> bool:
    """Whether slice 1 of the grid lies behind slice 0 as DICOM counts."""
    return bool(np.dot(grid.direction[0], normal(grid)) < 0)


def ascending(grid: Grid) -> Grid:
    """The same voxels, its first slice the one that becomes the first frame.

    raises: InputRejected when frames along the normal would miss the grid's slices by over half a pixel.
    """
    _require_unsheared(grid)
    if not runs_against_normal(grid):
        return grid
    z, y, x = grid.direction
    x0, y0, z0 = (float(v) for v in grid.positions((grid.shape[0] - 1, 0, 0)))
    return replace(grid, origin_mm=(x0, y0, z0), direction=((-z[0], -z[1], -z[2]), y, x))


def frames(array: NDArray[Scalar], grid: Grid) -> NDArray[Scalar]:
    """A view of `array` (z, y, x) in the order of `ascending(grid)`."""
    return array[::-1] if runs_against_normal(grid) else array


def affine(grid: Grid) -> NDArray[np.float64]:
    """(4, 4): (frame, row, column) to patient mm, its axes made exactly orthogonal for highdicom."""
    stack = ascending(grid)
    along_row = np.asarray(stack.direction[2]) / np.linalg.norm(stack.direction[2])
    along_normal = normal(stack)
    axes = np.stack([along_normal, np.cross(along_normal, along_row), along_row])
    matrix = np.eye(4)
    matrix[:3, :3] = (axes * np.asarray(stack.spacing_mm)[:, None]).T
    matrix[:3, 3] = stack.origin_mm
    return matrix


def _require_unsheared(grid: Grid) -> None:
    along = np.asarray(grid.direction[0])
    sideways = along - np.dot(along, normal(grid)) * normal(grid)
    drift_mm = float(np.linalg.norm(sideways)) * grid.spacing_mm[0] * (grid.shape[0] - 1)
    if drift_mm > 0.5 * min(grid.spacing_mm[1:]):
        raise InputRejected(
            f"the slices of the dose grid drift {drift_mm:.2f} mm sideways from first to last",
            "RTDOSE cannot hold a sheared stack; reconstruct the CT without gantry tilt",
        )
