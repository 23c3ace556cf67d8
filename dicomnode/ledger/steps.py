"""What happens inside a transaction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dicomnode.ledger.index import show_results
from dicomnode.ledger.rows import to_case
from dicomnode.ledger.schema import ATTEMPTS, CASES, RUNS, TRANSITIONS
from dicomnode.records import Case, Instance
from dicomnode.states import Event, State, advance


def insert_row(connection: Connection, table: Table, **values: Any) -> int:
    """Add a row. returns: its number."""
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows; those whose key another node added first are left out."""
    connection.execute(_inserting_new(connection, table), list(rows))


def _inserting_new(connection: Connection, table: Table) -> Any:
    """INSERT ... ON CONFLICT DO NOTHING, which each dialect has in a class of its own."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table).on_conflict_do_nothing()


# How a remedy names a command; whoever found the reason need not know the case's number.
_COMMAND = re.compile(r"`dicomnode (retry|show|discard)(?=[` ])(?! \d)")
_ARGUMENTS = {"retry": "", "show": "", "discard": " --series UID"}


def _numbered(remedy: str, case_id: int) -> str:
    """A remedy whose commands can be typed as they stand."""
    return _COMMAND.sub(lambda m: f"`dicomnode {m[1]} {case_id}{_ARGUMENTS[m[1]]}", remedy)


def after(moment: float, at_least: float) -> float:
    """A time of the last object that differs from the one before, also when the clock was set back.

    An assembly under way compares it to learn of objects that it has not seen.
    """
    return max(at_least, math.nextafter(moment, math.inf))


def step(
    connection: Connection,
    case: Case,
    happened: Event,
    now: float,
    *,
    reason: str = "",
    remedy: str = "",
    **columns: Any,
) -> State:
    """Advance a case and write the row that tells of it."""
    state = advance(case.state, happened)
    remedy = _numbered(remedy, case.id)
    # A case that collects hears INSTANCE for every batch: the story tells of it once.
    if (case.state, happened) != (State.COLLECTING, Event.INSTANCE):
        insert_row(
            connection,
            TRANSITIONS,
            case_id=case.id,
            at=now,
            from_state=str(case.state),
            to_state=str(state),
            event=str(happened),
            reason=reason,
            remedy=remedy,
        )
    if happened is Event.INSTANCE:
        columns |= _on_new_input(connection, case, now)
    if state is not case.state:
        columns |= {"notified_at": None}
    kept = {"reason": reason, "remedy": remedy} if state is not case.state or reason else {}
    connection.execute(
        update(CASES).where(CASES.c.id == case.id).values(state=str(state), updated_at=now, **kept, **columns)
    )
    return state


def receive(connection: Connection, study_uid: str, instances: list[Instance], now: float) -> int:
    """Tell the case of a study, a new one if need be, of its new objects. returns: its number."""
    # Batches may come in another order than their objects: never earlier than this registration,
    # so that an assembly under way notices it.
    latest = max(now, *(i.received_at for i in instances))
    case = case_of(connection, study_uid)
    if case is None:
        first = instances[0]
        identity = {
            "patient_id": first.patient_id,
            "issuer_of_patient_id": first.issuer_of_patient_id,
            "accession_number": first.accession_number,
        }
        reason = f"the first object came from {first.peer}"
        opened = _open_case(connection, study_uid, identity, reason, latest, now)
        if opened is not None:
            return opened
        # Another receiver opened it between the two statements.
        case = case_of(connection, study_uid)
        assert case is not None
    many = f"{len(instances)} more objects" if len(instances) > 1 else "1 more object"
    reason = "" if case.state is State.COLLECTING else f"{many} from {instances[0].peer}"
    latest = after(case.last_instance_at, latest)
    step(connection, case, Event.INSTANCE, now, reason=reason, last_instance_at=latest)
    return case.id


def case_of_any(connection: Connection, study_uid: str, now: float) -> Case:
    """As `case_of`; a new one if need be, of which nothing is known but its study."""
    case = case_of(connection, study_uid)
    if case is None:
        _open_case(connection, study_uid, {}, "no object of it could be registered", now, now)
        # By this transaction, or by another receiver between the two statements.
        case = case_of(connection, study_uid)
        assert case is not None
    return case


def case_of(connection: Connection, study_uid: str) -> Case | None:
    """The case of a study, locked as by `rows.locked_case`."""
    query = select(CASES).where(CASES.c.study_instance_uid == study_uid).with_for_update(key_share=True)
    row = connection.execute(query).one_or_none()
    return None if row is None else to_case(row)


def _open_case(
    connection: Connection,
    study_uid: str,
    identity: Mapping[str, str],
    reason: str,
    last_instance_at: float,
    now: float,
) -> int | None:
    """returns: None when another receiver has opened it at the same time."""
    values = {
        "study_instance_uid": study_uid,
        "state": str(State.COLLECTING),
        "created_at": now,
        "updated_at": now,
        "last_instance_at": last_instance_at,
        **identity,
    }
    opening = _inserting_new(connection, CASES).values(**values).returning(CASES.c.id)
    case_id: int | None = connection.execute(opening).scalar_one_or_none()
    if case_id is None:
        return None
    insert_row(
        connection,
        TRANSITIONS,
        case_id=case_id,
        at=now,
        to_state=str(State.COLLECTING),
        event=str(Event.INSTANCE),
        reason=reason,
    )
    return case_id


def _on_new_input(connection: Connection, case: Case, now: float) -> dict[str, Any]:
    """A new object ends what was being made of the old ones."""
    if case.state is State.COMPUTING:
        connection.execute(
            update(ATTEMPTS)
            .where(ATTEMPTS.c.case_id == case.id, ATTEMPTS.c.outcome == "running")
            .values(ended_at=now, outcome="stopped", detail="an object arrived meanwhile")
        )
    if case.state is State.ENCODED:
        connection.execute(
            update(RUNS).where(RUNS.c.case_id == case.id, RUNS.c.delivered_at.is_(None)).values(withdrawn=1)
        )
        show_results(connection, case.id)
    return {"attempts": 0, "next_attempt_at": 0.0} if case.state is not State.SENDING else {}
