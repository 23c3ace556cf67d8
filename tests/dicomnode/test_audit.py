"""Audit messages: what the Standard asks of each, one line for each, and nothing that waits for them.

`checked` types the schema of PS3.15 A.5.1.1 again, independently of the code that writes.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from pynetdicom.dsutils import decode

from dicomnode.audit import syslog
from dicomnode.audit.message import Action
from dicomnode.audit.syslog import FileSink, Sender, StreamSink, UdpSink
from dicomnode.audit.trail import Audit, Party
from dicomnode.config import Audit as Settings
from dicomnode.config import Tls
from dicomnode.records import Belonging
from tests.certificates import Authority
from tests.dicomnode.modality import association, ct_slice, encoded, running_node, send
from tests.dicomnode.querier import answering_node, found, keys
from tests.dicomnode.raw_peer import ASSOCIATE_AC, COMMAND, DATA, LAST, pdu, pdv, raw_peer, store_rq

AT = 1_700_000_000.25
CT, NM = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.20"
CAMERA, PACS = Party("NMCAMERA", "10.1.2.3"), Party("PACS", "pacs.hospital.example")
FIND = "1.2.840.10008.5.1.4.1.2.2.1"

# ── the schema, typed again ──────────────────────────────────────────────────────────────────────

CODED = ({"csd-code", "codeSystemName", "originalText"}, {"displayName"})
# element → (mandatory attributes, optional attributes, children in their order as a pattern)
SCHEMA: dict[str, tuple[set[str], set[str], str]] = {
    "AuditMessage": (
        set(),
        set(),
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification "
        "(ParticipantObjectIdentification )*",
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    ),
    "EventID": (*CODED, ""),
    "EventTypeCode": (*CODED, ""),
    "EventOutcomeDescription": (set(), set(), ""),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        "(RoleIDCode )*(MediaIdentifier )?",
    ),
    "RoleIDCode": (*CODED, ""),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, "(AuditSourceTypeCode )*"),
    "AuditSourceTypeCode": ({"csd-code"}, {"codeSystemName", "originalText", "displayName"}, ""),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {
            "ParticipantObjectTypeCode",
            "ParticipantObjectTypeCodeRole",
            "ParticipantObjectDataLifeCycle",
            "ParticipantObjectSensitivity",
        },
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*",
    ),
    "ParticipantObjectIDTypeCode": (*CODED, ""),
    "ParticipantObjectName": (set(), set(), ""),
    "ParticipantObjectQuery": (set(), set(), ""),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ""),
    "ParticipantObjectDescription": (
        set(),
        set(),
        "(MPPS )*(Accession )*(SOPClass )*(ParticipantObjectContainsStudy )?",
    ),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, "(Instance )*"),
}
VALUES = {
    "EventActionCode": r"[CRUDE]",
    "EventOutcomeIndicator": r"0|4|8|12",
    "EventDateTime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z",
    "UserIsRequestor": r"true|false",
    "NetworkAccessPointTypeCode": r"[1-5]",
    "ParticipantObjectTypeCode": r"[1-4]",
    "ParticipantObjectTypeCodeRole": r"[1-9]|1\d|2[0-6]",
    "NumberOfInstances": r"\d+",
    "value": r"[A-Za-z0-9+/]*={0,2}",
}


def checked(text: str) -> Element:
    """The message, if it keeps the schema."""
    root = ElementTree.fromstring(text)
    assert root.tag == "AuditMessage"
    check_element(root)
    return root


def check_element(element: Element) -> None:
    mandatory, optional, children = SCHEMA[element.tag]
    assert mandatory <= set(element.attrib) <= mandatory | optional, element.tag
    assert re.fullmatch(children, "".join(f"{child.tag} " for child in element)), element.tag
    for name, pattern in VALUES.items():
        if name in element.attrib:
            assert re.fullmatch(pattern, element.attrib[name]), (name, element.attrib[name])
    for child in element:
        check_element(child)


# ── what each message says ───────────────────────────────────────────────────────────────────────


class Trail:
    """An audit trail into a file, and what stands there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "audit.log"
        self.audit = Audit(Settings(file=self.path, site_id="Hospital"), "DICOMNODE", lambda: AT)

    def messages(self) -> list[Element]:
        """All of them, the stop that this takes aside."""
        self.audit.stopped()
        lines = self.path.read_text(encoding="utf-8").splitlines()
        found = [checked(line.partition(" - ")[2]) for line in lines]
        assert codes(found[-1])["EventTypeCode"] == "110121"
        return found[:-1]


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path)


