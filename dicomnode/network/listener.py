"""The port: connections become associations when they have asked for one.

pynetdicom makes two threads and an association for whatever connects, and does the TLS handshake in the
thread that accepts. Here a connection has one thread of its own in which TLS is agreed upon and the
A-ASSOCIATE-RQ is awaited, each within its time:

* a client that is silent, on either port, holds up nobody, and of too many the oldest is closed;
* a port probe (connect, close; with or without TLS) ends at once and never becomes an association;
* what is no A-ASSOCIATE-RQ, or one of absurd length, is answered with A-ABORT (PS3.8 9.3.8) at once.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.network.admission import unmapped
from dicomnode.network.messages import Limits
from dicomnode.network.transport import AcceptedAssociation, bind_interventions
from dicomnode.network.wire import FOREVER_S, PDU_HEADER_BYTES, PDU_TYPES, Connection
from dicomnode.tls import ServerCertificates, TlsConnection

if TYPE_CHECKING:
    from dicomnode.config import Tls

log = logging.getLogger(__name__)

# How often the listening thread looks whether it should stop.
POLL_S = 0.1
# Connections that have not said who they are.
MAX_WAITING = 64
# PS3.8 9.3.2: 128 contexts with every transfer syntax there is take 200 KiB.
_MAX_REQUEST_BYTES = 1 << 19
_A_ASSOCIATE_RQ = 1
_TLS_HANDSHAKE = 0x16


class _NotSpoken(Exception):
    """What came is no request for an association. answer: the PDU that says so."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.answer = answer


