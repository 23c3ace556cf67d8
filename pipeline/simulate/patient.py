"""The virtual patient: CT numbers, true activity concentration and labels on any axial grid.

Each layer of the anatomy is sampled on the grid and painted over what lies below it with the share of
the voxel that it covers, estimated from the signed distance d at the voxel's centre::

    cover = clip(1/2 - d / edge, 0, 1),   value = value + cover · (layer - value)

The same seed gives the same patient on every grid; only the noise of the CT belongs to the grid.
Memory: under 0.9 GB for 512 x 512 x 130.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from pipeline.simulate.anatomy import LATTICE, Anatomy, Layer, thorax_to_pelvis
from pipeline.simulate.fields import Field, axis_coordinates, sample
from pipeline.simulate.lesions import Lesion
from pipeline.simulate.tissue import ADMINISTERED_BQ, HOURS_AFTER_INJECTION, REGIONS, Label
from pipeline.volume import Grid, Volume

_EDGE_MM = 1.5
_NOISE_HU = 13.0
_NOISE_WIDTH_PIXELS = 0.75
_AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class VirtualPatient:
    """What is true of the patient, voxel by voxel.

    hu: CT numbers with noise, table included. activity: Bq/mL at the scan. labels: (z, y, x) codes of
    `Label`, on the same grid. lesions: their codes and what they hold. anatomy: the same patient
    before voxels, for `activity_on` another grid. administered_bq: at injection,
    `hours_after_injection` before the scan; activity outside the grid and excreted is not in `activity`.
    """

    hu: Volume
    activity: Volume
    labels: NDArray[np.uint8]
    lesions: tuple[Lesion, ...]
    anatomy: Anatomy
    administered_bq: float = ADMINISTERED_BQ
    hours_after_injection: float = HOURS_AFTER_INJECTION

    @property
    def regions(self) -> tuple[str, ...]:
        """Names that `mask` knows: organs, then "lesion 1", "lesion 2", ..."""
        return (*REGIONS, *(f"lesion {k + 1}" for k in range(len(self.lesions))), "lesions", "body")

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(z, y, x) voxels of one of `regions`. Raises KeyError for any other name."""
        if name == "body":
            return self.labels > Label.TABLE
        if name == "lesions":
            return self.labels >= Label.FIRST_LESION
        codes: dict[str, tuple[int, ...]] = {
            f"lesion {k + 1}": (s.label,) for k, s in enumerate(self.lesions)
        }
        return np.isin(self.labels, (codes | REGIONS)[name])


def abdominal_ct_grid(frame_of_reference_uid: str = "") -> Grid:
    """512 x 512 x 130 voxels of 0.9766 x 0.9766 x 3 mm about the origin, feet to head."""
    spacing = 500 / 512
    corner = -spacing * 511 / 2
    # The table lies in the field too: the patient is above its middle, as a technologist sets it.
    return Grid(
        (130, 512, 512),
        (corner, corner + 25, -193.5),
        (3.0, spacing, spacing),
        frame_of_reference_uid=frame_of_reference_uid,
    )


def virtual_patient(grid: Grid, seed: int) -> VirtualPatient:
    """The patient of this seed, on an axial grid near the origin of patient coordinates.

    Raises InputRejected where the grid's axes are not parallel to the patient's.
    """
    anatomy = thorax_to_pelvis(np.random.default_rng(seed))
    hu, activity, labels = _painted(anatomy, grid)
    _add_noise(hu, np.random.default_rng([seed, 1]))
    return VirtualPatient(
        Volume(hu, grid, "[hnsf'U]"), Volume(activity, grid, "Bq/mL"), labels, anatomy.lesions, anatomy
    )


def activity_on(anatomy: Anatomy, grid: Grid) -> Volume:
    """True activity concentration (Bq/mL) of the same patient on another axial grid."""
    return Volume(_painted(anatomy, grid)[1], grid, "Bq/mL")


def _painted(anatomy: Anatomy, grid: Grid) -> tuple[Field, Field, NDArray[np.uint8]]:
    hu = np.full(grid.shape, _AIR_HU, dtype=np.float32)
    activity = np.zeros(grid.shape, dtype=np.float32)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    _paint_table(anatomy, grid, hu, labels)
    for layer in anatomy.layers:
        _paint(layer, grid, hu, activity, labels)
    return hu, activity, labels


def _box_on(grid: Grid, lattice: Grid) -> tuple[slice, ...]:
    """Indices of `grid` inside the extent of `lattice`."""
    box = []
    for fine, coarse in zip(axis_coordinates(grid), axis_coordinates(lattice), strict=True):
        hits = np.flatnonzero((fine >= coarse[0]) & (fine <= coarse[-1]))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
    return tuple(box)


def _paint(layer: Layer, grid: Grid, hu: Field, activity: Field, labels: NDArray[np.uint8]) -> None:
    surface = layer.surface
    lattice = LATTICE.boxed(surface.start, surface.distance.shape)
    box = _box_on(grid, lattice)
    if min(s.stop - s.start for s in box) == 0:
        return
    z, y, x = box
    part = grid.boxed((z.start, y.start, x.start), hu[box].shape)
    depth = sample(surface.distance, lattice, part) + np.float32(layer.below_mm)
    labels[box][depth < 0] = layer.label
    cover = np.clip(np.float32(0.5) - depth / np.float32(_EDGE_MM), 0, 1)
    for image, value in ((hu, layer.hu), (activity, layer.uptake)):
        painted = sample(value, lattice, part) if isinstance(value, np.ndarray) else np.float32(value)
        image[box] += cover * (painted - image[box])


def _paint_table(anatomy: Anatomy, grid: Grid, hu: Field, labels: NDArray[np.uint8]) -> None:
    """A mattress of foam on a hollow shell of carbon fibre, curved up at its edges; the same in all z."""
    _, y, x = axis_coordinates(grid)
    depth = y[:, None] - (anatomy.back_mm + 4 - x[None, :] ** 2 / 1100)
    across = np.abs(x)[None, :]
    foam = (depth > 0) & (depth < 9) & (across < 195)
    shell = (depth >= 9) & (depth < 36 - across**2 / 5000) & (across < 210)
    core = (depth >= 11.5) & (depth < 33.5 - across**2 / 5000) & (across < 207.5)
    slice_hu = np.where(core, -915, np.where(shell, -120, np.where(foam, -925, _AIR_HU)))
    hu[:] = slice_hu.astype(np.float32)
    labels[:, foam | shell] = Label.TABLE


def _add_noise(hu: Field, rng: np.random.Generator) -> None:
    """Noise correlated in the slice, of `_NOISE_HU` standard deviation; slice by slice to spare memory."""
    # ∫ of a squared Gaussian kernel in two dimensions: what the filter leaves of the variance.
    kernel = gaussian_filter1d(np.eye(1, 31, 15)[0], _NOISE_WIDTH_PIXELS)
    gain = np.float32(_NOISE_HU / np.sum(kernel**2))
    for image in hu:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        for axis in (0, 1):
            gaussian_filter1d(noise, _NOISE_WIDTH_PIXELS, axis=axis, output=noise)
        image += gain * noise
    np.clip(hu, -1024, 3071, out=hu)
