"""The command sets of C-STORE and of C-FIND's matches, read and written by hand.

Through pydicom's data sets each takes longer than the disk takes for a slice. What is not exactly a
sound C-STORE request is left to pynetdicom.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO

from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_STORE

P_DATA_TF = 0x04  # PS3.8 9.3.5
LAST_COMMAND_FRAGMENT = 0x03  # PS3.8 E.2
_LAST_DATA_FRAGMENT = 0x02
_C_STORE_RQ = b"\x01\x00"
_C_STORE_RSP = 0x8001
_C_FIND_RSP = 0x8020
_DATA_SET = 0x0001
_NO_DATA_SET = 0x0101
_NO_DATA = struct.pack("<H", _NO_DATA_SET)
_UID = re.compile(r"[0-9.]{1,64}")  # what more it must be, the receiver says with a status


def c_store_rq(command: bytes) -> C_STORE | None:
    """The request in a command set (PS3.7 9.3.1.1, always implicit VR little endian).

    returns: None for what is no C-STORE request, or not a sound one: pynetdicom knows what to do.
    """
    values: dict[int, bytes] = {}
    position = 0
    while position + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHL", command, position)
        position += 8
        if group != 0 or position + length > len(command):
            return None
        values[element] = bytes(command[position : position + length])
        position += length
    if values.get(0x0100) != _C_STORE_RQ or values.get(0x0800, _NO_DATA) == _NO_DATA:
        return None
    class_uid, instance_uid = (values.get(e, b"").rstrip(b"\0 ").decode("latin-1") for e in (0x0002, 0x1000))
    if not (_UID.fullmatch(class_uid) and _UID.fullmatch(instance_uid)) or len(values.get(0x0110, b"")) != 2:
        return None
    request = C_STORE()
    request.MessageID = int.from_bytes(values[0x0110], "little")
    # pynetdicom's setters would make each UID once more and look at its characters twice; `_UID` has.
    request._affected_sop_class_uid, request._affected_sop_instance_uid = (
        UID(uid, validation_mode=IGNORE) for uid in (class_uid, instance_uid)
    )
    request.Priority = int.from_bytes(values.get(0x0700, b"\2\0"), "little")
    request.DataSet = BytesIO()
    return request


def c_store_rsp(request: C_STORE, context_id: int, status: Dataset) -> bytes:
    """A P-DATA-TF with the answer (PS3.7 9.3.1.2, PS3.8 9.3.5), encoded by hand: pydicom takes as long
    for it as the disk takes for the object. status: Status, and ErrorComment where there is one."""
    comment = str(status.get("ErrorComment", ""))
    command = b"".join(
        (
            _text_element(0x0002, str(request.AffectedSOPClassUID), "\0"),
            _short_element(0x0100, _C_STORE_RSP),
            _short_element(0x0120, request.MessageID or 0),
            _short_element(0x0800, _NO_DATA_SET),
            _short_element(0x0900, status.Status),
            _text_element(0x0902, comment, " ") if comment else b"",
            _text_element(0x1000, str(request.AffectedSOPInstanceUID), "\0"),
        )
    )
    command = struct.pack("<HHLL", 0, 0, 4, len(command)) + command
    value = struct.pack(">LBB", len(command) + 2, context_id, LAST_COMMAND_FRAGMENT) + command
    return struct.pack(">BxL", P_DATA_TF, len(value)) + value


def c_find_rsp(class_uid: str, message_id: int, status: int) -> bytes:
    """The command of a pending response with a match (PS3.7 9.3.2.2), in one fragment."""
    command = b"".join(
        (
            _text_element(0x0002, class_uid, "\0"),
            _short_element(0x0100, _C_FIND_RSP),
            _short_element(0x0120, message_id),
            _short_element(0x0800, _DATA_SET),
            _short_element(0x0900, status),
        )
    )
    return bytes((LAST_COMMAND_FRAGMENT,)) + struct.pack("<HHLL", 0, 0, 4, len(command)) + command


def data_fragments(data: bytes, length: int) -> Iterator[bytes]:
    """A data set in fragments of at most `length` bytes, each with its control header (PS3.8 E.2)."""
    for start in range(0, len(data), length):
        last = start + length >= len(data)
        yield bytes((_LAST_DATA_FRAGMENT if last else 0,)) + data[start : start + length]


def _short_element(number: int, value: int) -> bytes:
    return struct.pack("<HHLH", 0, number, 2, value)


def _text_element(number: int, text: str, padding: str) -> bytes:
    value = (text + padding * (len(text) % 2)).encode("ascii", "replace")
    return struct.pack("<HHL", 0, number, len(value)) + value
