"""The header of a received object: read before the acknowledgement, nothing decoded.

`inspect` finds every defect that can be seen without decoding pixels and returns what the spool and
the ledger need to know.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydicom.charset import python_encoding
from pydicom.uid import UID

from dicomnode.attributes import BY_TAG, FLAT_BY_TAG, SEQUENCE_BY_TAG
from dicomnode.contexts import IMAGE_CLASSES
from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.elements import PIXEL_DATA, Element, Encoding, elements, fragments
from dicomnode.reception.incoming import ANYWHERE, Scratch
from dicomnode.reception.texts import CHARACTER_SET, Items, ascii_of, attributes_of, items_in

# PS3.5 chapter 9. Leading zeros are forbidden there and harmless here, so they pass.
_UID = re.compile(r"(?=.{1,64}\Z)\d+(\.\d+)*", re.ASCII)
# Of a refused deflated object: enough for the elements before Study Instance UID.
_BEGINNING_BYTES = 1 << 20
# What is given to zlib at once: it copies what it has not used.
_DEFLATED_PIECE_BYTES = 1 << 16

_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_ACCESSION = 0x00080050
_MODALITY = 0x00080060
_PATIENT_ID = 0x00100020
_ISSUER = 0x00100021
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_SAMPLES = 0x00280002
_PHOTOMETRIC = 0x00280004
_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_BITS_ALLOCATED = 0x00280100
_WANTED = frozenset(
    {
        *(CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE, _ACCESSION, _MODALITY, _PATIENT_ID, _ISSUER),
        *(_STUDY, _SERIES, _SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS_ALLOCATED),
        *BY_TAG,
        *FLAT_BY_TAG,
    }
)
_LAST_INDEXED = max(BY_TAG)
# PS3.10 7.1: preamble and prefix, then File Meta Information Group Length, 12 bytes with its value.
_META_START = 144
# An Integer String (PS3.5 table 6.2-1). Python refuses to make a number of thousands of digits.
_IS_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Header:
    """What an object says about itself. The UIDs are valid and safe in a path."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    patient_id: str
    issuer_of_patient_id: str
    accession_number: str
    attributes: Mapping[str, str]
    """By keyword: what the index keeps of it, where it has a value."""
    unknown_character_set: str = ""
    """Its Specific Character Set, where that is not one of the Standard's."""


class _Syntax(NamedTuple):
    """What a transfer syntax says of a data set."""

    encoding: Encoding
    is_deflated: bool
    is_encapsulated: bool


@functools.lru_cache(maxsize=64)
def _syntax_of(transfer_syntax_uid: str) -> _Syntax:
    """pydicom looks at the UID's characters each time. Raises ValueError for what is no transfer syntax."""
    uid = UID(transfer_syntax_uid)
    encoding = Encoding(implicit=uid.is_implicit_VR, little=uid.is_little_endian)
    return _Syntax(encoding, uid.is_deflated, uid.is_encapsulated)


def is_valid_uid(text: str) -> bool:
    """Digits and dots, 64 characters at most, no empty component."""
    return _UID.fullmatch(text) is not None


def inspect(data: memoryview, transfer_syntax_uid: str, scratch: Scratch = ANYWHERE) -> Header:
    """Read and check a data set. data: as it came over the wire, without file meta information.

    scratch: where a deflated one is inflated, and how large it may become.
    Raises Flawed with the first defect.
    """
    with _readable():
        return _inspected(data, _syntax_of(transfer_syntax_uid), scratch)


def _inspected(data: memoryview, syntax: _Syntax, scratch: Scratch) -> Header:
    if syntax.is_deflated:
        data = _inflate(data, scratch)
    encoding = syntax.encoding
    values: dict[int, bytes] = {}
    nested: dict[int, Items] = {}
    pixel_data: Element | None = None
    for element in elements(data, encoding):
        if element.tag in _WANTED:
            values[element.tag] = bytes(data[element.start : element.end])
        elif element.tag in SEQUENCE_BY_TAG:
            nested[element.tag] = items_in(SEQUENCE_BY_TAG[element.tag], data, element, encoding)
        elif element.tag == PIXEL_DATA:
            pixel_data = element
    header = _header(values, nested, encoding.little)
    if pixel_data is not None:
        _check_pixel_data(data, pixel_data, _Description(values, encoding.little), syntax.is_encapsulated)
    elif header.sop_class_uid in IMAGE_CLASSES:
        raise Flawed(Defect.NO_PIXEL_DATA)
    return header