def codes(root: Element) -> dict[str, str]:
    event = root.find("EventIdentification")
    assert event is not None
    return {child.tag: child.get("csd-code", "") for child in event} | dict(event.attrib)


def participants(root: Element) -> list[tuple[str, str, str]]:
    """(AE titles, role, whether it asked)."""
    found = []
    for one in root.findall("ActiveParticipant"):
        role = one.find("RoleIDCode")
        code = "" if role is None else role.get("csd-code", "")
        found.append((one.get("AlternativeUserID", ""), code, one.get("UserIsRequestor", "")))
    return found


def objects(root: Element) -> dict[str, str]:
    """Code of the kind of ID → ID."""
    found = {}
    for one in root.findall("ParticipantObjectIdentification"):
        kind = one.find("ParticipantObjectIDTypeCode")
        assert kind is not None
        found[kind.get("csd-code", "")] = one.get("ParticipantObjectID", "")
    return found


def instances(root: Element) -> dict[str, str]:
    return {e.get("UID", ""): e.get("NumberOfInstances", "") for e in root.iter("SOPClass")}


def test_start_and_stop_of_the_application(trail: Trail) -> None:
    """A.5.3.1."""
    trail.audit.started()
    (start,) = trail.messages()
    assert codes(start)["EventID"] == "110100"
    assert codes(start)["EventTypeCode"] == "110120"
    assert codes(start)["EventDateTime"] == "2023-11-14T22:13:20.250Z"
    assert participants(start) == [("AETITLES=DICOMNODE", "110150", "false")]
    source = start.find("AuditSourceIdentification")
    assert source is not None
    assert source.get("AuditSourceID") == f"DICOMNODE@{socket.gethostname()}"
    assert source.get("AuditEnterpriseSiteID") == "Hospital"


def test_a_refused_association_is_a_security_alert(trail: Trail) -> None:
    """A.5.3.11: who reports, and whom it is about."""
    trail.audit.refused(CAMERA, "no [[peers]] entry has its AE title")
    trail.audit.refused(CAMERA, "asked to move, which it may not", restricted=True)
    unknown, restricted = trail.messages()
    assert (codes(unknown)["EventID"], codes(unknown)["EventTypeCode"]) == ("110113", "110126")
    assert codes(unknown)["EventOutcomeIndicator"] == "8"
    assert participants(unknown) == [
        ("AETITLES=DICOMNODE", "", "true"),
        ("AETITLES=NMCAMERA", "", "false"),
    ]
    assert objects(unknown) == {"110182": "10.1.2.3"}
    detail = unknown.find(".//ParticipantObjectDetail")
    assert detail is not None
    assert detail.get("type") == "Alert Description"
    assert base64.b64decode(detail.get("value", "")) == b"no [[peers]] entry has its AE title"
    assert (codes(restricted)["EventTypeCode"], codes(restricted)["EventOutcomeIndicator"]) == ("110132", "4")


def alert_text(alert: Element) -> str:
    detail = alert.find(".//ParticipantObjectDetail")
    assert detail is not None
    return base64.b64decode(detail.get("value", "")).decode()


