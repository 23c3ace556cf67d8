"""What a peer sends and nobody can read: a status or an A-ABORT with its reason, one line, no traceback."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.dsutils import decode
from pynetdicom.sop_class import StorageCommitmentPushModelInstance  # type: ignore[attr-defined]

from dicomnode.commitment.message import (
    FailureReason,
    Request,
    report_of,
    report_to_dataset,
    request_to_dataset,
)
from dicomnode.commitment.report import ReportService
from dicomnode.commitment.scp import CommitmentService, OpenAssociations
from dicomnode.config import Peer
from dicomnode.errors import Transient
from dicomnode.ledger import Ledger
from dicomnode.network.send import echo
from dicomnode.query import identifier
from dicomnode.query.scu import QueryRefused, Source
from tests.acceptance.harness import until
from tests.dicomnode.modality import ct_slice, encoded, running_node
from tests.dicomnode.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RQ,
    CT,
    DATA,
    ECHO,
    RELEASE_RP,
    associate_rq,
    command,
    echo_rq,
    element,
    item,
    pdu,
    pdv,
    raw_peer,
    uid,
)

PROVIDER = 2  # PS3.8 table 9-26
PEER = Peer(name="CT1", ae_title="SCANNER", host="127.0.0.1", port=104, may=("commit",))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was warned of; fails where a traceback was written."""
    records = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("dicomnode")]
    assert not [r for r in caplog.records if r.exc_info], "a traceback in the log"
    return [r.getMessage() for r in records]


# ── PDUs ─────────────────────────────────────────────────────────────────────────────────────────


def request_with(old: bytes, new: bytes) -> bytes:
    """An A-ASSOCIATE-RQ with a part of it changed, its length right."""
    sound = associate_rq(CT)
    assert sound.count(old) == 1
    return pdu(ASSOCIATE_RQ, sound[6:].replace(old, new))


SYNTAX = item(0x40, ExplicitVRLittleEndian.encode())
CONTEXT = item(0x20, struct.pack("BxBx", 1, 0) + item(0x30, CTImageStorage.encode()) + SYNTAX)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (request_with(b"\1\0\0\0\x30", b"\2\0\0\0\x30"),
         "must be an odd integer"),
        (request_with(CONTEXT, item(0x20, CONTEXT[4:8] + SYNTAX)),
         "presentation context 1 lacks a syntax"),
        (request_with(item(0x51, struct.pack(">L", 16384)), item(0x51, struct.pack(">L", 6))), "6 bytes"),
    ],
    ids=["an even presentation context ID", "no abstract syntax", "PDUs that hold nothing"],
)  # fmt: skip
def test_a_request_with_an_impossible_value_is_aborted_with_that_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, request_: bytes, said: str
) -> None:
    with running_node(tmp_path) as running, raw_peer(running.port) as peer:
        peer.send(request_)
        assert peer.answer() == (ABORT, bytes((0, 0, PROVIDER, 6)))
        (line,) = warnings_of(caplog)
        assert line.startswith("a peer at 127.0.0.1: it sent what cannot be read")
        assert said in line


EVENT_REPORT = command(
    uid(0x0002, ECHO[0]), element(0x0100, b"\0\1"), element(0x0110, b"\7\0"), element(0x0800, b"\1\1"),
    uid(0x1000, "1.2.3"), element(0x1002, b"\1\0"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (pdu(ABORT, bytes((0, 0, PROVIDER, 9))), 6, "provider_reason"),
        (pdu(99, bytes(10)), 1, "a PDU of type 0x63"),
        (pdu(DATA, b"", 0xFFFFFFFF), 6, "announces a PDU"),
        (associate_rq(ECHO), 2, "out of turn"),
        (pdu(DATA, pdv(1, 3, command(element(0x0100, b"\x77\x77")))), 6, "cannot be read"),
        (pdu(DATA, pdv(1, 3, echo_rq()[:-4] + b"\2\0\1\1\1")), 6, "cannot be read"),
    ],
    ids=["A-ABORT for no known reason", "unknown", "absurd length", "again", "no command", "odd command"],
)
def test_a_pdu_that_cannot_be_read_is_told_in_one_line_and_to_the_peer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, reason: int, said: str
) -> None:
    with running_node(tmp_path) as running, raw_peer(running.port) as peer:
        assert peer.associate(ECHO) == ASSOCIATE_AC
        caplog.clear()
        peer.send(data)
        assert peer.answer() == (ABORT, bytes((0, 0, PROVIDER, reason)))
        (line,) = warnings_of(caplog)
        assert line.startswith("SCANNER at 127.0.0.1: it ")
        assert said in line


