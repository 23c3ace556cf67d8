"""The virtual patient: CT numbers, true activity concentration and labels on any axial grid.

Each layer of the anatomy is sampled on the grid and painted over what lies below it with the share of
the voxel that it covers, estimated from the signed distance d at the voxel's centre::

    cover = clip(1/2 - d / edge, 0, 1),   value = value + cover · (layer - value)

The edge is as wide as a voxel, so that cover is the share that supersampling would find, and wider by the
layer's own softness; the reference patient's is 1.5 mm everywhere. The same seed gives the same patient
on every grid; only the noise of the CT belongs to the grid.
Memory: under 0.9 GB for 512 x 512 x 130.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, laplace

from pipeline.simulate.anatomy import SPACING_MM, Anatomy, Layer
from pipeline.simulate.families import family_named
from pipeline.simulate.fields import Field, axis_coordinates, sample
from pipeline.simulate.lesions import Lesion
from pipeline.simulate.tissue import ADMINISTERED_BQ, HOURS_AFTER_INJECTION, REGIONS, Label
from pipeline.simulate.trunk import thorax_to_pelvis
from pipeline.simulate.uptake import texture_named
from pipeline.volume import Grid, Volume

_EDGE_MM = 1.5
_SHARPEST = 0.5  # 1/mm: beyond it a kink of the distance, not a surface's curvature
_NOISE_HU = 13.0
_NOISE_WIDTH_PIXELS = 0.75
_AIR_HU = -1000.0
_IN_BONE = ("bone", "vertebra")
# What breathes: these labels move with the diaphragm; skeleton, muscles, fat and skin do not.
_MOVING = [label for label in Label if Label.LUNG <= label <= Label.LEFT_KIDNEY_PELVIS]


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

    @property
    def moving(self) -> Field:
        """(z, y, x) 1 where tissue moves with the diaphragm, 0 elsewhere: lungs, organs of the abdomen,
        and lesions that do not sit in bone; for `respiration.averaged`."""
        lesions = [s.label for s in self.lesions if s.name not in _IN_BONE]
        return np.isin(self.labels, [*_MOVING, *lesions]).astype(np.float32)


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


def training_grid(frame_of_reference_uid: str = "") -> Grid:
    """256 x 256 x 130 voxels of 1.953125 x 1.953125 x 3 mm: the field of `abdominal_ct_grid`, each voxel
    2 x 2 of its pixels."""
    spacing = 500 / 256
    corner = -spacing * 255 / 2
    return Grid(
        (130, 256, 256),
        (corner, corner + 25, -193.5),
        (3.0, spacing, spacing),
        frame_of_reference_uid=frame_of_reference_uid,
    )


def virtual_patient(grid: Grid, seed: int) -> VirtualPatient:
    """The reference patient of this seed, on an axial grid near the origin of patient coordinates.

    Always eight lesions, and sizes and uptake close to the table's: for demonstrations and benches.
    Raises InputRejected where the grid's axes are not parallel to the patient's.
    """
    return _on_grid(thorax_to_pelvis(np.random.default_rng(seed)), grid, seed)


def drawn_patient(
    grid: Grid, seed: int, family: str = "trunk", texture: str = "multiscale"
) -> VirtualPatient:
    """A patient for training and tests, who differs widely from seed to seed, on an axial grid.

    family: one of `families.FAMILIES`. texture: one of `uptake.TEXTURES`.
    Raises InputRejected for a name that is neither, or a grid whose axes are not parallel to the patient's.
    """
    anatomy = family_named(family)(np.random.default_rng(seed), texture_named(texture))
    return _on_grid(anatomy, grid, seed)


def _on_grid(anatomy: Anatomy, grid: Grid, seed: int) -> VirtualPatient:
    hu, activity, labels = _painted(anatomy, grid)
    _add_noise(hu, np.random.default_rng([seed, 1]))
    return VirtualPatient(
        Volume(hu, grid, "[hnsf'U]"), Volume(activity, grid, "Bq/mL"), labels, anatomy.lesions, anatomy
    )


def activity_on(anatomy: Anatomy, grid: Grid) -> Volume:
    """True activity concentration (Bq/mL) of the same patient on another axial grid."""
    return Volume(_painted(anatomy, grid)[1], grid, "Bq/mL")


def hu_on(anatomy: Anatomy, grid: Grid) -> Volume:
    """CT numbers of the same patient and table on another axial grid, without noise."""
    return Volume(_painted(anatomy, grid)[0], grid, "[hnsf'U]")


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
    lattice = layer.lattice.boxed(surface.start, surface.distance.shape)
    box = _box_on(grid, lattice)
    if min(s.stop - s.start for s in box) == 0:
        return
    z, y, x = box
    part = grid.boxed((z.start, y.start, x.start), hu[box].shape)
    depth = sample(surface.distance, lattice, part) + np.float32(layer.below_mm)
    labels[box][depth < 0] = layer.label
    if layer.edge_mm is None:
        cover = _cover(depth, _EDGE_MM)
        covers = cover, cover
    else:
        covers = _averaging_covers(layer.edge_mm, depth, sample(_bend(surface.distance), lattice, part), grid)
    _blend(hu[box], layer.hu, covers[0], lattice, part)
    _blend(activity[box], layer.uptake, covers[1], lattice, part)


def _bend(distance: Field) -> Field:
    """∇²d = the sum of the principal curvatures, 1/mm, on a layer's box of the lattice."""
    curvature = laplace(distance, mode="nearest") / np.float32(SPACING_MM**2)
    return np.asarray(np.clip(curvature, -_SHARPEST, _SHARPEST), dtype=np.float32)


def _averaging_covers(edge_mm: float, depth: Field, bend: Field, grid: Grid) -> tuple[Field, Field]:
    """Cover in the CT, an edge as wide as a voxel, and in the activity, wider by the layer's softness.

    An edge of width e round a ball would hold more than the ball: ∫ cover dV = V + (e²/24) ∫ ∇²d dS. The
    edge is moved inwards by as much, so that a layer holds the same activity at every voxel size.
    """
    voxel = float(np.cbrt(np.prod(grid.spacing_mm)))
    soft = float(np.hypot(voxel, edge_mm))
    hu, uptake = (_cover(depth + np.float32(e**2 / 24) * bend, e) for e in (voxel, soft))
    return hu, uptake


def _cover(depth: Field, edge_mm: float) -> Field:
    return np.asarray(np.clip(np.float32(0.5) - depth / np.float32(edge_mm), 0, 1), dtype=np.float32)


def _blend(image: Field, value: float | Field, cover: Field, lattice: Grid, part: Grid) -> None:
    painted = sample(value, lattice, part) if isinstance(value, np.ndarray) else np.float32(value)
    image += cover * (painted - image)


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