def test_a_flood_of_associations_that_find_no_room_is_two_messages(tmp_path: Path) -> None:
    """The first of an address at once; how many more there were with whatever comes after its minute."""
    now = [AT]
    audit = Audit(Settings(file=tmp_path / "audit.log"), "DICOMNODE", lambda: now[0])
    other = Party("CT2", "10.1.2.4")
    for _ in range(1000):
        audit.turned_away(CAMERA, "50 associations are open")
    audit.turned_away(other, "the node is stopping")
    now[0] += 61
    audit.accessed("1.2.3", "P1", [CT])
    audit.turned_away(CAMERA, "50 associations are open")
    audit.turned_away(CAMERA, "the node is stopping")
    audit.stopped()
    lines = (tmp_path / "audit.log").read_text(encoding="utf-8").splitlines()
    found = [checked(line.partition(" - ")[2]) for line in lines]
    alerts = [one for one in found if codes(one)["EventID"] == "110113"]
    assert [(objects(one)["110182"], alert_text(one)) for one in alerts] == [
        ("10.1.2.3", "50 associations are open"),
        ("10.1.2.4", "the node is stopping"),
        ("10.1.2.3", "50 associations are open; 999 times since"),
        ("10.1.2.3", "50 associations are open"),
        ("10.1.2.3", "the node is stopping; 1 times since"),
    ]
    assert {codes(one)["EventOutcomeIndicator"] for one in alerts} == {"4"}


def test_an_association_beyond_the_limit_is_told_of(tmp_path: Path) -> None:
    trail = Trail(tmp_path)
    with (
        running_node(tmp_path / "data", audit=trail.audit, max_associations=1) as node,
        association(node.port),
        association(node.port) as second,
    ):
        assert second.is_rejected
    (alert,) = trail.messages()
    assert "[receive] max_associations" in alert_text(alert)


def test_a_refused_query_is_a_failure(tmp_path: Path) -> None:
    """What it asked is told all the same; a good one is none."""
    trail = Trail(tmp_path)
    with answering_node(tmp_path / "data", audit=trail.audit) as node:
        assert [r[0].Status for r in found(node.port, keys("STUDY", StudyDate="tomorrow"))] == [0xC001]
        assert [r[0].Status for r in found(node.port, keys("STUDY", StudyDate="20260101"))] == [0x0000]
    refused, good = trail.messages()
    assert (codes(refused)["EventID"], codes(refused)["EventOutcomeIndicator"]) == ("110112", "4")
    assert "0xC001" in (refused.findtext(".//EventOutcomeDescription") or "")
    assert codes(good)["EventOutcomeIndicator"] == "0"


def test_what_an_association_brought_is_one_message_for_each_study(trail: Trail) -> None:
    """A.5.3.7, and not one for each slice."""
    one, other = object(), object()
    for _ in range(600):
        trail.audit.received(one, CAMERA, "1.2.3", "PAT-1", CT)
    trail.audit.received(one, CAMERA, "1.2.3", "PAT-1", NM)
    trail.audit.received(one, CAMERA, "1.2.4", "PAT-2", NM)
    trail.audit.received(other, CAMERA, "1.2.5", "PAT-3", NM)
    trail.audit.ended(one)
    trail.audit.ended(one)
    first, second, left_open = trail.messages()
    assert codes(first)["EventID"] == "110104"
    assert codes(first)["EventActionCode"] == "C"
    assert participants(first) == [
        ("AETITLES=NMCAMERA", "110153", "true"),
        ("AETITLES=DICOMNODE", "110152", "false"),
    ]
    assert objects(first) == {"110180": "1.2.3", "2": "PAT-1"}
    assert instances(first) == {CT: "600", NM: "1"}
    assert objects(second) == {"110180": "1.2.4", "2": "PAT-2"}
    # The node stops in the middle of it.
    assert objects(left_open) == {"110180": "1.2.5", "2": "PAT-3"}


