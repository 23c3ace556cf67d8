"""A peer that speaks DICOM byte by byte, as no toolkit would."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

VERIFICATION = "1.2.840.10008.1.1"
ASSOCIATE_RQ, ASSOCIATE_AC, REJECT, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
COMMAND, LAST = 1, 2
CT = (CTImageStorage, ExplicitVRLittleEndian)
ECHO = (VERIFICATION, ExplicitVRLittleEndian)


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """length: what it claims, when that is not the truth."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def item(kind: int, body: bytes) -> bytes:
    """Of variable items (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(body)) + body


def associate_rq(
    *contexts: tuple[str, str],
    calling: str = "SCANNER",
    called: str = "DICOMNODE",
    max_length: int = 16384,
) -> bytes:
    """An A-ASSOCIATE-RQ with one presentation context per (abstract syntax, transfer syntax)."""
    items = [item(0x10, b"1.2.840.10008.3.1.1.1")]
    for number, (abstract, transfer) in enumerate(contexts):
        body = struct.pack("BxBx", 2 * number + 1, 0)
        items.append(item(0x20, body + item(0x30, abstract.encode()) + item(0x40, transfer.encode())))
    items.append(item(0x50, item(0x51, struct.pack(">L", max_length)) + item(0x52, b"1.2.3")))
    fixed = struct.pack(">Hxx16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16))
    return pdu(ASSOCIATE_RQ, fixed + b"".join(items))


def pdv(context: int, control: int, data: bytes) -> bytes:
    """A presentation data value (PS3.8 9.3.5.1)."""
    return struct.pack(">LBB", len(data) + 2, context, control) + data


def element(number: int, value: bytes) -> bytes:
    """Of a command set."""
    return struct.pack("<HHL", 0, number, len(value)) + value


def command(*elements: bytes, length: int | None = None) -> bytes:
    """A command set. length: what its group length claims, when that is not the truth."""
    body = b"".join(elements)
    return element(0x0000, struct.pack("<L", len(body) if length is None else length)) + body


def uid(number: int, value: str) -> bytes:
    """A UID of a command set."""
    return element(number, value.encode() + b"\0" * (len(value) % 2))


def store_rq(instance: str, sop_class: str = CTImageStorage) -> bytes:
    """The command set of a C-STORE request."""
    return command(
        uid(0x0002, sop_class), element(0x0100, b"\1\0"), element(0x0110, b"\7\0"), element(0x0700, b"\0\0"),
        element(0x0800, b"\0\0"), uid(0x1000, instance),
    )  # fmt: skip


def echo_rq(sop_class: str = VERIFICATION, field: bytes = b"\x30\0") -> bytes:
    """The command set of a C-ECHO request, or of another without a data set."""
    return command(
        uid(0x0002, sop_class), element(0x0100, field), element(0x0110, b"\7\0"), element(0x0800, b"\1\1")
    )


class RawPeer:
    """A connection and, with `associate`, an association."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, timeout_s: float = 20) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def associate(self, *contexts: tuple[str, str], calling: str = "SCANNER", max_length: int = 16384) -> int:
        """returns: the type of the PDU that answers."""
        self.send(associate_rq(*(contexts or (CT,)), calling=calling, max_length=max_length))
        return self.answer()[0]

    def send(self, data: bytes) -> None:
        """Whatever it is."""
        self.socket.sendall(data)

    def send_message(self, context: int, command_set: bytes, data: bytes = b"", piece: int = 60000) -> None:
        """A command set, and a data set in pieces where there is one."""
        self.send(pdu(DATA, pdv(context, COMMAND | LAST, command_set)))
        for start in range(0, len(data), piece):
            last = LAST if start + piece >= len(data) else 0
            self.send(pdu(DATA, pdv(context, last, data[start : start + piece])))

    def store(self, data: bytes, instance: str | None = None, sop_class: str = CTImageStorage) -> int:
        """C-STORE on the first context. returns: the status."""
        self.send_message(1, store_rq(instance or generate_uid(), sop_class), data)
        return self.status()

    def status(self) -> int:
        """Of the response that comes next."""
        kind, body = self.answer()
        assert kind == DATA, f"a PDU of type {kind} came instead of an answer"
        position, values = 6, {}
        while position < len(body):
            group, number, length = struct.unpack_from("<HHL", body, position)
            assert group == 0
            values[number] = body[position + 8 : position + 8 + length]
            position += 8 + length
        return int.from_bytes(values[0x0900], "little")

    def answer(self) -> tuple[int, bytes]:
        """The next PDU; (0, b"") when the connection has ended."""
        header = self._read(6)
        return (header[0], self._read(int.from_bytes(header[2:], "big"))) if len(header) == 6 else (0, b"")

    def last(self) -> int:
        """The type of the last PDU before the connection ends."""
        kind = 0
        while True:
            with contextlib.suppress(ConnectionError):
                following, _ = self.answer()
                if following:
                    kind = following
                    continue
            return kind

    def die(self) -> None:
        """As a process that is killed on a machine that resets its connections."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _read(self, wanted: int) -> bytes:
        data = b""
        while len(data) < wanted:
            piece = self.socket.recv(wanted - len(data))
            if not piece:
                break
            data += piece
        return data


@contextmanager
def raw_peer(port: int, tls: ssl.SSLContext | None = None) -> Iterator[RawPeer]:
    """A connection that is closed at the end."""
    peer = RawPeer(port, tls)
    try:
        yield peer
    finally:
        peer.socket.close()


@contextmanager
def raw_peers(ports: Sequence[int]) -> Iterator[list[RawPeer]]:
    """One connection to each of these ports."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(raw_peer(port)) for port in ports]