def test_event_reports_get_no_threads_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends them one after the other has two threads, as every other."""
    with running_node(tmp_path) as running, raw_peer(running.port) as peer:
        assert peer.associate(ECHO) == ASSOCIATE_AC
        before = {thread.ident for thread in threading.enumerate()}
        started: list[str] = []
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda t: (started.append(t.name), start(t)))
        peer.send(pdu(DATA, pdv(1, 3, EVENT_REPORT)))
        assert peer.status() == 0x0211  # unrecognized operation, of Verification
        assert started == []
        assert {thread.ident for thread in threading.enumerate()} == before


@contextlib.contextmanager
def pacs_that_says(*answers: bytes) -> Iterator[tuple[Peer, list[bytes]]]:
    """One answer to each thing that it hears. yields: it, and what it hears after the last answer."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pacs() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                for answer in answers:
                    connection.recv(65536)
                    connection.sendall(answer)
                while data := connection.recv(65536):
                    heard.append(data)

        thread = threading.Thread(target=pacs, daemon=True)
        thread.start()
        yield Peer(name="PACS", ae_title="PACS", host="127.0.0.1", port=listener.getsockname()[1]), heard
        thread.join(30)


def test_what_a_pacs_answers_and_nobody_can_read_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    said = pdu(ABORT, bytes((0, 0, PROVIDER, 9)))
    with pacs_that_says(said) as (peer, _), pytest.raises(Transient, match="granted no association"):
        echo(peer, "NODE", 5.0)
    lines = [r.getMessage() for r in caplog.records if r.name == "dicomnode.network.answers"]
    assert len(lines) == 1
    assert lines[0].startswith("PACS sent what cannot be read: ValueError")


def associate_ac() -> bytes:
    """Context 1 accepted, in implicit VR (PS3.8 9.3.3)."""
    context = item(0x21, bytes((1, 0, 0, 0)) + item(0x40, ImplicitVRLittleEndian.encode()))
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    body = struct.pack(">H66x", 1) + item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
    return pdu(ASSOCIATE_AC, body)


def echo_rsp(*more: bytes) -> bytes:
    """A P-DATA-TF with it. more: elements that stand first."""
    rest = (element(0x0100, b"\x30\x80"), element(0x0120, b"\1\0"), element(0x0800, b"\1\1"))
    return pdu(DATA, pdv(1, 3, command(*more, *rest, element(0x0900, b"\0\0"))))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (pdu(ABORT, bytes((0, 0, PROVIDER, 9))), "what cannot be read: ValueError"),
        (pdu(DATA, pdv(1, 3, command(element(0x0100, b"\x77\x77")))), "what cannot be read"),
        (pdu(DATA, pdv(1, 3, echo_rq()[:-4] + b"\2\0\1\1\1")), "what cannot be read"),
        (echo_rsp(uid(0x0002, "1." * 46 + "11")), "what cannot be read: ValueError"),
        (pdu(99, bytes(10)), "a PDU of an unknown type"),
        (associate_rq(ECHO), "a PDU out of turn"),
    ],
    ids=[
        "A-ABORT for no known reason",
        "no command",
        "odd command",
        "a UID too long",
        "unknown",
        "out of turn",
    ],
)
def test_who_waits_for_an_answer_hears_at_once_that_it_cannot_be_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    """Not when the timeout is over, which is ten minutes for what is fetched."""
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    with pacs_that_says(associate_ac(), answer) as (peer, heard):
        began = time.monotonic()
        with pytest.raises(Transient, match="did not answer C-ECHO"):
            echo(peer, "NODE", 120.0)
        assert time.monotonic() - began < 60
    assert b"".join(heard) == pdu(ABORT, bytes((0, 0, PROVIDER, 0)))
    assert broken == [], "no thread of pynetdicom's has ended with a traceback"
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("dicomnode")]
    assert line.startswith(f"PACS sent {said}")


def test_an_echo_is_answered_by_the_same_pacs() -> None:
    """Else the test above would test its own bytes."""
    answers = associate_ac(), echo_rsp(uid(0x0002, ECHO[0])), pdu(RELEASE_RP, bytes(4))
    with pacs_that_says(*answers) as (peer, _):
        echo(peer, "NODE", 60)


def test_an_association_that_has_ended_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """pynetdicom's own thread may not know of its end yet; the answer to A-RELEASE would never come."""
    released: list[object] = []
    monkeypatch.setattr(Association, "release", released.append)
    answers = associate_ac(), associate_rq(ECHO)
    with pacs_that_says(*answers) as (peer, _), pytest.raises(Transient, match="did not answer C-ECHO"):
        echo(peer, "NODE", 30.0)
    assert released == []


# ── data sets ────────────────────────────────────────────────────────────────────────────────────


def with_broken(ds: Dataset, kind: str) -> Dataset:
    """As pydicom has read it: every value still as it came."""
    data = encoded(ds)
    sequence, inside = data.index(b"\x99\x11SQ"), data.index(b"\x55\x11UI")
    if kind == "a sequence cut short":
        data = data[:sequence] + b"\x99\x11SQ\0\0\3\0\0\0\xfe\xff\0"
    else:
        data = data[: inside + 2] + {"unknown VR": b"MQ", "no VR": b"U\0"}[kind] + data[inside + 4 :]
    return decode(BytesIO(data), False, True)


KINDS = ["unknown VR", "no VR", "a sequence cut short"]
ASKED = Request("2.25.1", ((str(CTImageStorage), "1.2.3.4"),))