def test_success_and_failure_and_what_was_there_already_are_messages_of_their_own(trail: Trail) -> None:
    """Table A.5.2-1: never one message with mixed results."""
    one = object()
    trail.audit.received(one, CAMERA, "1.2.3", "PAT-1", CT)
    trail.audit.received(one, CAMERA, "1.2.3", "PAT-1", CT, stored=False)
    trail.audit.received(one, CAMERA, "1.2.3", "PAT-1", CT, action=Action.READ)
    trail.audit.ended(one)
    found = {(codes(r)["EventActionCode"], codes(r)["EventOutcomeIndicator"]) for r in trail.messages()}
    assert found == {("C", "0"), ("C", "4"), ("R", "0")}


def test_what_is_sent_is_told_before_and_after(trail: Trail) -> None:
    """A.5.3.3 and A.5.3.7."""
    trail.audit.sending(PACS, "1.2.3", "PAT-1", [CT, NM])
    trail.audit.sent(PACS, "1.2.3", "PAT-1", [CT])
    trail.audit.sent(PACS, "1.2.3", "PAT-1", [NM], failure="0xA700")
    trail.audit.sent(PACS, "1.2.3", "PAT-1", [])
    begin, good, bad = trail.messages()
    assert (codes(begin)["EventID"], codes(begin)["EventActionCode"]) == ("110102", "E")
    assert [codes(r)["EventID"] for r in (good, bad)] == ["110104"] * 2
    assert [codes(r)["EventOutcomeIndicator"] for r in (good, bad)] == ["0", "4"]
    assert participants(good) == [
        ("AETITLES=DICOMNODE", "110153", "true"),
        ("AETITLES=PACS", "110152", "false"),
    ]
    addresses = [p.get("NetworkAccessPointTypeCode") for p in good.findall("ActiveParticipant")]
    assert addresses == ["1", "1"]
    assert instances(begin) == {CT: "1", NM: "1"}
    assert instances(good) == {CT: "1"}


def test_a_retrieval_names_who_asked_for_it(trail: Trail) -> None:
    """C-MOVE of a third system, and C-GET of the destination itself: one requestor each."""
    trail.audit.sent(PACS, "1.2.3", "PAT-1", [CT], asked_by=CAMERA)
    trail.audit.sent(CAMERA, "1.2.3", "PAT-1", [CT], asked_by=CAMERA)
    move, get = trail.messages()
    assert participants(move) == [
        ("AETITLES=DICOMNODE", "110153", "false"),
        ("AETITLES=PACS", "110152", "false"),
        ("AETITLES=NMCAMERA", "", "true"),
    ]
    assert participants(get) == [
        ("AETITLES=DICOMNODE", "110153", "false"),
        ("AETITLES=NMCAMERA", "110152", "true"),
    ]


def test_a_query_carries_its_identifier(trail: Trail) -> None:
    """A.5.3.10."""
    trail.audit.queried(CAMERA, None, FIND, "1.2.840.10008.1.2", b"\x08\x00\x52\x00STUDY")
    trail.audit.queried(None, PACS, FIND, "1.2.840.10008.1.2", b"x")
    theirs, ours = trail.messages()
    assert (codes(theirs)["EventID"], codes(theirs)["EventActionCode"]) == ("110112", "E")
    assert participants(theirs) == [
        ("AETITLES=NMCAMERA", "110153", "true"),
        ("AETITLES=DICOMNODE", "110152", "false"),
    ]
    assert [p[0] for p in participants(ours)] == ["AETITLES=DICOMNODE", "AETITLES=PACS"]
    assert objects(theirs) == {"110181": FIND}
    query, detail = theirs.find(".//ParticipantObjectQuery"), theirs.find(".//ParticipantObjectDetail")
    assert query is not None
    assert detail is not None
    assert base64.b64decode(query.text or "") == b"\x08\x00\x52\x00STUDY"
    assert detail.get("type") == "TransferSyntax"
    assert base64.b64decode(detail.get("value", "")) == b"1.2.840.10008.1.2"


