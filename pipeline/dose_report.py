"""Radiopharmaceutical Radiation Dose SR: what was administered, and when.

TID 10022 (PS3.16) keeps it in a Radiopharmaceutical Administration Event container: Administered
activity (113507 DCM) in MBq by UCUM, Radiopharmaceutical Start DateTime (123003 DCM), Radionuclide.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from pipeline.acquisition import Administration
from pipeline.dataset import described, items
from pipeline.decay import nuclide
from pipeline.errors import InputRejected

ADMINISTERED_ACTIVITY = ("113507", "DCM")
START_DATE_TIME = ("123003", "DCM")
RADIONUCLIDE = (("C-10072", "SRT"), ("89457008", "SCT"))
_BQ = {"Bq": 1.0, "kBq": 1e3, "MBq": 1e6, "GBq": 1e9}


def reported_administration(report: Dataset) -> Administration:
    """What a dose report says was given.

    raises: InputRejected when it reports more than one administration, or activity in a unit that is
        no activity.
    """
    content = list(_walk(report))
    activities = [item for item in content if _code(item, "ConceptNameCodeSequence") == ADMINISTERED_ACTIVITY]
    if len(activities) > 1:
        raise InputRejected(
            f"{described(report)} reports {len(activities)} administrations",
            "Send the report of the administration that was imaged",
        )
    return Administration(
        _nuclide(content),
        _activity_bq(activities[0], report) if activities else None,
        _start(content, report),
    )


def _activity_bq(item: Dataset, report: Dataset) -> float:
    measured = next(iter(items(item, "MeasuredValueSequence")), Dataset())
    unit = _code(measured, "MeasurementUnitsCodeSequence")[0]
    if unit not in _BQ or measured.get("NumericValue") is None:
        raise InputRejected(
            f"the administered activity of {described(report)} is in {unit or 'no unit'}, not in MBq",
            "Correct the dose report",
        )
    return float(measured.NumericValue) * _BQ[unit]


def _start(content: list[Dataset], report: Dataset) -> datetime | None:
    values: list[Any] = [
        item.get("DateTime")
        for item in content
        if _code(item, "ConceptNameCodeSequence") == START_DATE_TIME and item.get("DateTime")
    ]
    if not values:
        return None
    try:
        value = DT(values[0])
    except ValueError:
        raise InputRejected(
            f"{described(report)} has the start {values[0]!r}", "Correct the dose report"
        ) from None
    return None if value is None else datetime.fromisoformat(value.isoformat())


def _nuclide(content: list[Dataset]) -> str:
    for item in content:
        if _code(item, "ConceptNameCodeSequence") not in RADIONUCLIDE:
            continue
        code = next(iter(items(item, "ConceptCodeSequence")), Dataset())
        for spelling in (str(code.get("CodeValue", "")), str(code.get("CodeMeaning", ""))):
            try:
                return nuclide(spelling).name
            except InputRejected:
                continue
    return ""


def _walk(item: Dataset) -> Iterator[Dataset]:
    for child in items(item, "ContentSequence"):
        yield child
        yield from _walk(child)


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    code = next(iter(items(item, keyword)), Dataset())
    return str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
