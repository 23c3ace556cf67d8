"""Dose-rate statistics of a region of interest.

DRx is the lowest dose rate among the hottest x % of the region's voxels, that is the (100 − x)th
percentile (Li 2022, doi 10.1002/mp.15397), interpolated linearly between neighbouring voxels. Every
voxel counts alike: voxels are of one size, and air inside a region counts with the zero it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.lattice import crop_box
from pipeline.volume import Volume

Mask = NDArray[np.bool_]
Float64 = NDArray[np.float64]

HISTOGRAM_LEVELS = 200


class RegionKind(StrEnum):
    """Where a region comes from."""

    BODY = "body"
    FIELD_OF_VIEW = "field of view"
    ROI = "roi"


@dataclass(frozen=True, slots=True)
class RoiStatistics:
    """What the report says of one region. Dose rates in mGy/h.

    activity_mbq: inside the region. sd: of all its voxels (not an estimate from a sample).
    dr10 ... dr90: exceeded in the hottest 10 ... 90 % of the region.
    """

    name: str
    voxels: int
    volume_ml: float
    mass_g: float
    activity_mbq: float
    mean: float
    maximum: float
    minimum: float
    sd: float
    dr10: float
    dr30: float
    dr70: float
    dr90: float


@dataclass(frozen=True, slots=True, eq=False)
class DoseRateVolumeHistogram:
    """dose_rate: (n,) ascending, mGy/h. volume_fraction: (n,) part of the region at or above it, 0 ... 1."""

    dose_rate: Float64
    volume_fraction: Float64


def roi_statistics(
    name: str, mask: Mask, dose_rate: Volume, density: Volume, activity: Volume
) -> RoiStatistics:
    """The figures of one region.

    mask: (z, y, x). dose_rate: mGy/h; density: g/cm³; activity: Bq/mL; all on one grid, the mask's.
    raises: InputRejected when the region holds no voxel.
    """
    for other in (density, activity):
        if not other.grid.same_as(dose_rate.grid):
            raise ValueError(f"the {other.unit} map and the dose-rate map lie on different grids")
    # One crop for three maps: a region is small against the 34 million voxels of a CT.
    box, inside = _cropped(name, mask, dose_rate)
    rates = dose_rate.array[box][inside].astype(np.float64)
    voxel_ml = dose_rate.grid.voxel_volume_ml
    dr10, dr30, dr70, dr90 = (float(v) for v in np.percentile(rates, [90, 70, 30, 10]))
    return RoiStatistics(
        name=name,
        voxels=rates.size,
        volume_ml=rates.size * voxel_ml,
        mass_g=_total(density, box, inside) * voxel_ml,
        activity_mbq=_total(activity, box, inside) * voxel_ml / 1e6,
        mean=float(rates.mean()),
        maximum=float(rates.max()),
        minimum=float(rates.min()),
        sd=float(rates.std()),
        dr10=dr10,
        dr30=dr30,
        dr70=dr70,
        dr90=dr90,
    )


def dose_rate_volume_histogram(
    name: str, mask: Mask, dose_rate: Volume, levels: int = HISTOGRAM_LEVELS
) -> DoseRateVolumeHistogram:
    """The cumulative histogram of a region at `levels` dose rates from 0 to its maximum.

    mask: (z, y, x) on the map's grid. raises: InputRejected when the region holds no voxel.
    """
    box, inside = _cropped(name, mask, dose_rate)
    rates = np.sort(dose_rate.array[box][inside].astype(np.float64))
    at = np.linspace(0.0, rates[-1], levels)
    below = np.searchsorted(rates, at, side="left")
    return DoseRateVolumeHistogram(at, 1.0 - below / rates.size)


def _cropped(name: str, mask: Mask, on: Volume) -> tuple[tuple[slice, slice, slice], Mask]:
    """The region's box and the mask inside it."""
    if mask.dtype != np.bool_ or mask.shape != on.grid.shape:
        raise ValueError(
            f"the mask of {name!r} is {mask.dtype} {mask.shape}, not bool {on.grid.shape} (z, y, x)"
        )
    if not mask.any():
        raise InputRejected(
            f"the region {name!r} holds no voxel of the dose-rate map",
            "Check that its structure set or segmentation belongs to this CT and lies within it",
        )
    box = crop_box(mask)
    return box, mask[box]


def _total(volume: Volume, box: tuple[slice, slice, slice], inside: Mask) -> float:
    return float(volume.array[box][inside].sum(dtype=np.float64))
