"""Encoded values → text, in the character set of their data set: what the index keeps of an object.

The keys of a query are read in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import islice

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from dicomnode.attributes import (
    BY_TAG,
    FLAT_BY_TAG,
    MAX_ITEMS,
    SEQUENCE_BY_TAG,
    Attribute,
    Item,
    ItemSequence,
    items_text,
)
from dicomnode.reception.defects import Flawed
from dicomnode.reception.elements import Element, Encoding, items

CHARACTER_SET = 0x00080005
_ASCII_VRS = frozenset({"AE", "AS", "CS", "DA", "IS", "TM", "UI"})
# The items of a sequence: each its elements by tag, as they are encoded.
Items = list[dict[int, bytes]]


def attributes_of(values: Mapping[int, bytes], nested: Mapping[int, Items], little: bool) -> dict[str, str]:
    """What the index keeps of a data set, by keyword, where it has a value.

    values, nested: by tag, of what the index keeps and of Specific Character Set.
    """
    encodings = encodings_of(values)
    found = _texts(BY_TAG, values, encodings, little)
    for tag, sequence in SEQUENCE_BY_TAG.items():
        told: list[Item] = [item_texts(sequence, item, encodings, little) for item in nested.get(tag, ())]
        told += _flat_items(sequence, values, encodings, told)
        if text := items_text([item for item in told if item][:MAX_ITEMS]):
            found[sequence.keyword] = text
    return found


def _flat_items(
    sequence: ItemSequence, values: Mapping[int, bytes], encodings: list[str], known: list[Item]
) -> list[Item]:
    """What the older attribute says that the sequence does not."""
    value = next((values[tag] for tag, of in FLAT_BY_TAG.items() if of is sequence and tag in values), b"")
    first = sequence.attributes[0]
    told = {item.get(first.keyword) for item in known}
    texts = (text.strip() for text in text_of(first, value, encodings, True).split("\\"))
    return [{first.keyword: text} for text in dict.fromkeys(texts) if text and text not in told]


def items_in(sequence: ItemSequence, data: memoryview, element: Element, encoding: Encoding) -> Items:
    """The items of a sequence, as far as they can be read; of what the index does not keep only the tags."""
    kept = {CHARACTER_SET, *(attribute.tag for attribute in sequence.attributes)}
    found: Items = []
    with contextlib.suppress(Flawed):
        for item in islice(items(data, element, encoding), MAX_ITEMS):
            found.append({e.tag: bytes(data[e.start : e.end]) if e.tag in kept else b"" for e in item})
    return found


def item_texts(
    sequence: ItemSequence, item: Mapping[int, bytes], encodings: list[str], little: bool
) -> dict[str, str]:
    """By keyword. encodings: of the data set; an item may have others (PS3.3 C.12.1.1.2)."""
    own = encodings_of(item) if CHARACTER_SET in item else encodings
    return _texts({attribute.tag: attribute for attribute in sequence.attributes}, item, own, little)


def _texts(
    attributes: Mapping[int, Attribute], values: Mapping[int, bytes], encodings: list[str], little: bool
) -> dict[str, str]:
    """Those of the attributes that have a value, by keyword."""
    found = {}
    for tag, value in values.items():
        attribute = attributes.get(tag)
        if attribute is None:
            continue
        # Nearly all values are plain; an escape (ISO 2022) is an ASCII character too.
        if attribute.vr != "US" and value.isascii() and b"\x1b" not in value:
            text = value.decode("ascii").strip(" \0")
        else:
            text = text_of(attribute, value, encodings, little)
        if text:
            found[attribute.keyword] = text
    return found


def text_of(attribute: Attribute, value: bytes, encodings: list[str], little: bool) -> str:
    """An encoded value as text, several values with a backslash between them."""
    if attribute.vr == "US":
        return "" if len(value) < 2 else str(int.from_bytes(value[:2], "little" if little else "big"))
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    if attribute.vr in _ASCII_VRS:
        return value.decode("ascii", "replace").strip(" \0")
    if attribute.vr == "PN":
        groups = (decode_bytes(group, encodings, PN_DELIMS) for group in value.split(b"="))
        return "=".join(groups).strip(" \0")
    return decode_bytes(value, encodings, TEXT_VR_DELIMS).strip(" \0")


def encodings_of(values: Mapping[int, bytes]) -> list[str]:
    """Python's names for a data set's Specific Character Set; values: by tag, as they are encoded."""
    names = ascii_of(values, CHARACTER_SET).split("\\")
    try:
        return list(convert_encodings(names))
    except (LookupError, ValueError):
        return ["latin-1"]  # an unknown character set spoils a name, never an object


def ascii_of(values: Mapping[int, bytes], tag: int) -> str:
    """A value that is ASCII in every character set; empty when it is not there."""
    return values.get(tag, b"").decode("ascii", "replace").strip(" \0")
