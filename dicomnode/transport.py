"""pynetdicom's acceptor, made to wait for events instead of polling for them.

pynetdicom 3.0.4 runs two threads per association that look for work every millisecond and read the
socket in pieces of 4 KiB. Here both sleep in the kernel until there is something to do, the socket is
read ahead, and a C-STORE is served and answered in the thread that has received it. Its known
weaknesses are closed here too:

* a connection that says nothing, or says something and stops, ends after its timeout and never keeps
  an association from a peer that speaks;
* a port probe (connect, close) ends at once instead of after the ACSE timeout;
* a PDU that claims an absurd length is refused before memory is set aside for it.

Only classes of pynetdicom are extended, by inheritance; its version is pinned for that.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicomnode.command_set import LAST_COMMAND_FRAGMENT, P_DATA_TF, c_store_rq, c_store_rsp

log = logging.getLogger(__name__)

# How long a thread sleeps when nothing wakes it: the grain of the timeouts, not a latency.
_IDLE_S = 0.1
# [receive] max_pdu is at most half of it; an A-ASSOCIATE-RQ with 128 contexts stays far below.
_MAX_PDU_BYTES = 1 << 21
# How often the listening thread looks whether it should stop.
POLL_S = 0.1
# Four PDUs of the usual 128 KiB: few system calls, each of which lets other threads in between.
_READ_AHEAD_BYTES = 1 << 19
_FOREVER_S = 3e7
# Connections that have not said who they are.
_MAX_SILENT = 64


class _RingingQueue(queue.Queue[Any]):
    """A queue that wakes whoever waits for what is put into it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class _DUL(DULServiceProvider):
    """Wakes when the peer has sent something or the other thread has something to send."""

    def __init__(self, assoc: _Association) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._run_loop_delay = 0  # `wait` sleeps, and only when there is nothing to do
        self._rope, self._bell = socket.socketpair()
        self._rope.setblocking(False)
        self.to_provider_queue = _RingingQueue(self._ring)
        self.to_user_queue = _RingingQueue(assoc.ring)

    def wait(self, connection: socket.socket | None) -> bool:
        """Sleep until there is something to do. returns: whether the peer has sent something."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_IDLE_S * 1000)}
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
        finally:
            self._rope.close()
            self._bell.close()

    def _read_pdu_data(self) -> None:
        """Take P-DATA-TF straight from its buffer; leave every other PDU to pynetdicom.

        PS3.8 table 9-10, Evt10 in Sta6: action DT-2, which stays in Sta6. pynetdicom would copy the
        data several times on the way there.
        """
        connection = cast(_Socket, self.socket)
        try:
            if self.state_machine.current_state != "Sta6" or not connection.begins_with(P_DATA_TF):
                super()._read_pdu_data()
                return
            content = connection.recv_pdu()
        except OSError as error:
            log.warning("%s: %s", self.assoc.requestor.ae_title, error)
            self.event_queue.put("Evt17")
            return
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
        self.assoc.dimse.receive_primitive(primitive)

    def _is_transport_event(self) -> bool:
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


class _Messages(queue.Queue[Any]):
    """Complete messages for the association's thread; C-STORE requests are served on the spot."""

    def __init__(self, assoc: _Association) -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        context_id, message = item
        if isinstance(message, C_STORE) and self._assoc.serve(message, context_id):
            return
        super().put(item, block, timeout)