def study_instance_uid(data: memoryview, transfer_syntax_uid: str) -> str:
    """What can be known of a refused object's study; empty when it is not known."""
    syntax = _syntax_of(transfer_syntax_uid)
    encoding = syntax.encoding
    with contextlib.suppress(Flawed, zlib.error), _readable():
        if syntax.is_deflated:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                data[:_BEGINNING_BYTES], _BEGINNING_BYTES
            )
            data = memoryview(inflated)
        for element in elements(data, encoding):
            if element.tag >= _STUDY:
                uid = ascii_of({element.tag: bytes(data[element.start : element.end])}, _STUDY)
                return uid if is_valid_uid(uid) else ""
    return ""


def describe(data: memoryview, transfer_syntax_uid: str) -> dict[str, str]:
    """What the index keeps of a data set, by keyword. Raises Flawed when it cannot be read that far."""
    syntax = _syntax_of(transfer_syntax_uid)
    if syntax.is_deflated:
        data = _inflate(data)
    encoding = syntax.encoding
    values: dict[int, bytes] = {}
    nested: dict[int, Items] = {}
    with _readable():
        for element in elements(data, encoding):
            if element.tag > _LAST_INDEXED:
                break
            if element.tag in _WANTED:
                values[element.tag] = bytes(data[element.start : element.end])
            elif element.tag in SEQUENCE_BY_TAG:
                nested[element.tag] = items_in(SEQUENCE_BY_TAG[element.tag], data, element, encoding)
        return attributes_of(values, nested, encoding.little)


def describe_file(path: Path, transfer_syntax_uid: str) -> dict[str, str]:
    """As `describe`, of a DICOM file. Raises Flawed or OSError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if len(content) < _META_START:
            raise Flawed(Defect.CUT_SHORT, "its file meta information is missing")
        start = _META_START + int.from_bytes(content[_META_START - 4 : _META_START], "little")
        with memoryview(content) as whole, whole[start:] as data:
            return describe(data, transfer_syntax_uid)


def inflated_bytes(path: Path, most: int) -> int:
    """The size of a deflated file's data set, inflated; counted little further than `most`."""
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(_META_START - 4)
        file.seek(_META_START + int.from_bytes(file.read(4), "little"))
        while size <= most and not stream.eof:
            piece = stream.unconsumed_tail or file.read(_DEFLATED_PIECE_BYTES)
            inflated = len(stream.decompress(piece, _BEGINNING_BYTES))
            if not piece and not inflated:
                break
            size += inflated
    return size


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Read what a peer has sent: whatever its bytes lead to is Flawed, and no error of the node's.

    Character sets, numbers and lengths are decoded by pydicom and Python, which raise what they like.
    """
    try:
        yield
    except (Flawed, OSError, MemoryError, zlib.error):  # the disk's and the machine's are the node's own
        raise
    except Exception as error:
        raise Flawed(Defect.UNREADABLE, type(error).__name__) from error


def _inflate(data: memoryview, scratch: Scratch = ANYWHERE) -> memoryview:
    """Piece by piece: a few kilobytes may stand for gigabytes. What is large lies in a file."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)  # PS3.5 A.5: raw deflate, RFC 1951
    inflated = scratch.new()
    try:
        for start in range(0, len(data), _DEFLATED_PIECE_BYTES):
            rest: bytes | memoryview = data[start : start + _DEFLATED_PIECE_BYTES]
            more = True
            while more and not stream.eof and inflated.flaw is None:
                piece = stream.decompress(rest, _BEGINNING_BYTES)
                inflated.write(piece)
                rest = stream.unconsumed_tail
                more = bool(rest) or len(piece) == _BEGINNING_BYTES
    except zlib.error:
        raise Flawed(Defect.UNREADABLE, "it cannot be inflated") from None
    if inflated.flaw is None and not stream.eof:
        raise Flawed(Defect.CUT_SHORT, "the deflated stream does not end")
    return inflated.getbuffer()


