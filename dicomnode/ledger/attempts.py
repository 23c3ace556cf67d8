"""Tries at computing and sending."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import locked_case, one_case, to_case, to_record
from dicomnode.ledger.schema import ATTEMPTS, CASES
from dicomnode.ledger.steps import insert_row, step
from dicomnode.records import Attempt, Case
from dicomnode.states import Event, State, allows


class Attempts(Database):
    """The ledger's knowledge of attempts."""

    def begin(self, case_id: int, happened: Event | None, stage: str, now: float) -> Attempt:
        """Claim a case for an attempt: the event and the attempt are one transaction.

        happened: None for a further attempt that leaves the state as it is.

        An earlier one of the stage that is open still ended when the ledger could not be told: it is closed.
        """
        with self._decide() as connection:
            case = locked_case(connection, case_id)
            left_open = (ATTEMPTS.c.case_id == case_id) & (ATTEMPTS.c.stage == stage)
            _interrupted(connection, left_open, now, "the ledger did not answer when it ended")
            if happened is not None:
                step(connection, case, happened, now)
            attempt_id = insert_row(
                connection, ATTEMPTS, case_id=case_id, stage=stage, started_at=now, outcome="running"
            )
            return Attempt(attempt_id, case_id, stage, now, None, "running", "")

    def end(
        self,
        attempt: Attempt,
        happened: Event | None,
        now: float,
        *,
        outcome: str,
        reason: str = "",
        remedy: str = "",
        **columns: Any,
    ) -> Case | None:
        """Close an attempt and let `happened` follow from it.

        returns: None when the attempt was closed before (the case moved on without it).
        """
        with self._decide() as connection:
            case = locked_case(connection, attempt.case_id)
            closed = connection.execute(
                update(ATTEMPTS)
                .where(ATTEMPTS.c.id == attempt.id, ATTEMPTS.c.outcome == "running")
                .values(ended_at=now, outcome=outcome, detail=reason)
            )
            if closed.rowcount == 0:
                return None
            if happened is not None and allows(case.state, happened):
                step(connection, case, happened, now, reason=reason, remedy=remedy, **columns)
            return one_case(connection, attempt.case_id)

    def attempts(self, case_id: int) -> list[Attempt]:
        """Every attempt at a case, oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                select(ATTEMPTS).where(ATTEMPTS.c.case_id == case_id).order_by(ATTEMPTS.c.id)
            ).all()
        return [to_record(Attempt, row) for row in rows]

    def finished_attempts(self) -> set[int]:
        """Ids of all attempts of all cases that ended well."""
        with self._read() as connection:
            return set(connection.execute(select(ATTEMPTS.c.id).where(ATTEMPTS.c.outcome == "ok")).scalars())

    def requeue(self, case_id: int, now: float, reason: str) -> bool:
        """A case is COMPUTING and nobody computes it. returns: False when it moved on meanwhile."""
        with self._decide() as connection:
            case = locked_case(connection, case_id)
            if case.state is not State.COMPUTING:
                return False
            _interrupted(connection, ATTEMPTS.c.case_id == case_id, now, reason)
            step(connection, case, Event.RECOVER, now, reason=reason)
            return True

    def recover(self, now: float, but: Collection[int] = ()) -> list[Case]:
        """After a start: attempts that the last run left open are closed and their cases queued.

        but: attempts that still run.
        returns: the cases that were COMPUTING, as they were. An interrupted attempt does not count
        as failed: the node's end need not be the case's fault.
        """
        with self._decide() as connection:
            alive = select(ATTEMPTS.c.case_id).where(ATTEMPTS.c.id.in_(but), ATTEMPTS.c.outcome == "running")
            computing = (
                select(CASES)
                .where(CASES.c.state == State.COMPUTING, CASES.c.id.not_in(alive))
                .order_by(CASES.c.id)
            )
            rows = connection.execute(computing.with_for_update(key_share=True)).all()
            _interrupted(connection, ATTEMPTS.c.id.not_in(but), now, "the node stopped")
            for row in rows:
                step(
                    connection, to_case(row), Event.RECOVER, now, reason="the node stopped while it computed"
                )
            return [to_case(row) for row in rows]


def _interrupted(connection: Connection, which: ColumnElement[bool], now: float, reason: str) -> None:
    """Close those of them that are open."""
    connection.execute(
        update(ATTEMPTS)
        .where(ATTEMPTS.c.outcome == "running", which)
        .values(ended_at=now, outcome="interrupted", detail=reason)
    )
