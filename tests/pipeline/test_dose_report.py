"""Radiopharmaceutical Radiation Dose SR (TID 10021, 10022): what was given, when, and of which nuclide."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import RadiopharmaceuticalRadiationDoseSRStorage

from pipeline.acquisition import Administration
from pipeline.dose_report import (
    ADMINISTERED_ACTIVITY,
    RADIONUCLIDE,
    START_DATE_TIME,
    administered,
    reported_administration,
)
from pipeline.errors import InputRejected
from tests.pipeline.datasets import code, instance, item

LU177 = ("447553000", "SCT", "^177^Lutetium")
RADIONUCLIDE_NAME = ("89457008", "SCT", "Radionuclide")
MEGABECQUEREL = Code("MBq", "UCUM", "MBq")


def coded(of: Code) -> Dataset:
    return code(of.value, of.scheme_designator, of.meaning)


def content(kind: str, name: Dataset, **values: object) -> Dataset:
    return item(RelationshipType="CONTAINS", ValueType=kind, ConceptNameCodeSequence=[name], **values)


def number(name: Code, value: str, unit: Code = MEGABECQUEREL) -> Dataset:
    measured = item(NumericValue=value, MeasurementUnitsCodeSequence=[coded(unit)])
    return content("NUM", coded(name), MeasuredValueSequence=[measured])


def agent(nuclide: tuple[str, str, str] = LU177, name: tuple[str, str, str] = RADIONUCLIDE_NAME) -> Dataset:
    """The radiopharmaceutical, with the nuclide as a property one level below it."""
    radionuclide = content("CODE", code(*name), ConceptCodeSequence=[code(*nuclide)])
    drug = code("C-B1031", "SRT", "DOTATATE Lu^177^")
    return content(
        "CODE",
        coded(codes.SCT.Radiopharmaceuticals),
        ConceptCodeSequence=[drug],
        ContentSequence=[radionuclide],
    )


def start(value: str = "20240304101530") -> Dataset:
    return content("DATETIME", coded(codes.DCM.RadiopharmaceuticalStartDatetime), DateTime=value)


def activity(value: str = "7412.5", unit: Code = MEGABECQUEREL) -> Dataset:
    return number(codes.DCM.AdministeredActivity, value, unit)


def assays() -> list[Dataset]:
    """Before and after: the administered activity is their difference, and none of them."""
    return [
        number(codes.DCM.PreAdministrationMeasuredActivity, "7500"),
        number(codes.DCM.PostAdministrationMeasuredActivity, "87.5"),
    ]


def report(*event: Dataset, **values: object) -> Dataset:
    """Written and read again, as it comes from a PACS. event: content of the administration."""
    container = content(
        "CONTAINER", coded(codes.DCM.RadiopharmaceuticalAdministration), ContentSequence=list(event)
    )
    dataset = instance(
        RadiopharmaceuticalRadiationDoseSRStorage,
        "SR",
        ValueType="CONTAINER",
        ConceptNameCodeSequence=[coded(codes.DCM.RadiopharmaceuticalRadiationDoseReport)],
        ContentSequence=[container],
        **values,
    )
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return dcmread(file)


def test_the_codes_are_those_of_the_standard() -> None:
    """As pydicom's dictionary, made from PS3.16, spells them; SRT C-10072 became SCT 89457008."""
    for ours, published in (
        (ADMINISTERED_ACTIVITY, codes.DCM.AdministeredActivity),
        (START_DATE_TIME, codes.DCM.RadiopharmaceuticalStartDatetime),
    ):
        assert ours == (published.value, published.scheme_designator)
    old, new = (Code(value, scheme, "Radionuclide") for value, scheme in RADIONUCLIDE)
    assert old == new  # pydicom compares SRT with SCT by their published mapping
    assert new == codes.SCT.RadioactiveIsotope


def test_activity_time_and_nuclide_are_found_wherever_they_are_nested() -> None:
    found = reported_administration(report(agent(), start(), *assays(), activity()))
    assert found == Administration("Lu-177", 7412.5e6, datetime(2024, 3, 4, 10, 15, 30))


@pytest.mark.parametrize(("unit", "becquerel"), [("Bq", 2.5), ("kBq", 2.5e3), ("MBq", 2.5e6), ("GBq", 2.5e9)])
def test_the_unit_is_the_reports(unit: str, becquerel: float) -> None:
    found = reported_administration(report(activity("2.5", Code(unit, "UCUM", unit))))
    assert found.activity_bq == pytest.approx(becquerel)


@pytest.mark.parametrize("unit", ["mCi", "mBq", "MBQ", "ug"])
def test_another_unit_is_rejected_and_named(unit: str) -> None:
    with pytest.raises(InputRejected, match=f"is in {unit}, not in MBq") as rejected:
        reported_administration(report(activity("200", Code(unit, "UCUM", unit))))
    assert rejected.value.remedy


