"""The upper layer of an accepted association (PS3.8): PDUs come and go in a thread that sleeps in between.

pynetdicom 3.0.4 looks for work every millisecond and reads the socket in pieces of 4 KiB. Here the thread
is woken, and whatever cannot be read ends the association with a reason and one line of the log.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, cast

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA

from dicomnode.network.command_set import P_DATA_TF
from dicomnode.network.messages import DIMSE, IDLE_S, INVALID_PDU
from dicomnode.network.outgoing import Outgoing, RingingQueue
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

if TYPE_CHECKING:
    from dicomnode.network.transport import AcceptedAssociation

log = logging.getLogger(__name__)

# PS3.8 table 9-8: PDUs that end the association.
_ENDS = {"Evt12": "it released the association", "Evt16": "it aborted the association"}
# Read one after the other before pynetdicom's loop has its turn.
_PDUS_A_TURN = 64
_SERVICE_PROVIDER = 2  # PS3.8 table 9-26: who aborts


class UpperLayer(DULServiceProvider):
    """Wakes when the peer has sent something or the other thread has something to send."""

    def __init__(self, assoc: AcceptedAssociation) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0  # `wait` sleeps, and only when there is nothing to do
        self._abort_reason: int | None = None
        self._has_told = False
        self._rope, self._bell = socket.socketpair()
        self._rope.setblocking(False)
        self.outgoing = self.to_provider_queue = Outgoing(self)
        self.to_user_queue = RingingQueue(assoc.ring)

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
        """Read a PDU, and those that follow while there is nothing else to do.

        pynetdicom's loop would sleep before each of them, for no time, and let every other thread in between:
        with twenty peers that send at once a sixth of the throughput.
        """
        self._read_one()
        for _ in range(_PDUS_A_TURN - 1):
            if not self._follows():
                return
            self._idle_timer.restart()  # the association's thread looks at it meanwhile
            self._read_one()

    def _follows(self) -> bool:
        """Whether another PDU has come or comes within `IDLE_S`, and pynetdicom's loop has nothing to do."""
        return (
            self.state_machine.current_state == "Sta6"
            and not self._kill_thread
            and self.event_queue.empty()
            and self.to_provider_queue.empty()
            and not cast(DIMSE, self.assoc.dimse).late()
            and cast(Wire, self.socket).ready
        )

    def _read_one(self) -> None:
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
        assoc = cast("AcceptedAssociation", self.assoc)
        in_part = assoc.dimse.in_part()
        if in_part and not self._has_told:
            self._has_told = True
            log.warning("%s at %s: %s; %s", *name_of(assoc), reason, in_part)
            assoc.came_in_part()
        elif between_messages:
            log.warning("%s at %s: %s", *name_of(assoc), reason)

    def answer(self, pdu: bytes) -> None:
        """Send a P-DATA-TF with a whole message, in this very thread; never within another (PS3.8 E.1)."""
        if not self.outgoing.hold_back(lambda: _p_data(memoryview(pdu)[PDU_HEADER_BYTES:])):
            # PS3.8 table 9-10, Evt9 in Sta6: action DT-1, which stays in Sta6.
            cast(Wire, self.socket).send(pdu)

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
        self.ring()
        self.join()
        return True

    def ring(self) -> None:
        if threading.current_thread() is self:
            return
        # A full buffer holds enough rings; a closed one belongs to a thread that has ended.
        with contextlib.suppress(OSError):
            self._rope.send(b"\0")


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


def name_of(assoc: Association) -> tuple[str, str]:
    """AE title and address of the peer, for the log."""
    return assoc.requestor.ae_title.strip() or "a peer", str(assoc.requestor.address)
