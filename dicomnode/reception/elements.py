"""The structure of an encoded data set: which element stands where, and whether it ends where it says.

PS3.5 chapter 7. pydicom reads a short last element without complaint and leaves nested sequences for
later; a receiver must know both before it acknowledges. Nothing is copied or decoded here.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from pydicom.datadict import dictionary_VR, keyword_for_tag

from dicomnode.reception.defects import Defect, Flawed

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
# Deeper nesting than any IOD has; ends a data set that was built to exhaust the stack.
MAX_DEPTH = 32

# PS3.5 tables 7.1-1 and 7.1-2.
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())


class Encoding(NamedTuple):
    """How elements are encoded."""

    implicit: bool
    little: bool


class Element(NamedTuple):
    """Where a top-level element's value stands."""

    tag: int
    start: int
    """Offset of the value's first byte."""
    end: int
    """Offset of the byte after the value; delimiters of an undefined length are part of it."""
    undefined_length: bool
    vr: bytes = b""
    """As it is encoded; empty in implicit VR."""


class _Header(NamedTuple):
    tag: int
    vr: bytes
    start: int
    length: int


_IMPLICIT_LITTLE = Encoding(implicit=True, little=True)
_TAG = {True: struct.Struct("<HH"), False: struct.Struct(">HH")}
_U16 = {True: struct.Struct("<H"), False: struct.Struct(">H")}
_U32 = {True: struct.Struct("<L"), False: struct.Struct(">L")}


def elements(data: memoryview, encoding: Encoding) -> Iterator[Element]:
    """The top-level elements of a data set, every one checked down to its innermost item.

    Raises Flawed: UNREADABLE for what is no element, CUT_SHORT for one that the data do not hold.
    """
    position, end = 0, len(data)
    while position < end:
        header = _read_header(data, position, end, encoding)
        # PS3.5 7.1: command and file meta elements never stand in a data set; readers would take
        # the latter for the file's own.
        if header.tag >> 16 in (0x0000, 0x0002, 0xFFFE):
            raise Flawed(Defect.UNREADABLE, f"element {_name(header.tag)} in a data set")
        position = _value_end(data, header, end, encoding, 0)
        yield Element(header.tag, header.start, position, header.length == UNDEFINED, header.vr)


def items(data: memoryview, sequence: Element, encoding: Encoding) -> Iterator[list[Element]]:
    """The elements of each item of a sequence. sequence: as `elements` gave it.

    Raises Flawed: what comes as UN with a length has not been checked.
    """
    if sequence.vr not in (b"", b"SQ", b"UN"):
        return
    # PS3.5 6.2.2: whatever is within UN, is in implicit VR little endian.
    inner = _IMPLICIT_LITTLE if sequence.vr == b"UN" else encoding
    position = sequence.start
    while position < sequence.end:
        item = _item_header(data, position, sequence.end, inner)
        if item.tag != ITEM:
            return
        delimited = item.length == UNDEFINED
        end = sequence.end if delimited else min(item.start + item.length, sequence.end)
        found, position = _item_elements(data, item.start, end, inner, delimited=delimited)
        yield found


def _item_elements(
    data: memoryview, position: int, end: int, encoding: Encoding, *, delimited: bool
) -> tuple[list[Element], int]:
    """The elements of an item, and the offset behind it."""
    found: list[Element] = []
    while position < end:
        header = _read_header(data, position, end, encoding)
        if header.tag == ITEM_END and delimited:
            return found, header.start
        position = _value_end(data, header, end, encoding, 1)
        found.append(Element(header.tag, header.start, position, header.length == UNDEFINED, header.vr))
    return found, position


