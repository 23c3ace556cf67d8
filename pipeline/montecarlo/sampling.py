"""Where decays happen and what they emit: from maps and decay data to arrays for the histories.

Voxels are drawn by inverting the running sum of the activity (float64) with the help of a guide table (Chen
and Asau 1974). Batches stratify it: history i of n takes a quantile from [i/n, (i + 1)/n), so that every
batch covers the whole source evenly, and neighbouring histories begin in neighbouring voxels, which keeps
their tallies in the processor's cache.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import F, compiled
from pipeline.montecarlo.random_numbers import uniform

Float64 = NDArray[np.float64]

_GUIDE_PER_VOXEL = 0.25
_SECOND_DIGITS = 2.0**-23


class Emission(Protocol):
    """What a source needs of decay data; `decay_data.DecaySource` is one.

    beta_cdf_kev: inverse distribution of the beta energy at equidistant probabilities. Energies keV, yields
        per
    decay.
    """

    @property
    def beta_cdf_kev(self) -> Float64: ...
    @property
    def beta_yield(self) -> float: ...
    @property
    def electron_kev(self) -> Float64: ...
    @property
    def electron_yield(self) -> Float64: ...
    @property
    def photon_kev(self) -> Float64: ...
    @property
    def photon_yield(self) -> Float64: ...


class Lines(NamedTuple):
    """Particles of a discrete energy: how many a decay emits in the mean, and which."""

    energy: NDArray[np.float32]  # [L] keV, the most frequent first
    running: NDArray[np.float32]  # [L] running sum of the probabilities, 1 at the end
    per_decay: np.float32


class Source(NamedTuple):
    """Decays: in voxels in proportion to their activity, or uniformly in a sphere about the grid's centre.

    radius: cm, of the sphere; used when the geometry has shells. local_electrons, local_photons: keV per
        decay of
    what is too weak to leave its place.
    """

    voxel: NDArray[np.int32]  # [n] flat indices of voxels that hold activity
    running: Float64  # [n] running sum of their share, 1 at the end
    guide: NDArray[np.int32]  # [g + 1] where the quantile j/g lies in `running`
    radius: np.float32
    beta: NDArray[np.float32]  # [K] keV at equidistant probabilities
    betas_per_decay: np.float32
    electrons: Lines
    photons: Lines
    local_electrons: np.float32
    local_photons: np.float32


def source_in_voxels(
    activity: NDArray[np.float32], emission: Emission, electrons_from_kev: float, photons_from_kev: float
) -> Source:
    """Source of a map (z, y, x) of activity, any unit; at least one voxel above 0.

    electrons_from_kev, photons_from_kev: lines below are left where they arise, in one sum.
    """
    flat = activity.reshape(-1)
    voxel = np.flatnonzero(flat > 0).astype(np.int32)
    running = np.cumsum(flat[voxel], dtype=np.float64)
    running /= running[-1]
    steps = max(1, int(voxel.size * _GUIDE_PER_VOXEL))
    guide = np.searchsorted(running, np.arange(steps + 1) / steps, side="right").astype(np.int32)
    return _source(
        voxel, running, np.minimum(guide, voxel.size - 1), 0.0, emission, electrons_from_kev, photons_from_kev
    )


def source_in_sphere(
    radius_cm: float, emission: Emission, electrons_from_kev: float, photons_from_kev: float
) -> Source:
    """Source at the centre of a geometry of shells, or uniformly within a radius of it."""
    one = np.ones(1, np.float64)
    return _source(
        np.zeros(1, np.int32),
        one,
        np.zeros(2, np.int32),
        radius_cm,
        emission,
        electrons_from_kev,
        photons_from_kev,
    )


def _source(
    voxel: NDArray[np.int32],
    running: Float64,
    guide: NDArray[np.int32],
    radius: float,
    emission: Emission,
    electrons_from_kev: float,
    photons_from_kev: float,
) -> Source:
    electrons, local_electrons = _lines(emission.electron_kev, emission.electron_yield, electrons_from_kev)
    photons, local_photons = _lines(emission.photon_kev, emission.photon_yield, photons_from_kev)
    return Source(
        voxel=voxel,
        running=running,
        guide=guide,
        radius=F(radius),
        beta=np.ascontiguousarray(emission.beta_cdf_kev, np.float32),
        betas_per_decay=F(emission.beta_yield),
        electrons=electrons,
        photons=photons,
        local_electrons=F(local_electrons),
        local_photons=F(local_photons),
    )


def _lines(energy: Float64, per_decay: Float64, from_kev: float) -> tuple[Lines, float]:
    """Lines from an energy on; keV per decay of those below."""
    energy, per_decay = np.asarray(energy, np.float64), np.asarray(per_decay, np.float64)
    weak = energy < from_kev
    local = float(np.dot(energy[weak], per_decay[weak]))
    energy, per_decay = energy[~weak], per_decay[~weak]
    total = float(per_decay.sum())
    if total == 0.0:
        return Lines(np.zeros(1, np.float32), np.ones(1, np.float32), F(0.0)), local
    order = np.argsort(-per_decay, kind="stable")
    running = np.cumsum(per_decay[order]) / total
    running[-1] = 1.0
    return Lines(energy[order].astype(np.float32), running.astype(np.float32), F(total)), local


@compiled
def source_voxel(
    source: Source, stratum: int, strata: int, counter: np.uint64, key: np.uint64
) -> tuple[int, np.uint64]:
    """(flat index of the voxel of a decay, next counter): a quantile of the stratum, inverted.

    Two draws make 46 digits, so that every voxel of a large image can be hit.
    """
    r, counter = uniform(counter, key)
    q, counter = uniform(counter, key)
    quantile = (np.float64(stratum) + np.float64(r) + (np.float64(q) - 0.5) * _SECOND_DIGITS) / np.float64(
        strata
    )
    steps = source.guide.shape[0] - 1
    at = min(int(quantile * steps), steps - 1)
    low = int(source.guide[at])
    high = int(source.guide[at + 1])
    while low < high:
        middle = (low + high) // 2
        if source.running[middle] > quantile:
            high = middle
        else:
            low = middle + 1
    return int(source.voxel[low]), counter


@compiled
def line_energy(lines: Lines, counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.uint64]:
    """(energy of one of the lines, next counter)."""
    r, counter = uniform(counter, key)
    last = lines.running.shape[0] - 1
    i = 0
    while i < last and lines.running[i] < r:
        i += 1
    return lines.energy[i], counter


@compiled
def beta_energy(source: Source, counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.uint64]:
    """(energy of a beta particle, next counter)."""
    r, counter = uniform(counter, key)
    last = source.beta.shape[0] - 1
    place = r * F(last)
    low = min(int(place), last - 1)
    above = place - F(low)
    return source.beta[low] + above * (source.beta[low + 1] - source.beta[low]), counter


@compiled
def how_many(per_decay: np.float32, counter: np.uint64, key: np.uint64) -> tuple[int, np.uint64]:
    """(a whole number with that mean and the least variance, next counter)."""
    r, counter = uniform(counter, key)
    return int(per_decay + r), counter