class _DIMSE(DIMSEServiceProvider):
    """Sleeps until a message, a release or an abort arrives."""

    def __init__(self, assoc: _Association) -> None:
        super().__init__(assoc)
        self.msg_queue = _Messages(assoc)
        self._store: C_STORE | None = None
        self._store_context = 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Put C-STORE requests together here; leave every other message to pynetdicom.

        Decoding a command set into a pydicom data set takes longer than writing a slice.
        """
        values = primitive.presentation_data_value_list
        for number, (context_id, fragment) in enumerate(values):
            if self.message is not None or not self._take(context_id, fragment):
                del values[:number]
                super().receive_primitive(primitive)
                return

    def _take(self, context_id: int, fragment: bytes) -> bool:
        """Part of a C-STORE request. returns: False when it is not."""
        control = fragment[0]
        if self._store is None:
            if control & LAST_COMMAND_FRAGMENT != LAST_COMMAND_FRAGMENT:
                return False
            self._store, self._store_context = c_store_rq(fragment[1:]), context_id
            return self._store is not None
        if control & 1 or context_id != self._store_context:
            raise ValueError("a command or another context's data came in the middle of a data set")
        data = cast(BytesIO, self._store.DataSet)
        data.write(fragment[1:])
        if control & 2:
            request, self._store = self._store, None
            self.msg_queue.put((context_id, request))
        return True

    def get_msg(self, block: bool = False) -> Any:
        if block:
            return super().get_msg(block=True)
        with contextlib.suppress(queue.Empty):
            return self.msg_queue.get(timeout=_IDLE_S)
        return None, None

    def ring(self) -> None:
        """Wake the thread that waits in `get_msg`."""
        self.msg_queue.put((None, None))


class _Socket(AssociationSocket):
    """Reads as much as there is at once; every PDU within the network timeout."""

    def __init__(self, assoc: _Association, connection: socket.socket) -> None:
        super().__init__(assoc, client_socket=connection)
        self._dul = assoc.dul
        # What was read and not used yet stands in _buffer[_start:_end].
        self._buffer = memoryview(bytearray(_READ_AHEAD_BYTES))
        self._start = self._end = 0

    @property
    def ready(self) -> bool:
        """Whether the peer has sent something; sleeps for a while when it has not."""
        if self._start < self._end:
            return True
        try:
            return self._dul.wait(self.socket if self._is_connected else None)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # PS3.8 table 9-8: transport connection closed
            return False

    def begins_with(self, pdu_type: int) -> bool:
        """Whether the next PDU is of that type. Raises OSError."""
        return self._fill(1) and self._buffer[self._start] == pdu_type

    def recv_pdu(self) -> memoryview:
        """The next PDU without its header, valid until the next call. Raises OSError when it is not whole."""
        header = self.recv(6)
        length = int.from_bytes(header[2:], "big")
        if len(header) < 6 or not self._fill(length):
            raise OSError("the connection ended in the middle of a PDU")
        self._start += length
        return self._buffer[self._start - length : self._start]

    def recv(self, nr_bytes: int) -> bytearray:
        """Up to `nr_bytes`: fewer when the connection ends. Raises OSError on silence or absurd lengths."""
        self._fill(nr_bytes)
        begin, self._start = self._start, min(self._start + nr_bytes, self._end)
        return bytearray(self._buffer[begin : self._start])

    def _fill(self, wanted: int) -> bool:
        """Read until that many bytes are there. returns: False when the connection ends before."""
        if wanted > _MAX_PDU_BYTES:
            raise OSError(f"the peer announces a PDU of {wanted} bytes")
        if self._start + wanted > len(self._buffer):
            self._make_room(wanted)
        # A peer that sends a byte now and then is as dead as one that sends none.
        end = time.monotonic() + (self.assoc.network_timeout or _FOREVER_S)
        while self._end - self._start < wanted:
            if self.socket is None:
                raise OSError("the connection is closed")
            count = self.socket.recv_into(self._buffer[self._end :])
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


class _Association(Association):
    """An association with the parts above."""

    dul: _DUL
    dimse: _DIMSE

    def __init__(self, ae: ApplicationEntity) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self.dul = _DUL(self)
        self.dimse = _DIMSE(self)
        # The timers belong to the part that was replaced.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout

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
        try:
            attributes = {"request": request, "context": context.as_tuple}
            status = evt.trigger(self, evt.EVT_C_STORE, attributes)
            # PS3.8 table 9-10, Evt9 in Sta6: action DT-1, which stays in Sta6.
            cast(_Socket, self.dul.socket).send(c_store_rsp(request, context_id, cast(Dataset, status)))
        except Exception:
            log.exception("answering %s failed: aborted", self.requestor.ae_title)
            self._abort_nonblocking()  # the blocking one would wait for this very thread
        return True

    def hang_up(self) -> None:
        """Close the connection without a word."""
        connection = self.dul.socket.socket if self.dul.socket is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _bind_defaults(self) -> None:
        _bind_interventions(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if isinstance(msg, C_STORE) and not msg.is_valid_request:
            # pynetdicom would say nothing, and the peer would wait for its timeout.
            log.warning("%s sent a C-STORE request without its UIDs: aborted", self.requestor.ae_title)
            self.abort()
            return
        super()._serve_request(msg, context_id)


class _Handler(RequestHandler):
    """Makes our association where RequestHandler would make its own."""

    server: Server

    def _create_association(self) -> _Association:
        ae, server = self.ae, self.server
        assoc = _Association(ae)
        assoc._server = server
        assoc.name = f"AcceptorThread@{self.client_address[0]}"
        assoc.set_socket(_Socket(assoc, self.request))
        assoc.acceptor.maximum_length = ae.maximum_pdu_size
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = ae.implementation_version_name
        assoc.requestor.address_info = self.remote
        for event, handlers in server._handlers.items():
            for handler in handlers if isinstance(handlers, list) else [handlers]:
                if handler[0] is not None:
                    assoc.bind(event, *handler)
        server.await_request(assoc)
        return assoc


class Server(ThreadedAssociationServer):
    """Listens. Presentation contexts are given to each association when its peer is known."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        contexts: list[PresentationContext],
        handlers: list[evt.EventHandlerType],
    ) -> None:
        self._silent: list[_Association] = []
        super().__init__(ae, address, ae.ae_title, contexts, evt_handlers=handlers, request_handler=_Handler)
        # Garbage is collected every so many polls; it stops every thread for a moment.
        self._gc = [0, int(30 / POLL_S)]
        ae._servers.append(self)  # `shutdown` takes it out again

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection, set up for small answers and for peers that vanish."""
        connection, address = super().get_request()
        # The kernel's own timeouts: Python's would cost a second system call for each read.
        connection.settimeout(None)
        silence = struct.pack("ll", int(self.ae.network_timeout or _FOREVER_S), 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, silence)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection, address

    def await_request(self, assoc: _Association) -> None:
        """Of too many connections that have not said who they are, the oldest is closed."""
        self._silent = [a for a in self._silent if a.is_alive() and a.requestor.primitive is None]
        if len(self._silent) >= _MAX_SILENT:
            oldest = self._silent.pop(0)
            log.warning("%s said nothing: its connection is closed for another", oldest.requestor.address)
            oldest.hang_up()
        self._silent.append(assoc)

    def _bind_defaults(self) -> None:
        _bind_interventions(self)


def _bind_interventions(target: Association | ThreadedAssociationServer) -> None:
    """pynetdicom's default handlers, without those that write every PDU into the log."""
    for event in evt._INTERVENTION_EVENTS:
        target.bind(event, evt.get_default_handler(event))
