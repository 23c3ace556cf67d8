"""What an accepted association reads and writes: a socket or TLS over one, read ahead, with bounds.

A PDU that claims an absurd length is refused before memory is set aside for it, and one that has begun
must end within the network timeout.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from pynetdicom.pdu_primitives import MaximumLengthNotification
from pynetdicom.transport import AssociationSocket

if TYPE_CHECKING:
    from dicomnode.network.transport import AcceptedAssociation

# [receive] max_pdu is at most half of it; an A-ASSOCIATE-RQ with 128 contexts stays far below.
MAX_PDU_BYTES = 1 << 21
# Four PDUs of the usual 128 KiB: few system calls, each of which lets other threads in between.
_READ_AHEAD_BYTES = 1 << 19
FOREVER_S = 3e7
PDU_HEADER_BYTES = 6  # PS3.8 9.3.1
PDU_TYPES = range(1, 8)
# PS3.8 table 9-26: why the service provider aborts.
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_VALUE = 0, 1, 2, 6
# Of what a peer lets us send: less than two fragments with their headers (PS3.8 9.3.5), so no answer at all.
_SMALLEST_MAXIMUM_LENGTH = 16
# PS3.8 table 9-8.
CONNECTION_CLOSED = "Evt17"


class Connection(Protocol):
    """A connected socket, or TLS over one."""

    def recv_into(self, buffer: memoryview, /) -> int: ...
    def send(self, data: bytes, /) -> int: ...
    def settimeout(self, timeout_s: float | None, /) -> None: ...
    def fileno(self) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class Invalid(Exception):
    """A PDU that is none; the peer is told so by A-ABORT. abort_reason: PS3.8 table 9-26."""

    def __init__(self, reason: str, abort_reason: int = INVALID_VALUE) -> None:
        super().__init__(reason)
        self.abort_reason = abort_reason


def read_through(pdu: Any) -> None:
    """Look at every value of a decoded PDU now.

    pynetdicom looks at them when the state machine asks for the primitive, where what it raises ends the
    thread with a traceback and the peer hears nothing. Raises whatever the values lead to.
    """
    primitive = pdu.to_primitive()
    for item in getattr(primitive, "user_information", None) or ():
        length = item.maximum_length_received if isinstance(item, MaximumLengthNotification) else 0
        if 0 < length < _SMALLEST_MAXIMUM_LENGTH:
            raise ValueError(f"it takes PDUs of {length} bytes, which hold nothing")
    for context in getattr(primitive, "presentation_context_definition_list", None) or ():
        if not context.abstract_syntax or not context.transfer_syntax:  # PS3.8 9.3.2.2: mandatory
            raise ValueError(f"presentation context {context.context_id} lacks a syntax")
    pdu.to_primitive = lambda: primitive


class Wire(AssociationSocket):
    """Reads as much as there is at once; every PDU within the network timeout."""

    def __init__(self, assoc: AcceptedAssociation, connection: Connection, received: bytes) -> None:
        """received: what has been read of it already."""
        super().__init__(assoc, client_socket=cast(socket.socket, connection))
        self._dul = assoc.dul
        self._pending: Callable[[], bool] = getattr(connection, "pending", lambda: False)
        # What was read and not used yet stands in _buffer[_start:_end]. It grows with the first data.
        self._buffer = memoryview(bytearray(received))
        self._start, self._end = 0, len(received)

    @property
    def ready(self) -> bool:
        """Whether the peer has sent something; sleeps for a while when it has not."""
        if self._start < self._end or (self._is_connected and self._pending()):
            return True
        try:
            return self._dul.wait(self.socket if self._is_connected else None)
        except (OSError, ValueError):
            self.event_queue.put(CONNECTION_CLOSED)
            return False

    def recv_pdu(self) -> memoryview:
        """The next PDU, valid until the next call. Raises Invalid, or OSError: without words at its end."""
        if not self._fill(PDU_HEADER_BYTES):
            raise OSError("the connection ended in the middle of a PDU" if self._start < self._end else "")
        kind, length = struct.unpack_from(">BxL", self._buffer, self._start)
        if kind not in PDU_TYPES:
            raise Invalid(f"it sent a PDU of type 0x{kind:02X}, which there is not", UNRECOGNIZED_PDU)
        if not self._fill(PDU_HEADER_BYTES + length):
            raise OSError("the connection ended in the middle of a PDU")
        begin, self._start = self._start, self._start + PDU_HEADER_BYTES + length
        return self._buffer[begin : self._start]

    def discard(self) -> None:
        """Throw away what has come. Raises OSError at the end."""
        self._start = self._end = 0
        if self.socket is None or self.socket.recv_into(self._buffer) == 0:
            raise OSError

    def _shutdown_socket(self) -> None:
        # pynetdicom leaves the descriptor open when the peer was quicker.
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                self.socket.close()

    def _fill(self, wanted: int) -> bool:
        """Read until that many bytes are there. returns: False when the connection ends before."""
        if wanted > MAX_PDU_BYTES:
            raise Invalid(f"it announces a PDU of {wanted} bytes")
        if self._start + wanted > len(self._buffer):
            self._make_room(wanted)
        # A peer that sends a byte now and then is as dead as one that sends none.
        end = time.monotonic() + (self.assoc.network_timeout or FOREVER_S)
        while self._end - self._start < wanted:
            if self.socket is None:
                raise OSError("the connection is closed")
            try:
                count = self.socket.recv_into(self._buffer[self._end :])
            except BlockingIOError:  # the kernel's timeout
                raise TimeoutError("silent in the middle of a PDU") from None
            if count == 0:
                return False
            self._end += count
            if time.monotonic() > end:
                raise TimeoutError("the PDU did not arrive within the network timeout")
        return True

    def _make_room(self, wanted: int) -> None:
        kept = self._buffer[self._start : self._end]
        if wanted > len(self._buffer):
            self._buffer = memoryview(bytearray(wanted + _READ_AHEAD_BYTES))
        self._buffer[: len(kept)] = kept  # may overlap: memoryview moves as memmove does
        self._start, self._end = 0, len(kept)
