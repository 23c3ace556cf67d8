"""One message after the other (PS3.8 E.1): a C-STORE is answered while the node sends something else."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.pdu_primitives import P_DATA

from dicomnode.commitment.answer import Answerer
from dicomnode.commitment.message import Request, request_to_dataset
from dicomnode.commitment.scp import CommitmentService, OpenAssociations
from dicomnode.config import Peer, parse
from dicomnode.contexts import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicomnode.network.outgoing import Outgoing
from dicomnode.network.upper_layer import UpperLayer
from dicomnode.query.find import FindService
from tests.dicomnode.modality import Running, ct_slice, encoded, running_node
from tests.dicomnode.querier import STUDY_ROOT, described, keys
from tests.dicomnode.raw_peer import (
    ASSOCIATE_AC,
    COMMAND,
    CT,
    DATA,
    LAST,
    RawPeer,
    command,
    element,
    raw_peer,
    store_rq,
    uid,
)

# Presentation contexts, in the order in which the peer proposes them.
STORE, OTHER = 1, 3
PEER = Peer(name="scanner", ae_title="SCANNER", may=("echo", "store", "find", "commit"))
_SHORT = struct.Struct("<H").pack


@dataclass
class Node:
    """A node that stores, finds and commits."""

    running: Running
    answerer: Answerer
    associations: OpenAssociations

    def wait_until_idle(self) -> None:
        """The thread that answered a request is done with it a moment later; a busy one is not told over."""
        for association in tuple(self.associations._associations.values()):
            with association.turn:
                pass


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    associations = OpenAssociations()
    config = parse({"node": {"data_dir": str(tmp_path)}, "deliver": {"timeout_s": 30.0}})

    def services(ledger: Any) -> list[Any]:
        committing = CommitmentService([PEER], ledger, lambda now: None, associations, lambda: 1000.0)
        return [committing, FindService(ledger, "DICOMNODE", 100)]

    with running_node(tmp_path, peers=(PEER,), more=services) as running:
        yield Node(running, Answerer(config, running.ledger, associations, lambda *_: None), associations)


class Gap:
    """Holds the node up after the first part of a message, until it has answered a C-STORE."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open = threading.Event()
        self._answered = threading.Event()
        put, answer = Outgoing.put, UpperLayer.answer

        def put_and_wait(outgoing: Outgoing, item: Any, *rest: Any) -> None:
            put(outgoing, item, *rest)
            if isinstance(item, P_DATA) and not self.is_open.is_set():
                self.is_open.set()
                assert self._answered.wait(30)

        def answer_and_tell(dul: UpperLayer, pdu: bytes) -> None:
            answer(dul, pdu)
            self._answered.set()

        monkeypatch.setattr(Outgoing, "put", put_and_wait)
        monkeypatch.setattr(UpperLayer, "answer", answer_and_tell)


def fragment(peer: RawPeer) -> tuple[int, int]:
    """The next fragment: presentation context ID and control header (PS3.8 E.2)."""
    kind, body = peer.answer()
    assert kind == DATA
    length, context, control = struct.unpack_from(">LBB", body)
    assert len(body) == 4 + length, "one fragment in each PDU"
    return context, control


def commitment_rq(number: int) -> tuple[bytes, bytes]:
    """N-ACTION-RQ about an object that nobody has (PS3.7 10.3.4): command set and data set."""
    asked = command(
        uid(0x0003, PUSH_MODEL), element(0x0100, _SHORT(0x0130)), element(0x0110, _SHORT(number)),
        element(0x0800, _SHORT(0)), uid(0x1001, PUSH_MODEL_INSTANCE), element(0x1008, _SHORT(1)),
    )  # fmt: skip
    return asked, encoded(request_to_dataset(Request.new([(CT[0], "1.2.3.4")])))


def report_rsp() -> bytes:
    """N-EVENT-REPORT-RSP: taken (PS3.7 10.3.1)."""
    return command(
        uid(0x0002, PUSH_MODEL), element(0x0100, _SHORT(0x8100)), element(0x0120, _SHORT(1)),
        element(0x0800, _SHORT(0x0101)), element(0x0900, _SHORT(0)), uid(0x1000, PUSH_MODEL_INSTANCE),
    )  # fmt: skip


