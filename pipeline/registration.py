"""Spatial Registration objects: a rigid motion from one frame of reference into another.

Each item of RegistrationSequence names a frame of reference and the matrix that takes its coordinates
into the object's own frame (PS3.3 C.20.2.1.1)::

    x_registered = M · x_source

A rigid motion of a grid is another grid, so `Registration.move` changes no voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dataset import described, items, numbers, required
from pipeline.errors import InputRejected
from pipeline.volume import Grid, Triple, Volume

SPATIAL_REGISTRATION = "1.2.840.10008.5.1.4.1.1.66.1"
_RIGID_WITHIN = 1e-3
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """matrix: (4, 4) rigid, patient (x, y, z) mm of `from_frame` to those of `to_frame` (UIDs)."""

    matrix: Matrix
    from_frame: str
    to_frame: str

    def move(self, volume: Volume) -> Volume:
        """The same voxels at their place in `to_frame`. raises: ValueError for another frame."""
        return Volume(volume.array, self.moved(volume.grid), volume.unit)

    def moved(self, grid: Grid) -> Grid:
        """The grid at its place in `to_frame`."""
        if grid.frame_of_reference_uid != self.from_frame:
            raise ValueError(f"the grid lies in {grid.frame_of_reference_uid}, not in {self.from_frame}")
        rotation, shift = self.matrix[:3, :3], self.matrix[:3, 3]
        axes = np.asarray(grid.direction) @ rotation.T
        return replace(
            grid,
            origin_mm=_triple(rotation @ grid.origin_mm + shift),
            direction=(_triple(axes[0]), _triple(axes[1]), _triple(axes[2])),
            frame_of_reference_uid=self.to_frame,
        )


def registration(objects: Sequence[Dataset], from_frame: str, to_frame: str) -> Registration:
    """The motion that takes positions of one frame into the other.

    objects: Spatial Registration data sets; each may relate several frames, either way round.
    raises: InputRejected when none relates the two, several disagree, or it is not rigid.
    """
    found = [m for dataset in objects if (m := _between(dataset, from_frame, to_frame)) is not None]
    if not found:
        raise InputRejected(
            f"no Spatial Registration relates the frames of reference {from_frame} and {to_frame}",
            "Send the registration of this SPECT to this CT, or images of one SPECT/CT session",
        )
    if any(not np.allclose(matrix, found[0], atol=_RIGID_WITHIN) for matrix in found[1:]):
        raise InputRejected(
            f"{len(found)} Spatial Registrations relate {from_frame} and {to_frame} differently",
            "Send only the one to use",
        )
    return Registration(found[0], from_frame, to_frame)


def _between(dataset: Dataset, from_frame: str, to_frame: str) -> Matrix | None:
    """The object's own frame is one of those that it relates, by the identity when no item says otherwise."""
    if str(dataset.get("SOPClassUID", "")) != SPATIAL_REGISTRATION:
        raise InputRejected(
            f"{described(dataset)} is no rigid Spatial Registration", "Send a rigid registration"
        )
    own = str(required(dataset, "FrameOfReferenceUID"))
    named = {
        str(item.get("FrameOfReferenceUID", "")): item for item in items(dataset, "RegistrationSequence")
    }
    if not {from_frame, to_frame} <= {own, *named}:
        return None
    into_own = [_into_own(named.get(frame), dataset) for frame in (from_frame, to_frame)]
    return np.asarray(np.linalg.solve(into_own[1], into_own[0]))


def _into_own(item: Dataset | None, dataset: Dataset) -> Matrix:
    """Product of the item's matrices; the first in the sequence is applied first (PS3.3 C.20.2.1.1)."""
    total = np.eye(4)
    if item is None:
        return total
    for step in items(item, "MatrixRegistrationSequence"):
        for part in items(step, "MatrixSequence"):
            total = _rigid(part, dataset) @ total
    return total


def _rigid(part: Dataset, dataset: Dataset) -> Matrix:
    kind = str(part.get("FrameOfReferenceTransformationMatrixType", "RIGID"))
    matrix = numbers(part, "FrameOfReferenceTransformationMatrix", 16, of=dataset).reshape(4, 4)
    rotation = matrix[:3, :3]
    proper = np.allclose(rotation @ rotation.T, np.eye(3), atol=_RIGID_WITHIN) and np.linalg.det(rotation) > 0
    if kind != "RIGID" or not proper or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputRejected(
            f"the matrix of {described(dataset)} is {kind}, or scales or shears: not a rigid motion",
            "Register SPECT and CT rigidly",
        )
    return matrix


def _triple(values: Matrix) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
