"""N-EVENT-REPORT requests of a peer that waits for no answer: served in turn, in no threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.config import Node, Peer, Receive
from dicomnode.contexts import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.network import messages as messages_module
from dicomnode.network.messages import MAX_WAITING_MESSAGES, Waiting, is_report
from dicomnode.network.receive import Receiver
from dicomnode.network.send import open_association
from dicomnode.network.transport import AcceptedAssociation


class Slow:
    """A service that takes reports, one at a time, when a test lets it."""

    right = "report"

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.begun: list[int] = []
        self.at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    def contexts(self) -> list[PresentationContext]:
        context = build_context(PUSH_MODEL)
        context.scu_role, context.scp_role = False, True
        return [context]

    def handlers(self) -> list[evt.EventHandlerType]:
        return [(evt.EVT_N_EVENT_REPORT, self.take)]

    def stop(self) -> None:
        self.may_go_on.set()

    def take(self, event: evt.Event) -> tuple[int, None]:
        with self._lock:
            self._running += 1
            self.at_once = max(self.at_once, self._running)
            self.begun.append(int(event.event_type or 0))
        self.may_go_on.wait(30)
        with self._lock:
            self._running -= 1
        return 0x0000, None


def send_reports(assoc: Any, count: int) -> None:
    """Requests without a look at what is answered. The number of each stands in its Event Type ID."""
    (context,) = assoc.accepted_contexts
    for number in range(1, count + 1):
        request: Any = N_EVENT_REPORT()
        request.MessageID = number
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = PUSH_MODEL, PUSH_MODEL_INSTANCE
        request.EventTypeID = number
        assoc.dimse.send_msg(request, context.context_id)


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def theirs(tmp_path: Path, slow: Slow) -> Iterator[Association]:
    """An association that a PACS has opened to report."""
    node = Node(bind="127.0.0.1", data_dir=tmp_path).model_copy(update={"port": 0})
    peer = Peer(name="PACS", ae_title="PACS", may=("echo",), commitment=True)
    receiver = Receiver(node, [peer], Receive(), [slow])  # type: ignore[list-item]
    ae = AE("PACS")
    ae.add_requested_context(PUSH_MODEL)
    role = build_role(PUSH_MODEL, scp_role=True)
    assoc = ae.associate("127.0.0.1", receiver.start(), ext_neg=[role], ae_title="DICOMNODE")
    assert assoc.is_established
    yield assoc
    slow.stop()
    assoc.abort()
    receiver.stop(5)


def test_reports_of_a_pacs_are_served_one_after_the_other(theirs: Association, slow: Slow) -> None:
    threads = threading.active_count()
    send_reports(theirs, 20)
    until(lambda: slow.begun)
    assert threading.active_count() <= threads
    slow.may_go_on.set()
    until(lambda: len(slow.begun) == 20)
    assert (slow.at_once, slow.begun) == (1, list(range(1, 21)))
    assert theirs.is_established


def test_a_pacs_that_reports_and_waits_for_no_answer_is_aborted(theirs: Association, slow: Slow) -> None:
    threads = threading.active_count()
    send_reports(theirs, 2 * MAX_WAITING_MESSAGES)
    until(lambda: theirs.is_aborted)
    assert threading.active_count() <= threads
    assert slow.at_once <= 1


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[tuple[StandinPacs, list[Any]]]:
    """A PACS that is called, and its associations."""
    open_ones: list[Any] = []
    handlers = [(evt.EVT_ESTABLISHED, lambda event: open_ones.append(event.assoc))]
    with StandinPacs(tmp_path / "pacs", more=(PUSH_MODEL,), handlers=handlers) as pacs:
        yield pacs, open_ones


def test_it_is_the_same_on_an_association_of_ours(pacs: tuple[StandinPacs, list[Any]], slow: Slow) -> None:
    """Without a thread for each, as pynetdicom has it."""
    standin, open_ones = pacs
    peer = Peer(name="PACS", ae_title=standin.ae_title, host=standin.host, port=standin.port)
    contexts = [(str(PUSH_MODEL), str(ImplicitVRLittleEndian))]
    with open_association(peer, "NODE", 5.0, contexts, handlers=slow.handlers()) as ours:
        until(lambda: open_ones)
        threads = threading.active_count()
        send_reports(open_ones[0], 20)
        until(lambda: slow.begun and ours.dimse.msg_queue.qsize() == 19)
        assert threading.active_count() <= threads
        slow.may_go_on.set()
        until(lambda: len(slow.begun) == 20)
        assert (slow.at_once, sorted(slow.begun)) == (1, list(range(1, 21)))
        assert ours.is_established
    slow.may_go_on.clear()
    with open_association(peer, "NODE", 5.0, contexts, handlers=slow.handlers()) as ours:
        until(lambda: len(open_ones) == 2)
        send_reports(open_ones[1], 3 * MAX_WAITING_MESSAGES)
        until(lambda: not ours.dul.is_alive())
        slow.may_go_on.set()
    assert slow.at_once == 1


def test_a_release_waits_until_every_report_is_answered(
    tmp_path: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for a report goes on when its handler has ended, before the answer is sent."""
    leaving, open_ones, answers = threading.Event(), [], []  # type: ignore[var-annotated]
    send = DIMSEServiceProvider.send_msg

    def late(dimse: Any, primitive: Any, context_id: int) -> None:
        if isinstance(primitive, N_EVENT_REPORT) and primitive.MessageIDBeingRespondedTo is not None:
            assert leaving.wait(30)
            threading.Event().wait(0.1)  # long enough for a release that does not wait
        send(dimse, primitive, context_id)

    def note(event: evt.Event) -> None:
        if isinstance(event.message, N_EVENT_REPORT_RSP):
            answers.append(event.message.command_set.Status)

    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", late)
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    handlers = [
        (evt.EVT_ESTABLISHED, lambda event: open_ones.append(event.assoc)),
        (evt.EVT_DIMSE_RECV, note),
    ]
    with StandinPacs(tmp_path / "pacs", more=(PUSH_MODEL,), handlers=handlers) as pacs:
        peer = Peer(name="PACS", ae_title=pacs.ae_title, host=pacs.host, port=pacs.port)
        contexts = [(str(PUSH_MODEL), str(ImplicitVRLittleEndian))]
        with open_association(peer, "NODE", 30.0, contexts, handlers=slow.handlers()) as ours:
            until(lambda: open_ones)
            send_reports(open_ones[0], 3)
            until(lambda: slow.begun and ours.dimse.msg_queue.qsize() == 2)
            slow.may_go_on.set()
            leaving.set()
        assert ours.is_released
        until(lambda: len(answers) == 3)
    assert (answers, slow.at_once, slow.begun, broken) == ([0, 0, 0], 1, [1, 2, 3], [])


