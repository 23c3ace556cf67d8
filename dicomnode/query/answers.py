"""What is told of an entity: rows of the index → Identifiers of C-FIND responses, encoded.

By hand: through pydicom's data sets a match takes longer than finding it. Every attribute of the index but
its sequences has a value representation with a 16-bit length (PS3.5 7.1.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicomnode.attributes import BY_KEYWORD, SEQUENCE_OF, SEQUENCES, Kind, Level
from dicomnode.query.identifier import COMPUTED, Query
from dicomnode.query.sequences import Nested
from dicomnode.records import Contents

_UTF_8 = "ISO_IR 192"
_MAX_VALUE_BYTES = 65534
# In an item: keyword → value.
_ItemValues = dict[str, "str | int | None"]
_Value = str | int | list[str] | list[_ItemValues] | None
# Keyword of a key that is answered from the items of a sequence → column → value of each of them.
Items = Mapping[str, Sequence[Mapping[str, Any]]]
_ITEM = 0xFFFEE000
_NO_ITEMS: Items = {}


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

    def encode(self, row: Mapping[str, Any], contents: Sequence[Contents], items: Items = _NO_ITEMS) -> bytes:
        """One match. row: column → value. contents: what the entity holds, where `needs_contents`.

        items: for each of the query's `nested`.
        """
        values: dict[str, _Value] = {
            keyword: self._value(keyword, row, contents) for keyword in self._query.returned
        }
        for one in self._query.nested:
            values[one.keyword] = _of_items(one, items.get(one.keyword, ()))
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
        if vr == "SQ":
            assert isinstance(value, list)
            data = b"".join(self._item(item, codec) for item in value if isinstance(item, dict))
            return self._header(tag, vr, len(data)) + data
        data = _encoded(vr, value, codec)[:_MAX_VALUE_BYTES]
        data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
        return self._header(tag, vr, len(data)) + data

    def _item(self, item: _ItemValues, codec: str) -> bytes:
        ordered = sorted((*_TAG_AND_VR[keyword], keyword) for keyword in item)
        data = b"".join(self._element(tag, vr, item[keyword], codec) for tag, vr, keyword in ordered)
        return struct.pack("<HHL", _ITEM >> 16, _ITEM & 0xFFFF, len(data)) + data

    def _header(self, tag: int, vr: str, length: int) -> bytes:
        group, number = tag >> 16, tag & 0xFFFF
        if self._implicit:
            return struct.pack("<HHL", group, number, length)
        if vr == "SQ":
            return struct.pack("<HH2sHL", group, number, vr.encode(), 0, length)
        return struct.pack("<HH2sH", group, number, vr.encode(), length)


def _of_items(nested: Nested, rows: Sequence[Mapping[str, Any]]) -> _Value:
    """The items that are told; of the older attribute their values."""
    if nested.is_flat:
        return [str(row[nested.returned[0].column]) for row in rows]
    if not nested.returned:
        return []
    return [{attribute.keyword: row[attribute.column] for attribute in nested.returned} for row in rows]


def _encoded(vr: str, value: _Value, codec: str) -> bytes:
    if value is None:
        return b""
    if isinstance(value, int):
        return struct.pack("<H", value & 0xFFFF) if vr == "US" else str(value).encode()
    text = "\\".join(map(str, value)) if isinstance(value, list) else value
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
    text = "".join(text for value in values for text in _texts(value))
    if text.isascii():
        return ""
    if asked.startswith("ISO_IR") and "\\" not in asked:
        try:
            text.encode(python_encoding[asked])
        except (KeyError, LookupError, UnicodeEncodeError):
            return _UTF_8
        return asked
    return _UTF_8


def _texts(value: _Value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            inner = one.values() if isinstance(one, dict) else (one,)
            yield from (text for text in inner if isinstance(text, str))


def _tag_and_vr(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return int(tag), dictionary_VR(tag)


_TAG_AND_VR = {
    keyword: _tag_and_vr(keyword)
    for keyword in (
        *BY_KEYWORD,
        *COMPUTED,
        *SEQUENCE_OF,
        *(attribute.keyword for sequence in SEQUENCES for attribute in sequence.attributes),
        *("RetrieveAETitle", "InstanceAvailability", "QueryRetrieveLevel", "SpecificCharacterSet"),
    )
}
