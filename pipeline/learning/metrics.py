"""How far an estimated dose-rate map lies from the truth, in one volume of interest.

The metrics of the paper (Li 2022, doi 10.1002/mp.15397), over the n voxels of a VOI, with
estimate x̂ and truth x::

    mean dose-rate error = |mean(x̂) − mean(x)| / mean(x)
    DRx error            = |DRx(x̂) − DRx(x)| / DRx(x),  DRx = (100 − x)th percentile
    NRMSE                = √mean((x̂ − x)²) / √mean(x²)
    ensemble noise       = √mean(Var_M(x̂)) / mean(mean_M(x̂)),  Var over M realisations, of a sample

All results are relative (0.05, not 5 %). Functions of numbers alone: they know neither patients nor files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected

Values = NDArray[Any]
Mask = NDArray[np.bool_]

DOSE_RATE_LEVELS = (10, 30, 70, 90)
"""x of the DRx that the paper reports: hottest per cent of a VOI."""


def mean_error(estimate: Values, truth: Values, mask: Mask | None = None) -> float:
    """Relative error of the VOI's mean dose rate, without sign.

    estimate, truth: one shape and unit. mask: the VOI; None: every voxel.
    raises: InputRejected where the VOI is empty or its true mean is not positive.
    """
    return abs(signed_mean_error(estimate, truth, mask))


def signed_mean_error(estimate: Values, truth: Values, mask: Mask | None = None) -> float:
    """As `mean_error`, negative where the estimate is too low: what an average over VOIs may cancel."""
    x_hat, x = _inside(estimate, truth, mask)
    true_mean = _positive(float(x.mean()), "mean dose rate")
    return (float(x_hat.mean()) - true_mean) / true_mean


def dose_rate_at(values: Values, hottest_percent: float, mask: Mask | None = None) -> float:
    """DRx: the lowest dose rate among the hottest x % of the VOI, its (100 − x)th percentile.

    Interpolated linearly between neighbouring voxels, as in `pipeline.histogram`.
    """
    inside, _ = _inside(values, values, mask)
    return float(np.percentile(inside, 100.0 - hottest_percent))


def dose_rate_at_error(
    estimate: Values, truth: Values, hottest_percent: float, mask: Mask | None = None
) -> float:
    """Relative error of DRx, without sign; NaN where the true DRx is zero, as in air within a VOI."""
    x_hat, x = _inside(estimate, truth, mask)
    estimated, true = (float(np.percentile(values, 100.0 - hottest_percent)) for values in (x_hat, x))
    return abs(estimated - true) / true if true > 0 else math.nan


def nrmse(estimate: Values, truth: Values, mask: Mask | None = None) -> float:
    """Root mean square error over the VOI, relative to the truth's root mean square.

    raises: InputRejected where the VOI is empty or the truth is zero all over it.
    """
    x_hat, x = _inside(estimate, truth, mask)
    scale = _positive(float(np.sqrt(np.mean(x**2))), "root mean square dose rate")
    return float(np.sqrt(np.mean((x_hat - x) ** 2))) / scale


def ensemble_noise(maps: Sequence[Values], mask: Mask | None = None) -> float:
    """Noise over realisations of one measurement, relative to the mean over the VOI.

    maps: M ≥ 2 estimates that differ by Poisson noise alone. mask: a region of even uptake, such as a
        sphere in normal liver.
    raises: InputRejected for fewer than two realisations, or a VOI that is empty or without dose.
    """
    if len(maps) < 2:
        raise InputRejected(
            f"ensemble noise needs two realisations of a patient at least, there are {len(maps)}",
            "Simulate the same patient again with other seeds of the Poisson noise",
        )
    inside = np.stack([_inside(one, maps[0], mask)[0] for one in maps])
    mean = _positive(float(inside.mean()), "mean dose rate")
    return float(np.sqrt(inside.var(axis=0, ddof=1).mean())) / mean


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided paired t-test of `first` − `second`.

    mean_difference: of the pairs. t, p: NaN where there are fewer than two pairs, or all differ by the
    same amount.
    """

    pairs: int
    mean_difference: float
    t: float
    p: float


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Whether two methods differ on the same VOIs (scipy.stats.ttest_rel).

    raises: ValueError for sequences of different length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    from scipy.stats import ttest_rel

    difference = np.subtract(first, second, dtype=np.float64)
    pairs = len(difference)
    # A difference without spread has no t; asking for it anyway only warns of lost precision.
    if pairs < 2 or np.ptp(difference) <= 1e-12 * max(float(np.abs(difference).max()), 1e-300):
        return PairedTest(pairs, float(difference.mean()) if pairs else math.nan, math.nan, math.nan)
    result = ttest_rel(first, second)
    return PairedTest(pairs, float(difference.mean()), float(result.statistic), float(result.pvalue))


def _inside(estimate: Values, truth: Values, mask: Mask | None) -> tuple[NDArray[np.float64], ...]:
    """(n,) float64 values of the VOI in both maps."""
    if estimate.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        shapes = ", ".join(str(a.shape) for a in (estimate, truth, mask) if a is not None)
        raise ValueError(f"estimate, truth and mask are of different shapes: {shapes}")
    if mask is not None:
        estimate, truth = estimate[mask], truth[mask]
    if truth.size == 0:
        raise InputRejected(
            "the VOI holds no voxel", "Leave it out, or check that it lies within the volumes"
        )
    return estimate.astype(np.float64).ravel(), truth.astype(np.float64).ravel()


def _positive(value: float, what: str) -> float:
    if not value > 0:
        raise InputRejected(
            f"the VOI's {what} is {value:.4g}: nothing can be said relative to it",
            "Leave out VOIs that receive no dose",
        )
    return value
