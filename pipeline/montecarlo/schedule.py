"""Which batch comes next, and when it is enough.

With a limit of decays the plan is fixed: as many batches of electrons as of photons, in turn, so that the
same seed and the same limit give the same result. Without one, batches are as long as a small part of the
time that has passed, and the next one goes to the kind of history, electrons or photons, whose variance
shrinks most per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import InputRejected
from pipeline.montecarlo.batches import Estimate

BATCHES = 50
"""So many batches of each kind make up a limit of decays: 2 % each."""

LEAST_BATCHES = 10
"""Before so many of each kind the uncertainty itself is too uncertain (24 % with ten) to stop a run."""

PILOT_DECAYS = 2000
SHORTEST_BATCH_S = 0.2
LONGEST_BATCH_S = 30.0
PART_OF_ELAPSED = 0.05
PART_OF_TIME_LIMIT = 0.04
TIMES_OF_SUMS = 10.0
"""A batch takes so many times as long as adding it up, unless that is too long for the time limit."""

LEAST_SHARE = 0.05
"""Each kind gets at least this part of the time: a variance of 0 may only mean that nothing was hit yet."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends: whichever comes first; at least one must be set.

    decays: so many decays' electrons and as many decays' photons. time_s: wall clock. mean_uncertainty:
        relative; of every region, the mean over its voxels of their standard uncertainty.
    """

    decays: float | None = None
    time_s: float | None = None
    mean_uncertainty: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.decays, self.time_s, self.mean_uncertainty) if limit is not None]
        if not given or not all(math.isfinite(limit) and limit > 0 for limit in given):
            raise InputRejected(
                f"a Monte Carlo run cannot end with the limits {self}",
                "Give a number of decays, a time or a mean uncertainty, each above zero",
            )
        if self.decays is not None and self.decays < 1:
            raise InputRejected(f"{self.decays} decays are not one", "Ask for at least one decay")


@dataclass(frozen=True, slots=True)
class Batch:
    """The next batch: photons or electrons of so many decays."""

    photons: bool
    size: int


def next_batch(
    limits: Limits, electrons: Estimate, photons: Estimate | None, variances: tuple[float, float]
) -> Batch | None:
    """The batch that comes next; None when the limit of decays is reached.

    photons: None for a nuclide that emits none. variances: relative ones of electrons and photons, as they
        stand.
    """
    if limits.decays is not None:
        return _planned(int(limits.decays), electrons, photons)
    return _profitable(limits, electrons, photons, variances)


def _planned(decays: int, electrons: Estimate, photons: Estimate | None) -> Batch | None:
    is_photons = photons is not None and len(photons.sizes) < len(electrons.sizes)
    done = len(photons.sizes) if is_photons and photons is not None else len(electrons.sizes)
    batches = min(BATCHES, decays)
    if done >= batches:
        return None
    return Batch(is_photons, decays * (done + 1) // batches - decays * done // batches)


def _profitable(
    limits: Limits, electrons: Estimate, photons: Estimate | None, variances: tuple[float, float]
) -> Batch:
    if photons is None:
        return Batch(False, _size(limits, electrons, electrons.seconds))
    elapsed = electrons.seconds + photons.seconds
    kinds = electrons, photons
    fewest = min(kinds, key=lambda kind: len(kind.sizes))
    if len(fewest.sizes) < LEAST_BATCHES:
        chosen = fewest is photons
    elif min(kind.seconds for kind in kinds) < LEAST_SHARE * elapsed:
        chosen = photons.seconds < electrons.seconds
    else:
        # Variance ~ 1/time of its kind: a second more lowers it by variance/time.
        chosen = variances[1] / photons.seconds > variances[0] / electrons.seconds
    return Batch(chosen, _size(limits, kinds[chosen], elapsed))


def _size(limits: Limits, estimate: Estimate, elapsed: float) -> int:
    if not estimate.sizes:
        return PILOT_DECAYS
    sums_s = (estimate.seconds - estimate.histories_s) / len(estimate.sizes)
    seconds = max(PART_OF_ELAPSED * elapsed, SHORTEST_BATCH_S, TIMES_OF_SUMS * sums_s)
    seconds = min(seconds, LONGEST_BATCH_S)
    if limits.time_s is not None:
        seconds = min(seconds, PART_OF_TIME_LIMIT * limits.time_s)
    # The first batch waits for the compiler: its speed says little, and no batch is shorter than it.
    return max(PILOT_DECAYS, min(int(seconds * estimate.per_second), 100 * estimate.sizes[-1]))
