"""The items of sequences in the index: of each study or series those of the first object that has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, insert, select

from dicomnode.attributes import SEQUENCES, ItemSequence, Level, items_of
from dicomnode.ledger.schema import HELD_ITEMS


def add_items(
    connection: Connection, level: Level, owner: int, described: Sequence[Mapping[str, str]]
) -> None:
    """What objects say of the patient, or of the series, whose row is `owner`; nothing if that is known."""
    for sequence in SEQUENCES:
        if sequence.level is not level:
            continue
        text = next((text for one in described if (text := one.get(sequence.keyword))), "")
        if text and not _has_items(connection, sequence, owner):
            connection.execute(insert(HELD_ITEMS[sequence]), _rows(sequence, owner, text))


def forget_items(connection: Connection, owner_column: str, owners: Sequence[int]) -> None:
    """Studies or series go."""
    for sequence, table in HELD_ITEMS.items():
        if sequence.owner == owner_column:
            connection.execute(delete(table).where(table.c[owner_column].in_(owners)))


def _has_items(connection: Connection, sequence: ItemSequence, owner: int) -> bool:
    table = HELD_ITEMS[sequence]
    query = select(table.c.id).where(table.c[sequence.owner] == owner).limit(1)
    return connection.execute(query).first() is not None


def _rows(sequence: ItemSequence, owner: int, text: str) -> list[dict[str, str | int | None]]:
    rows = []
    for item in items_of(text):
        row: dict[str, str | int | None] = {sequence.owner: owner}
        for attribute in sequence.attributes:
            row |= attribute.stored(item.get(attribute.keyword, ""))
        rows.append(row)
    return rows