class Waiting:
    """Connections that have not asked for an association yet: few, so that they never keep one out."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: dict[socket.socket, str] = {}

    @contextlib.contextmanager
    def one_more(self, connection: socket.socket, address: str) -> Iterator[None]:
        """While it waits. Of too many, the oldest of the address that has most is closed."""
        with self._lock:
            if len(self._open) >= self._limit:
                most = Counter(self._open.values()).most_common(1)[0][0]
                oldest = next(c for c, a in self._open.items() if a == most)
                log.warning("%s has said nothing: its connection is closed for another", most)
                del self._open[oldest]
                _hang_up(oldest)
            self._open[connection] = address
        try:
            yield
        finally:
            with self._lock:
                self._open.pop(connection, None)

    def hang_up(self) -> None:
        """Close them all."""
        with self._lock:
            for connection in self._open:
                _hang_up(connection)


class _Handler(RequestHandler):
    """A connection's own thread, until it is an association or ends."""

    server: Server

    def handle(self) -> None:
        connection: socket.socket = self.request
        address = str(self.client_address[0])
        try:
            with self.server.waiting.one_more(connection, address):
                wire, request = self._greet(connection)
        except OSError as error:
            if doubt := _tell(address, error):
                self.server.audit.refused(Party("", address), f"no TLS connection: {doubt}")
            connection.close()
        except _NotSpoken as refused:
            log.warning("%s: %s; its connection is closed", address, refused)
            connection.close()
        else:
            assoc = self._associate(wire, request)
            evt.trigger(assoc, evt.EVT_CONN_OPEN, {"address": self.client_address})
            assoc.start()

    def _greet(self, connection: socket.socket) -> tuple[Connection, bytes]:
        """Agree on TLS and wait for the A-ASSOCIATE-RQ. Raises _NotSpoken, or OSError."""
        wire: Connection = connection
        if self.server.certificates is not None:
            wire = TlsConnection(connection, self.server.certificates.context())
            wire.handshake(self.server.handshake_timeout_s)
        try:
            return wire, self._request(wire)
        except _NotSpoken as refused:
            with contextlib.suppress(OSError):
                wire.send(refused.answer)
            raise
        finally:
            # From here on the kernel's own timeouts: Python's cost a second system call for each read.
            connection.settimeout(None)
            seconds, fraction = divmod(self.ae.network_timeout or FOREVER_S, 1)
            silence = struct.pack("ll", int(seconds), int(fraction * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, silence)

    def _request(self, wire: Connection) -> bytes:
        """The whole A-ASSOCIATE-RQ. Raises _NotSpoken, or OSError."""
        end = time.monotonic() + (self.ae.acse_timeout or FOREVER_S)
        header = _read(wire, PDU_HEADER_BYTES, end)
        if not header:
            raise ConnectionResetError
        if header[0] != _A_ASSOCIATE_RQ:
            raise _not_a_request(header, over_tls=isinstance(wire, TlsConnection))
        length = int.from_bytes(header[2:], "big")
        if len(header) < PDU_HEADER_BYTES or length > _MAX_REQUEST_BYTES:
            raise _NotSpoken(f"it announces an A-ASSOCIATE-RQ of {length} bytes", _abort(6))
        request = header + _read(wire, length, end)
        if len(request) < PDU_HEADER_BYTES + length:
            raise ConnectionResetError("closed in the middle of an A-ASSOCIATE-RQ")
        return request

    def _associate(self, wire: Connection, request: bytes) -> AcceptedAssociation:
        """Our association where RequestHandler would make its own."""
        ae, server = self.ae, self.server
        assoc = AcceptedAssociation(ae, server.limits, wire, request)
        assoc._server = server
        assoc.name = f"AcceptorThread@{self.client_address[0]}"
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
        return assoc


class Server(ThreadedAssociationServer):
    """Listens. Presentation contexts are given to each association when its peer is known."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        contexts: list[PresentationContext],
        handlers: list[evt.EventHandlerType],
        limits: Limits,
        tls: Tls | None = None,
        audit: Audit = SILENT,
    ) -> None:
        """tls: speak TLS on this port. Raises OSError, and ConfigurationError for [tls]'s files."""
        self.audit = audit
        self.limits = limits
        self.certificates = ServerCertificates(tls) if tls is not None else None
        self.handshake_timeout_s = tls.handshake_timeout_s if tls is not None else 0.0
        self.waiting = Waiting()
        super().__init__(ae, address, ae.ae_title, contexts, evt_handlers=handlers, request_handler=_Handler)
        # Garbage is collected every so many polls; it stops every thread for a moment.
        self._gc = [0, int(30 / POLL_S)]
        ae._servers.append(self)  # `shutdown` takes it out again

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection, set up for small answers and for peers that vanish."""
        try:
            connection, address = super().get_request()
        except OSError:
            # Out of file descriptors: the connection stays in the queue, and asking again at once helps none.
            threading.Event().wait(POLL_S)
            raise
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Everything that is said and decided of a caller takes its address from here.
        host = unmapped(address[0])
        return connection, address if host == address[0] else (host, address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that could not be served, a thread that could not be made: one line."""
        log.error("%s could not be served: %s", client_address[0], sys.exc_info()[1])

    def _bind_defaults(self) -> None:
        bind_interventions(self)


def _read(wire: Connection, wanted: int, end: float) -> bytes:
    """That many bytes; fewer when the connection ends. Raises OSError, TimeoutError at `end`."""
    buffer = memoryview(bytearray(wanted))
    count = 0
    while count < wanted:
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no whole A-ASSOCIATE-RQ within [receive] acse_timeout_s")
        wire.settimeout(left_s)
        try:
            got = wire.recv_into(buffer[count:])
        except TimeoutError:
            continue
        if got == 0:
            break
        count += got
    return bytes(buffer[:count])


def _not_a_request(header: bytes, *, over_tls: bool) -> _NotSpoken:
    if header[0] == _TLS_HANDSHAKE and not over_tls:
        return _NotSpoken("it speaks TLS on the port without TLS ([node] port)", _abort(1))
    if header[0] in PDU_TYPES:
        return _NotSpoken(f"a PDU of type {header[0]} before any association", _abort(2))
    return _NotSpoken("it does not speak DICOM", _abort(1))


def _abort(reason: int) -> bytes:
    """A-ABORT by the service provider. reason: PS3.8 table 9-26."""
    return struct.pack(">BxL2xBB", 7, 4, 2, reason)


def _tell(address: str, error: OSError) -> str:
    """Why a connection ended before it was an association. Probes are no news.

    returns: why TLS doubts who called; empty where it does not.
    """
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        log.debug("%s: closed before it asked for an association: %s", address, error)
    elif isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", "") or error.reason or error
        log.warning("%s: no TLS connection: %s", address, why)
        return str(why)
    else:
        log.warning("%s: %s; its connection is closed", address, error)
    return ""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
