"""Rows to records, and the look-ups that several transactions share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, func, literal, or_, select

from dicomnode.errors import ConfigurationError
from dicomnode.ledger.schema import CASES, DELIVERIES, INSTANCES, RESULTS, RUNS
from dicomnode.records import Case, HeldObject, Identity, NewRun, Run
from dicomnode.states import State

# A batch of parameters that every SQLite build accepts in one IN (...).
IN_CHUNK = 500
Item = TypeVar("Item")


def in_chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """As many at a time as one IN (...) takes."""
    for start in range(0, len(items), IN_CHUNK):
        yield items[start : start + IN_CHUNK]


def to_record(kind: type[Any], row: Row[Any]) -> Any:
    """A record whose fields are columns of the row by the same names."""
    return kind(**{f.name: row._mapping[f.name] for f in fields(kind) if is_column(f)})


def to_row(record: Any) -> dict[str, Any]:
    """A record's fields that are columns."""
    return {f.name: getattr(record, f.name) for f in fields(record) if is_column(f)}


def is_column(field: Field[Any]) -> bool:
    """Whether a record's field stands in its own table."""
    return bool(field.metadata.get("column", True))


def to_case(row: Row[Any]) -> Case:
    """A row of `cases`."""
    plain = {f.name: row._mapping[f.name] for f in fields(Case) if f.name not in ("state", "identity")}
    return Case(state=State(row.state), identity=to_record(Identity, row), **plain)


def to_run(row: Row[Any]) -> Run:
    """A row of `runs`."""
    return Run(
        row.id,
        row.case_id,
        row.created_at,
        row.predecessor_id,
        row.delivered_at,
        to_record(NewRun, row),
        row.removed_at,
    )


def day(moment: float) -> str:
    """A day as people write it, on this machine's clock."""
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def one_case(connection: Connection, case_id: int) -> Case:
    """A case by its number. Raises ConfigurationError when there is none."""
    return _the_case(connection, case_id, select(CASES))


def locked_case(connection: Connection, case_id: int) -> Case:
    """As `one_case`; nobody else decides about the case until the transaction ends.

    On SQLite the transaction alone sees to that. The case's key is left free for rows that refer to it.
    """
    return _the_case(connection, case_id, select(CASES).with_for_update(key_share=True))


def still_collecting(connection: Connection, as_of: Case) -> Case | None:
    """As `locked_case`; None when an object arrived since, or the case collects no more."""
    current = locked_case(connection, as_of.id)
    same = current.state is State.COLLECTING and current.last_instance_at == as_of.last_instance_at
    return current if same else None


def _the_case(connection: Connection, case_id: int, query: Select[Any]) -> Case:
    row = connection.execute(query.where(CASES.c.id == case_id)).one_or_none()
    if row is None:
        raise ConfigurationError(f"there is no case {case_id}", "`dicomnode cases` lists them")
    return to_case(row)


def known(connection: Connection, uids: Sequence[str]) -> set[str]:
    """Those of the SOP Instance UIDs that are received objects."""
    return held_by(connection, INSTANCES.c.sop_instance_uid, uids)


def held_objects(connection: Connection, table: Table, uids: Sequence[str]) -> dict[str, HeldObject]:
    """What INSTANCES or RESULTS say of the files of objects, by SOP Instance UID."""
    names = [field.name for field in fields(HeldObject)]
    columns = [table.c[name] if name in table.c else literal("").label(name) for name in names]
    found: dict[str, HeldObject] = {}
    for chunk in in_chunks(uids):
        query = select(*columns).where(table.c.sop_instance_uid.in_(chunk))
        found |= {row.sop_instance_uid: to_record(HeldObject, row) for row in connection.execute(query)}
    return found


def held_by(
    connection: Connection, column: ColumnElement[str], values: Sequence[str], *where: ColumnElement[bool]
) -> set[str]:
    """Those of the values that the column has, in the rows for which all of `where` holds."""
    found: set[str] = set()
    for chunk in in_chunks(values):
        found |= set(connection.execute(select(column).where(column.in_(chunk), *where)).scalars())
    return found


def latest_run(connection: Connection, case_id: int) -> Run | None:
    """The newest run that new input did not withdraw."""
    return _newest(connection, case_id, RUNS.c.withdrawn == 0)


def sent_run(connection: Connection, case_id: int) -> Run | None:
    """The newest run of which some object may have left the node."""
    tried = (
        select(func.count())
        .select_from(DELIVERIES.join(RESULTS, RESULTS.c.id == DELIVERIES.c.result_id))
        .where(RESULTS.c.run_id == RUNS.c.id, DELIVERIES.c.tries > 0)
        .scalar_subquery()
    )
    return _newest(connection, case_id, or_(RUNS.c.delivered_at.is_not(None), tried > 0))


def _newest(connection: Connection, case_id: int, condition: Any) -> Run | None:
    query = select(RUNS).where(RUNS.c.case_id == case_id, condition).order_by(RUNS.c.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else to_run(row)