def report_request() -> Any:
    request: Any = N_EVENT_REPORT()
    request.MessageID = 1
    return request


@pytest.mark.parametrize(
    ("timeout_s", "answered", "served"), [(2.5, False, 3), (2.5, True, 3), (None, True, 12)]
)
def test_reports_in_between_do_not_prolong_the_wait_for_an_answer(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float | None, answered: bool, served: int
) -> None:
    """Twelve, each of which takes a second. An answer that has come meanwhile is not lost."""
    seconds = [0.0]
    monkeypatch.setattr(messages_module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    waiting, serve = Waiting(), []  # type: ignore[var-annotated]
    for _ in range(12):
        waiting.put((1, report_request()))
    if answered:
        waiting.put((1, "the answer"))

    def take(_report: object, context_id: int) -> None:
        serve.append(context_id)
        seconds[0] += 1

    expected = (1, "the answer") if answered else (None, None)
    assert waiting.answer(lambda m: not is_report(m), timeout_s, take) == expected
    assert (len(serve), waiting.qsize()) == (served, 12 - served)


def test_the_wait_on_an_association_that_a_peer_opened_is_of_the_same_length(
    theirs: Association, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is [receive] dimse_timeout_s; what it asks meanwhile is left to its own thread."""
    asked: list[tuple[bool, bool, float | None]] = []

    def answer(_messages: Waiting, is_answer: Any, timeout_s: float | None, _serve: object) -> Any:
        response: Any = C_STORE()
        response.MessageIDBeingRespondedTo = 1
        asked.append((is_answer(report_request()), is_answer(response) and is_answer(None), timeout_s))
        return None, None

    monkeypatch.setattr(Waiting, "answer", answer)
    (ours,) = [t for t in threading.enumerate() if isinstance(t, AcceptedAssociation)]
    assert ours.dimse.get_msg(block=True) == (None, None)
    assert asked == [(False, True, Receive().dimse_timeout_s)]
