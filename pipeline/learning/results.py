"""What was found of each patient, VOI by VOI, and how it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputRejected
from pipeline.vois import VoiClass, sized

DVK, MC, CNN = "DVK", "MC", "CNN"
NO_RESIDUAL, PLAIN_2D = "CNN no residual", "CNN 2D"
NETWORK_NAMES = {"dblurdosenet": CNN, "no-residual": NO_RESIDUAL, "2d": PLAIN_2D}
"""Architecture -> the name of its method in tables and figures."""

Metric = Literal["mean_error", "nrmse", "dr10", "dr30", "dr70", "dr90"]
METRICS: tuple[Metric, ...] = ("mean_error", "nrmse", "dr10", "dr30", "dr70", "dr90")


@dataclass(frozen=True, slots=True)
class Figures:
    """One method in one VOI. mean: nGy/(MBq s). mean_error ... dr90: relative errors, without sign.

    ratio: estimated over true mean. energy_over_dvk: Σ dose rate · density over that of DVK; None where
    DVK's is zero. repeated: (mean_error, nrmse) of every Poisson realisation, the first included; empty
    without others.
    """

    mean: float
    ratio: float
    mean_error: float
    nrmse: float
    dr10: float
    dr30: float
    dr70: float
    dr90: float
    energy_over_dvk: float | None
    repeated: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class VoiResult:
    """One VOI of one patient. true_mean: nGy/(MBq s).

    label_uncertainty: relative, of the true mean, k=1. label_noise: likewise, of its voxels on average.
    mc_uncertainty, mc_noise: the same of Monte Carlo on the SPECT. All 0 where nothing is stated.
    """

    name: str
    kind: VoiClass
    volume_ml: float
    true_mean: float
    label_uncertainty: float
    by_method: Mapping[str, Figures]
    label_noise: float = 0.0
    mc_uncertainty: float = 0.0
    mc_noise: float = 0.0


@dataclass(frozen=True, slots=True)
class NoiseResult:
    """Ensemble noise (relative) by method, in a sphere inside `voi`."""

    voi: str
    radius_mm: float
    realisations: int
    by_method: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PatientResult:
    """All that was found of one patient.

    total_mbq: activity in the field of view. body_energy: method -> energy rate over DVK's, whole body.
    zero_for_zero: method -> whether it gives zero everywhere for the same patient without activity.
    bare_for_zero: network -> what it would add for a SPECT of zero in this density, were it asked: its
        highest size over DVK's highest, and its mean size over DVK's mean, in tissue.
    skipped: VOIs that could not be judged, and why.
    """

    patient: str
    family: str
    total_mbq: float
    vois: tuple[VoiResult, ...]
    body_energy: Mapping[str, float]
    noise: tuple[NoiseResult, ...] = ()
    zero_for_zero: Mapping[str, bool] = field(default_factory=dict)
    bare_for_zero: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every patient, and the methods in the order of the tables."""

    methods: tuple[str, ...]
    patients: tuple[PatientResult, ...]

    def vois(self, *kinds: VoiClass) -> list[VoiResult]:
        """The VOIs of these classes, of all patients; all VOIs without any."""
        return [v for patient in self.patients for v in patient.vois if not kinds or v.kind in kinds]

    @property
    def networks(self) -> tuple[str, ...]:
        """The methods that are networks."""
        return tuple(method for method in self.methods if method not in (DVK, MC))

    @property
    def kinds(self) -> tuple[VoiClass, ...]:
        """The classes that there are VOIs of."""
        present = {voi.kind for voi in self.vois()}
        return tuple(kind for kind in VoiClass if kind in present)


def save(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON, with every figure of every VOI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(_plain(asdict(evaluation)), indent=1), encoding="utf-8")
    part.replace(path)


def load(path: Path) -> Evaluation:
    """Read what `save` wrote. raises: InputRejected for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Evaluation(tuple(content["methods"]), tuple(_patient(p) for p in content["patients"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputRejected(f"{path} is no evaluation: {error}", "Run the evaluation again") from error


def _patient(content: dict[str, Any]) -> PatientResult:
    vois = tuple(_voi(one) for one in content["vois"])
    noise = tuple(NoiseResult(**one) for one in content["noise"])
    bare = {name: (highest, mean) for name, (highest, mean) in content.get("bare_for_zero", {}).items()}
    skipped = tuple(content["skipped"])
    return PatientResult(
        **{**content, "vois": vois, "noise": noise, "bare_for_zero": bare, "skipped": skipped}
    )


def _voi(content: dict[str, Any]) -> VoiResult:
    by_method = {name: _one(figures) for name, figures in content["by_method"].items()}
    # What had no end (a VOI that no decay reached) was written as null.
    stated = {key: math.inf for key in _UNCERTAINTIES if content.get(key, 0.0) is None}
    kind = sized(VoiClass(content["kind"]), content["volume_ml"])
    return VoiResult(**{**content, **stated, "kind": kind, "by_method": by_method})


_UNCERTAINTIES = ("label_uncertainty", "label_noise", "mc_uncertainty", "mc_noise")


def _one(content: dict[str, Any]) -> Figures:
    numbers = {
        key: math.nan if value is None and key != "energy_over_dvk" else value
        for key, value in content.items()
        if key != "repeated"
    }
    return Figures(**numbers, repeated=tuple((a, b) for a, b in content["repeated"]))


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
