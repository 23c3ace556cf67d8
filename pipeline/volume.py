"""`Volume`: the only currency of `pipeline`.

Two axis orders exist and this module is where they meet:

* everything that counts voxels (``array``, ``shape``, ``spacing_mm``, indices) is **(z, y, x)**;
* everything in the patient (``origin_mm``, positions, direction cosines) is **(x, y, z)** in the
  DICOM patient coordinate system (LPS, mm; PS3.3 C.7.6.2.1.1).

A voxel's position is that of its centre::

    position = origin + Σ_axis index[axis] · spacing[axis] · direction[axis]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputRejected

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where voxels lie in the patient.

    shape: (z, y, x) number of voxels.
    origin_mm: patient (x, y, z) of the centre of voxel [0, 0, 0].
    spacing_mm: (z, y, x) distance between voxel centres, all positive.
    direction: three unit vectors in patient (x, y, z), one per array axis z, y, x:
        ``direction[0]`` points from slice 0 to slice 1. Orthogonal; either handedness.
    frame_of_reference_uid: positions on two grids may be compared only if it is the same.
    """

    shape: tuple[int, int, int]
    origin_mm: Triple
    spacing_mm: Triple
    direction: tuple[Triple, Triple, Triple] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    frame_of_reference_uid: str = ""

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise InputRejected(f"a grid of shape {self.shape} (z, y, x) holds no voxel")
        if not np.all(np.isfinite(self.spacing_mm)) or min(self.spacing_mm) <= 0:
            raise InputRejected(
                f"voxel spacing {self.spacing_mm} mm (z, y, x) is not positive",
                "Correct PixelSpacing or the slice positions of the series",
            )
        axes = np.asarray(self.direction)
        # 1e-3: cosines travel as decimal strings of at most 16 characters, and some cameras
        # round them to four digits; beyond that it is not a rotated grid but a sheared one.
        if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
            raise InputRejected(
                f"the direction cosines {self.direction} are not orthogonal unit vectors",
                "Sheared stacks (a tilted gantry) are not supported; reconstruct without tilt",
            )

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, mL."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): homogeneous (z, y, x) index to patient (x, y, z) mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = (np.asarray(self.direction) * np.asarray(self.spacing_mm)[:, None]).T
        matrix[:3, 3] = self.origin_mm
        return matrix

    def positions(self, indices: ArrayLike) -> NDArray[np.float64]:
        """Patient positions of voxel indices.

        indices: (..., 3) in (z, y, x), fractions allowed. returns: (..., 3) in (x, y, z), mm.
        """
        matrix = self.affine
        return np.asarray(indices, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]

    def indices(self, positions_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional voxel indices of patient positions.

        positions_mm: (..., 3) in (x, y, z). returns: (..., 3) in (z, y, x).
        """
        matrix = self.affine
        offsets = np.asarray(positions_mm, dtype=np.float64) - matrix[:3, 3]
        return offsets @ np.linalg.inv(matrix[:3, :3]).T

    def boxed(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Grid:
        """The same lattice from index `start` (z, y, x; may be negative) with another `shape`."""
        x, y, z = (float(v) for v in self.positions(start))
        return replace(self, origin_mm=(x, y, z), shape=shape)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids place every voxel at the same position within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        return bool(np.all(np.abs(self.positions(corners) - other.positions(corners)) <= tolerance_mm))


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A quantity on a grid. array: (z, y, x); unit: UCUM, e.g. ``Bq/mL``, ``mGy/h``, ``g/cm3``."""

    array: NDArray[np.float32]
    grid: Grid
    unit: str

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"array {self.array.shape} does not fit grid {self.grid.shape} (z, y, x)")
        if self.array.dtype != np.float32:
            raise TypeError(f"volumes are float32, not {self.array.dtype}")

    @property
    def integral(self) -> float:
        """Sum of the values times a voxel's volume in mL: Bq of a map in Bq/mL, g of one in g/cm3."""
        return float(self.array.sum(dtype=np.float64)) * self.grid.voxel_volume_ml

    def with_array(self, array: NDArray[np.float32], unit: str | None = None) -> Volume:
        """Another quantity on the same grid."""
        return Volume(array, self.grid, self.unit if unit is None else unit)

    def boxed(self, box: tuple[slice, slice, slice]) -> Volume:
        """The part inside `box`: (z, y, x) slices with explicit, non-negative bounds."""
        z, y, x = box
        array = np.ascontiguousarray(self.array[box])
        grid = self.grid.boxed((z.start, y.start, x.start), (array.shape[0], array.shape[1], array.shape[2]))
        return Volume(array, grid, self.unit)