def _header(values: Mapping[int, bytes], nested: Mapping[int, Items], little: bool) -> Header:
    attributes = attributes_of(values, nested, little)
    return Header(
        ascii_of(values, _SOP_CLASS),
        _valid_uid(values, _SOP_INSTANCE, Defect.SOP_INSTANCE_UID),
        _valid_uid(values, _STUDY, Defect.STUDY_INSTANCE_UID),
        _valid_uid(values, _SERIES, Defect.SERIES_INSTANCE_UID),
        ascii_of(values, _MODALITY),
        attributes.get("PatientID", ""),
        attributes.get("IssuerOfPatientID", ""),
        attributes.get("AccessionNumber", ""),
        attributes,
        _unknown_character_set(values),
    )


def _unknown_character_set(values: Mapping[int, bytes]) -> str:
    name = ascii_of(values, CHARACTER_SET)
    # PS3.3 C.12.1.1.2
    return "" if all(one.strip() in python_encoding for one in name.split("\\")) else name


def _valid_uid(values: Mapping[int, bytes], tag: int, defect: Defect) -> str:
    if tag not in values:
        raise Flawed(defect, "it is missing")
    uid = ascii_of(values, tag)
    if not is_valid_uid(uid):
        raise Flawed(defect, f"it is {uid[:80]!r}" if uid else "it is empty")
    return uid


class _Description:
    """What the Image Pixel Module says (PS3.3 C.7.6.3)."""

    def __init__(self, values: Mapping[int, bytes], little: bool) -> None:
        self._values = values
        self._short = struct.Struct("<H" if little else ">H")
        self.frames = self._frame_count()

    def _number(self, tag: int, name: str) -> int:
        value = self._values.get(tag, b"")
        number: int = self._short.unpack(value)[0] if len(value) == 2 else 0
        if number == 0:
            raise Flawed(Defect.PIXEL_DESCRIPTION, name)
        return number

    def _frame_count(self) -> int:
        text = ascii_of(self._values, _FRAMES)
        if not text:
            return 1
        if len(text) > _IS_CHARACTERS or not text.lstrip("+").isdecimal() or int(text) == 0:
            raise Flawed(Defect.PIXEL_DESCRIPTION, "NumberOfFrames")
        return int(text)

    def native_bytes(self) -> int:
        """Length of the uncompressed pixel data (PS3.5 8.1.1)."""
        pixels = self._number(_ROWS, "Rows") * self._number(_COLUMNS, "Columns") * self.frames
        # PS3.3 C.7.6.3.1.2: two chroma samples are shared by two pixels.
        subsampled = ascii_of(self._values, _PHOTOMETRIC) == "YBR_FULL_422"
        samples = 2 if subsampled else self._number(_SAMPLES, "SamplesPerPixel")
        return (pixels * samples * self._number(_BITS_ALLOCATED, "BitsAllocated") + 7) // 8


def _check_pixel_data(
    data: memoryview, element: Element, description: _Description, encapsulated: bool
) -> None:
    required = description.native_bytes()
    if element.undefined_length != encapsulated:
        raise Flawed(Defect.UNREADABLE, "Pixel Data is not encoded as its transfer syntax says")
    if encapsulated:
        _check_fragments(data, element, description.frames)
        return
    found = element.end - element.start
    # An odd length is padded by one byte (PS3.5 8.1.1); some writers leave the byte out.
    if found not in (required, required + required % 2):
        defect = Defect.PIXEL_DATA_CUT_SHORT if found < required else Defect.PIXEL_DATA_LENGTH
        raise Flawed(defect, f"{found} bytes instead of {required}")


def _check_fragments(data: memoryview, element: Element, frames: int) -> None:
    _offset_table, *items = [length for _, length in fragments(data, element.start, element.end)] or [0]
    filled = sum(length > 0 for length in items)
    if filled < frames:
        raise Flawed(Defect.PIXEL_DATA_FRAMES, f"{filled} fragments for {frames} frames")
