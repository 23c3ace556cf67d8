"""A patient in miniature for the network: organs, lung, bone and lesions in one body, on any grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.averaging import averaged
from pipeline.volume import Grid, Triple, Volume

VOXEL_MM: Triple = (3.0, 1.953125, 1.953125)
FINE = Grid((40, 112, 128), (-95.25, -83.25, 0.0), (1.5, 1.5, 1.5), frame_of_reference_uid="1.2.3")
EXTENT_MM = (60.0, 168.0, 192.0)
AIR = 0.0012


@dataclass(frozen=True, eq=False)
class Scene:
    """activity: Bq/mL. density: g/cm³. regions: masks on their grid."""

    activity: Volume
    density: Volume
    regions: dict[str, NDArray[np.bool_]]


@cache
def _fine() -> tuple[Volume, Volume, dict[str, Volume]]:
    z, y, x = np.moveaxis(FINE.positions(np.moveaxis(np.indices(FINE.shape), 0, -1)), -1, 0)[::-1]
    body = (x / 80) ** 2 + (y / 65) ** 2 < 1
    shapes = {
        "liver": ((x - 35) / 32) ** 2 + ((y + 12) / 30) ** 2 < 1,
        "kidney": ((x - 25) / 16) ** 2 + ((y - 32) / 20) ** 2 + ((z - 30) / 24) ** 2 < 1,
        "lesion": (x - 40) ** 2 + (y + 18) ** 2 + (z - 30) ** 2 < 13**2,
        "lung": ((x + 38) / 28) ** 2 + ((y + 5) / 38) ** 2 < 1,
    }
    density = np.where(body, 1.05, AIR)
    density[shapes["lung"]] = 0.26
    density[x**2 + (y - 45) ** 2 < 12**2] = 1.4
    noise = gaussian_filter(np.random.default_rng(7).standard_normal(FINE.shape), 1.0)
    density = np.maximum(gaussian_filter(density, 0.6) * (1 + 0.1 * noise * body), AIR)
    activity = np.where(body, 1e4, 0.0)
    for name, concentration in (("liver", 2e5), ("kidney", 6e5), ("lesion", 2e6)):
        activity[shapes[name]] = concentration
    activity = gaussian_filter(activity, 11.0 / 2.355 / 1.5)

    def volume(array: NDArray[np.generic], unit: str) -> Volume:
        return Volume(array.astype(np.float32), FINE, unit)

    regions = {name: volume(mask & body, "1") for name, mask in {**shapes, "body": body}.items()}
    return volume(activity, "Bq/mL"), volume(density, "g/cm3"), regions


def grid_of(spacing_mm: Triple) -> Grid:
    """An axial grid over the scene with its centre."""
    z, y, x = (max(round(mm / s), 1) for mm, s in zip(EXTENT_MM, spacing_mm, strict=True))
    centre = FINE.positions((np.array(FINE.shape) - 1) / 2)
    first = centre - np.multiply(np.subtract((x, y, z), 1) / 2, spacing_mm[::-1])
    return replace(FINE, shape=(z, y, x), spacing_mm=spacing_mm, origin_mm=tuple(map(float, first)))


@cache
def scene(spacing_mm: Triple) -> Scene:
    """The patient as an image of that spacing shows him."""
    activity, density, regions = _fine()
    grid = grid_of(spacing_mm)
    masks = {name: averaged(of, grid).array >= 0.5 for name, of in regions.items()}
    return Scene(averaged(activity, grid), averaged(density, grid, AIR), masks)


def turned(volume: Volume, order: tuple[int, int, int], backwards: tuple[int, ...]) -> Volume:
    """The same voxels stored in another order of axes, some of them from the other end."""
    grid = volume.grid
    first = [grid.shape[axis] - 1 if axis in backwards else 0 for axis in range(3)]
    array = volume.array[tuple(slice(None, None, -1 if axis in backwards else 1) for axis in range(3))]
    along = [tuple(-c if a in backwards else c for c in grid.direction[a]) for a in range(3)]
    return Volume(
        np.ascontiguousarray(array.transpose(order)),
        replace(
            grid,
            shape=tuple(grid.shape[a] for a in order),
            spacing_mm=tuple(grid.spacing_mm[a] for a in order),
            direction=tuple(along[a] for a in order),
            origin_mm=tuple(float(c) for c in grid.positions(first)),
        ),
        volume.unit,
    )


def energy(dose_rate: NDArray[np.float32], density: Volume) -> float:
    """Σ dose rate x density x volume."""
    product = dose_rate.astype(np.float64) * density.array
    return float(product.sum()) * density.grid.voxel_volume_ml
