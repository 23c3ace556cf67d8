"""What the paper reached, and what this project asks of its own weights.

Li Z, Fessler J A, Mikell J K, Wilderman S J, Dewaraja Y K. DblurDoseNet. Med Phys 49 (2022) 1216, doi
10.1002/mp.15397: five virtual patients, of whom the truth was known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.learning.comparison import noise_summary, summary
from pipeline.learning.results import CNN, DVK, MC, Evaluation, Metric
from pipeline.vois import VoiClass

REDUCTIONS: Mapping[VoiClass, Mapping[tuple[Metric, str], float]] = {
    kind: {
        ("mean_error", DVK): mean_dvk,
        ("mean_error", MC): mean_mc,
        ("nrmse", DVK): nrmse_dvk,
        ("nrmse", MC): nrmse_mc,
    }
    for kind, mean_dvk, mean_mc, nrmse_dvk, nrmse_mc in (
        (VoiClass.LESION, 0.55, 0.53, 0.18, 0.17),
        (VoiClass.LEFT_KIDNEY, 0.66, 0.50, 0.11, 0.12),
        (VoiClass.RIGHT_KIDNEY, 0.66, 0.62, 0.09, 0.10),
        (VoiClass.HEALTHY_LIVER, 0.52, 0.20, 0.10, 0.09),
        (VoiClass.SPLEEN, 0.48, 0.49, 0.26, 0.27),
        (VoiClass.LUMBAR, 0.58, 0.39, 0.18, 0.10),
    )
}
"""By how much its network's mean error and NRMSE were below those of DVK and of Monte Carlo on the SPECT."""

NOISE_REDUCTIONS: Mapping[str, float] = {DVK: 0.21, MC: 0.27}

ERRORS: Mapping[VoiClass, tuple[float, float]] = {
    VoiClass.LESION: (0.053, 0.212),
    VoiClass.LEFT_KIDNEY: (0.009, 0.192),
    VoiClass.HEALTHY_LIVER: (0.014, 0.196),
    VoiClass.LUMBAR: (0.111, 0.330),
}
"""Its network's own mean error and NRMSE, where it states them."""


def dvk_error(kind: VoiClass, metric: Metric) -> float:
    """Of the paper's DVK: follows from its network's error and reduction; NaN where these are not stated."""
    if kind not in ERRORS or metric not in ("mean_error", "nrmse"):
        return math.nan
    error = ERRORS[kind][("mean_error", "nrmse").index(metric)]
    return error / (1.0 - REDUCTIONS[kind][metric, DVK])


LEAST_PATIENTS, LEAST_LESIONS = 5, 15
LABEL_UNCERTAINTY = 0.005
"""Of the mean in a VOI, relative, k=1: of the truth and of Monte Carlo on the SPECT."""

KIDNEYS = (VoiClass.LEFT_KIDNEY, VoiClass.RIGHT_KIDNEY)


@dataclass(frozen=True, slots=True)
class Target:
    """A reduction that is asked for, and what was reached; NaN where it could not be measured."""

    what: str
    against: str
    asked: float
    reached: float

    @property
    def met(self) -> bool:
        """Whether it was reached; not, where it is unknown."""
        return self.reached >= self.asked


def targets(evaluation: Evaluation, method: str = CNN) -> tuple[Target, ...]:
    """What weights must reach on a family that training did not see, in lesions of 2 mL or more."""
    lesions, kidneys = summary(evaluation, VoiClass.LESION), summary(evaluation, *KIDNEYS)
    return (
        Target("lesion mean error", DVK, 0.55, lesions.reduction("mean_error", method, DVK)),
        Target("lesion mean error", MC, 0.53, lesions.reduction("mean_error", method, MC)),
        Target("lesion NRMSE", DVK, 0.18, lesions.reduction("nrmse", method, DVK)),
        Target("kidney mean error", DVK, 0.66, kidneys.reduction("mean_error", method, DVK)),
        Target("kidney mean error", MC, 0.56, kidneys.reduction("mean_error", method, MC)),
        Target("ensemble noise", DVK, 0.21, noise_reduction(evaluation, method, DVK)),
    )


def noise_reduction(evaluation: Evaluation, method: str, other: str) -> float:
    """1 − (ensemble noise over that of another method); NaN where either was not measured."""
    noise = noise_summary(evaluation)
    if method not in noise or other not in noise or not noise[other].mean > 0:
        return math.nan
    return 1.0 - noise[method].mean / noise[other].mean
