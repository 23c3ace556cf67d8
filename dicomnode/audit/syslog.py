"""RFC 5424 messages to a syslog collector or a file, from a thread of their own.

Over UDP (RFC 5426) one datagram is one message; over TCP and TLS each message comes after its length
(RFC 5425 4.3, RFC 6587 3.4.1). A destination that fails never keeps the node waiting: messages wait for
it in memory, the oldest go when too many do, and the log says so once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from dicomnode.privacy import opener

log = logging.getLogger(__name__)

FACILITY_AUTHPRIV = 10
SEVERITY_WARNING, SEVERITY_NOTICE = 4, 5
DEFAULT_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}
LONGEST_QUEUE = 10_000
# Characters of the messages that wait: a query, which stands in its message as it came, may be a megabyte.
LARGEST_QUEUE = 1 << 25
RETRY_S = 10.0
TIMEOUT_S = 10.0
_BOM = "\ufeff"
# Of 64 KiB less IP and UDP headers; RFC 5426 3.2 lets the receiver cut what is longer.
_LARGEST_DATAGRAM = 65_000


def header(at: float, severity: int, message_id: str, host: str, application: str) -> str:
    """PRI to STRUCTURED-DATA (RFC 5424 6.2); the message follows after a space."""
    priority = FACILITY_AUTHPRIV * 8 + severity
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"<{priority}>1 {moment} {_printable(host)} {application} {os.getpid()} {message_id} -"


def _printable(name: str) -> str:
    kept = "".join(c for c in name if "!" <= c <= "~")
    return kept[:255] or "-"


class Sink(Protocol):
    """Where messages go."""

    name: str

    def send(self, head: str, text: str) -> None:
        """Take one message. Raises OSError."""

    def close(self) -> None:
        """Let go of what is open."""


class FileSink:
    """Appends lines to a file; one that is moved away (logrotate) is made anew."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def send(self, head: str, text: str) -> None:
        """One line."""
        line = f"{head} {text}\n".encode()
        with open(self._path, "ab", buffering=0, opener=opener) as file:
            end = os.fstat(file.fileno()).st_size
            if file.write(line) != len(line):
                # A disk that is full took a part of it; it comes again as a whole.
                file.truncate(end)
                raise OSError(f"{self._path}: no room")

    def close(self) -> None:
        """Nothing stays open."""


class UdpSink:
    """One datagram each; nobody says whether it arrived."""

    def __init__(self, host: str, port: int) -> None:
        self.name = f"{host}:{port} (udp)"
        self._address = (host, port)

    def send(self, head: str, text: str) -> None:
        """Resolve the name anew each time: collectors move."""
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sender:
            sender.sendto(f"{head} {_BOM}{text}".encode()[:_LARGEST_DATAGRAM], address)

    def close(self) -> None:
        """Nothing stays open."""


class StreamSink:
    """One connection, made again when it breaks; over TLS where `context` is given."""

    def __init__(self, host: str, port: int, context: Callable[[], ssl.SSLContext] | None) -> None:
        self.name = f"{host}:{port} ({'tls' if context else 'tcp'})"
        self._host, self._port = host, port
        self._context = context
        self._connection: socket.socket | None = None

    def send(self, head: str, text: str) -> None:
        """Length, space, message."""
        message = f"{head} {_BOM}{text}".encode()
        if self._connection is not None and _ended(self._connection):
            self.close()
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.sendall(f"{len(message)} ".encode() + message)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """End the connection in order."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _connect(self) -> socket.socket:
        plain = socket.create_connection((self._host, self._port), TIMEOUT_S)
        if self._context is None:
            return plain
        try:
            return self._context().wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise


def _ended(connection: socket.socket) -> bool:
    """A collector says nothing: what can be read is its farewell. Writing would go on for a while."""
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    connection.setblocking(False)
    try:
        return not connection.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False  # of TLS's own: a session ticket
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT_S)


class Sender:
    """A queue before a sink, and the thread that empties it."""

    def __init__(self, sink: Sink, retry_s: float = RETRY_S) -> None:
        self._sink = sink
        self._retry_s = retry_s
        self._waiting: deque[tuple[str, str]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._lost = 0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, head: str, text: str) -> None:
        """Take a message; returns at once."""
        with self._changed:
            self._waiting.append((head, text))
            self._size += len(text)
            while len(self._waiting) > LONGEST_QUEUE or (
                self._size > LARGEST_QUEUE and len(self._waiting) > 1
            ):
                self._drop_first()
                self._lost += 1
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> bool:
        """Send what waits, as far as that is possible. returns: whether all has gone."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        left = len(self._waiting)
        if left:
            log.error("audit: %d messages did not reach %s before the node stopped", left, self._sink.name)
        return not left

    def _drop_first(self) -> None:
        self._size -= len(self._waiting.popleft()[1])

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    break
                head, text = self._waiting[0]
            if self._sent(head, text):
                with self._changed:
                    # A queue that was full has dropped it meanwhile.
                    if self._waiting and self._waiting[0] == (head, text):
                        self._drop_first()
                continue
            with self._changed:
                if self._stopping:
                    break
                self._changed.wait_for(lambda: self._stopping, self._retry_s)
        self._sink.close()

    def _sent(self, head: str, text: str) -> bool:
        try:
            self._sink.send(head, text)
        except (OSError, ValueError) as error:
            if not self._failing:
                log.error(
                    "audit: %s cannot be reached: %s. Messages wait, %d at most; see [audit]",
                    self._sink.name,
                    error,
                    LONGEST_QUEUE,
                )
            self._failing = True
            return False
        if self._failing:
            log.warning("audit: %s is reached again; %d messages were lost", self._sink.name, self._lost)
        self._failing, self._lost = False, 0
        return True
