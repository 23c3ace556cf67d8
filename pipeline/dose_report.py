"""Radiopharmaceutical Radiation Dose SR: what was administered, and when.

TID 10022 (PS3.16) keeps it in a Radiopharmaceutical Administration Event container: Administered
activity (113507 DCM) in MBq by UCUM, Radiopharmaceutical Start DateTime (123003 DCM), Radionuclide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from pydicom.dataset import Dataset

from pipeline.acquisition import Administration
from pipeline.dataset import described, instant, items, seconds_between
from pipeline.decay import nuclide
from pipeline.errors import InputRejected

ADMINISTERED_ACTIVITY = ("113507", "DCM")
START_DATE_TIME = ("123003", "DCM")
RADIONUCLIDE = (("C-10072", "SRT"), ("89457008", "SCT"))
# Header and dose report tell of the same administration: the dose calibrators and clocks of two systems.
SAME_ACTIVITY_WITHIN = 0.05
SAME_TIME_WITHIN_S = 3600.0
_BQ = {"Bq": 1.0, "kBq": 1e3, "MBq": 1e6, "GBq": 1e9}


def reported_administration(report: Dataset) -> Administration:
    """What a dose report says was given.

    A nuclide that the node does not compute keeps its own name, so that nobody takes the activity of
    another administration for that of the one that was imaged.
    raises: InputRejected when it reports more than one administration or nuclide, activity in a unit that
        is no activity, or a start that is no date and time.
    """
    content = list(_walk(report))
    activities = [item for item in content if _code(item, "ConceptNameCodeSequence") == ADMINISTERED_ACTIVITY]
    if len(activities) > 1:
        raise InputRejected(
            f"{described(report)} reports {len(activities)} administrations",
            "Send the report of the administration that was imaged",
        )
    return Administration(
        _nuclide(content, report),
        _activity_bq(activities[0], report) if activities else None,
        _start(content, report),
    )


def administered(header: Administration, reports: Sequence[Dataset]) -> Administration:
    """What the SPECT's header says was given, completed by the dose report.

    raises: InputRejected when the two contradict each other, or several reports came.
    """
    if len(reports) > 1:
        raise InputRejected(
            f"{len(reports)} Radiopharmaceutical Radiation Dose reports came with the study",
            "`dicomnode discard` those of other administrations",
        )
    told = header
    for report in map(reported_administration, reports):
        _require_agreement(told, report)
        told = Administration(
            report.nuclide_name or told.nuclide_name,
            told.activity_bq if told.activity_bq is not None else report.activity_bq,
            told.administered_at if told.administered_at is not None else report.administered_at,
        )
    return told


def _require_agreement(header: Administration, report: Administration) -> None:
    """raises: InputRejected when the two tell of different administrations: no one may choose silently."""
    doses, times = (
        [getattr(told, name) for told in (header, report)] for name in ("activity_bq", "administered_at")
    )
    if None not in doses and abs(doses[0] - doses[1]) > SAME_ACTIVITY_WITHIN * max(doses):
        raise InputRejected(
            f"the SPECT's header says that {doses[0] / 1e6:.5g} MBq were administered, "
            f"the dose report {doses[1] / 1e6:.5g} MBq",
            "Correct the one that is wrong at its source, or `dicomnode discard` the dose report",
        )
    if None not in times and abs(seconds_between(times[0], times[1])) > SAME_TIME_WITHIN_S:
        raise InputRejected(
            f"the SPECT's header says that the administration began at {times[0]:%Y-%m-%d %H:%M}, "
            f"the dose report at {times[1]:%Y-%m-%d %H:%M}",
            "Correct the one that is wrong at its source, or `dicomnode discard` the dose report",
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
    starts = (item for item in content if _code(item, "ConceptNameCodeSequence") == START_DATE_TIME)
    # A DATETIME item holds its value in DateTime (PS3.3 C.17.3); the zone stands in the report.
    return next((at for item in starts if (at := instant(item, "", clock=report)) is not None), None)


def _nuclide(content: list[Dataset], report: Dataset) -> str:
    codes = [
        next(iter(items(item, "ConceptCodeSequence")), Dataset())
        for item in content
        if _code(item, "ConceptNameCodeSequence") in RADIONUCLIDE
    ]
    names = {name for code in codes if (name := _name(code))}
    if len(names) > 1:
        raise InputRejected(
            f"{described(report)} reports {len(names)} nuclides: {', '.join(sorted(names))}",
            "Send the report of the administration that was imaged",
        )
    return names.pop() if names else ""


def _name(code: Dataset) -> str:
    spellings = [str(code.get(keyword) or "") for keyword in ("CodeValue", "CodeMeaning")]
    for spelling in spellings:
        try:
            return nuclide(spelling).name
        except InputRejected:
            continue
    return next(filter(None, reversed(spellings)), "")


def _walk(item: Dataset) -> Iterator[Dataset]:
    for child in items(item, "ContentSequence"):
        yield child
        yield from _walk(child)


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    code = next(iter(items(item, keyword)), Dataset())
    return str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