def test_a_computation_and_a_removal_are_told(trail: Trail) -> None:
    """A.5.3.6 and A.5.3.8."""
    trail.audit.accessed("1.2.3", "PAT-1", [CT, CT, NM])
    trail.audit.deleted("1.2.3", "PAT-1", [CT, CT])
    read, deleted = trail.messages()
    assert (codes(read)["EventID"], codes(read)["EventActionCode"]) == ("110103", "R")
    assert (codes(deleted)["EventID"], codes(deleted)["EventActionCode"]) == ("110105", "D")
    assert participants(deleted) == [("AETITLES=DICOMNODE", "", "true")]
    assert instances(read) == {CT: "2", NM: "1"}


def test_text_from_outside_neither_breaks_the_xml_nor_begins_a_line(trail: Trail) -> None:
    nasty = 'PAT"<&>\n\x00\x1b[31m\ud800\u2028\r\nEND'
    trail.audit.refused(Party('A"<\n>', "10.0.0.1"), f"calls {nasty}")
    one = object()
    trail.audit.received(one, CAMERA, "1.2.3", nasty, CT)
    trail.audit.ended(one)
    alert, transfer = trail.messages()
    assert participants(alert)[1][0] == 'AETITLES=A"< >'
    assert objects(transfer)["2"] == 'PAT"<&> ??[31m? END'
    # `messages` splits at every kind of line break: two messages and the stop were three lines.


def test_without_a_destination_nothing_is_done() -> None:
    threads = threading.active_count()
    audit = Audit(Settings(), "DICOMNODE", lambda: AT)
    audit.started()
    audit.received(object(), CAMERA, "1.2.3", "PAT-1", CT)
    audit.stopped()
    assert threading.active_count() == threads
    assert audit._received == {}


# ── where it goes ────────────────────────────────────────────────────────────────────────────────

HEAD = re.compile(
    r"<(?P<priority>\d+)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<host>[!-~]+) dicomnode (?P<pid>\d+) "
    r"DICOM\+RFC3881 - (?P<text>.*)",
    re.DOTALL,
)


def test_the_file_is_the_service_accounts_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        trail = Trail(tmp_path)
        trail.audit.started()
        trail.messages()
    finally:
        os.umask(before)
    assert trail.path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_rotated_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sink = FileSink(path)
    sink.send("head", "one")
    path.rename(tmp_path / "audit.log.1")
    sink.send("head", "two")
    assert path.read_text() == "head two\n"


