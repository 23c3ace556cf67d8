"""The published numbers, and the same quantities from our kernels.

Soft tissue against water: the kernels hold for 1.04 g/cm³, the spheres are of water of 1.00 g/cm³.
Lengths scale with the inverse of the density (the same g/cm² is crossed), so a sphere of radius R in
water is computed as one of R / 1.04 in tissue. The small difference in composition is left as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.convolve import convolve_cpu, fft_shape, spectrum_of
from pipeline.decay import NUCLIDES, Nuclide, nuclide
from pipeline.kernels import (
    MGY_G_PER_MBQ_S_KEV,
    SOFT_TISSUE_G_PER_CM3,
    radial_kernel,
    reach_voxels,
    voxel_kernel,
)

FOLDER = Path(__file__).parent

# ICRP Publication 107: electrons of all kinds, keV per decay.
ELECTRON_KEV = {"Lu-177": 147.92, "Y-90": 933.11, "I-131": 191.85}


@dataclass(frozen=True)
class VoxelValue:
    """One row of `voxel_s_values_3mm.csv`: S and its standard deviation, mGy/(MBq s)."""

    of: Nuclide
    offset: tuple[int, int, int]
    s_value: float
    sigma: float


@dataclass(frozen=True)
class Sphere:
    """One row of `spheres_water.csv`: energy that the sphere absorbs per decay inside it, keV."""

    of: Nuclide
    mass_g: float
    kev_per_decay: float

    @property
    def water_radius_mm(self) -> float:
        """Radius of the sphere itself, 1.00 g/cm3."""
        return float(10 * (3 * self.mass_g / (4 * np.pi)) ** (1 / 3))

    @property
    def tissue_radius_mm(self) -> float:
        """Radius of the sphere in tissue that photons and electrons cross as they cross this one."""
        return self.water_radius_mm / SOFT_TISSUE_G_PER_CM3


def voxel_values() -> list[VoxelValue]:
    return [
        VoxelValue(nuclide(name), (int(i), int(j), int(k)), float(s), float(sigma))
        for name, i, j, k, s, sigma in _rows("voxel_s_values_3mm.csv")
    ]


def spheres() -> list[Sphere]:
    return [
        Sphere(nuclide(name), float(mass), float(kev)) for name, mass, _, kev in _rows("spheres_water.csv")
    ]


def mird17_points() -> list[tuple[Nuclide, float, float]]:
    """(nuclide, voxel side in mm, S of the source voxel in mGy/(MBq s)) for the nuclides that we have."""
    known = {row.name for row in NUCLIDES}
    return [
        (nuclide(name), float(side), float(s))
        for name, side, s, _ in _rows("mird17_points.csv")
        if name in known
    ]


def sphere_from_shells(of: Nuclide, radius_mm: float) -> float:
    """keV absorbed in a uniform sphere, from the radial kernel.

    g(r) = 1 − 3/4 r/R + 1/16 (r/R)³ is the part of the pairs of points at a distance r, the first of
    them in the sphere, whose second lies in it too.
    """
    edges = np.linspace(0.0, 2 * radius_mm, 20001)
    ratio = (edges[:-1] + edges[1:]) / 2 / radius_mm
    energy = np.diff(radial_kernel(of).energy_within(edges))
    return float(np.sum(energy * (1 - 0.75 * ratio + ratio**3 / 16)))


def sphere_from_voxels(of: Nuclide, radius_mm: float, voxel_mm: float) -> float:
    """keV absorbed in a uniform sphere, from the voxel kernel and the FFT."""
    inside = ball(radius_mm / voxel_mm)
    spacing = (voxel_mm, voxel_mm, voxel_mm)
    shape = fft_shape(inside.shape, inside.shape, (0, 0, 0), reach_voxels(spacing))
    z, y, x = (n // 2 + 1 for n in shape)
    spectrum = spectrum_of(voxel_kernel(of, spacing, (z, y, x)), shape)
    s_value = convolve_cpu(inside, spectrum, inside.shape, (0, 0, 0))
    voxel_g = SOFT_TISSUE_G_PER_CM3 * voxel_mm**3 / 1000
    per_decay = float(s_value[inside > 0].mean(dtype=np.float64))
    return per_decay * voxel_g / MGY_G_PER_MBQ_S_KEV


def ball(radius_voxels: float) -> NDArray[np.float32]:
    """(n, n, n): 1 in voxels whose centre lies in a sphere around the middle of the array, else 0.

    Whole voxels, so that what is emitted inside is inside: shares of voxels would blur the edge twice.
    """
    half = int(np.ceil(radius_voxels)) + 1
    squared = (np.arange(2 * half) + 0.5 - half) ** 2
    inside = squared[:, None, None] + squared[:, None] + squared <= radius_voxels**2
    return np.asarray(inside, np.float32)


def _rows(name: str) -> Iterator[list[str]]:
    with (FOLDER / name).open() as file:
        lines = [line for line in file if not line.startswith("#")]
    return iter(list(csv.reader(lines))[1:])