def event_of(**values: object) -> Any:
    requestor = SimpleNamespace(ae_title="SCANNER")
    return SimpleNamespace(assoc=SimpleNamespace(requestor=requestor), **values)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_commitment_request_that_cannot_be_read_is_an_invalid_argument(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    service = CommitmentService([PEER], ledger, lambda _: None, OpenAssociations())
    request = SimpleNamespace(
        RequestedSOPInstanceUID=StorageCommitmentPushModelInstance, ActionInformation=None
    )
    information = with_broken(request_to_dataset(ASKED), kind)
    event = event_of(request=request, action_type=1, action_information=information)
    assert service._on_action(event) == (0x0115, None)
    (line,) = warnings_of(caplog)
    assert "request of SCANNER is refused: its data set cannot be read" in line
    assert ledger.unanswered("SCANNER") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_commitment_report_that_cannot_be_read_is_an_invalid_argument(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    _, report = report_to_dataset(ASKED, {}, "PACS")
    request = SimpleNamespace(
        AffectedSOPInstanceUID=StorageCommitmentPushModelInstance, EventInformation=None
    )
    event = event_of(request=request, event_type=1, event_information=with_broken(report, kind))
    assert ReportService([PEER], ["CT1"], ledger).on_event(event) == (0x0115, None)
    (line,) = warnings_of(caplog)
    assert "report of CT1 is refused: its data set cannot be read" in line


@pytest.mark.parametrize("error", [RecursionError(), UnicodeError("x"), struct.error("x"), KeyError(1)])
def test_an_identifier_that_breaks_its_decoder_is_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> str:
        raise error

    ds = Dataset()
    ds.QueryRetrieveLevel, ds.PatientID = "STUDY", "1"
    monkeypatch.setattr(identifier, "text_of", broken)
    with pytest.raises(identifier.Refused, match=r"^the Identifier cannot be read$") as refused:
        identifier.read(BytesIO(encoded(ds)), ExplicitVRLittleEndian)
    assert refused.value.status == 0xC000
    assert type(error).__name__ in refused.value.reason  # of the log


def test_a_match_of_a_pacs_that_cannot_be_read_is_its_refusal() -> None:
    data = b"\x20\0\x0e\0MQ\6\x001.2.3\0"
    status = Dataset()
    status.Status = 0xFF00
    pacs = SimpleNamespace(send_c_find=lambda *_: iter([(status, decode(BytesIO(data), False, True))]))
    with pytest.raises(QueryRefused, match="CT1 answers what cannot be read: NotImplementedError"):
        Source(pacs, PEER, "NODE", "get").series("1.2.3")  # type: ignore[arg-type]


def with_element(ds: Dataset, before: bytes, new: bytes) -> bytes:
    """Encoded, with an element in front of another."""
    data = encoded(ds)
    at = data.index(before)
    return data[:at] + new + data[at:]


ROWS = b"\x28\0\x10\0US"


def test_a_number_of_thousands_of_digits_is_no_description_of_pixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Python refuses to read it."""
    dataset = ct_slice()
    data = with_element(dataset, ROWS, b"\x28\0\x08\0IS" + struct.pack("<H", 5000) + b"9" * 5000)
    with running_node(tmp_path) as running, raw_peer(running.port) as peer:
        peer.associate(CT)
        assert peer.store(data, dataset.SOPInstanceUID) == 0xA903
        (line,) = warnings_of(caplog)
        assert f"{dataset.SOPInstanceUID} from SCANNER refused with 0xA903" in line


@pytest.mark.parametrize(
    ("tag", "other", "status"),
    [(b"\x20\0\x13\0", b"zz", 0x0000), (b"\x18\0\x50\0", b"zz", 0xC030), (b"\x18\0\x50\0", b"xx", 0x0000)],
    ids=["InstanceNumber", "SliceThickness", "the same SliceThickness"],
)
def test_an_object_that_came_before_is_compared_also_where_no_value_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tag: bytes, other: bytes, status: int
) -> None:
    """IS and DS that are no numbers: pydicom reads them for the first time when two objects are compared."""
    dataset = ct_slice()
    vr = b"IS" if tag[0] == 0x20 else b"DS"
    first, second = (
        with_element(dataset, ROWS, tag + vr + b"\2\0" + value) + padding
        for value, padding in ((b"xx", b""), (other, b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0\0\0"))
    )
    with running_node(tmp_path) as running, raw_peer(running.port) as peer:
        peer.associate(CT)
        assert peer.store(first, dataset.SOPInstanceUID) == 0x0000
        assert peer.store(second, dataset.SOPInstanceUID) == status
        until(lambda: len(running.files) == 1, "one of them is kept")
        assert len(warnings_of(caplog)) == (status != 0)


def test_reports_name_what_failed_also_with_an_odd_reason() -> None:
    """FailureReason with two values: the object is not safe, and that is all one can say."""
    _, report = report_to_dataset(ASKED, {"1.2.3.4": FailureReason.PROCESSING_FAILURE}, "PACS")
    report.FailedSOPSequence[0].FailureReason = [1, 2]
    assert report_of(2, report).failed == {"1.2.3.4": 0x0110}
