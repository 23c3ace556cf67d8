"""Storage commitment as SCP: a modality asks, the node looks, and tells. Real associations on loopback."""

from __future__ import annotations

import errno
import logging
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    NuclearMedicineImageStorage,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from pynetdicom.transport import ThreadedAssociationServer

from dicomnode.audit.trail import Audit
from dicomnode.commitment.answer import MOST_NAMED, Answerer
from dicomnode.commitment.message import MOST_OBJECTS, Status
from dicomnode.commitment.scp import MAX_UNANSWERED, CommitmentService, OpenAssociations
from dicomnode.config import Audit as AuditSettings
from dicomnode.config import Config, Peer, Receive, parse
from dicomnode.conformance import commitment as commitment_section
from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.network.receive import Receiver
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import Spool
from dicomnode.reception.spool_file import Origin, read_back
from dicomnode.reception.store import StoreService
from dicomnode.records import Promise
from tests.acceptance.harness import until
from tests.dicomnode.modality import ct_slice, encoded, send
from tests.dicomnode.results_on_disk import encoded_case

H = 3600.0


class Modality:
    """Listens for reports as a modality does: `add_supported_context(..., scu_role=False, scp_role=True)`."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Dataset]] = []
        self.answer = 0x0000
        self.port = 0
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> Modality:
        ae = AE("SCANNER")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)]
        )
        assert server is not None
        self._server, self.port = server, server.server_address[1]
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def take(self, event: evt.Event) -> tuple[int, None]:
        self.told.append((int(event.event_type or 0), event.event_information))
        return self.answer, None


@pytest.fixture
def modality() -> Iterator[Modality]:
    modality = Modality().start()
    yield modality
    modality.stop()


@dataclass
class Node:
    """A node that stores and commits; its clock stands until a test moves it."""

    config: Config
    ledger: Ledger
    now: float = 1000.0
    port: int = 0
    associations: OpenAssociations = field(default_factory=OpenAssociations)

    def __post_init__(self) -> None:
        self.spool = Spool(self.config.node.data_dir, 0)
        self.intake = Intake(self.spool, self.ledger)
        clock = lambda: self.now  # noqa: E731
        peers, flush = self.config.peers, self.intake.flush
        self.service = CommitmentService(peers, self.ledger, flush, self.associations, clock)
        services = [StoreService(self.spool, self.intake, clock), self.service]
        node = self.config.node.model_copy(update={"port": 0})
        settings = Receive(min_free_gb=0, network_timeout_s=30, acse_timeout_s=30)
        self.receiver = Receiver(node, peers, settings, services, clock)
        self.answerer = Answerer(self.config, self.ledger, self.associations, self.intake.damaged)

    def tick(self, now: float) -> None:
        self.now = now
        self.answerer.tick(now)

    def promises(self) -> list[Promise]:
        return self.ledger.open_promises()


@pytest.fixture
def node(tmp_path: Path, modality: Modality) -> Iterator[Node]:
    may = ["echo", "store", "commit"]
    peers = [
        {"name": "CT room 1", "ae_title": "SCANNER", "host": "127.0.0.1", "port": modality.port, "may": may},
        {"name": "camera", "ae_title": "CAMERA", "may": may},
        {"name": "old", "ae_title": "STOREONLY"},
    ]
    table = {
        "node": {"data_dir": str(tmp_path), "bind": "127.0.0.1"},
        "peers": peers,
        "deliver": {"timeout_s": 30.0, "first_retry_s": 30.0, "max_retry_s": 100.0},
        "commitment": {"report_for_h": 2.0},
    }
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    node = Node(parse(table), ledger)
    node.port = node.receiver.start()
    yield node
    node.receiver.stop(5)
    ledger.close()


def stored(node: Node, count: int = 2) -> list[tuple[str, str]]:
    """Slices that the node has acknowledged and not yet told the ledger of."""
    slices = [ct_slice(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4") for _ in range(count)]
    with calling(node, "SCANNER", (CTImageStorage, ExplicitVRLittleEndian)) as assoc:
        for each in slices:
            assert send(assoc, encoded(each), each.SOPInstanceUID).Status == 0x0000
    return [(str(CTImageStorage), str(each.SOPInstanceUID)) for each in slices]


class calling:  # noqa: N801
    """An association with the node, by a peer of the given AE title."""

    def __init__(
        self, node: Node, ae_title: str, *contexts: tuple[str, str], handlers: list[Any] | None = None
    ) -> None:
        ae = AE(ae_title)
        for sop_class, syntax in contexts:
            ae.add_requested_context(sop_class, syntax)
        if not contexts:
            ae.add_requested_context(StorageCommitmentPushModel)
        self._made = ae.associate("127.0.0.1", node.port, ae_title="DICOMNODE", evt_handlers=handlers or [])

    def __enter__(self) -> Association:
        return self._made

    def __exit__(self, *_: object) -> None:
        self._made.release()


def request(objects: list[tuple[str, str]], transaction: str = "") -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction or generate_uid()
    items = []
    for sop_class, uid in objects:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    ds.ReferencedSOPSequence = items
    return ds


def ask(
    node: Node,
    ds: Dataset,
    calling_ae: str = "SCANNER",
    action: int = 1,
    instance: str = StorageCommitmentPushModelInstance,
) -> int | None:
    """N-ACTION over an association that is released at once. returns: the status; None without a context."""
    with calling(node, calling_ae) as assoc:
        if not assoc.is_established:
            return None
        response, _ = assoc.send_n_action(ds, action, StorageCommitmentPushModel, instance)
        return int(response.Status)


def named(ds: Dataset, keyword: str) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in ds.get(keyword) or ()]


# ── the good way ─────────────────────────────────────────────────────────────────────────────────


def test_what_was_just_acknowledged_is_committed_to_over_an_association_of_our_own(
    node: Node, modality: Modality
) -> None:
    objects = stored(node)
    ds = request(objects)
    assert ask(node, ds) == 0x0000
    node.tick(1002.0)
    ((event_type, report),) = modality.told
    assert (event_type, report.TransactionUID) == (1, ds.TransactionUID)
    assert named(report, "ReferencedSOPSequence") == [uid for _, uid in objects]
    assert "FailedSOPSequence" not in report
    assert report.RetrieveAETitle == "DICOMNODE"
    assert node.promises() == []
    node.tick(1010.0)
    assert len(modality.told) == 1


def test_a_requestor_that_keeps_the_association_open_is_told_over_it(node: Node, modality: Modality) -> None:
    told: list[Dataset] = []

    def take(event: evt.Event) -> tuple[int, None]:
        told.append(event.event_information)
        return 0x0000, None

    ds = request(stored(node))
    with calling(node, "SCANNER", handlers=[(evt.EVT_N_EVENT_REPORT, take)]) as assoc:
        response, _ = assoc.send_n_action(
            ds, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert response.Status == 0x0000
        node.tick(1000.5)
        assert told == [], "it may be about to release"
        node.tick(1002.0)
        assert [report.TransactionUID for report in told] == [ds.TransactionUID]
        assert assoc.is_established
    assert modality.told == []
    assert node.promises() == []


def test_a_report_waits_for_no_association_that_serves_a_request(node: Node, modality: Modality) -> None:
    """Its own thread may wait for answers there: each would take the other's."""
    told: list[Dataset] = []

    def take(event: evt.Event) -> tuple[int, None]:
        told.append(event.event_information)
        return 0x0000, None

    busy, go_on = threading.Event(), threading.Event()
    serve = node.receiver._answering["EVT_N_ACTION"]

    def slow(event: evt.Event) -> Any:
        busy.set()
        assert go_on.wait(30)
        return serve(event)

    statuses: list[int] = []

    def ask_again() -> None:
        response, _ = assoc.send_n_action(
            second, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        statuses.append(response.Status)

    objects = stored(node)
    first, second, third = request(objects), request(objects), request(objects)
    with calling(node, "SCANNER", handlers=[(evt.EVT_N_EVENT_REPORT, take)]) as assoc:
        for ds in (first, third):
            response, _ = assoc.send_n_action(
                ds, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            assert response.Status == 0x0000
        node.receiver._answering["EVT_N_ACTION"] = slow
        asking = threading.Thread(target=ask_again)
        asking.start()
        assert busy.wait(30)
        node.tick(1002.0)
        assert [report.TransactionUID for _, report in modality.told] == [
            first.TransactionUID,
            third.TransactionUID,
        ]
        go_on.set()
        asking.join(30)
        assert statuses == [0x0000]
        node.tick(1004.0)
        assert [report.TransactionUID for report in told] == [second.TransactionUID]
        assert assoc.is_established
    assert node.promises() == []


def test_what_a_peer_asks_while_it_is_told_is_no_answer_to_that(node: Node, modality: Modality) -> None:
    """It stays for the association's own thread."""
    objects = stored(node)
    second = request(objects)

    def take(event: evt.Event) -> tuple[int, None]:
        ask: Any = N_ACTION()
        ask.MessageID, ask.ActionTypeID = 7, 1
        ask.RequestedSOPClassUID = StorageCommitmentPushModel
        ask.RequestedSOPInstanceUID = StorageCommitmentPushModelInstance
        syntax = event.context.transfer_syntax
        ask.ActionInformation = BytesIO(encoded(second, syntax))
        event.assoc.dimse.send_msg(ask, event.context.context_id)
        return 0x0000, None

    with calling(node, "SCANNER", handlers=[(evt.EVT_N_EVENT_REPORT, take)]) as assoc:
        response, _ = assoc.send_n_action(
            request(objects), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert response.Status == 0x0000
        node.tick(1002.0)
        until(
            lambda: [node.ledger.promised(p.id) for p in node.promises()] == [tuple(objects)],
            "the second request is taken",
        )
        assert assoc.is_established
    assert modality.told == []


@dataclass(frozen=True)
class Asked:
    """Slices that were asked about; what a test does to the first of them before they are looked at."""

    node: Node
    objects: list[tuple[str, str]]
    path: Path
    """The first one's file."""

    @property
    def uid(self) -> str:
        return self.objects[0][1]

    def rename(self, sop_class: str | None = None, uid: str | None = None) -> None:
        first = self.objects[0]
        self.objects[0] = (sop_class or first[0], uid or first[1])

    def rewrite(self, change: Callable[[bytearray], object]) -> None:
        content = bytearray(self.path.read_bytes())
        change(content)
        self.path.write_bytes(content)

    def flip(self, offset: int) -> None:
        """One bit."""

        def flipped(content: bytearray) -> None:
            content[offset] ^= 1

        self.rewrite(flipped)


@pytest.fixture
def asked(node: Node, tmp_path: Path) -> Asked:
    objects = stored(node)
    node.intake.flush(1000.0)
    held = node.ledger.instance(objects[0][1])
    assert held is not None
    return Asked(node, objects, tmp_path / held.path)


def reported(node: Node, modality: Modality, objects: list[tuple[str, str]]) -> dict[str, int]:
    """What a report says of the objects: SOP Instance UID → FailureReason, 0 where it is committed to."""
    asked_at, told = node.now, len(modality.told)
    assert ask(node, request(objects)) == 0x0000
    node.tick(asked_at + 2)
    ((event_type, report),) = modality.told[told:]
    failed = {
        str(i.ReferencedSOPInstanceUID): int(i.FailureReason) for i in report.get("FailedSOPSequence", ())
    }
    assert event_type == (2 if failed else 1)
    committed = named(report, "ReferencedSOPSequence")
    assert [*committed, *failed] == sorted((uid for _, uid in objects), key=lambda uid: uid in failed)
    return dict.fromkeys(committed, 0) | failed


@pytest.mark.parametrize(
    ("change", "reason", "line"),
    [
        (lambda asked: asked.rename(uid="1.2.3.999"), 0x0112, ""),
        (lambda asked: asked.rename(sop_class=str(NuclearMedicineImageStorage)), 0x0119, ""),
        (lambda asked: asked.node.ledger.discard(1, "1.2.3.4", 1001.0), 0, ""),
        (lambda asked: asked.path.unlink(), 0x0112, "is gone: bring it back, or have it sent again"),
        (lambda asked: asked.rewrite(lambda content: content.pop()), 0x0110, "is damaged (its checksum"),
        (lambda asked: asked.flip(-100), 0x0110, "is damaged (its checksum is not that of its data set)"),
        (lambda asked: asked.flip(10), 0x0110, "is damaged"),
        (lambda asked: asked.flip(130), 0x0110, "is damaged (its file meta information is damaged)"),
        (lambda asked: asked.flip(142), 0x0110, "is damaged"),
        (lambda asked: asked.flip(190), 0x0110, "is damaged (its file meta information is of another"),
        (lambda asked: asked.path.write_bytes(b""), 0x0110, "is damaged (its file meta information is"),
        (lambda asked: asked.path.unlink() or asked.path.mkdir(), 0x0110, "cannot be read (Is a directory)"),
    ],
    ids=[
        "unknown", "other class", "discarded", "removed", "cut short", "pixels", "preamble", "prefix",
        "length", "UID", "empty", "unreadable",
    ],
)  # fmt: skip
def test_an_object_is_read_again_from_end_to_end(
    asked: Asked, modality: Modality, caplog: pytest.LogCaptureFixture,
    change: Callable[[Asked], object], reason: int, line: str,
) -> None:  # fmt: skip
    change(asked)
    answers = reported(asked.node, modality, asked.objects)
    assert answers == {asked.uid: reason, asked.objects[1][1]: 0}
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == bool(line)
    if line:
        assert f"SCANNER asked us to commit to {asked.uid}, and we do not: its file spool/1.2.3/" in errors[0]
        assert line in errors[0]


def test_a_damaged_object_is_set_aside_its_case_held_and_sent_again_it_is_whole(
    asked: Asked, modality: Modality, tmp_path: Path
) -> None:
    node, content = asked.node, asked.path.read_bytes()
    asked.flip(-100)
    assert reported(node, modality, asked.objects)[asked.uid] == 0x0110
    aside = tmp_path / "quarantine" / f"{asked.uid}.broken"
    assert aside.exists()
    assert not asked.path.exists()
    reason = f"the disk damaged an object that was received: {asked.uid}, quarantine/{asked.uid}.broken"
    assert node.ledger.case(1).conflict == reason
    # Asked about once more it is not here, and nothing is said of the case again.
    assert reported(node, modality, asked.objects)[asked.uid] == 0x0112
    assert [step.reason for step in node.ledger.story(1)].count(reason) == 1
    again = dcmread(BytesIO(content))
    syntax = ImplicitVRLittleEndian
    with calling(node, "SCANNER", (CTImageStorage, syntax)) as assoc:
        assert send(assoc, encoded(again, syntax), again.SOPInstanceUID).Status == 0x0000
    assert reported(node, modality, asked.objects)[asked.uid] == 0
    held = node.ledger.instance(asked.uid)
    assert held is not None
    assert (held.transfer_syntax_uid, held.size_bytes) == (syntax, asked.path.stat().st_size)


def test_a_damaged_object_that_cannot_be_set_aside_is_not_committed_to_either(
    asked: Asked, modality: Modality, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    asked.flip(-100)
    monkeypatch.setattr(asked.node.spool, "discard", refuse)
    assert reported(asked.node, modality, asked.objects)[asked.uid] == 0x0110
    assert "is damaged and cannot be set aside: Read-only file system" in caplog.text
    assert asked.node.ledger.case(1).conflict


def test_nothing_is_set_aside_and_nobody_told_before_the_ledger_knows(
    asked: Asked, modality: Modality, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise LedgerUnavailable("gone", "")

    node = asked.node
    asked.flip(-100)
    assert ask(node, request(asked.objects)) == 0x0000
    with monkeypatch.context() as patched:
        patched.setattr(node.ledger, "lacks", gone)
        with pytest.raises(LedgerUnavailable):
            node.tick(1002.0)
    assert asked.path.exists()
    assert modality.told == []
    node.tick(1003.0)
    assert [event_type for event_type, _ in modality.told] == [2]
    assert not asked.path.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: None, 0),
        (lambda path: path.unlink(), 0x0112),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), 0x0110),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), 0x0110),
    ],
    ids=["whole", "removed", "cut short", "zeros"],
)
def test_a_result_of_ours_is_read_again_too(
    node: Node, modality: Modality, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], object], reason: int,
) -> None:  # fmt: skip
    case = encoded_case(node.ledger, tmp_path, (), study="1.2.99")
    run = node.ledger.latest_run(case.id)
    assert run is not None
    result = node.ledger.results(run.id)[0].new
    change(tmp_path / result.path)
    answers = reported(node, modality, [(result.sop_class_uid, result.sop_instance_uid)])
    assert answers == {result.sop_instance_uid: reason}
    assert ("`dicomnode retry` its case to have it computed again" in caplog.text) is bool(reason)
    assert node.ledger.case(case.id).state is case.state, "PACS has it; nobody computed with it"


