"""pynetdicom's acceptor, made to wait for events instead of polling for them.

pynetdicom 3.0.4 runs two threads per association that look for work every millisecond and read the
socket in pieces of 4 KiB. Here both sleep in the kernel until there is something to do, the socket is
read ahead, and a C-STORE is served and answered in the thread that has received it. Its known
weaknesses are closed here too:

* a PDU has a length and a time (`dicomnode.network.wire`);
* a message has a time for each of its parts and one for the whole.

What comes before an association is `network.listener`'s; messages are `network.messages`'s. Only
classes of pynetdicom are extended, by inheritance; its version is pinned for that.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import _config, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE, C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import ThreadedAssociationServer

from dicomnode.audit.trail import Party
from dicomnode.network.command_set import P_DATA_TF, c_store_rsp
from dicomnode.network.messages import DIMSE, IDLE_S, INVALID_PDU, Limits, close_data_set, misplaced
from dicomnode.network.wire import (
    CONNECTION_CLOSED,
    INVALID_VALUE,
    NOT_SPECIFIED,
    PDU_HEADER_BYTES,
    UNEXPECTED_PDU,
    Connection,
    Invalid,
    Wire,
    read_through,
)
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import study_instance_uid

if TYPE_CHECKING:
    from dicomnode.network.listener import Server

log = logging.getLogger(__name__)

# pynetdicom would write every identifier of a query, with the patient's name, into its log at INFO.
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
# And every PDU and message at DEBUG; they go through handlers, which take time even when nothing is written.
_config.LOG_HANDLER_LEVEL = "none"

# PDUs that wait to be sent, of at most 128 KiB each.
_WINDOW_PDUS = 8
# PS3.8 table 9-8: PDUs that end the association.
_ENDS = {"Evt12": "it released the association", "Evt16": "it aborted the association"}
_SERVICE_PROVIDER = 2  # PS3.8 table 9-26: who aborts
# Requests that do not belong to their presentation context; each is a line in the log.
MAX_MISPLACED_REQUESTS = 16


class _RingingQueue(queue.Queue[Any]):
    """A queue that wakes whoever waits for what is put into it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class _Outgoing(_RingingQueue):
    """What is to be sent. An object of a C-GET is read no faster than the network takes it."""

    def __init__(self, dul: _DUL) -> None:
        super().__init__(dul._ring)
        self._dul = dul
        self._room = threading.Condition()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, P_DATA) and threading.current_thread() is not self._dul:
            with self._room:
                while self.qsize() >= _WINDOW_PDUS and self._dul.is_alive():
                    self._room.wait(IDLE_S)
        super().put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        with self._room:
            self._room.notify()
        return item


