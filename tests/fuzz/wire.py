"""The Upper Layer's bytes, by hand (PS3.8 9.3, annex E): a fuzzer needs what no toolkit would send."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

ASSOCIATE_RQ, ASSOCIATE_AC, P_DATA, RELEASE_RQ = 1, 2, 4, 5
RELEASE = bytes((RELEASE_RQ, 0, 0, 0, 0, 4, 0, 0, 0, 0))
_HEADER = 6


def pdus(stream: bytes) -> Iterator[bytes]:
    """Whole PDUs; what is left of a broken one comes last."""
    position = 0
    while position < len(stream):
        length = int.from_bytes(stream[position + 2 : position + _HEADER], "big")
        end = position + _HEADER + length
        yield stream[position:end]
        position = end


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def with_right_length(content: bytes) -> bytes:
    """The same PDU, its length as it should be."""
    return content[:2] + struct.pack(">L", max(0, len(content) - _HEADER)) + content[_HEADER:]


def message(context_id: int, command: bytes, data: bytes | None) -> bytes:
    """P-DATA-TF with a command set, and one with its data set."""
    text = pdu(P_DATA, _value(context_id, 3, command))
    return text if data is None else text + pdu(P_DATA, _value(context_id, 2, data))


def _value(context_id: int, control: int, fragment: bytes) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context_id, control) + fragment


def values(stream: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(context ID, message control header, fragment) of every P-DATA-TF."""
    for content in pdus(stream):
        if content[0] != P_DATA:
            continue
        body = content[_HEADER:]
        while len(body) >= _HEADER:
            length = int.from_bytes(body[:4], "big")
            yield body[4], body[5], body[_HEADER : 4 + length]
            body = body[4 + length :]


def command_elements(command: bytes) -> list[tuple[int, bytes]]:
    """(element number, value) of a command set, without its group length."""
    found, position = [], 0
    while position + 8 <= len(command):
        element, length = struct.unpack_from("<2xHL", command, position)
        found.append((element, command[position + 8 : position + 8 + length]))
        position += 8 + length
    return [(element, value) for element, value in found if element]


def command_set(elements: Sequence[tuple[int, bytes]]) -> bytes:
    """Encoded again, with its group length."""
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body
