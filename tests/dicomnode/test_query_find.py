"""C-FIND over an association: what is told at each level, and every status."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from dicomnode.attributes import Level, Question
from dicomnode.config import Peer
from dicomnode.errors import LedgerUnavailable
from dicomnode.network.messages import DIMSE
from dicomnode.network.transport import AcceptedAssociation
from dicomnode.query.find import extended_answer
from tests.dicomnode.querier import (
    NODE_AE,
    PATIENT_ROOT,
    STUDY_ROOT,
    Running,
    answering_node,
    associated,
    described,
    found,
    keys,
    matches,
)

CT, NM = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.20"
JANE = {"PatientID": "J1", "PatientName": "Doe^Jane", "PatientBirthDate": "19700203", "PatientSex": "F"}
MONDAY = {**JANE, "StudyDate": "20240101", "StudyTime": "101500", "StudyDescription": "Lu-177 SPECT/CT"}
OBJECTS = (
    *(
        described("1.1", n, series="1.1.5", Modality="CT", SOPClassUID=CT, InstanceNumber=str(n), **MONDAY)
        for n in (1, 2, 3)
    ),
    described(
        "1.1", 1, series="1.1.6", Modality="NM", SOPClassUID=NM, NumberOfFrames="128", Rows="64", **MONDAY
    ),
    described("1.2", 1, Modality="CT", SOPClassUID=CT, StudyDate="20240105", **JANE),
    described("1.3", 1, Modality="CT", SOPClassUID=CT, PatientID="M1", PatientName="Müller^Jörg"),
    described("1.4", 1, Modality="CT", SOPClassUID=CT, PatientID="", PatientName="Nobody"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    visitor = Peer(name="visitor", ae_title="VISITOR", may=("echo", "store"))
    with answering_node(tmp_path_factory.mktemp("find"), OBJECTS, (visitor,), max_matches=1000) as running:
        yield running


def statuses(responses: Sequence[tuple[Any, Any]]) -> list[int]:
    return [status.Status for status, _ in responses]


def asking(level: str, wanted: str = "", **asked: Any) -> Dataset:
    """An Identifier. wanted: keywords that are told, whatever their values."""
    return keys(level, **dict.fromkeys(wanted.split(), ""), **asked)


def told(node: Running, level: str, wanted: str = "", model: str = STUDY_ROOT, **asked: Any) -> list[Any]:
    """What a C-FIND finds."""
    return list(matches(found(node.port, asking(level, wanted, **asked), model)))


def of_every_study(node: Running) -> list[tuple[Any, Any]]:
    """Every response to a C-FIND for all studies."""
    return found(node.port, asking("STUDY", "StudyInstanceUID"))


def test_a_study_is_told_with_what_is_counted_of_it(node: Running) -> None:
    wanted = (
        "StudyDescription PatientName StudyInstanceUID ModalitiesInStudy SOPClassesInStudy "
        "NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances InstanceAvailability"
    )
    responses = found(node.port, asking("STUDY", wanted, PatientID="J1", StudyDate="20240101"))
    assert statuses(responses) == [0xFF00, 0x0000]
    (study,) = matches(responses)
    assert study == {
        "QueryRetrieveLevel": "STUDY",
        "PatientID": "J1",
        "PatientName": "Doe^Jane",
        "StudyDate": "20240101",
        "StudyDescription": "Lu-177 SPECT/CT",
        "StudyInstanceUID": "1.1",
        "ModalitiesInStudy": ["CT", "NM"],
        "SOPClassesInStudy": [CT, NM],
        "NumberOfStudyRelatedSeries": 2,
        "NumberOfStudyRelatedInstances": 4,
        "RetrieveAETitle": NODE_AE,
        "InstanceAvailability": "ONLINE",
    }


def test_a_patient_is_all_studies_of_an_id_and_nobody_without_one(node: Running) -> None:
    counts = [f"NumberOfPatientRelated{what}" for what in ("Studies", "Series", "Instances")]
    wanted = " ".join(["PatientName PatientID PatientSex", *counts])
    patients = {patient["PatientID"]: patient for patient in told(node, "PATIENT", wanted, PATIENT_ROOT)}
    assert set(patients) == {"J1", "M1"}
    jane = patients["J1"]
    assert [jane[count] for count in counts] == [2, 3, 5]
    assert jane["PatientSex"] == "F"


def test_series_and_instances_are_told_with_their_own_attributes(node: Running) -> None:
    wanted = "SeriesInstanceUID NumberOfSeriesRelatedInstances"
    (series,) = told(node, "SERIES", wanted, StudyInstanceUID="1.1", Modality="NM")
    assert (series["SeriesInstanceUID"], series["NumberOfSeriesRelatedInstances"]) == ("1.1.6", 1)
    of_the_series = {"PatientID": "J1", "StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.6"}
    wanted = "SOPInstanceUID NumberOfFrames DoseUnits"
    (image,) = told(node, "IMAGE", wanted, PATIENT_ROOT, SOPClassUID=NM, Rows=None, **of_the_series)
    assert (image["SOPInstanceUID"], image["NumberOfFrames"], image["Rows"]) == ("1.1.6.1", 128, 64)
    assert image["DoseUnits"] in ("", None)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"ModalitiesInStudy": "NM"}, {"1.1"}),
        ({"ModalitiesInStudy": ["NM", "CT"]}, {"1.1", "1.2", "1.3", "1.4"}),
        ({"ModalitiesInStudy": "PT"}, set()),
        ({"SOPClassesInStudy": NM}, {"1.1"}),
        ({"StudyDate": "20240102-", "PatientName": "doe*"}, {"1.2"}),
    ],
)
def test_studies_are_found_by_what_they_hold(
    node: Running, asked: dict[str, Any], expected: set[str]
) -> None:
    studies = told(node, "STUDY", "StudyInstanceUID", **asked)
    assert {study["StudyInstanceUID"] for study in studies} == expected


@pytest.mark.parametrize(
    ("asked", "used"), [("", "ISO_IR 192"), ("ISO_IR 100", "ISO_IR 100"), ("ISO_IR 144", "ISO_IR 192")]
)
def test_names_come_in_a_character_set_that_can_write_them(node: Running, asked: str, used: str) -> None:
    (study,) = told(node, "STUDY", "PatientName", character_set=asked, PatientID="M1")
    assert (study["SpecificCharacterSet"], str(study["PatientName"])) == (used, "Müller^Jörg")


def test_ascii_needs_no_character_set(node: Running) -> None:
    studies = told(node, "STUDY", "PatientName", character_set="ISO_IR 100", PatientID="J1")
    assert studies
    assert not any("SpecificCharacterSet" in study for study in studies)


def test_a_key_that_is_not_supported_is_left_out_and_said_so(node: Running) -> None:
    responses = found(node.port, asking("STUDY", "PatientAge Modality", PatientID="M1"))
    assert statuses(responses) == [0xFF01, 0x0000]
    assert not {"PatientAge", "Modality"} & set(matches(responses)[0])


@pytest.mark.parametrize("max_pdu", [512, 16382, 0])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_long_match_comes_whole_in_whatever_pdus_the_peer_takes(
    tmp_path: Path, max_pdu: int, syntax: str
) -> None:
    long = {k: k + "x" * 200 for k in ("StudyDescription", "StudyID", "AccessionNumber", "PatientName")}
    with answering_node(tmp_path, [described("1.1", 1, **long, InstanceNumber="7")]) as node:
        asked = asking("STUDY", " ".join(["StudyInstanceUID ReferringPhysicianName", *long]))
        responses = found(node.port, asked, max_pdu=max_pdu, syntax=syntax)
    (study,) = matches(responses)
    assert {keyword: str(study[keyword]) for keyword in long} == long
    assert study["ReferringPhysicianName"] == ""


def test_no_match_is_a_success(node: Running) -> None:
    assert statuses(found(node.port, keys("STUDY", PatientID="none"))) == [0x0000]


@pytest.mark.parametrize(
    ("asked", "model", "status", "word"),
    [
        (asking("PATIENT", "PatientName"), STUDY_ROOT, 0xA900, "PATIENT"),
        (asking("SERIES", "SeriesInstanceUID"), STUDY_ROOT, 0xA900, "StudyInstanceUID"),
        (asking("STUDY", "StudyInstanceUID"), PATIENT_ROOT, 0xA900, "PatientID"),
        (asking("", "StudyInstanceUID"), STUDY_ROOT, 0xA900, "QueryRetrieveLevel"),
        (asking("STUDY", "StudyInstanceUID", PatientName="a=b=c=d"), STUDY_ROOT, 0xC001, "PatientName"),
    ],
)
def test_a_refusal_says_why(node: Running, asked: Any, model: str, status: int, word: str) -> None:
    ((answer, nothing),) = found(node.port, asked, model)
    assert (answer.Status, nothing) == (status, None)
    assert word in answer.ErrorComment
    assert answer.OffendingElement


def test_too_many_matches_are_refused(node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.finding, "_max_matches", 2)
    ((answer, _),) = of_every_study(node)
    assert answer.Status == 0xA700
    assert "more than 2" in answer.ErrorComment


def test_a_database_that_is_gone_is_out_of_resources(node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_question: Question, _limit: int) -> list[int]:
        raise LedgerUnavailable("gone", "")

    monkeypatch.setattr(node.ledger, "find", gone)
    assert statuses(of_every_study(node)) == [0xA700]


def test_an_error_of_ours_is_told(node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.ledger, "find", lambda _question, _limit: 1 / 0)
    assert statuses(of_every_study(node)) == [0xC000]


def test_a_query_in_the_context_of_another_model_is_refused(node: Running) -> None:
    with associated(node.port, PATIENT_ROOT, STUDY_ROOT) as assoc:
        swapped = {c.abstract_syntax: c for c in assoc.accepted_contexts}
        swapped[UID(PATIENT_ROOT)].abstract_syntax = UID(STUDY_ROOT)
        swapped[UID(STUDY_ROOT)].abstract_syntax = UID(PATIENT_ROOT)
        answers = list(assoc.send_c_find(asking("STUDY", "StudyInstanceUID"), UID(STUDY_ROOT)))
    assert statuses(answers) == [0x0122]


def test_a_peer_without_the_right_gets_no_context(node: Running) -> None:
    ae = AE("VISITOR")
    ae.add_requested_context(UID(STUDY_ROOT))
    ae.add_requested_context("1.2.840.10008.1.1")
    assoc = ae.associate("127.0.0.1", node.port, ae_title=NODE_AE)
    assert [c.abstract_syntax for c in assoc.accepted_contexts] == ["1.2.840.10008.1.1"]
    assoc.release()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (b"\1\1\1\1\1", b"\0\1\0\0\0"),
        (b"\0\1", b"\0\1"),
        (b"\1", b"\0"),
        (b"\1\0\1", b"\0\0\0"),
        (b"", b"\0"),
    ],
)
def test_of_extended_matching_the_node_has_combined_date_and_time(asked: bytes, answer: bytes) -> None:
    assert extended_answer(asked) == answer


def test_combined_matching_is_agreed_upon_and_done(node: Running) -> None:
    at_noon = {"StudyDate": "20231231-20240105", "StudyTime": "1200-1230"}
    asked = asking("STUDY", "StudyInstanceUID", **at_noon)
    assert matches(found(node.port, asked)) == []
    answers = matches(found(node.port, asked, extended=b"\0\1\0"))
    assert [answer["StudyInstanceUID"] for answer in answers] == ["1.1", "1.2"]


class Gated:
    """A ledger whose second look waits until the peer has cancelled."""

    def __init__(self, ledger: Any, arrived: threading.Event) -> None:
        self._ledger, self._arrived, self._looks = ledger, arrived, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def attributes(self, level: Level, numbers: Sequence[int]) -> list[dict[str, Any]]:
        self._looks += 1
        if self._looks == 2:
            assert self._arrived.wait(20)
        rows: list[dict[str, Any]] = self._ledger.attributes(level, numbers)
        return rows


def test_a_cancelled_query_ends_with_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [described(f"2.{n}", 1, PatientID=str(n)) for n in range(450)]
    arrived = threading.Event()
    with answering_node(tmp_path, many) as node:
        monkeypatch.setattr(node.finding, "_ledger", Gated(node.ledger, arrived))
        cancels = heard_cancels(monkeypatch, arrived)
        with associated(node.port, STUDY_ROOT) as assoc:
            answers = cancelling(assoc)
    assert cancels
    assert answers[-1] == 0xFE00
    assert len(answers) <= 201


def test_a_query_that_is_cancelled_before_it_is_served_ends_with_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may send the C-CANCEL right behind the request."""
    arrived, leave = threading.Event(), AcceptedAssociation._leave

    def late(self: AcceptedAssociation, *of_request: Any) -> None:
        assert arrived.wait(20)
        leave(self, *of_request)

    monkeypatch.setattr(AcceptedAssociation, "_leave", late)
    with answering_node(tmp_path, [described(f"2.{n}", 1, PatientID=str(n)) for n in range(3)]) as node:
        heard_cancels(monkeypatch, arrived)
        with associated(node.port, STUDY_ROOT) as assoc:
            assert asked_of(assoc, cancel_at_once=True) == [0xFE00]
            # Another request with the same Message ID is another request.
            assert asked_of(assoc) == [0xFF00, 0xFF00, 0xFF00, 0x0000]


