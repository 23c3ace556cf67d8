"""When a case that was sent is done: what its destinations have, and have committed to keep."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Select, func, select, update

from dicomnode.ledger.rows import latest_run
from dicomnode.ledger.schema import CASES, DELIVERIES, RESULTS, RUNS, TRANSITIONS
from dicomnode.ledger.steps import step
from dicomnode.records import Case
from dicomnode.states import Event, State


def result_ids(run_id: int) -> Select[int]:
    """The results of a run."""
    return select(RESULTS.c.id).where(RESULTS.c.run_id == run_id)


def close_if_done(
    connection: Connection, case: Case, run_id: int, now: float, committing: Collection[str], reason: str
) -> bool:
    """A case that sends has come to its end, if every destination has, and keeps, every result.

    committing: the peers that are asked to commit. Objects that arrived meanwhile make the results
    outdated: those are not kept waiting for a commitment to the old ones.
    returns: False when a commitment is outstanding.
    """
    run = latest_run(connection, case.id)
    if case.state is not State.SENDING or run is None or run.id != run_id:
        return True
    if _count(connection, run_id, DELIVERIES.c.delivered_at.is_(None)):
        return True
    outdated = came_after_encoding(connection, case.id)
    missing = DELIVERIES.c.committed_at.is_(None) & DELIVERIES.c.peer.in_(committing)
    if not outdated and _count(connection, run_id, missing):
        return False
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(delivered_at=now))
    step(
        connection,
        case,
        Event.DELIVER_OUTDATED if outdated else Event.DELIVER,
        now,
        reason="objects arrived while the results were sent" if outdated else reason,
        attempts=0,
        next_attempt_at=0.0,
        # It was said of results that are rejected now; of those that came in their stead nobody has spoken.
        rejection_reason="",
    )
    return True


def came_after_encoding(connection: Connection, case_id: int) -> bool:
    """Whether objects arrived since the results were encoded: by the story, for clocks are set back."""
    query = select(outdated_case()).where(CASES.c.id == case_id)
    return bool(connection.execute(query).scalar_one())


def outdated_case() -> Any:
    """The same as a column of a query on `cases`."""
    return _last(Event.INSTANCE) > _last(Event.ENCODE)


def _last(event: Event) -> Any:
    """The number of a case's last step of that kind; a column of a query on `cases`."""
    return (
        select(func.coalesce(func.max(TRANSITIONS.c.id), 0))
        .where(TRANSITIONS.c.case_id == CASES.c.id, TRANSITIONS.c.event == str(event))
        .correlate(CASES)
        .scalar_subquery()
    )


def _count(connection: Connection, run_id: int, condition: Any) -> int:
    query = select(func.count()).select_from(DELIVERIES).where(DELIVERIES.c.result_id.in_(result_ids(run_id)))
    return int(connection.execute(query.where(condition)).scalar_one())