class _DUL(DULServiceProvider):
    """Wakes when the peer has sent something or the other thread has something to send."""

    def __init__(self, assoc: AcceptedAssociation) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0  # `wait` sleeps, and only when there is nothing to do
        self._abort_reason: int | None = None
        self._has_told = False
        self._rope, self._bell = socket.socketpair()
        self._rope.setblocking(False)
        self.to_provider_queue = _Outgoing(self)
        self.to_user_queue = _RingingQueue(assoc.ring)

    def wait(self, connection: Connection | None) -> bool:
        """Sleep until there is something to do. returns: whether the peer has sent something."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        # A waiting event is something to do: that of a new connection is there before its request is read.
        idle_s = IDLE_S if self.event_queue.empty() else 0.0
        ready = {descriptor for descriptor, _ in poll.poll(idle_s * 1000)}
        if self._bell.fileno() in ready:
            self._bell.recv(4096)
            ready.discard(self._bell.fileno())
        return bool(ready)

    def kill_dul(self) -> None:
        super().kill_dul()
        # The other thread may still wait for an A-ASSOCIATE-RQ that will never come.
        self.to_user_queue.put(None)

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 - it ends the thread
            # pynetdicom's own, of what a peer has sent, or of an answer to one that has just gone.
            self._tell(f"the association broke: {error}")
            self.assoc.is_aborted, self.assoc.is_established = True, False
            self.assoc._kill = True
        finally:
            if self.socket is not None:
                self.socket.close()
            self._rope.close()
            self._bell.close()
            self._tell("the association ended", between_messages=False)
            cast(DIMSE, self.assoc.dimse).forget()
            self.to_user_queue.put(None)

    def _read_pdu_data(self) -> None:
        """Read a PDU; P-DATA-TF straight from its buffer, which pynetdicom would copy several times.

        Here, and nowhere later, is decided whether what a peer sends can be read: one line in the log, an
        A-ABORT with its reason. PS3.8 table 9-10: Evt10 in Sta6 is action DT-2, which stays in Sta6; Sta13
        waits for the peer to close, and what it still sends is nobody's.
        """
        connection, state = cast(Wire, self.socket), self.state_machine.current_state
        try:
            if state == "Sta13":
                connection.discard()
                return
            pdu = connection.recv_pdu()
        except Invalid as error:
            self.give_up(str(error), error.abort_reason)
            return
        except OSError as error:
            self._tell(_why_it_ended(error), between_messages=bool(str(error)))
            self.event_queue.put(CONNECTION_CLOSED)
            return
        try:
            if state == "Sta6" and pdu[0] == P_DATA_TF:
                self.assoc.dimse.receive_primitive(_p_data(pdu[PDU_HEADER_BYTES:]))
            else:
                decoded, event = self._decode_pdu(bytearray(pdu))
                read_through(decoded)
                if event in _ENDS:
                    self._tell(_ENDS[event], between_messages=False)
                self.event_queue.put(event)
                self._recv_pdu.put(decoded)
        except Exception as error:  # noqa: BLE001 - decoders raise whatever the bytes lead to
            self.give_up(f"it sent what cannot be read: {type(error).__name__}: {error}", INVALID_VALUE)

    def idle_timer_expired(self) -> bool:
        """Whether the peer has been silent for too long; told once, it ends the association."""
        expired = bool(super().idle_timer_expired())
        if expired:
            self._tell(f"silent for {self.network_timeout:g} s ([receive] network_timeout_s): aborted")
        return expired

    def _process_recv_primitive(self) -> bool:
        if self.state_machine.current_state != "Sta13":
            return bool(super()._process_recv_primitive())
        # The association has ended: whatever is still to be sent, nobody reads it.
        with contextlib.suppress(queue.Empty):
            while True:
                self.to_provider_queue.get_nowait()
        return False

    def give_up(self, reason: str, abort_reason: int = NOT_SPECIFIED) -> None:
        """Abort the association: the peer does not speak as it must. abort_reason: PS3.8 table 9-26."""
        self._tell(f"{reason}: aborted")
        self._abort_reason = abort_reason
        cast(DIMSE, self.assoc.dimse).forget()
        self.event_queue.put(INVALID_PDU)

    def _tell(self, reason: str, *, between_messages: bool = True) -> None:
        """One line: who, why, and which object came in part only.

        between_messages: whether it is told of where there is no such object.
        """
        assoc = cast(AcceptedAssociation, self.assoc)
        in_part = assoc.dimse.in_part()
        if in_part and not self._has_told:
            self._has_told = True
            log.warning("%s at %s: %s; %s", *_name(assoc), reason, in_part)
            assoc.came_in_part()
        elif between_messages:
            log.warning("%s at %s: %s", *_name(assoc), reason)

    def _send(self, pdu: Any) -> None:
        """Also why an association is aborted, which pynetdicom leaves open (PS3.8 table 9-26)."""
        if isinstance(pdu, A_ABORT_RQ):
            if self._abort_reason is not None:
                pdu.source, pdu.reason_diagnostic = _SERVICE_PROVIDER, self._abort_reason
            elif (pdu.source, pdu.reason_diagnostic) == (_SERVICE_PROVIDER, NOT_SPECIFIED):
                # Action AA-8 without a word of ours: a PDU that its state has no place for.
                self._tell("it sent a PDU out of turn: aborted")
                pdu.reason_diagnostic = UNEXPECTED_PDU
        super()._send(pdu)

    def _is_transport_event(self) -> bool:
        late = cast(DIMSE, self.assoc.dimse).late()
        if late:
            self.give_up(late)
            return False
        # Woken by the bell, the loop would sleep once more before it sends.
        return bool(super()._is_transport_event() or self._process_recv_primitive())

    def stop_dul(self) -> bool:
        if self.state_machine.current_state != "Sta1":
            return False
        self._kill_thread = True
        self._ring()
        self.join()
        return True

    def _ring(self) -> None:
        if threading.current_thread() is self:
            return
        # A full buffer holds enough rings; a closed one belongs to a thread that has ended.
        with contextlib.suppress(OSError):
            self._rope.send(b"\0")


class AcceptedAssociation(Association):
    """An association with the parts above."""

    dul: _DUL
    dimse: DIMSE

    def __init__(self, ae: ApplicationEntity, limits: Limits, wire: Connection, received: bytes) -> None:
        """wire: where it takes place; received: what has come already."""
        super().__init__(ae, MODE_ACCEPTOR)
        self.dul = _DUL(self)
        self.dimse = DIMSE(self, limits)
        # The timers belong to the part that was replaced.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout
        self.wire = wire
        self._misplaced = 0
        # Of the thread that serves a request or sends one: two that wait would take each other's answers.
        self.turn = threading.RLock()
        self.set_socket(Wire(self, wire, received))

    def ring(self) -> None:
        """Wake this thread."""
        self.dimse.ring()

    def serve(self, request: C_STORE, context_id: int) -> bool:
        """Serve a C-STORE request in the thread that has received it.

        Two changes of thread less for each object, and they are what it waits for on a busy machine.
        returns: False for what the association's thread must deal with.
        """
        context = self._accepted_cx.get(context_id)
        if context is None or not request.is_valid_request or not self.is_established:
            return False
        if misplaced(request, context) is not None:
            return False
        try:
            attributes = {"request": request, "context": context.as_tuple}
            status = evt.trigger(self, evt.EVT_C_STORE, attributes)
            # PS3.8 table 9-10, Evt9 in Sta6: action DT-1, which stays in Sta6.
            cast(Wire, self.dul.socket).send(c_store_rsp(request, context_id, cast(Dataset, status)))
        except Exception:
            log.exception("answering %s failed: aborted", self.requestor.ae_title)
            self._abort_nonblocking()  # the blocking one would wait for this very thread
        finally:
            close_data_set(request)
        return True

    def came_in_part(self) -> None:
        """Tell the audit trail of an object whose end will not come."""
        request, audit = self.dimse.under_way, cast("Server", self._server).audit
        if request is None or not audit.is_kept:
            return
        context = self._accepted_cx.get(self.dimse.context_under_way)
        study = ""
        if context is not None and request.DataSet is not None:
            with contextlib.suppress(Flawed), request.DataSet.getbuffer() as data:
                study = study_instance_uid(data, str(context.transfer_syntax[0]))
        sop_class = str(request.AffectedSOPClassUID)
        audit.received(self, Party.calling(self), study, "", sop_class, stored=False)

    def run_reactor(self) -> None:
        """As pynetdicom's; an error of ours ends the association and not only its thread."""
        try:
            super().run_reactor()
        except Exception as error:
            if self.is_established:
                log.exception("serving %s failed: aborted", self.requestor.ae_title)
            else:
                # Up to here nothing but the values of its request is looked at; `Receiver._admit` tells of
                # an error of ours.
                why = f"{type(error).__name__}: {error}"
                log.warning("%s at %s: its request cannot be answered: %s: aborted", *_name(self), why)
            self._abort_nonblocking()
            self.kill()

    def _bind_defaults(self) -> None:
        bind_interventions(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if not self.turn.acquire(blocking=False):
            self._is_paused = True  # who has the turn waits for that before it sends
            self.turn.acquire()
            self._is_paused = False
        try:
            self._serve_in_turn(msg, context_id)
        finally:
            self.turn.release()

    def _serve_in_turn(self, msg: Any, context_id: int) -> None:
        if not msg.is_valid_request and getattr(msg, "MessageIDBeingRespondedTo", None) is None:
            # pynetdicom would say nothing, and the peer would wait for its timeout.
            what = type(msg).__name__.replace("_", "-")
            log.warning("%s at %s sent a %s request that lacks something: aborted", *_name(self), what)
            self.abort()
            return
        context = self._accepted_cx.get(context_id)
        status = misplaced(msg, context) if context is not None and msg.is_valid_request else None
        if context is not None and status is None and isinstance(msg, (C_FIND, C_GET, C_MOVE)):
            self._leave(msg, context)
            return
        if context is None or status is None:
            super()._serve_request(msg, context_id)
            return
        ae_title, address = _name(self)
        syntax = UID(context.abstract_syntax or "").name
        what = f"{type(msg).__name__.replace('_', '-')} on a context of {syntax}"
        self._misplaced += 1
        if self._misplaced > MAX_MISPLACED_REQUESTS:
            log.warning("%s at %s asked for %s again and again: aborted", ae_title, address, what)
            self._abort_nonblocking()
            return
        log.warning("%s at %s asked for %s: refused with 0x%04X", ae_title, address, what, status)
        answer = type(msg)()
        answer.MessageIDBeingRespondedTo = msg.MessageID
        answer.Status = status
        self.dimse.send_msg(answer, context_id)

    def _leave(self, request: C_FIND | C_GET | C_MOVE, context: PresentationContext) -> None:
        """Leave a request to its handler, which sends the answers too.

        pynetdicom would take apart and put together every object and every match.
        """
        event = {C_FIND: evt.EVT_C_FIND, C_GET: evt.EVT_C_GET, C_MOVE: evt.EVT_C_MOVE}[type(request)]
        self.dimse.cancel_req = {}
        attributes = {
            "request": request,
            "context": context.as_tuple,
            "_is_cancelled": lambda message_id: message_id in self.dimse.cancel_req,
        }
        self._is_paused = True  # the handler may send C-STORE requests over this association
        try:
            evt.trigger(self, event, attributes)
        finally:
            self._is_paused = False


def _p_data(content: memoryview) -> P_DATA:
    """The values of a P-DATA-TF. Raises ValueError, struct.error."""
    primitive = P_DATA()
    primitive.presentation_data_value_list = []
    # PS3.8 9.3.5.1: item length, presentation context ID, then the fragment.
    while content:
        length, context_id = struct.unpack_from(">LB", content)
        if not 2 <= length <= len(content) - 4:
            raise ValueError("a presentation data value does not fit into its PDU")
        fragment = cast(bytes, content[5 : 4 + length])  # it is only sliced and written
        primitive.presentation_data_value_list.append((context_id, fragment))
        content = content[4 + length :]
    return primitive


def _why_it_ended(error: OSError) -> str:
    """In words, of an error that may have none: the end of the connection."""
    if isinstance(error, ConnectionResetError):
        return "it reset the connection"
    return str(error) or "it closed the connection"


def _name(assoc: Association) -> tuple[str, str]:
    return assoc.requestor.ae_title.strip() or "a peer", str(assoc.requestor.address)


def bind_interventions(target: Association | ThreadedAssociationServer) -> None:
    """pynetdicom's default handlers, without those that write every PDU into the log."""
    for event in evt._INTERVENTION_EVENTS:
        target.bind(event, evt.get_default_handler(event))
