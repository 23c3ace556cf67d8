"""docs/conformance.md names the attributes that are written: neither fewer nor others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue

from dicomnode.conformance.attributes import (
    ALWAYS,
    MAY_BE_EMPTY,
    NOT_ALWAYS,
    OBJECTS,
    WRITTEN,
    Written,
    fixed,
)
from dicomnode.results import encode
from dicomnode.results.findings import InstanceReference, Predecessor, ResultKind
from dicomnode.results.header import _PATIENT_AND_STUDY
from dicomnode.results.writing import uid_source
from tests.dicomnode.synthetic_findings import NOW, SETTINGS, STUDY, ct_headers, findings

NAMES = {"SEG": "SEG", "RTDOSE": "RTDOSE", "OT": "PM", "SR": "SR", "KO": "KO"}
# As a scanner writes them that says more than it must.
TALKATIVE = {
    "TimezoneOffsetFromUTC": "+0100",
    "SpecificCharacterSet": "ISO_IR 100",
    "StudyDescription": "SPECT/CT",
}
EARLIER = (
    Predecessor(
        InstanceReference("1.2.840.10008.5.1.4.1.1.481.2", "1.2.9", "1.2.8", STUDY), ResultKind.RTDOSE, "dvk"
    ),
    Predecessor(InstanceReference("1.2.840.10008.5.1.4.1.1.88.34", "1.2.7", "1.2.6", STUDY), ResultKind.SR),
)
ELSEWHERE = InstanceReference("1.2.840.10008.5.1.4.1.1.481.3", "1.2.3.9.1", "1.2.3.9", "1.2.3.10")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Dataset]]:
    """What the encoders write, with little and with much to say."""
    return [
        *encoded(tmp_path_factory.mktemp("little"), False),
        *encoded(tmp_path_factory.mktemp("much"), True),
    ]


def encoded(folder: Path, much: bool) -> Iterator[tuple[str, Dataset]]:
    settings = replace(SETTINGS, parametric_map=True, institution="Hospital" if much else "")
    headers = ct_headers()
    for header in headers if much else ():
        for keyword, value in TALKATIVE.items():
            setattr(header, keyword, value)
    changes: dict[str, Any] = (
        {"rejected": (EARLIER,), "predecessors": EARLIER, "other_sources": (ELSEWHERE,)} if much else {}
    )
    found = findings(ct_headers=headers, **{"rejected": (EARLIER,), **changes})
    for one in encode.encode(found, settings, folder, NOW, uid_source("", STUDY)):
        ds = dcmread(one.path)
        yield NAMES[ds.Modality], ds


def test_every_attribute_that_is_written_is_named(written: list[tuple[str, Dataset]]) -> None:
    for name, ds in written:
        named = {row.keyword for row in WRITTEN if name in row.of}
        assert {element.keyword for element in ds} <= named, name


def test_every_attribute_that_is_named_is_written(written: list[tuple[str, Dataset]]) -> None:
    for row in WRITTEN:
        for name in row.of:
            objects = [ds for other, ds in written if other == name]
            there = [row.keyword in ds for ds in objects]
            if row.presence == NOT_ALWAYS:
                # What only some CTs have is copied by one table.
                assert any(there) or row.keyword in _PATIENT_AND_STUDY, (
                    name,
                    row.keyword,
                )
                continue
            assert objects
            assert all(there), (name, row.keyword)
            values = [ds[row.keyword].value for ds in objects]
            assert row.presence == MAY_BE_EMPTY or all(v not in (None, "", []) for v in values), (
                name,
                row.keyword,
            )


def test_a_value_that_is_told_as_fixed_is_what_is_written(written: list[tuple[str, Dataset]]) -> None:
    compared = set()
    for row in WRITTEN:
        for name, ds in written:
            expected = fixed(row, name) if name in row.of else None
            if expected is not None and row.keyword in ds:
                assert _as_text(ds[row.keyword].value) == expected, (name, row.keyword)
                compared.add(row.keyword)
    assert compared > {
        "Modality",
        "BitsAllocated",
        "DoseType",
        "DoseSummationType",
        "CompletionFlag",
        "HighBit",
    }


def test_what_is_always_the_same_code_is_told_as_fixed(written: list[tuple[str, Dataset]]) -> None:
    """VR CS is for words of the Standard's: one that nobody can configure is named."""
    configured = {"DoseUnits", "PatientSex", "PatientIdentityRemoved", "SpecificCharacterSet", "ContentLabel"}
    for row in WRITTEN:
        for name, ds in written:
            if name in row.of and row.keyword in ds and row.keyword not in configured:
                element = ds[row.keyword]
                if element.VR == "CS" and element.value:
                    assert fixed(row, name) is not None, (name, row.keyword)


def test_bits_follow_the_setting(tmp_path: Path) -> None:
    for bits in (16, 32):
        folder = tmp_path / str(bits)
        folder.mkdir()
        source = uid_source("", STUDY)
        for one in encode.encode(findings(), replace(SETTINGS, bits=bits), folder, NOW, source):
            ds = dcmread(one.path)
            if ds.Modality == "RTDOSE":
                assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (bits, bits, bits - 1)


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        ("`MONOCHROME2`", "PM", "MONOCHROME2"),
        ("SEG: `1`; RTDOSE: `[encode] bits`; PM: `32`", "PM", "32"),
        ("SEG: `1`; RTDOSE: `[encode] bits`; PM: `32`", "RTDOSE", None),
        ("SEG: `REGIONS`; PM: `A` or, of the uncertainty, `B`", "PM", None),
        ("`[encode] dose_units`: `GY` or `RELATIVE`", "RTDOSE", None),
        ("the CT's", "SEG", None),
    ],
)
def test_what_is_fixed_is_read_off_the_text(value: str, name: str, expected: str | None) -> None:
    assert fixed(Written("Modality", OBJECTS, ALWAYS, value), name) == expected


def _as_text(value: Any) -> str:
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def test_the_table_is_sound() -> None:
    assert {row.presence for row in WRITTEN} == {ALWAYS, MAY_BE_EMPTY, NOT_ALWAYS}
    pairs = [(row.keyword, name) for row in WRITTEN for name in row.of]
    assert len(pairs) == len(set(pairs))
    assert {name for _, name in pairs} == set(OBJECTS)