def find_rq() -> tuple[bytes, bytes]:
    """C-FIND-RQ (PS3.7 9.3.2.1)."""
    asked = command(
        uid(0x0002, STUDY_ROOT), element(0x0100, _SHORT(0x0020)), element(0x0110, _SHORT(9)),
        element(0x0700, _SHORT(0)), element(0x0800, _SHORT(0)),
    )  # fmt: skip
    return asked, encoded(keys("STUDY", StudyInstanceUID="", StudyDescription="", AccessionNumber=""))


def send_slice(peer: RawPeer) -> None:
    """C-STORE, without a look at what is answered."""
    image = ct_slice()
    peer.send_message(STORE, store_rq(image.SOPInstanceUID), encoded(image))


def test_a_store_that_comes_while_a_report_is_sent_is_answered_after_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw_peer(node.running.port) as peer:
        assert peer.associate(CT, (PUSH_MODEL, ExplicitVRLittleEndian)) == ASSOCIATE_AC
        peer.send_message(OTHER, *commitment_rq(1))
        assert peer.status() == 0x0000
        node.wait_until_idle()
        gap = Gap(monkeypatch)
        with ThreadPoolExecutor(1) as threads:
            told = threads.submit(node.answerer.tick, 1010.0)
            assert gap.is_open.wait(30)
            send_slice(peer)
            assert [fragment(peer) for _ in range(3)] == [
                (OTHER, COMMAND | LAST),
                (OTHER, LAST),
                (STORE, COMMAND | LAST),
            ]
            peer.send_message(OTHER, report_rsp())
            told.result(30)
    assert node.running.ledger.open_promises() == []
    assert len(node.running.files) == 1


def test_a_store_that_comes_while_a_match_is_sent_is_answered_after_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.running.ledger.add_instances([described("1.1", 1, StudyDescription="x" * 300)], 0.0)
    gap = Gap(monkeypatch)
    with raw_peer(node.running.port) as peer:
        assert peer.associate(CT, (STUDY_ROOT, ExplicitVRLittleEndian), max_length=256) == ASSOCIATE_AC
        peer.send_message(OTHER, *find_rq())
        assert gap.is_open.wait(30)
        send_slice(peer)
        match = [fragment(peer)]
        while match[-1] != (OTHER, LAST):
            match.append(fragment(peer))
        assert match[0] == (OTHER, COMMAND | LAST)
        assert len(match) > 2
        assert set(match[1:-1]) == {(OTHER, 0)}
        # Then the other two answers, in whatever order.
        assert {fragment(peer), fragment(peer)} == {(STORE, COMMAND | LAST), (OTHER, COMMAND | LAST)}


def test_a_peer_that_never_stops_storing_hears_every_report_whole(node: Node) -> None:
    requests, unanswered = 12, 0
    with raw_peer(node.running.port) as peer, ThreadPoolExecutor(1) as threads:
        assert peer.associate(CT, (PUSH_MODEL, ExplicitVRLittleEndian)) == ASSOCIATE_AC
        for number in range(requests):
            peer.send_message(OTHER, *commitment_rq(number))
            assert peer.status() == 0x0000
        node.wait_until_idle()
        told = threads.submit(node.answerer.tick, 1010.0)
        reports = 0
        while reports < requests or unanswered:
            while unanswered < 4 and not told.done():
                send_slice(peer)
                unanswered += 1
            context, control = fragment(peer)
            assert control == COMMAND | LAST
            if context == STORE:
                unanswered -= 1
                continue
            assert fragment(peer) == (OTHER, LAST), "its data set, and nothing before it"
            peer.send_message(OTHER, report_rsp())
            reports += 1
        told.result(30)
    assert node.running.ledger.open_promises() == []


def test_an_answer_goes_behind_what_waits_and_at_once_where_nothing_does() -> None:
    outgoing = Outgoing(SimpleNamespace(ring=lambda: None, is_alive=lambda: True))  # type: ignore[arg-type]
    first, second, early, late = (P_DATA() for _ in range(4))
    assert not outgoing.hold_back(lambda: early)
    with outgoing.message():
        outgoing.put(first)
        assert outgoing.get() is first
        assert outgoing.hold_back(lambda: early), "the message goes on, though nothing of it waits"
        outgoing.put(second)
    assert outgoing.hold_back(lambda: late), "it waits to be sent"
    assert [outgoing.get() for _ in range(3)] == [second, early, late]
    assert not outgoing.hold_back(lambda: late)
