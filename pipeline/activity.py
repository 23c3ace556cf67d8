"""Stored pixel values → activity concentration, Bq/mL.

The first rule that holds decides; a magnitude never does:

1. RealWorldValueMappingSequence in Bq/ml, kBq/ml or MBq/ml (UCUM), on stored values (PS3.3 C.7.6.16.2.11);
2. PET with Units BQML: stored · RescaleSlope + RescaleIntercept;
3. RescaleSlope of a camera whose configuration says that it yields Bq/mL;
4. counts with the site's calibration (`pipeline.camera`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.acquisition import Administration, administration, is_pet, rotation_of
from pipeline.camera import Calibration, Camera
from pipeline.dataset import described, items, numbers, required, texts
from pipeline.decay import Nuclide
from pipeline.errors import InputRejected
from pipeline.volume import Grid

__all__ = [
    "Administration",
    "Calibration",
    "Camera",
    "Conversion",
    "Rule",
    "administration",
    "conversion_of",
    "without_undershoot",
]

NEGATIVE_SHARE = 1e-3
"""Negative activity that is still the undershoot of a filter, as a part of the positive activity."""

_PER_ML_BQ = {"Bq/ml": 1.0, "kBq/ml": 1e3, "MBq/ml": 1e6}
_COUNTS = ("", "US", "CNTS", "COUNTS")  # RescaleType of rescaled counts, or of none


class Rule(StrEnum):
    """How stored values became Bq/mL, as results name it."""

    REAL_WORLD_VALUE = "RealWorldValueMapping in Bq/mL"
    PET_UNITS = "PET Units BQML"
    RESCALE_SLOPE = "RescaleSlope in Bq/mL, by configuration"
    CALIBRATION = "counts with the site's calibration"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Bq/mL = stored · slope + intercept.

    mapped: stored values that the mapping covers, when it says so. calibration: the one that was used.
    """

    rule: Rule
    slope: float
    intercept: float = 0.0
    mapped: tuple[float, float] | None = None
    calibration: Calibration | None = None

    def apply(self, stored: NDArray[Any], image: Dataset) -> NDArray[np.float32]:
        """Bq/mL of stored values of any shape; `image` is named when the mapping does not cover them."""
        if self.mapped is not None and (stored.min() < self.mapped[0] or stored.max() > self.mapped[1]):
            raise InputRejected(
                f"stored values {stored.min()} to {stored.max()} of {described(image)} exceed those that its "
                f"RealWorldValueMapping covers, {self.mapped[0]:g} to {self.mapped[1]:g}",
                "Export the series again from the workstation that made it",
            )
        # In double precision first: a slope of 1e-5 on 32-bit counts would lose digits.
        return (stored * np.float64(self.slope) + self.intercept).astype(np.float32)

    def __str__(self) -> str:
        text = f"{self.rule}, {self.slope:.6g} Bq/mL per stored unit"
        return text if self.calibration is None else f"{text} ({self.calibration})"


def conversion_of(image: Dataset, camera: Camera, of: Nuclide, on: date, grid: Grid) -> Conversion:
    """How the stored values of an image become Bq/mL.

    image: header of an NM object or of one PET slice. on: day of the acquisition. grid: where its voxels
        lie; their volume belongs to rule 4.
    raises: InputRejected when no rule holds.
    """
    mapping = _real_world_value(image)
    if mapping is not None:
        return mapping
    if is_pet(image):
        return _pet_units(image)
    if camera.rescale_slope_is_bq_per_ml:
        return Conversion(Rule.RESCALE_SLOPE, *_rescale(image, must_be_there=True))
    _refuse_other_mapping(image)
    return _calibrated(image, camera.calibration_for(image, of, on), grid)


def without_undershoot(activity: NDArray[np.float32], image: Dataset) -> tuple[NDArray[np.float32], str]:
    """The activity with slight negative values set to zero, and a note that says so.

    activity: (z, y, x) Bq/mL. Filters and interpolation in a reconstruction leave negative ripples;
    together they may be `NEGATIVE_SHARE` of the positive activity.
    raises: InputRejected for NaN, infinite, more negative activity than that, or none at all.
    """
    if not np.isfinite(activity).all():
        count = int(np.size(activity) - np.isfinite(activity).sum())
        raise InputRejected(
            f"{count} voxels of {described(image)} are not finite", "Reconstruct the SPECT again"
        )
    positive = float(activity.sum(where=activity > 0, dtype=np.float64))
    negative = float(-activity.sum(where=activity < 0, dtype=np.float64))
    if positive == 0.0 and negative == 0.0:
        raise InputRejected(
            f"{described(image)} is empty: every voxel is 0", "Send the reconstructed SPECT again"
        )
    if negative == 0.0:
        return activity, ""
    found = f"{int((activity < 0).sum())} voxels are negative, down to {activity.min():.4g} Bq/mL"
    if negative > NEGATIVE_SHARE * positive:
        raise InputRejected(
            f"{found}, in {described(image)}: together {negative / max(positive, 1e-30):.2%} of the activity",
            "Check the rescale intercept and the pixel representation, or reconstruct without the filter",
        )
    return np.maximum(activity, 0), f"{found}; they count as 0 ({negative / positive:.2g} of the activity)"