def fragments(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the items of an encapsulated Pixel Data element (PS3.5 A.4).

    start, end: as in its Element, whose structure has been checked. The first item is the offset table.
    """
    while start < end:
        header = _item_header(data, start, end, Encoding(implicit=False, little=True))
        if header.tag != ITEM:
            return
        yield header.start, header.length
        start = header.start + header.length


def _read_header(data: memoryview, position: int, end: int, encoding: Encoding) -> _Header:
    if position + 8 > end:
        raise Flawed(Defect.CUT_SHORT, f"{end - position} bytes are left where an element should begin")
    group, number = _TAG[encoding.little].unpack_from(data, position)
    tag = group << 16 | number
    if encoding.implicit or group == 0xFFFE:
        return _Header(tag, b"", position + 8, _U32[encoding.little].unpack_from(data, position + 4)[0])
    vr = bytes(data[position + 4 : position + 6])
    if vr in _SHORT_VRS:
        return _Header(tag, vr, position + 8, _U16[encoding.little].unpack_from(data, position + 6)[0])
    if vr not in _LONG_VRS:
        raise Flawed(Defect.UNREADABLE, f"element {_name(tag)} has no valid value representation")
    if position + 12 > end:
        raise Flawed(Defect.CUT_SHORT, f"element {_name(tag)}")
    return _Header(tag, vr, position + 12, _U32[encoding.little].unpack_from(data, position + 8)[0])


def _value_end(data: memoryview, header: _Header, end: int, encoding: Encoding, depth: int) -> int:
    """Offset behind the value. depth: how many items it is nested in."""
    if depth > MAX_DEPTH:
        raise Flawed(Defect.UNREADABLE, f"sequences are nested deeper than {MAX_DEPTH}")
    if header.length == UNDEFINED:
        if header.tag == PIXEL_DATA:
            return _encapsulated_end(data, header, end, encoding)
        # PS3.5 6.2.2 note 4: UN of undefined length holds items in implicit VR little endian.
        inner = _IMPLICIT_LITTLE if header.vr == b"UN" else encoding
        if header.vr not in (b"", b"SQ", b"UN"):
            raise Flawed(Defect.UNREADABLE, f"element {_name(header.tag)} must not have undefined length")
        return _items_end(data, header.start, end, inner, depth, delimited=True)
    value_end = header.start + header.length
    if value_end > end:
        defect = Defect.PIXEL_DATA_CUT_SHORT if header.tag == PIXEL_DATA and not depth else Defect.CUT_SHORT
        missing = f"element {_name(header.tag)} lacks {value_end - end} of its {header.length} bytes"
        raise Flawed(defect, missing)
    if header.vr == b"SQ" or (encoding.implicit and _is_sequence(header.tag)):
        _items_end(data, header.start, value_end, encoding, depth, delimited=False)
    return value_end


def _items_end(
    data: memoryview, position: int, end: int, encoding: Encoding, depth: int, *, delimited: bool
) -> int:
    """Offset behind a sequence's items, and behind its delimiter when it has one."""
    while delimited or position < end:
        header = _item_header(data, position, end, encoding)
        if header.tag == SEQUENCE_END and delimited:
            return header.start
        if header.tag != ITEM:
            raise Flawed(Defect.UNREADABLE, f"{_name(header.tag)} where an item should begin")
        if header.length == UNDEFINED:
            position = _item_end(data, header.start, end, encoding, depth, delimited=True)
        else:
            item_end = header.start + header.length
            if item_end > end:
                raise Flawed(Defect.CUT_SHORT, "an item is longer than its sequence")
            position = _item_end(data, header.start, item_end, encoding, depth, delimited=False)
    return position


def _item_end(
    data: memoryview, position: int, end: int, encoding: Encoding, depth: int, *, delimited: bool
) -> int:
    while delimited or position < end:
        header = _read_header(data, position, end, encoding)
        if header.tag == ITEM_END and delimited:
            return header.start
        if header.tag >> 16 == 0xFFFE:
            raise Flawed(Defect.UNREADABLE, f"{_name(header.tag)} where an element should begin")
        position = _value_end(data, header, end, encoding, depth + 1)
    return position


def _encapsulated_end(data: memoryview, header: _Header, end: int, encoding: Encoding) -> int:
    if encoding.implicit or not encoding.little:
        raise Flawed(Defect.UNREADABLE, "compressed Pixel Data in an uncompressed transfer syntax")
    position = header.start
    try:
        while True:
            item = _item_header(data, position, end, encoding)
            if item.tag == SEQUENCE_END:
                return item.start
            if item.tag != ITEM or item.length == UNDEFINED:
                raise Flawed(Defect.UNREADABLE, f"{_name(item.tag)} where a fragment should begin")
            position = item.start + item.length
            if position > end:
                raise Flawed(Defect.CUT_SHORT)
    except Flawed as flaw:
        if flaw.defect is Defect.CUT_SHORT:
            raise Flawed(Defect.PIXEL_DATA_CUT_SHORT, "its end is missing") from None
        raise


def _item_header(data: memoryview, position: int, end: int, encoding: Encoding) -> _Header:
    header = _read_header(data, position, end, encoding)
    if header.tag >> 16 != 0xFFFE:
        raise Flawed(Defect.UNREADABLE, f"{_name(header.tag)} where an item should begin")
    return header


@functools.lru_cache(maxsize=4096)
def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False


def _name(tag: int) -> str:
    return f"{keyword_for_tag(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})".lstrip()