def test_a_cancel_that_comes_after_the_last_answer_cancels_nothing(tmp_path: Path) -> None:
    with (
        answering_node(tmp_path, [described("2.1", 1)]) as node,
        associated(node.port, STUDY_ROOT) as assoc,
    ):
        for _ in range(3):
            assert asked_of(assoc) == [0xFF00, 0x0000]
            assoc.send_c_cancel(7, query_model=UID(STUDY_ROOT))


def asked_of(assoc: Association, *, cancel_at_once: bool = False) -> list[int]:
    """Statuses of a query with Message ID 7."""
    responses = assoc.send_c_find(asking("STUDY", "StudyInstanceUID"), UID(STUDY_ROOT), msg_id=7)
    if cancel_at_once:
        assoc.send_c_cancel(7, query_model=UID(STUDY_ROOT))
    return statuses(list(responses))


def heard_cancels(monkeypatch: pytest.MonkeyPatch, arrived: threading.Event) -> list[bool]:
    """Tell the gate when the node has heard of the C-CANCEL."""
    heard: list[bool] = []
    before = DIMSE.receive_primitive

    def receive(self: DIMSE, primitive: Any) -> None:
        before(self, primitive)
        if self.cancel_req:
            heard.append(True)
            arrived.set()

    monkeypatch.setattr(DIMSE, "receive_primitive", receive)
    return heard


def cancelling(assoc: Association) -> list[int]:
    """Statuses of a query that is cancelled after its first match."""
    answers = []
    for status, _ in assoc.send_c_find(asking("STUDY", "StudyInstanceUID"), UID(STUDY_ROOT), msg_id=7):
        if not answers:
            assoc.send_c_cancel(7, query_model=UID(STUDY_ROOT))
        answers.append(status.Status)
    return answers
