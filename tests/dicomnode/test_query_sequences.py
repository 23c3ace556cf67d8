"""Sequence matching over an association (PS3.4 C.2.2.2.6): which entities, and which of their items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.attributes import SEQUENCE_OF
from tests.dicomnode.querier import (
    PATIENT_ROOT,
    Running,
    answering_node,
    found,
    held_slice,
    item,
    keys,
    matches,
    other,
    received,
    request,
)
from tests.postgres import PostgresServer

REQUESTS, OTHER_IDS = "RequestAttributesSequence", "OtherPatientIDsSequence"
OBJECTS = (
    held_slice(
        "1.1", "1.1.1", PatientID="P1", IssuerOfPatientID="NORTH",
        RequestAttributesSequence=[request("S1", "R1"), request("S2", "R2", AccessionNumber="A2")],
        OtherPatientIDsSequence=[other("N-77", "NATION", "TEXT"), other("W-1", "WEST", "TEXT")],
    ),
    held_slice(
        "1.1", "1.1.2", PatientID="P1", IssuerOfPatientID="NORTH",
        RequestAttributesSequence=[request("S2", "R1", RequestedProcedureDescription="Größe_%")],
    ),
    held_slice("1.1", "1.1.3", PatientID="P1", IssuerOfPatientID="NORTH"),
    held_slice("1.2", "1.2.1", PatientID="P2", IssuerOfPatientID="SOUTH", OtherPatientIDs=["W-1", "n-77"]),
    held_slice("1.3", "1.3.1", PatientID="P1", IssuerOfPatientID="SOUTH"),
)  # fmt: skip
for each in OBJECTS:
    each.SpecificCharacterSet = "ISO_IR 100"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    url = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.new_database()
    objects = [received(dataset) for dataset in OBJECTS]
    with answering_node(tmp_path_factory.mktemp("sequences"), objects, url=url) as running:
        yield running


def series(node: Running, *items: Dataset, character_set: str = "", **options: Any) -> list[Any]:
    asked = keys("SERIES", character_set, StudyInstanceUID="1.1", SeriesInstanceUID="")
    asked.RequestAttributesSequence = list(items)
    return found(node.port, asked, **options)


def uids(responses: Any, keyword: str = "SeriesInstanceUID") -> list[str]:
    return [str(match[keyword]) for match in matches(responses)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (item(ScheduledProcedureStepID="S1"), ["1.1.1"]),
        (item(ScheduledProcedureStepID="S2"), ["1.1.1", "1.1.2"]),
        # All keys in one and the same item.
        (item(ScheduledProcedureStepID="S2", RequestedProcedureID="R2"), ["1.1.1"]),
        (item(ScheduledProcedureStepID="S1", RequestedProcedureID="R2"), []),
        (item(ScheduledProcedureStepID="", RequestedProcedureID="R1"), ["1.1.1", "1.1.2"]),
        (item(AccessionNumber="A2"), ["1.1.1"]),
        # As other texts: with their case, without padding, with wild cards and lists.
        (item(ScheduledProcedureStepID="s1"), []),
        (item(ScheduledProcedureStepID="S?"), ["1.1.1", "1.1.2"]),
        (item(ScheduledProcedureStepID=["S1", "S9"]), ["1.1.1"]),
        (item(RequestedProcedureDescription="*_%"), ["1.1.2"]),
        (item(RequestedProcedureDescription="Grö*"), ["1.1.2"]),
        # Universal.
        (item(ScheduledProcedureStepID="", RequestedProcedureID=""), ["1.1.1", "1.1.2", "1.1.3"]),
        (item(ScheduledProcedureStepID="*"), ["1.1.1", "1.1.2", "1.1.3"]),
        (item(), ["1.1.1", "1.1.2", "1.1.3"]),
    ],
)
def test_series_are_found_by_what_requested_them(node: Running, asked: Dataset, expected: list[str]) -> None:
    responses = series(node, asked, character_set="ISO_IR 192")
    assert uids(responses) == expected
    assert responses[-1][0].Status == 0x0000
    assert {status.Status for status, _ in responses[:-1]} <= {0xFF00}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_items_that_match_are_told_with_what_was_asked_for(node: Running, syntax: str) -> None:
    """PS3.4 C.2.2.2.6: matching items, with the requested attributes alone."""
    asked = item(ScheduledProcedureStepID="S2", RequestedProcedureID="", RequestedProcedureDescription="")
    first, second = matches(series(node, asked, character_set="ISO_IR 100", syntax=syntax))
    assert [{e.keyword: e.value for e in one} for one in first[REQUESTS]] == [  # type: ignore[attr-defined]
        {"ScheduledProcedureStepID": "S2", "RequestedProcedureID": "R2", "RequestedProcedureDescription": ""}
    ]
    assert "SpecificCharacterSet" not in first
    assert second["SpecificCharacterSet"] == "ISO_IR 100"
    assert second[REQUESTS][0].RequestedProcedureDescription == "Größe_%"  # type: ignore[index]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("asked", [(), (item(),)])
def test_without_keys_the_whole_sequence_is_told(
    node: Running, asked: tuple[Dataset, ...], syntax: str
) -> None:
    told_of = {m["SeriesInstanceUID"]: m[REQUESTS] for m in matches(series(node, *asked, syntax=syntax))}
    assert {uid: len(items) for uid, items in told_of.items()} == {  # type: ignore[arg-type]
        "1.1.1": 2, "1.1.2": 1, "1.1.3": 0,
    }  # fmt: skip
    assert told_of["1.1.1"][1].AccessionNumber == "A2"  # type: ignore[index]
    # Whatever else is asked for is read behind it.
    after = series(node, *asked, syntax=syntax)
    assert uids(after, "StudyInstanceUID") == ["1.1"] * 3


def test_keys_of_which_nothing_is_known_are_told_apart(node: Running) -> None:
    """The rest is matched, and the peer told so; of items with such keys alone nothing is told."""
    unknown = item(ScheduledProcedureStepID="S1", ReasonForTheRequestedProcedure="x")
    responses = series(node, unknown)
    assert [status.Status for status, _ in responses] == [0xFF01, 0x0000]
    (match,) = matches(responses)
    assert [[e.keyword for e in one] for one in match[REQUESTS]] == [["ScheduledProcedureStepID"]]  # type: ignore[attr-defined]
    responses = series(node, item(ReasonForTheRequestedProcedure=""))
    assert {status.Status for status, _ in responses[:-1]} == {0xFF01}
    assert [len(m[REQUESTS]) for m in matches(responses)] == [0, 0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("items", [(), (item(ReferencedSOPInstanceUID="1.2"),), (item(), item())])
def test_a_sequence_that_is_no_key_is_not_told_and_fails_nothing(node: Running, items: Any) -> None:
    """PS3.4 C.2.2.1.3: what is not supported is not returned."""
    asked = keys("SERIES", StudyInstanceUID="1.1", SeriesInstanceUID="")
    asked.ReferencedPerformedProcedureStepSequence = list(items)
    responses = found(node.port, asked)
    assert [status.Status for status, _ in responses] == [0xFF01] * 3 + [0x0000]
    assert not any("ReferencedPerformedProcedureStepSequence" in m for m in matches(responses))


def test_a_sequence_of_a_level_below_is_not_told(node: Running) -> None:
    asked = keys("STUDY", StudyInstanceUID="1.1")
    asked.RequestAttributesSequence = [item(ScheduledProcedureStepID="none"), item()]
    responses = found(node.port, asked)
    assert [status.Status for status, _ in responses] == [0xFF01, 0x0000]
    assert REQUESTS not in matches(responses)[0]


def test_two_items_in_a_request_are_refused(node: Running) -> None:
    ((status, _),) = series(node, item(ScheduledProcedureStepID="S1"), item())
    assert status.Status == 0xC001
    assert REQUESTS in status.ErrorComment
    assert status.OffendingElement == SEQUENCE_OF[REQUESTS].tag


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"OtherPatientIDs": "N-77"}, ["1.1"]),
        ({"OtherPatientIDs": "W-1"}, ["1.1", "1.2"]),
        ({"OtherPatientIDs": ["n-77", "none"]}, ["1.2"]),
        ({"OtherPatientIDs": "?-77"}, ["1.1", "1.2"]),
        ({"OtherPatientIDs": "P1"}, []),
        ({"OtherPatientIDs": ""}, ["1.1", "1.2", "1.3"]),
        ({"OtherPatientIDsSequence": [other("N-77", "NATION")]}, ["1.1"]),
        ({"OtherPatientIDsSequence": [other("N-77", "WEST")]}, []),
        ({"OtherPatientIDsSequence": [other("W-1")]}, ["1.1", "1.2"]),
        ({"OtherPatientIDsSequence": [other("", "", "TEXT")]}, ["1.1"]),
        ({"OtherPatientIDsSequence": [other("W-1")], "PatientID": "P2"}, ["1.2"]),
        # The issuer of Patient ID itself is a plain key.
        ({"IssuerOfPatientID": "SOUTH"}, ["1.2", "1.3"]),
        ({"IssuerOfPatientID": "S*", "PatientID": "P1"}, ["1.3"]),
        ({"IssuerOfPatientID": "WEST"}, []),
    ],
)
def test_patients_are_found_by_their_other_ids(
    node: Running, asked: dict[str, Any], expected: list[str]
) -> None:
    responses = found(node.port, keys("STUDY", StudyInstanceUID="", **asked))
    assert uids(responses, "StudyInstanceUID") == expected
    responses = found(node.port, keys("PATIENT", **{"PatientID": "", **asked}), PATIENT_ROOT)
    assert len(responses) == len(expected) + 1
    assert {status.Status for status, _ in responses} <= {0xFF00, 0x0000}


def test_other_ids_are_told_in_either_form(node: Running) -> None:
    asked = keys("PATIENT", PatientID="", OtherPatientIDs="W-1", OtherPatientIDsSequence=[], PatientSex="")
    first, second = matches(found(node.port, asked, PATIENT_ROOT))
    assert first["OtherPatientIDs"] == ["N-77", "W-1"], "all values, not those that match alone"
    assert second["OtherPatientIDs"] == ["W-1", "n-77"]
    assert [one.IssuerOfPatientID for one in first[OTHER_IDS]] == ["NATION", "WEST"]  # type: ignore[attr-defined]
    assert [(one.PatientID, one.IssuerOfPatientID) for one in second[OTHER_IDS]] == [  # type: ignore[attr-defined]
        ("W-1", ""), ("n-77", ""),
    ]  # fmt: skip
    assert first["PatientID"] == "P1"
    (none,) = matches(found(node.port, keys("STUDY", StudyInstanceUID="1.3", OtherPatientIDs="")))
    assert none["OtherPatientIDs"] == ""


def test_keys_within_items_are_read_in_their_character_set(node: Running) -> None:
    for character_set in ("ISO_IR 100", "ISO_IR 192"):
        responses = series(node, item(RequestedProcedureDescription="Größe*"), character_set=character_set)
        assert uids(responses) == ["1.1.2"]