def test_an_activity_without_a_number_is_rejected() -> None:
    empty = content("NUM", coded(codes.DCM.AdministeredActivity), MeasuredValueSequence=[])
    with pytest.raises(InputRejected, match="is in no unit"):
        reported_administration(report(empty))


def test_two_administrations_are_rejected() -> None:
    with pytest.raises(InputRejected, match="reports 2 administrations"):
        reported_administration(report(start(), activity(), activity("3700")))


def test_what_a_report_leaves_out_is_unknown() -> None:
    assert reported_administration(report(*assays())) == Administration("", None, None)


@pytest.mark.parametrize(
    ("nuclide", "name"),
    [
        (("C-101ED", "SRT", "^177^Lutetium"), "Lu-177"),
        (("14691008", "SCT", "^90^Yttrium"), "Y-90"),
        (("LU177", "99LOCAL", "Lutetium-177"), "Lu-177"),
        (("L-17", "99LOCAL", "177Lu"), "Lu-177"),
    ],
)
def test_the_nuclide_is_known_by_code_or_by_meaning(nuclide: tuple[str, str, str], name: str) -> None:
    assert reported_administration(report(agent(nuclide), activity())).nuclide_name == name


def test_the_older_concept_name_is_known() -> None:
    older = agent(name=("C-10072", "SRT", "Radionuclide"))
    assert reported_administration(report(older)).nuclide_name == "Lu-177"


def test_a_nuclide_without_a_kernel_keeps_its_name() -> None:
    """The report of a Ga-68 scan beside a Lu-177 therapy must not lend it its activity."""
    gallium = agent(("129501005", "SCT", "^68^Gallium"))
    assert reported_administration(report(gallium, activity("180"))).nuclide_name == "^68^Gallium"


def test_two_nuclides_are_rejected() -> None:
    with pytest.raises(InputRejected, match="reports 2 nuclides"):
        reported_administration(report(agent(), agent(("14691008", "SCT", "^90^Yttrium")), activity()))


@pytest.mark.parametrize(
    ("value", "zone", "expected"),
    [
        ("20240304101530", "", datetime(2024, 3, 4, 10, 15, 30)),
        ("20240304101530.25", "", datetime(2024, 3, 4, 10, 15, 30, 250000)),
        ("202403041015", "", datetime(2024, 3, 4, 10, 15)),
        ("20240304101530+0100", "", datetime(2024, 3, 4, 10, 15, 30, tzinfo=timezone(timedelta(hours=1)))),
        ("20240304101530", "+0000", datetime(2024, 3, 4, 10, 15, 30, tzinfo=UTC)),
        (
            "20240304101530-0500",
            "+0000",
            datetime(2024, 3, 4, 10, 15, 30, tzinfo=timezone(-timedelta(hours=5))),
        ),
    ],
)
def test_the_start_is_in_its_own_zone_or_in_the_reports(value: str, zone: str, expected: datetime) -> None:
    values = {"TimezoneOffsetFromUTC": zone} if zone else {}
    found = reported_administration(report(start(value), activity(), **values)).administered_at
    assert found == expected
    assert found is not None
    assert found.utcoffset() == expected.utcoffset()


@pytest.mark.parametrize("value", ["20240304", "2024"])
def test_a_date_alone_is_no_start(value: str) -> None:
    """Midnight would be a guess: up to a day, 10 % of Lu-177 and 23 % of Y-90."""
    with pytest.raises(InputRejected, match=f"is '{value}', which is no date and time"):
        reported_administration(report(start(value), activity()))


GIVEN = Administration("Lu-177", 7.4125e9, datetime(2024, 3, 4, 10, 15, 30))


def test_the_report_completes_what_the_header_leaves_out() -> None:
    told = administered(Administration("Lu-177"), [report(agent(), start(), activity())])
    assert (told.nuclide_name, told.activity_bq, told.administered_at) == (
        "Lu-177",
        7.4125e9,
        datetime(2024, 3, 4, 10, 15, 30),
    )


def test_without_a_report_the_header_stands() -> None:
    assert administered(GIVEN, []) == GIVEN


def test_header_and_report_that_agree_within_their_clocks_are_one_administration() -> None:
    header = replace(GIVEN, activity_bq=7.3e9, administered_at=datetime(2024, 3, 4, 10, 0))
    assert administered(header, [report(agent(), start(), activity())]) == header


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (replace(GIVEN, activity_bq=3.7e8), "370 MBq were administered, the dose report 7412.5 MBq"),
        (
            replace(GIVEN, administered_at=datetime(2024, 3, 3, 10, 15)),
            "the administration began at 2024-03-03",
        ),
    ],
)
def test_header_and_report_that_contradict_each_other_are_rejected(header: Administration, text: str) -> None:
    with pytest.raises(InputRejected, match=text) as caught:
        administered(header, [report(agent(), start(), activity())])
    assert "discard" in caught.value.remedy


def test_several_reports_are_rejected() -> None:
    with pytest.raises(InputRejected, match="2 Radiopharmaceutical Radiation Dose reports"):
        administered(GIVEN, [report(agent(), start(), activity())] * 2)