def test_while_the_spool_is_away_nobody_is_told_anything(
    asked: Asked, modality: Modality, tmp_path: Path
) -> None:
    node = asked.node
    (tmp_path / "spool").rename(tmp_path / "away")
    assert ask(node, request(asked.objects)) == 0x0000
    node.tick(1002.0)
    assert modality.told == []
    assert "spool is away" in node.promises()[0].detail
    (tmp_path / "away").rename(tmp_path / "spool")
    node.tick(1050.0)
    assert [event_type for event_type, _ in modality.told] == [1]


def test_a_node_that_stops_while_it_looks_answers_after_its_next_start(
    asked: Asked, modality: Modality, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, looked = asked.node, []

    def look(path: Path) -> Origin:
        looked.append(path)
        node.answerer.stop()
        return read_back(path)

    assert ask(node, request(asked.objects)) == 0x0000
    with monkeypatch.context() as patched:
        patched.setattr("dicomnode.held_files.read_back", look)
        node.tick(1002.0)
    assert (len(looked), modality.told, len(node.promises())) == (1, [], 1)
    node.answerer = Answerer(node.config, node.ledger, OpenAssociations(), node.intake.damaged)
    node.tick(1003.0)
    assert [event_type for event_type, _ in modality.told] == [1]


def test_of_many_damaged_objects_a_few_are_named(
    node: Node, modality: Modality, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = stored(node, MOST_NAMED + 3)
    for path in tmp_path.glob("spool/*/*.dcm"):
        path.write_bytes(path.read_bytes()[:-2])
    assert set(reported(node, modality, objects).values()) == {0x0110}
    assert caplog.text.count("and we do not") == MOST_NAMED
    assert "SCANNER asked about 3 more objects like that" in caplog.text
    conflict = node.ledger.case(1).conflict
    assert conflict.startswith(f"the disk damaged {MOST_NAMED + 3} objects that were received: ")
    assert "and 8 more, which `dicomnode show` names" in conflict
    assert all(any(uid in step.reason for step in node.ledger.story(1)) for _, uid in objects)


def test_no_more_of_a_file_lies_in_memory_than_a_piece(tmp_path: Path) -> None:
    origin = Origin(str(CTImageStorage), "1.2.3.4.5", str(ExplicitVRLittleEndian), "SCANNER")
    path, _ = Spool(tmp_path, 0).store("1.2.3", origin, memoryview(bytes(40 << 20)))
    tracemalloc.start()
    try:
        assert read_back(path) == origin
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 4 << 20


def test_where_nothing_is_kept_nothing_is_named_as_committed(node: Node, modality: Modality) -> None:
    assert ask(node, request([(str(CTImageStorage), "1.2.3.999")])) == 0x0000
    node.tick(1002.0)
    ((event_type, report),) = modality.told
    assert event_type == 2
    assert "ReferencedSOPSequence" not in report


def test_the_same_transaction_again_is_told_again(node: Node, modality: Modality) -> None:
    ds = request(stored(node))
    for now in (1002.0, 1010.0):
        node.now = now - 2
        assert ask(node, ds) == 0x0000
        node.tick(now)
    assert [report.TransactionUID for _, report in modality.told] == 2 * [ds.TransactionUID]


def test_what_was_looked_at_for_a_peer_is_in_the_audit_trail(node: Node, tmp_path: Path) -> None:
    """Instances Accessed (PS3.15 A.5.3.6), and of what is not here no message: no patient is known."""
    file = tmp_path / "audit.log"
    audit = Audit(AuditSettings(file=file), "DICOMNODE")
    node.answerer = Answerer(node.config, node.ledger, node.associations, node.intake.damaged, audit=audit)
    assert ask(node, request([*stored(node, 2), (str(CTImageStorage), "1.2.3.4.99")])) == 0x0000
    node.tick(1002.0)
    audit.stopped()
    (told,) = [line for line in file.read_text().splitlines() if "110103" in line]
    assert "AETITLES=SCANNER" in told
    assert 'ParticipantObjectID="1.2.3"' in told
    assert 'NumberOfInstances="2"' in told
    assert "storage commitment: committed to" in told


def test_the_same_transaction_about_other_objects_is_refused_and_the_first_is_kept(
    node: Node, modality: Modality
) -> None:
    """0x0131, duplicate transaction UID (PS3.3 C.14.1.1)."""
    first, second, third = stored(node, 3)
    assert ask(node, request([first, second], "1.2.3.99")) == 0x0000
    for others in ([first], [first, second, third], [third]):
        assert ask(node, request(others, "1.2.3.99")) == 0x0131
    # In another order they are the same, and the transaction of another peer is another one.
    assert ask(node, request([second, first], "1.2.3.99")) == 0x0000
    assert ask(node, request([third], "1.2.3.99"), "CAMERA") == 0x0000
    promises = {promise.peer: node.ledger.promised(promise.id) for promise in node.promises()}
    assert set(promises["SCANNER"]) == {first, second}
    node.tick(1002.0)
    assert [event for event, _ in modality.told] == [1]
    assert ask(node, request([third], "1.2.3.99")) == 0x0131, "also after it was told"


# ── a modality that is away ──────────────────────────────────────────────────────────────────────


def test_a_modality_that_is_away_is_told_when_it_is_back_also_after_a_restart(
    node: Node, modality: Modality
) -> None:
    modality.stop()
    assert ask(node, request(stored(node))) == 0x0000
    node.tick(1002.0)
    (promise,) = node.promises()
    assert (promise.tries, promise.outcome) == (1, "open")
    assert "cannot be reached" in promise.detail
    modality.start()
    again = Answerer(node.config, node.ledger, OpenAssociations(), node.intake.damaged)
    again.tick(1020.0)
    assert modality.told == [], "the pause lasts over the restart"
    again.tick(1040.0)
    assert len(modality.told) == 1
    assert node.promises() == []


def test_pauses_double_and_end_with_the_configured_time(
    node: Node, modality: Modality, caplog: pytest.LogCaptureFixture
) -> None:
    modality.stop()
    assert ask(node, request(stored(node, 1))) == 0x0000
    tries = []
    for second in range(1002, 1400, 2):
        before = node.promises()[0].tries
        node.tick(float(second))
        if node.promises()[0].tries > before:
            tries.append(second)
    assert [b - a for a, b in pairwise(tries)][:3] == pytest.approx([30, 60, 100], abs=12)
    node.tick(1000.0 + 2 * H)
    assert node.promises() == []
    assert "will not be" in caplog.text


def test_a_report_that_the_modality_refuses_is_told_again(node: Node, modality: Modality) -> None:
    modality.answer = 0x0110
    assert ask(node, request(stored(node, 1))) == 0x0000
    node.tick(1002.0)
    assert "0x0110" in node.promises()[0].detail
    modality.answer = 0x0000
    node.tick(1050.0)
    assert node.promises() == []


def test_a_report_that_breaks_keeps_nobody_else_waiting(
    node: Node, monkeypatch: pytest.MonkeyPatch, modality: Modality
) -> None:
    # Two peers: the first one's report breaks.
    assert ask(node, request([(str(CTImageStorage), "1.2.3")]), "CAMERA") == 0x0000
    assert ask(node, request(stored(node, 1))) == 0x0000
    monkeypatch.setattr(Answerer, "_peer", _breaking_for("CAMERA", Answerer._peer))
    node.tick(1002.0)
    assert [(promise.peer, promise.tries) for promise in node.promises()] == [("CAMERA", 1)]
    assert len(modality.told) == 1


def _breaking_for(ae_title: str, right: Any) -> Any:
    def peer(answerer: Answerer, promise: Promise) -> Peer:
        if promise.peer == ae_title:
            raise OverflowError("cannot be encoded")
        found: Peer = right(answerer, promise)
        return found

    return peer


def test_a_peer_without_an_address_hears_over_its_own_association_or_not_at_all(node: Node) -> None:
    assert ask(node, request([(str(CTImageStorage), "1.2")]), "CAMERA") == 0x0000
    node.tick(1002.0)
    assert "has no address" in node.promises()[0].detail


# ── requests that are refused ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "call", "status"),
    [
        (lambda ds: None, {"action": 2}, 0x0123),
        (lambda ds: None, {"instance": "1.2.3"}, 0x0112),
        (lambda ds: delattr(ds, "TransactionUID"), {}, 0x0115),
        (lambda ds: setattr(ds, "ReferencedSOPSequence", []), {}, 0x0115),
        (lambda ds: delattr(ds, "ReferencedSOPSequence"), {}, 0x0115),
        (lambda ds: delattr(ds.ReferencedSOPSequence[0], "ReferencedSOPClassUID"), {}, 0x0115),
    ],
    ids=["action type", "instance", "no transaction", "empty", "no sequence", "object without class"],
)
def test_a_request_that_cannot_be_taken_gets_its_status_and_leaves_nothing(
    node: Node, caplog: pytest.LogCaptureFixture, make: Any, call: dict[str, Any], status: int
) -> None:
    ds = request([(str(CTImageStorage), "1.2.3")])
    make(ds)
    with caplog.at_level(logging.WARNING, "dicomnode.commitment.scp"):
        assert ask(node, ds, **call) == status
    assert "SCANNER is refused" in caplog.text
    assert node.promises() == []


def test_only_a_peer_with_the_right_may_ask(node: Node) -> None:
    assert ask(node, request([(str(CTImageStorage), "1.2")]), "STOREONLY") is None


def test_a_node_that_stops_takes_no_more_requests(node: Node) -> None:
    node.service.stop()
    assert ask(node, request([(str(CTImageStorage), "1.2")])) == 0x0213


def test_more_objects_than_a_study_can_have_are_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.commitment.message.MOST_OBJECTS", 2)
    assert ask(node, request([(str(CTImageStorage), f"1.2.{n}") for n in range(3)])) == 0x0213


def test_a_peer_that_asks_and_never_listens_is_refused_after_a_while(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomnode.commitment.scp.MAX_UNANSWERED", 2)
    objects = stored(node)
    assert [ask(node, request(objects)) for _ in range(3)] == [0x0000, 0x0000, 0x0213]
    assert len(node.ledger.open_promises()) == 2


def test_items_are_counted_before_they_are_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an empty item of eight bytes pydicom makes a data set."""
    monkeypatch.setattr("dicomnode.commitment.message.MOST_OBJECTS", 2)
    monkeypatch.setattr("dicomnode.commitment.scp.request_of", lambda ds: pytest.fail("it was read"))
    ds = request([(str(CTImageStorage), "1.2")])
    ds.OtherPatientIDsSequence = [Dataset()] * 5
    assert ask(node, ds) == 0x0213


def test_what_could_inflate_is_not_agreed_upon(node: Node) -> None:
    with calling(node, "SCANNER", (StorageCommitmentPushModel, DeflatedExplicitVRLittleEndian)) as assoc:
        assert not assoc.is_established


def test_when_the_ledger_does_not_answer_the_modality_hears_of_it(node: Node, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").rename(tmp_path / "gone")
    assert ask(node, request([(str(CTImageStorage), "1.2")])) == 0x0213
    (tmp_path / "gone").rename(tmp_path / "ledger.sqlite3")


def test_the_conformance_page_tells_every_status_that_there_is() -> None:
    page = commitment_section.commitment()
    assert {status.name for status in Status if f"0x{status:04X}" not in page} == set()
    assert f"{MOST_OBJECTS:,} objects" in page
    assert f"{MAX_UNANSWERED:,} requests" in page
