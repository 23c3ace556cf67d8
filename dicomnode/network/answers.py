"""What a peer says on an association that the node has opened: answers, its event reports, and what
nobody can read.

pynetdicom's thread of the association also takes messages. It is not always paused in time, and an answer
that it takes is lost: the object would count as unanswered after the whole timeout. A report that comes
while an answer is awaited would be taken for that answer; some peers want it answered first. A command that
cannot be read would be an association that ends without a word to whoever waits on it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.fsm import TRANSITION_TABLE

from dicomnode.network.messages import INVALID_PDU, MAX_WAITING_MESSAGES, Waiting, is_report
from dicomnode.network.wire import read_through

log = logging.getLogger(__name__)

# PS3.8 9.2.3: the peer has aborted, its connection has closed, we abort.
_ENDS = frozenset({"AA-3", "AA-4", "AA-8"})
# At once, of what a peer sends after its association has ended.
_DISCARDED_BYTES = 1 << 16


class Answers:
    """Leaves every answer to whoever waits for it, and serves the peer's event reports whenever they come.

    Reports are served one after the other, by whichever thread is there: that of the association, or the
    one that waits for an answer. name: the peer's, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._messages = Waiting()
        self._turn = threading.RLock()  # of whoever serves a report, sends a message or releases
        self._told = self._ended = False

    def attend(self, association: Association) -> None:
        """Hear what comes over it: from its connection on, before anything can have come."""
        self._association = association
        self._dul, self._dimse = cast(Any, association.dul), cast(Any, association.dimse)
        self._decode, self._act = self._dul._decode_pdu, self._dul.state_machine.do_action
        self._process, self._serve_one = self._dul._process_recv_primitive, association._serve_request
        self._send, self._read = self._dimse.send_msg, self._dul._read_pdu_data
        self._dul._decode_pdu, self._dul.state_machine.do_action = self._decode_pdu, self._do_action
        self._dul._process_recv_primitive = self._process_recv_primitive
        self._dul._read_pdu_data = self._read_pdu_data
        self._dimse.msg_queue, self._dimse.get_msg = self._messages, self._get_msg
        self._dimse.receive_primitive, self._dimse.send_msg = self._receive, self._send_msg

    def release(self) -> None:
        """End the association when every report that has come is answered: A-RELEASE would overtake that."""
        with self._turn:
            for _ in range(self._messages.qsize()):
                self._serve_next()
            # pynetdicom's thread may not know yet that it has ended: the answer to A-RELEASE would be waited
            # for from nobody.
            if not self._ended:
                self._association.release()

    # ── messages ─────────────────────────────────────────────────────────────────────────────

    def _receive(self, primitive: Any) -> None:
        """As pynetdicom does it, which makes a thread for each report and keeps quiet about what is no
        message: the association would end without a word."""
        dimse = self._dimse
        try:
            if dimse.message is None:
                dimse.message = DIMSEMessage()
            if not dimse.message.decode_msg(primitive, self._association):
                return
            message, dimse.message = dimse.message, None
            request = message.message_to_primitive()
            if is_report(request) and self._messages.qsize() >= MAX_WAITING_MESSAGES:
                raise ValueError(f"{MAX_WAITING_MESSAGES} reports before it has waited for an answer")
        except Exception as error:  # noqa: BLE001 - decoders raise whatever the bytes lead to
            self._tell(f"what cannot be read: {type(error).__name__}: {error}")
            self._dul.event_queue.put(INVALID_PDU)
        else:
            self._messages.put((message.context_id, request))

    def _send_msg(self, primitive: Any, context_id: int) -> None:
        with self._turn:  # the answer to a report in the middle of a message would spoil both
            self._send(primitive, context_id)

    def _get_msg(self, block: bool = False) -> Any:
        if block:
            return self._messages.answer(_is_no_report, self._dimse.dimse_timeout, self._serve)
        # In the association's own thread. Never wait here: `release` has the turn and waits for that thread.
        if self._turn.acquire(blocking=False):
            try:
                self._serve_next()
            finally:
                self._turn.release()
        return None, None

    def _serve_next(self) -> None:
        context_id, report = self._messages.take(is_report, 0)
        if report is not None and self._association.is_established:
            self._serve(report, context_id)

    def _serve(self, report: Any, context_id: int) -> None:
        association = self._association
        with self._turn:
            self._serve_one(report, context_id)
            if not association._reactor_checkpoint.is_set():
                # It says that the association's thread is not paused; `release` would wait for that for ever.
                association._is_paused = True

    # ── PDUs ─────────────────────────────────────────────────────────────────────────────────

    def _read_pdu_data(self) -> None:
        if self._dul.state_machine.current_state != "Sta13":
            self._read()
            return
        # The association has ended and what still comes is nobody's. As a PDU that breaks off, of an unknown
        # type for one, its rest would be waited for.
        connection = self._dul.socket
        with contextlib.suppress(OSError):
            if connection.socket.recv(_DISCARDED_BYTES):
                return
        connection.close()

    def _decode_pdu(self, data: bytearray) -> Any:
        try:
            decoded, event = self._decode(data)
            read_through(decoded)
        except Exception as error:
            self._tell(f"what cannot be read: {type(error).__name__}: {error}")
            raise  # `_read_pdu_data` makes Evt19 of it
        return decoded, event

    def _do_action(self, event: str) -> None:
        """PS3.8 table 9-10: AA-8 aborts, for Evt19 and for a PDU that its state has no place for.

        pynetdicom then leaves whoever waits for an answer to its timeout.
        """
        action = TRANSITION_TABLE.get((event, self._dul.state_machine.current_state))
        if action in _ENDS:
            self._ended = True
        self._act(event)
        if action == "AA-8":
            self._tell("a PDU of an unknown type" if event == INVALID_PDU else "a PDU out of turn")
            self._messages.put((None, None))

    def _process_recv_primitive(self) -> bool:
        if self._dul.state_machine.current_state != "Sta13":
            return bool(self._process())
        # The association has ended: nobody reads what is still to be sent, and there is no action for it.
        with contextlib.suppress(queue.Empty):
            while True:
                self._dul.to_provider_queue.get_nowait()
        return False

    def _tell(self, what: str) -> None:
        """One line for an association."""
        if not self._told:
            log.warning("%s sent %s: aborted", self._name, what)
        self._told = True


def _is_no_report(message: Any) -> bool:
    return not is_report(message)
