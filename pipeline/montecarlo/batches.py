"""Batches: what was deposited, and how far it may be from the truth.

Histories run in batches of N_b decays. With d_b what a decay leaves in a voxel in the mean of batch b, the
estimate is D = Σ N_b d_b / Σ N_b, and its variance follows from the spread of the batches (Bessel's
correction)::

    s² = Σ N_b (d_b − D)² / ((B − 1) Σ N_b)

The sum is kept by West's updating rule (Commun ACM 22:532, 1979): nothing cancels, float32 is enough for it.
The mean over a region is treated in the same way, from its own value in every batch: neighbouring voxels
share tracks, and their errors do not add as if they were independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import compiled
from pipeline.montecarlo.geometry import ACCOUNT_SIZE, EMITTED, ESCAPED

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A region of interest: flat indices of its voxels, and 1/mass of each, 1/g."""

    name: str
    voxels: NDArray[np.int32]
    per_gram: NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Estimate:
    """What one kind of history (electrons or photons) has left so far.

    total: [n] keV of all decays. spread: [n] Σ N_b (d_b − D)², keV²·decays. sizes: decays of each batch.
    regions: by name, of each batch the mean over the region's voxels of keV/g per decay.
    account: keV emitted and escaped (places of `geometry`).
    seconds: spent on it; histories_s: of that on histories, the rest on sums. per_second: decays per second
        of the last batch.
    """

    total: Float64
    spread: NDArray[np.float32]
    sizes: list[int] = field(default_factory=list)
    regions: dict[str, list[float]] = field(default_factory=dict)
    account: Float64 = field(default_factory=lambda: np.zeros(ACCOUNT_SIZE))
    seconds: float = 0.0
    histories_s: float = 0.0
    per_second: float = 0.0

    @property
    def decays(self) -> int:
        """Decays whose histories have run: the number of the next history."""
        return sum(self.sizes)

    @property
    def emitted_kev(self) -> float:
        """Energy of all particles that the decays emitted."""
        return float(self.account[EMITTED])

    @property
    def escaped_kev(self) -> float:
        """Energy that left the grid."""
        return float(self.account[ESCAPED])

    def add(self, tallies: Float64, accounts: Float64, size: int, regions: tuple[Region, ...]) -> None:
        """Take in a batch of `size` decays, and empty its tallies for the next.

        tallies: [threads, n] keV. accounts: [threads, ACCOUNT_SIZE] keV.
        """
        for region in regions:
            energy = energy_per_gram(tallies, region.voxels, region.per_gram)
            mean = energy / (size * max(region.voxels.size, 1))
            self.regions.setdefault(region.name, []).append(mean)
        fold(tallies, self.total, self.spread, size, self.decays)
        self.sizes.append(size)
        self.account += accounts.sum(axis=0)
        accounts[:] = 0.0

    @property
    def per_spread(self) -> float:
        """What makes a variance of the mean per decay out of `spread`; 0 with fewer than two batches."""
        return 1.0 / ((len(self.sizes) - 1) * self.decays) if len(self.sizes) > 1 else 0.0

    def variance(self, voxels: slice) -> Float64:
        """Of the mean energy per decay in voxels, keV²; 0 with fewer than two batches."""
        return self.spread[voxels].astype(np.float64) * self.per_spread

    def mean(self, voxels: slice) -> Float64:
        """Energy per decay in voxels, keV."""
        return self.total[voxels] / max(self.decays, 1)

    def region_mean(self, name: str) -> tuple[float, float]:
        """(keV/g per decay in the mean over the region's voxels, its variance)."""
        values, sizes = np.array(self.regions.get(name, [])), np.array(self.sizes, np.float64)
        if values.size == 0:
            return 0.0, 0.0
        mean = float(np.average(values, weights=sizes))
        if values.size < 2:
            return mean, 0.0
        return mean, float(np.dot(sizes, (values - mean) ** 2) / ((values.size - 1) * sizes.sum()))


def empty_estimate(voxels: int) -> Estimate:
    """Nothing has run yet."""
    return Estimate(np.zeros(voxels), np.zeros(voxels, np.float32))