def _real_world_value(image: Dataset) -> Conversion | None:
    """Rule 1, or None when the image holds no mapping to activity (others may stand beside it)."""
    mappings = items(image, "RealWorldValueMappingSequence")
    in_activity = [(item, scale) for item in mappings if (scale := _per_ml_bq(item)) is not None]
    if not in_activity:
        return None
    if len(in_activity) > 1:
        raise InputRejected(
            f"{described(image)} maps its values to Bq/ml in {len(in_activity)} ways",
            "Export the series with one RealWorldValueMapping in Bq/ml",
        )
    item, scale = in_activity[0]
    if items(item, "RealWorldValueLUTData") or "RealWorldValueLUTData" in item:
        raise InputRejected(f"the mapping of {described(image)} is a look-up table", "Export it with a slope")
    slope = float(numbers(item, "RealWorldValueSlope", 1, of=image)[0])
    intercept = float(numbers(item, "RealWorldValueIntercept", 1, of=image)[0])
    return Conversion(
        Rule.REAL_WORLD_VALUE, _positive(slope, image) * scale, intercept * scale, _mapped_range(item)
    )


def _refuse_other_mapping(image: Dataset) -> None:
    """Before rule 4: values with a meaning of their own are not plain counts."""
    units = [_unit(item) or "none" for item in items(image, "RealWorldValueMappingSequence")]
    if units:
        raise InputRejected(
            f"RealWorldValueMappingSequence of {described(image)} is in {', '.join(units)}, not in Bq/ml",
            "Export the series in Bq/ml, or as counts without a mapping",
        )


def _mapped_range(item: Dataset) -> tuple[float, float] | None:
    for kind in ("", "DoubleFloat"):
        first, last = (item.get(f"{kind}RealWorldValue{end}ValueMapped") for end in ("First", "Last"))
        if first is not None and last is not None:
            return float(first), float(last)
    return None


def _unit(item: Dataset) -> str:
    code = next(iter(items(item, "MeasurementUnitsCodeSequence")), Dataset())
    scheme, value = texts(code, "CodingSchemeDesignator"), texts(code, "CodeValue")
    return value[0] if value and scheme == ("UCUM",) else " ".join(value + scheme)


def _per_ml_bq(item: Dataset) -> float | None:
    """UCUM writes the litre in either case; the prefix keeps its own (MBq is not mBq)."""
    return _PER_ML_BQ.get(_unit(item).replace("mL", "ml"))


def _pet_units(image: Dataset) -> Conversion:
    """Rule 2 (PS3.3 C.8.9.1)."""
    units = str(required(image, "Units"))
    if units != "BQML":
        raise InputRejected(f"Units of {described(image)} is {units}, not BQML", "Export the PET in Bq/mL")
    return Conversion(Rule.PET_UNITS, *_rescale(image, must_be_there=True))


def _calibrated(image: Dataset, calibration: Calibration, grid: Grid) -> Conversion:
    """Rule 4. A RescaleSlope of counts is applied first, as every viewer and phantom analysis does."""
    scale = " ".join(texts(image, "RescaleType")).upper()
    if scale not in _COUNTS:
        raise InputRejected(
            f"RescaleType of {described(image)} is {scale}, not counts",
            "If its RescaleSlope yields Bq/mL, set rescale_slope_is_bq_per_ml of its [[camera]]",
        )
    slope, intercept = _rescale(image, must_be_there=False)
    turn = rotation_of(image)
    factor = calibration.bq_per_count(turn.view_s, turn.views) / grid.voxel_volume_ml
    return Conversion(Rule.CALIBRATION, slope * factor, intercept * factor, calibration=calibration)


def _rescale(image: Dataset, must_be_there: bool) -> tuple[float, float]:
    if not must_be_there and image.get("RescaleSlope") is None:
        return 1.0, 0.0
    slope = float(numbers(image, "RescaleSlope", 1)[0])
    intercept = (
        0.0 if image.get("RescaleIntercept") is None else float(numbers(image, "RescaleIntercept", 1)[0])
    )
    return _positive(slope, image), intercept


def _positive(slope: float, image: Dataset) -> float:
    if slope <= 0:
        raise InputRejected(f"the slope of {described(image)} is {slope:g}", "Export the series again")
    return slope
