"""What an evaluation says: class by class, method against method, and where a network is worse than DVK.

**More than noise**: a network's error exceeds DVK's by more than `SIGNIFICANT` = 2 standard uncertainties u
of the difference of the two errors, u² = u_label² + u_Poisson².

* u_label: what the statistical uncertainty of the truth's mean, δ, does to that difference. An error
  |x̂/x − 1| moves by ∓ x̂/x · δ; two estimates on the same side of the truth move together, so little of it
  remains. For a difference of NRMSE √2 · δ is taken: each moves by about δ at most, not together.
* u_Poisson: the standard deviation of the difference over Poisson realisations of the same patient, as the
  root mean square over the VOIs of its class, else over all VOIs: of one VOI, three realisations give two
  degrees of freedom, and by chance next to nothing. Where no patient was imaged again it is taken as zero,
  which names more VOIs, not fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from pipeline.learning import metrics
from pipeline.learning.metrics import PairedTest
from pipeline.learning.results import CNN, DVK, MC, METRICS, Evaluation, Figures, Metric, VoiResult
from pipeline.vois import BODY, VoiClass

SIGNIFICANT = 2.0
ANY_ROI = "roi"
LEAST_TO_LIMIT = 5
_QUANTILE = 0.995  # of either side


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of n values; NaN where there are too few."""

    mean: float
    sd: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of the values that are numbers."""
        known = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
        return cls(
            float(known.mean()) if known.size else math.nan,
            float(known.std(ddof=1)) if known.size > 1 else math.nan,
            int(known.size),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method against another, on the VOIs that both have.

    reduction: 1 − (its mean error over the other's); negative where it is worse. test: of `other` − `method`.
    """

    method: str
    other: str
    reduction: float
    test: PairedTest


@dataclass(frozen=True, slots=True)
class Summary:
    """VOIs taken together. by_method: method -> metric -> Spread. comparisons: by metric."""

    name: str
    vois: int
    patients: int
    by_method: Mapping[str, Mapping[Metric, Spread]]
    comparisons: Mapping[Metric, tuple[Comparison, ...]] = field(default_factory=dict)

    def reduction(self, metric: Metric, method: str, other: str) -> float:
        """NaN where the two were not compared."""
        found = (c for c in self.comparisons[metric] if (c.method, c.other) == (method, other))
        return next((c.reduction for c in found), math.nan)


def summary(evaluation: Evaluation, *kinds: VoiClass) -> Summary:
    """The VOIs of these classes; all without any.

    Mean ± SD by method; each network against DVK and MC, and MC against DVK.
    """
    vois = evaluation.vois(*kinds)
    patients = sum(any(not kinds or v.kind in kinds for v in patient.vois) for patient in evaluation.patients)
    pairs = [(MC, DVK)] if MC in evaluation.methods else []
    pairs += [(n, other) for n in evaluation.networks for other in (DVK, MC) if other in evaluation.methods]
    return Summary(
        name=" and ".join(kinds) or "all",
        vois=len(vois),
        patients=patients,
        by_method={
            method: {metric: Spread.of(_values(vois, method, metric)) for metric in METRICS}
            for method in evaluation.methods
        },
        comparisons={
            metric: tuple(_compared(vois, metric, method, other) for method, other in pairs)
            for metric in METRICS
        },
    )


def noise_summary(evaluation: Evaluation) -> dict[str, Spread]:
    """Ensemble noise by method, over all spheres."""
    spheres = [one for patient in evaluation.patients for one in patient.noise]
    return {
        method: Spread.of([one.by_method[method] for one in spheres if method in one.by_method])
        for method in evaluation.methods
    }


def _values(vois: Sequence[VoiResult], method: str, metric: Metric) -> list[float]:
    return [float(getattr(voi.by_method[method], metric)) for voi in vois if method in voi.by_method]


def _compared(vois: Sequence[VoiResult], metric: Metric, method: str, other: str) -> Comparison:
    both = [voi for voi in vois if method in voi.by_method and other in voi.by_method]
    pairs = list(zip(_values(both, method, metric), _values(both, other, metric), strict=True))
    known = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    mine, theirs = [a for a, _ in known], [b for _, b in known]
    total = math.fsum(theirs)
    reduction = 1.0 - math.fsum(mine) / total if total > 0 else math.nan
    return Comparison(method, other, reduction, metrics.paired_t_test(theirs, mine))


# ── where a network is worse ────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Worse:
    """A VOI in which a network's error exceeds DVK's. uncertainty: of the difference, k=1."""

    patient: str
    voi: str
    volume_ml: float
    metric: Metric
    method: str
    error: float
    dvk_error: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Tally:
    """How a network compares with DVK over all VOIs, by one metric."""

    better: int
    worse_within_noise: int
    worse: int


def worse(evaluation: Evaluation, method: str = CNN) -> tuple[Worse, ...]:
    """Every VOI in which `method` is worse than DVK by more than noise, by mean error or NRMSE."""
    return tuple(found for found, significant in _compared_with_dvk(evaluation, method) if significant)


