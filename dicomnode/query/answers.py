"""What is told of an entity: rows of the index → Identifiers of C-FIND responses, encoded.

By hand: through pydicom's data sets a match takes longer than finding it. Every attribute of the index has
a value representation with a 16-bit length (PS3.5 7.1.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicomnode.attributes import BY_KEYWORD, Kind, Level
from dicomnode.query.identifier import COMPUTED, Query
from dicomnode.records import Contents

_UTF_8 = "ISO_IR 192"
_MAX_VALUE_BYTES = 65534
_Value = str | int | list[str] | None


class Encoder:
    """Encodes the matches of one query. ae_title: ours, where they are retrieved."""

    def __init__(self, query: Query, ae_title: str, *, implicit: bool) -> None:
        self._query = query
        self._ae_title = ae_title
        self._implicit = implicit

    @property
    def needs_contents(self) -> bool:
        """Whether something must be counted for the answers."""
        return any(keyword in COMPUTED for keyword in self._query.returned)

    def encode(self, row: Mapping[str, Any], contents: Sequence[Contents]) -> bytes:
        """One match. row: column → value. contents: what the entity holds, where `needs_contents`."""
        values: dict[str, _Value] = {
            keyword: self._value(keyword, row, contents) for keyword in self._query.returned
        }
        values["QueryRetrieveLevel"] = str(self._query.level)
        character_set = _character_set(values.values(), self._query.character_set)
        if character_set:
            values["SpecificCharacterSet"] = character_set
        codec = python_encoding[character_set]
        ordered = sorted((*_TAG_AND_VR[keyword], keyword) for keyword in values)
        return b"".join(self._element(tag, vr, values[keyword], codec) for tag, vr, keyword in ordered)

    def _value(self, keyword: str, row: Mapping[str, Any], contents: Sequence[Contents]) -> _Value:
        attribute = BY_KEYWORD.get(keyword)
        if attribute is not None:
            value: _Value = row[attribute.column]
            several = attribute.kind is Kind.SHOWN and isinstance(value, str)
            return str(value).split("\\") if several else value
        if keyword == "RetrieveAETitle":
            return self._ae_title
        if keyword == "InstanceAvailability":
            return "ONLINE"  # PS3.3 C.4.23.1.1
        return _computed(keyword, contents)

    def _element(self, tag: int, vr: str, value: _Value, codec: str) -> bytes:
        data = _encoded(vr, value, codec)[:_MAX_VALUE_BYTES]
        data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
        group, number = tag >> 16, tag & 0xFFFF
        if self._implicit:
            return struct.pack("<HHL", group, number, len(data)) + data
        return struct.pack("<HH2sH", group, number, vr.encode(), len(data)) + data


def _encoded(vr: str, value: _Value, codec: str) -> bytes:
    if value is None:
        return b""
    if isinstance(value, int):
        return struct.pack("<H", value & 0xFFFF) if vr == "US" else str(value).encode()
    text = "\\".join(value) if isinstance(value, list) else value
    return text.encode(codec, "replace")


def _computed(keyword: str, contents: Sequence[Contents]) -> int | list[str]:
    if keyword == "ModalitiesInStudy":
        return sorted({c.modality for c in contents if c.modality})
    if keyword == "SOPClassesInStudy":
        return sorted({c.sop_class_uid for c in contents if c.sop_class_uid})
    if keyword.endswith("Instances"):
        return sum(c.instances for c in contents)
    if keyword.endswith("Series"):
        return len({c.series for c in contents})
    assert COMPUTED[keyword] is Level.PATIENT
    return len({c.study for c in contents})


def _character_set(values: Iterable[_Value], asked: str) -> str:
    """Empty for ASCII; the peer's own where it can write the values; else UTF-8 (PS3.3 C.12.1.1.2)."""
    text = "".join(value for value in values if isinstance(value, str))
    if text.isascii():
        return ""
    if asked.startswith("ISO_IR") and "\\" not in asked:
        try:
            text.encode(python_encoding[asked])
        except (KeyError, LookupError, UnicodeEncodeError):
            return _UTF_8
        return asked
    return _UTF_8


def _tag_and_vr(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return int(tag), dictionary_VR(tag)


_TAG_AND_VR = {
    keyword: _tag_and_vr(keyword)
    for keyword in (
        *BY_KEYWORD,
        *COMPUTED,
        *("RetrieveAETitle", "InstanceAvailability", "QueryRetrieveLevel", "SpecificCharacterSet"),
    )
}