def test_a_datagram_is_an_rfc_5424_message(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(10)
        settings = Settings(syslog_host="127.0.0.1", syslog_port=collector.getsockname()[1])
        audit = Audit(settings, "DICOMNODE", lambda: AT)
        audit.started()
        audit.refused(CAMERA, "unknown")
        good, bad = collector.recv(65536).decode(), collector.recv(65536).decode()
        audit.stopped()
    found = HEAD.fullmatch(good)
    assert found is not None
    assert found["priority"] == "85"  # authpriv.notice
    assert found["pid"] == str(os.getpid())
    assert found["text"].startswith("\ufeff<?xml")  # RFC 5424 6.4: UTF-8 is announced
    checked(found["text"].removeprefix("\ufeff"))
    assert bad.startswith("<84>1 ")  # authpriv.warning


class Collector:
    """Listens for TCP or TLS; keeps what came, message by message."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._context = context
        self._came = threading.Condition()
        self._connections: list[socket.socket] = []
        self.got: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def wait(self, count: int) -> list[str]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.got) >= count, 20), self.got
            return list(self.got)

    def die(self) -> None:
        for end in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                continue
            self._connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        try:
            while digits := _until_space(stream):
                text = stream.read(int(digits)).decode()
                with self._came:
                    self.got.append(text)
                    self._came.notify_all()
        except (OSError, ValueError):
            return


def _until_space(stream: Any) -> bytes:
    digits = b""
    while (byte := stream.read(1)) not in (b"", b" "):
        digits += byte
    return digits


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.die()


def test_over_tcp_each_message_comes_after_its_length(collector: Collector) -> None:
    settings = Settings(syslog_host="127.0.0.1", syslog_port=collector.port, syslog_transport="tcp")
    audit = Audit(settings, "DICOMNODE", lambda: AT)
    audit.started()
    audit.refused(Party("KÄMERA", "10.0.0.1"), "unknown")
    audit.stopped()
    for text in collector.wait(3):
        found = HEAD.fullmatch(text)
        assert found is not None
        checked(found["text"].removeprefix("\ufeff"))


def test_messages_wait_for_a_collector_that_is_away_and_the_log_says_so_once(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    sender = Sender(StreamSink("127.0.0.1", collector.port, None), retry_s=0.05)
    sender.put("head", "one")
    collector.wait(1)
    collector.die()
    failed = threading.Event()

    def heard(_record: logging.LogRecord) -> bool:
        failed.set()
        return True

    caplog.handler.addFilter(heard)
    for text in ("two", "three", "four"):
        sender.put("head", text)
    assert failed.wait(20)
    again = Collector(collector.port)
    assert again.wait(3) == [f"head \ufeff{text}" for text in ("two", "three", "four")]
    assert sender.stop(20)
    assert caplog.text.count("cannot be reached") == 1
    assert caplog.text.count("is reached again") == 1
    again.die()


def test_a_destination_that_hangs_keeps_nobody_waiting_and_the_oldest_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(syslog, "LONGEST_QUEUE", 3)
    sink = Hanging()
    sender = Sender(sink)
    sender.put("head", "0")
    assert sink.asked.wait(20)
    for number in range(1, 6):
        sender.put("head", str(number))
    sink.go.set()
    assert sender.stop(20)
    assert sink.got == ["0", "3", "4", "5"]


def test_what_waits_has_a_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query stands in its message as it came: ten thousand of a megabyte would not do."""
    monkeypatch.setattr(syslog, "LARGEST_QUEUE", 10)
    sink = Hanging()
    sender = Sender(sink)
    sender.put("head", "0")
    assert sink.asked.wait(20)
    for text in ("1" * 8, "2" * 8, "3" * 20, "4" * 6, "5" * 4):
        sender.put("head", text)
    sink.go.set()
    assert sender.stop(20)
    assert sink.got == ["0", "4" * 6, "5" * 4]


class Hanging:
    """Takes its first message only when it is told to."""

    name = "hanging"

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.got: list[str] = []

    def send(self, _head: str, text: str) -> None:
        self.asked.set()
        assert self.go.wait(20)
        self.got.append(text)

    def close(self) -> None:
        """Nothing is open."""


def test_a_full_disk_leaves_no_half_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    FileSink(path).send("head", "whole")
    with monkeypatch.context() as patched:
        patched.setattr("dicomnode.audit.syslog.open", half_written, raising=False)
        with pytest.raises(OSError, match="no room"):
            FileSink(path).send("head", "cut short")
    FileSink(path).send("head", "again")
    assert path.read_text() == "head whole\nhead again\n"


def half_written(path: Path, mode: str, **options: Any) -> Any:
    file = open(path, mode, **options)  # noqa: PTH123, SIM115  as the code does; the caller closes it
    write = file.write

    class Half:
        fileno, truncate = file.fileno, file.truncate

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: object) -> None:
            file.close()

        def write(self, data: bytes) -> int:
            return int(write(data[: len(data) // 2]))

    return Half()


def test_a_name_that_cannot_be_resolved_is_a_failure_like_any_other() -> None:
    with pytest.raises(socket.gaierror):
        UdpSink("no-such-host.invalid", 514).send("head", "text")


def test_the_severity_of_each_transport_has_its_registered_port() -> None:
    assert syslog.DEFAULT_PORTS == {"udp": 514, "tcp": 601, "tls": 6514}


def test_over_tls_both_show_a_certificate_and_a_stranger_hears_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 5425 5: mutual authentication, TLS 1.2 or newer."""
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others", "Other CA")
    server, node = ours.issue("collector"), ours.issue("node")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(ours.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    collector = Collector(context=context)
    place: dict[str, Any] = {
        "syslog_host": "127.0.0.1",
        "syslog_port": collector.port,
        "syslog_transport": "tls",
        "certificate": node.certificate,
        "key": node.key,
    }
    trusting = Audit(Settings(**place, ca=ours.ca), "DICOMNODE", lambda: AT)
    trusting.started()
    assert "110120" in collector.wait(1)[0]
    trusting.stopped()
    assert "110121" in collector.wait(2)[1]
    doubting = Audit(Settings(**place, ca=others.ca), "DICOMNODE", lambda: AT)
    doubting.stopped()
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    assert "1 messages did not reach" in caplog.text
    assert len(collector.got) == 2
    collector.die()


# ── what the listening side tells ────────────────────────────────────────────────────────────────


def test_an_association_is_told_of_when_it_has_ended_however_it_ended(tmp_path: Path) -> None:
    trail = Trail(tmp_path)
    first, second = (ct_slice(StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{n}") for n in (1, 2))
    with running_node(tmp_path / "data", audit=trail.audit) as node:
        for ending in ("release", "abort"):
            with association(node.port) as assoc:
                for ds in (first, second):
                    assert send(assoc, encoded(ds), str(ds.SOPInstanceUID)).Status == 0x0000
                getattr(assoc, ending)()
        with association(node.port) as assoc:
            assert send(assoc, b"no DICOM", "1.2.3.3").Status == 0xC000
    released, aborted, refused = trail.messages()
    assert instances(released) == instances(aborted) == {CT: "2"}
    assert codes(released)["EventActionCode"] == "C"
    assert codes(aborted)["EventActionCode"] == "R"  # the same objects again
    assert objects(released)["2"] == first.PatientID
    assert (codes(refused)["EventOutcomeIndicator"], objects(refused)) == ("4", {})
    source = released.find("ActiveParticipant")
    assert source is not None
    assert source.get("NetworkAccessPointID") == "127.0.0.1"


def test_an_object_that_came_in_part_only_is_told_of(tmp_path: Path) -> None:
    """The node names its study where that much has come."""
    trail, dataset = Trail(tmp_path), ct_slice()
    with running_node(tmp_path / "data", audit=trail.audit) as node, raw_peer(node.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        peer.send(pdu(DATA, pdv(1, COMMAND | LAST, store_rq(str(dataset.SOPInstanceUID)))))
        peer.send(pdu(DATA, pdv(1, 0, encoded(dataset)[:-8])))
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.last() == 0, "the node closes too"
    (told,) = trail.messages()
    assert (codes(told)["EventID"], codes(told)["EventOutcomeIndicator"]) == ("110104", "4")
    assert instances(told) == {CT: "1"}
    assert objects(told)["110180"] == dataset.StudyInstanceUID


def test_who_shows_no_certificate_is_a_security_alert(tmp_path: Path) -> None:
    """Node authentication is what TLS does."""
    authority, trail = Authority(tmp_path / "ca"), Trail(tmp_path)
    node_pair = authority.issue("node")
    tls = Tls(port=2762, certificate=node_pair.certificate, key=node_pair.key, ca=authority.ca)
    with running_node(tmp_path / "data", tls=tls, audit=trail.audit) as node:
        port = node.receiver.tls_port
        assert port is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority.ca)
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
            contextlib.suppress(OSError),
        ):
            wrapped.sendall(b"x")
            wrapped.recv(1)
    (alert,) = trail.messages()
    assert codes(alert)["EventTypeCode"] == "110126"
    assert objects(alert) == {"110182": "127.0.0.1"}
    detail = alert.find(".//ParticipantObjectDetail")
    assert detail is not None
    assert b"certificate" in base64.b64decode(detail.get("value", "")).lower()


def test_what_is_asked_of_another_system_is_a_query_of_ours(trail: Trail) -> None:
    trail.audit.asked(PACS, "1.2.840.3")
    (ours,) = trail.messages()
    assert participants(ours)[0] == ("AETITLES=DICOMNODE", "110153", "true")
    query = ours.find(".//ParticipantObjectQuery")
    assert query is not None
    keys = decode(BytesIO(base64.b64decode(query.text or "")), is_implicit_vr=True, is_little_endian=True)
    assert (keys.QueryRetrieveLevel, keys.StudyInstanceUID) == ("SERIES", "1.2.840.3")


def test_what_we_fetch_is_told_when_it_begins_and_where_it_did_not_come(trail: Trail) -> None:
    trail.audit.fetching(PACS, "1.2.3", "PAT-1", [CT, CT, NM])
    trail.audit.not_fetched(PACS, "1.2.3", "PAT-1", "1 of 3 object(s) did not come")
    begun, lacking = trail.messages()
    for each in (begun, lacking):
        assert participants(each) == [
            ("AETITLES=PACS", "110153", "false"),
            ("AETITLES=DICOMNODE", "110152", "true"),
        ]
        assert objects(each) == {"110180": "1.2.3", "2": "PAT-1"}
    assert (codes(begun)["EventID"], instances(begun)) == ("110102", {CT: "2", NM: "1"})
    assert (codes(lacking)["EventID"], codes(lacking)["EventOutcomeIndicator"]) == ("110104", "4")


@pytest.mark.parametrize("we_asked", [True, False])
def test_storage_commitment_is_an_access_for_each_study_and_outcome(trail: Trail, we_asked: bool) -> None:
    kept = [Belonging("1.2.3", "PAT-1", CT), Belonging("1.2.3", "PAT-1", CT), Belonging("1.2.4", "PAT-2", NM)]
    trail.audit.committed(PACS, kept, [Belonging("1.2.3", "PAT-1", NM)], we_asked=we_asked)
    first, second, failed = trail.messages()
    assert [codes(each)["EventID"] for each in (first, second, failed)] == 3 * ["110103"]
    assert [codes(each)["EventOutcomeIndicator"] for each in (first, second, failed)] == ["0", "0", "4"]
    assert objects(first) == {"110180": "1.2.3", "2": "PAT-1"}
    assert (instances(first), instances(second), instances(failed)) == ({CT: "2"}, {NM: "1"}, {NM: "1"})
    asked = {ae_title: who for ae_title, _, who in participants(first)}
    assert asked == {"AETITLES=DICOMNODE": str(we_asked).lower(), "AETITLES=PACS": str(not we_asked).lower()}
    assert "storage commitment" in (first.findtext(".//EventOutcomeDescription") or "")


def test_what_came_by_our_own_c_get_names_us_as_who_asked(trail: Trail) -> None:
    one = object()
    trail.audit.received(one, PACS, "1.2.3", "PAT-1", CT, we_asked=True)
    trail.audit.ended(one)
    (got,) = trail.messages()
    assert participants(got) == [
        ("AETITLES=PACS", "110153", "false"),
        ("AETITLES=DICOMNODE", "110152", "true"),
    ]


def test_an_association_whose_end_nobody_told_of_is_told_of_with_the_next(trail: Trail) -> None:
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    trail.audit.received(dead, CAMERA, "1.2.3", "PAT-1", CT)
    trail.audit.received(object(), CAMERA, "1.2.4", "PAT-2", CT)
    assert len(trail.audit._received) == 1
    assert [objects(m)["110180"] for m in trail.messages()] == ["1.2.3", "1.2.4"]