def tally(evaluation: Evaluation, metric: Metric, method: str = CNN) -> Tally:
    """How many VOIs are better than DVK's, and how many worse."""
    found = [(w, s) for w, s in _compared_with_dvk(evaluation, method) if w.metric == metric]
    better = sum(w.error <= w.dvk_error for w, _ in found)
    named = sum(significant for _, significant in found)
    return Tally(better, len(found) - better - named, named)


def poisson_known(evaluation: Evaluation) -> bool:
    """Whether any patient was imaged more than once, so that the Poisson noise of errors is known."""
    return any(figures.repeated for voi in evaluation.vois() for figures in voi.by_method.values())


def _compared_with_dvk(evaluation: Evaluation, method: str) -> list[tuple[Worse, bool]]:
    found = []
    noise = {metric: _poisson_noise(evaluation, method, metric) for metric in _NOISY}
    for patient in evaluation.patients:
        for voi in patient.vois:
            if method not in voi.by_method:
                continue
            for metric in _NOISY:
                mine, dvk = voi.by_method[method], voi.by_method[DVK]
                label = _label_part(mine, dvk, voi.label_uncertainty, metric)
                poisson = noise[metric].of(voi)
                u = math.hypot(label, poisson)
                error, other = float(getattr(mine, metric)), float(getattr(dvk, metric))
                row = Worse(patient.patient, voi.name, voi.volume_ml, metric, method, error, other, u)
                found.append((row, error - other > SIGNIFICANT * u))
    return found


_NOISY: tuple[Metric, ...] = ("mean_error", "nrmse")


@dataclass(frozen=True, slots=True)
class _PoissonNoise:
    """Standard deviation of (error − DVK's error) over realisations: of classes, of all."""

    of_class: Mapping[VoiClass, float]
    of_all: float

    def of(self, voi: VoiResult) -> float:
        return self.of_class.get(voi.kind, self.of_all)


def _poisson_noise(evaluation: Evaluation, method: str, metric: Metric) -> _PoissonNoise:
    column = _NOISY.index(metric)
    squares: dict[VoiClass, list[float]] = {}
    for patient in evaluation.patients:
        for voi in patient.vois:
            mine, dvk = voi.by_method.get(method), voi.by_method[DVK]
            if mine is None or not mine.repeated:
                continue
            differences = [a[column] - b[column] for a, b in zip(mine.repeated, dvk.repeated, strict=True)]
            squares.setdefault(voi.kind, []).append(float(np.var(differences, ddof=1)))
    of_class = {kind: math.sqrt(float(np.mean(values))) for kind, values in squares.items()}
    everything = [value for values in squares.values() for value in values]
    return _PoissonNoise(of_class, math.sqrt(float(np.mean(everything))) if everything else 0.0)


def _label_part(mine: Figures, dvk: Figures, label: float, metric: Metric) -> float:
    if metric == "nrmse":
        return math.sqrt(2.0) * label
    # d|x̂/x − 1| = −sign(x̂/x − 1) · x̂/x · dx/x
    slopes = [math.copysign(one.ratio, one.ratio - 1.0) for one in (mine, dvk)]
    return abs(slopes[0] - slopes[1]) * label


# ── what the check in the node needs ────────────────────────────────────────────────────


def energy_limits(evaluation: Evaluation, method: str = CNN) -> dict[str, tuple[float, float]]:
    """The range of the energy rate over DVK's: of the whole body, of any VOI ("roi"), of each class.

    What lies outside is more than what the evaluation saw. Of n ratios, whose logarithms have mean m and
    standard deviation s, the range holds all, and the next one of the same kind with 99 % (prediction
    interval, m ± t s √(1 + 1/n)): of the extremes alone the next of six patients is outside with 29 %. Of
    fewer than `LEAST_TO_LIMIT` there is no range.
    """
    seen: dict[str, list[float]] = {BODY: [], ANY_ROI: []}
    for patient in evaluation.patients:
        seen[BODY] += [patient.body_energy[method]] if method in patient.body_energy else []
        for voi in patient.vois:
            ratio = voi.by_method[method].energy_over_dvk if method in voi.by_method else None
            if ratio is not None:
                seen[ANY_ROI].append(ratio)
                seen.setdefault(str(voi.kind), []).append(ratio)
    return {name: _range(ratios) for name, ratios in seen.items() if len(ratios) >= LEAST_TO_LIMIT}


def _range(ratios: Sequence[float]) -> tuple[float, float]:
    low, high = min(ratios), max(ratios)
    if low <= 0:
        return low, high
    logarithms = np.log(ratios)
    half = stats.t.ppf(_QUANTILE, len(ratios) - 1) * logarithms.std(ddof=1) * math.sqrt(1 + 1 / len(ratios))
    middle = float(logarithms.mean())
    return min(low, math.exp(middle - half)), max(high, math.exp(middle + half))