@dataclass(frozen=True, slots=True)
class RegionFigures:
    """What is known of a region.

    mean: keV/g per decay. of_mean: relative uncertainty of it. of_voxels: the mean over the region's voxels
        of s/D; a voxel that no history reached counts as 1. Both are infinite while any kind of history has
        fewer than two batches, or without a dose.
    electrons, photons: what each adds to the mean over the voxels of (s/D)².
    """

    mean: float
    of_mean: float = math.inf
    of_voxels: float = math.inf
    electrons: float = 0.0
    photons: float = 0.0


def region_figures(estimates: tuple[Estimate, ...], region: Region) -> RegionFigures:
    """The figures of a region from the electrons and, if there are any, the photons."""
    parts = [estimate.region_mean(region.name) for estimate in estimates]
    mean, variance = sum(p[0] for p in parts), sum(p[1] for p in parts)
    if mean == 0.0 or any(len(estimate.sizes) < 2 for estimate in estimates):
        return RegionFigures(mean)
    first, last = estimates[0], estimates[-1]
    both = len(estimates) > 1
    relative, electrons, photons = relative_errors(
        region.voxels, first.total, first.spread, 1.0 / first.decays, first.per_spread,
        last.total, last.spread, both / last.decays, both * last.per_spread,
    )  # fmt: skip
    n = max(region.voxels.size, 1)
    return RegionFigures(mean, math.sqrt(variance) / mean, relative / n, electrons / n, photons / n)


def regions_of(
    masks: Mapping[str, NDArray[np.bool_]], gram: NDArray[np.float32], least_gram: float
) -> tuple[Region, ...]:
    """Regions as indices. gram: (z, y, x) mass of the voxels; those below `least_gram` belong to none."""
    flat = gram.reshape(-1)
    regions = []
    for name, mask in masks.items():
        voxels = np.flatnonzero(mask.reshape(-1) & (flat >= least_gram)).astype(np.int32)
        regions.append(Region(name, voxels, 1.0 / flat[voxels]))
    return tuple(regions)


@compiled
def fold(tallies: Float64, total: Float64, spread: NDArray[np.float32], size: int, before: int) -> None:
    """Add a batch of `size` decays to `total` and `spread`, which hold `before` decays; empty the tallies."""
    weight = size * (before / (before + size))
    for voxel in range(total.shape[0]):
        energy = 0.0
        for thread in range(tallies.shape[0]):
            energy += tallies[thread, voxel]
            tallies[thread, voxel] = 0.0
        if energy == 0.0 and total[voxel] == 0.0:
            continue
        batch = energy / size
        old = total[voxel] / before if before > 0 else 0.0
        total[voxel] += energy
        # A square: (batch − old) (batch − new) is one too, but rounding may turn its sign.
        spread[voxel] += np.float32(weight * (batch - old) ** 2)


@compiled
def energy_per_gram(tallies: Float64, voxels: NDArray[np.int32], per_gram: NDArray[np.float32]) -> float:
    """Sum over voxels of keV/g."""
    result = 0.0
    for i in range(voxels.shape[0]):
        for thread in range(tallies.shape[0]):
            result += tallies[thread, voxels[i]] * per_gram[i]
    return result


@compiled
def relative_errors(
    voxels: NDArray[np.int32],
    total_a: Float64,
    spread_a: NDArray[np.float32],
    per_total_a: float,
    per_spread_a: float,
    total_b: Float64,
    spread_b: NDArray[np.float32],
    per_total_b: float,
    per_spread_b: float,
) -> tuple[float, float, float]:
    """Sums over voxels of s/D (1 without a dose), and of what estimates a and b add to (s/D)²."""
    relative, part_a, part_b = 0.0, 0.0, 0.0
    for voxel in voxels:
        dose = total_a[voxel] * per_total_a + total_b[voxel] * per_total_b
        if dose <= 0.0:
            relative += 1.0
            continue
        a = spread_a[voxel] * per_spread_a / (dose * dose)
        b = spread_b[voxel] * per_spread_b / (dose * dose)
        part_a += a
        part_b += b
        relative += math.sqrt(a + b)
    return relative, part_a, part_b
