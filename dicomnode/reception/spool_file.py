"""One file of the spool: DICOM (PS3.10), with length and checksum of its data set in the preamble."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicomnode.checksum import PREAMBLE_BYTES, from_disk, pieces_of, preamble
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.incoming import pieces

# The prefix, and the head of the element that holds the length of the others.
_META_LENGTH = b"DICM" + struct.pack("<HH2sH", 2, 0, b"UL", 4)
_META_START = PREAMBLE_BYTES + len(_META_LENGTH) + 4
# What a damaged length may make us read; that of a sound file is some hundred bytes.
_MOST_META_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Origin:
    """How an object came: what stands beside its data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str
    """AE title of the caller."""


def file_meta(origin: Origin, data: memoryview) -> bytes:
    """Preamble and file meta information, built by hand (PS3.10 7.1).

    The preamble, free for any use, holds the data set's length and checksum.
    """
    group = b"".join(
        (
            struct.pack("<HH2s2xL2s", 2, 0x0001, b"OB", 2, b"\0\1"),
            _meta_element(0x0002, b"UI", origin.sop_class_uid),
            _meta_element(0x0003, b"UI", origin.sop_instance_uid),
            _meta_element(0x0010, b"UI", origin.transfer_syntax_uid),
            _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _meta_element(0x0016, b"AE", origin.peer),  # Source Application Entity Title
        )
    )
    return preamble(pieces(data)) + _META_LENGTH + struct.pack("<L", len(group)) + group


def split_file(content: memoryview) -> tuple[Origin, memoryview]:
    """A file of the spool → how it came, and its data set.

    Raises Flawed(CUT_SHORT) when the file is not whole.
    """
    end = _end_of_meta(content)
    data = content[end:]
    if content[:PREAMBLE_BYTES] != preamble(pieces(data)):
        raise Flawed(Defect.CUT_SHORT, "its checksum is not that of its data set")
    return _origin(content[:end]), data


def read_back(path: Path) -> Origin:
    """As `split_file`, of a file on disk, with no more of it in memory than a piece. Raises OSError too."""
    with from_disk(path) as file:
        head = file.read(_META_START)
        head += file.read(min(_end_of_meta(memoryview(head)) - len(head), _MOST_META_BYTES))
        if head[:PREAMBLE_BYTES] != preamble(pieces_of(file)):
            raise Flawed(Defect.CUT_SHORT, "its checksum is not that of its data set")
    return _origin(memoryview(head))


def _end_of_meta(content: memoryview) -> int:
    if len(content) < _META_START:
        raise Flawed(Defect.CUT_SHORT, "its file meta information is missing")
    if content[PREAMBLE_BYTES : _META_START - 4] != _META_LENGTH:
        raise Flawed(Defect.CUT_SHORT, "its file meta information is damaged")
    return _META_START + int(struct.unpack_from("<L", content, _META_START - 4)[0])


def _origin(head: memoryview) -> Origin:
    try:
        values = dict(_meta_elements(head[_META_START:]))
        return Origin(values[0x0002], values[0x0003], values[0x0010], values[0x0016])
    except (KeyError, struct.error):
        raise Flawed(Defect.CUT_SHORT, "its file meta information is damaged") from None


def _meta_elements(group: memoryview) -> Iterator[tuple[int, str]]:
    position = 0
    while position + 8 <= len(group):
        number, vr, length = struct.unpack_from("<2xH2sH", group, position)
        position += 8
        if vr == b"OB":
            length = struct.unpack_from("<L", group, position)[0]
            position += 4
        yield number, bytes(group[position : position + length]).decode("latin-1").strip(" \0")
        position += length


def _meta_element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value
