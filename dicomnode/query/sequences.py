"""Sequence matching (PS3.4 C.2.2.2.6): keys that are answered from the items of a sequence.

A request has one item, whose keys must all match within one and the same item; the items that match are
returned, with the attributes that are asked for. No item, or one without keys, asks for all of it. An older
attribute that has the first attribute's values alone, as OtherPatientIDs has, is a key of the same items;
where one of its values matches, all are returned (C.2.2.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomnode.attributes import SEQUENCE_OF, Attribute, Condition, InItem, ItemSequence
from dicomnode.query.matching import BadKey, conditions
from dicomnode.reception.texts import CHARACTER_SET, Items, item_texts


@dataclass(frozen=True, slots=True)
class ItemKeys:
    """A sequence as a key, as it stands in a request."""

    items: tuple[dict[str, str], ...]
    """Of each item keyword → value, of the attributes that the index has."""
    others: int = 0
    """How many keys there are in them of which the index knows nothing."""


@dataclass(frozen=True, slots=True)
class Nested:
    """A key that is answered from the items of a sequence."""

    keyword: str
    sequence: ItemSequence
    returned: tuple[Attribute, ...]
    """What is told of an item."""
    conditions: tuple[Condition, ...]
    """What an item must fulfil."""

    @property
    def is_flat(self) -> bool:
        """Whether it is the older attribute, without items."""
        return self.keyword == self.sequence.flat

    @property
    def told(self) -> tuple[Condition, ...]:
        """Which items are returned."""
        return () if self.is_flat else self.conditions

    @property
    def wanted(self) -> tuple[InItem, ...]:
        """What an entity must fulfil."""
        return (InItem(self.sequence, self.conditions),) if self.conditions else ()


def item_keys(sequence: ItemSequence, items: Items, encodings: list[str], little: bool) -> ItemKeys:
    """The keys within a sequence. encodings: of the Identifier."""
    known = {attribute.tag: attribute.keyword for attribute in sequence.attributes}
    found = tuple(
        {
            **{known[tag]: "" for tag in item if tag in known},
            **item_texts(sequence, item, encodings, little),
        }
        for item in items
    )
    aside = {*known, CHARACTER_SET}
    return ItemKeys(found, sum(tag not in aside and tag & 0xFFFF != 0 for item in items for tag in item))


def nested(keyword: str, keys: ItemKeys) -> Nested:
    """What a key asks for. Raises BadKey."""
    sequence = SEQUENCE_OF[keyword]
    if len(keys.items) > 1:
        raise BadKey("more than one item in a request")
    item = keys.items[0] if keys.items else {}
    known = sequence.by_keyword
    wanted = tuple(found for name, value in item.items() for found in conditions(known[name], value))
    # Of an item in which nothing is asked for that we know, nothing is told.
    every = sequence.attributes if not item and not keys.others else ()
    returned = tuple(known[name] for name in item) or every
    return Nested(keyword, sequence, tuple(sorted(returned, key=lambda a: a.tag)), wanted)
