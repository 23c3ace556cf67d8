"""Cases and their transitions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select, update

from dicomnode.errors import ConfigurationError
from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import latest_run, locked_case, one_case, still_collecting, to_case
from dicomnode.ledger.schema import CASES, TRANSITIONS
from dicomnode.ledger.steps import step
from dicomnode.records import Case, Identity, Transition
from dicomnode.states import Event, State


class Cases(Database):
    """The ledger's knowledge of cases."""

    def case(self, case_id: int) -> Case:
        """A case by its number."""
        with self._read() as connection:
            return one_case(connection, case_id)

    def find_case(self, text: str) -> Case:
        """A case by its number, its Study Instance UID or that UID's unmistakable end."""
        with self._read() as connection:
            if text.isdecimal() and len(text) < 10:
                condition = CASES.c.id == int(text)
            else:
                condition = CASES.c.study_instance_uid.endswith(text, autoescape=True)
            rows = connection.execute(select(CASES).where(condition).limit(2)).all()
        if len(rows) == 1:
            return to_case(rows[0])
        what = "no case" if not rows else "more than one case"
        raise ConfigurationError(f"{what} matches {text!r}", "`dicomnode cases` lists them")

    def cases(self, *states: State) -> list[Case]:
        """Cases in the given states (all states when none is given), oldest first."""
        query = select(CASES).order_by(CASES.c.id)
        if states:
            query = query.where(CASES.c.state.in_([str(s) for s in states]))
        with self._read() as connection:
            return [to_case(row) for row in connection.execute(query).all()]

    def apply(
        self,
        case_id: int,
        happened: Event,
        now: float,
        *,
        reason: str = "",
        remedy: str = "",
        **columns: Any,
    ) -> Case:
        """Let an event happen to a case, with what else becomes true of it in the same transaction.

        Raises IllegalTransition when the state has changed so that the event is refused.
        """
        with self._decide() as connection:
            case = locked_case(connection, case_id)
            step(connection, case, happened, now, reason=reason, remedy=remedy, **columns)
            return one_case(connection, case_id)

    def assembled(
        self, case: Case, now: float, inputs_json: str, inputs_sha256: str, identity: Identity, reason: str
    ) -> Case | None:
        """The inputs of a case are chosen. returns: None when an object arrived meanwhile.

        Becomes DONE again instead of READY when exactly these inputs were computed and delivered.
        """
        with self._decide() as connection:
            current = still_collecting(connection, case)
            if current is None:
                return None
            run = latest_run(connection, case.id)
            same = run is not None and run.new.inputs_sha256 == inputs_sha256 and run.delivered_at is not None
            unchanged = same and current.inputs_sha256 != ""
            step(
                connection,
                current,
                Event.UNCHANGED if unchanged else Event.COMPLETE,
                now,
                reason="the inputs are those of the delivered results" if unchanged else reason,
                inputs_json=inputs_json,
                inputs_sha256=inputs_sha256,
                attempts=0,
                next_attempt_at=0.0,
                **asdict(identity),
            )
            return one_case(connection, case.id)

    def rejected(self, case: Case, now: float, reason: str, remedy: str) -> Case | None:
        """Assembly found that a case cannot go on. returns: as `assembled`; None also when it is COLLECTING
        no more."""
        with self._decide() as connection:
            current = still_collecting(connection, case)
            if current is None:
                return None
            step(connection, current, Event.REJECT, now, reason=reason, remedy=remedy)
            return one_case(connection, case.id)

    def story(self, case_id: int) -> list[Transition]:
        """Every transition of a case, oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                select(TRANSITIONS).where(TRANSITIONS.c.case_id == case_id).order_by(TRANSITIONS.c.id)
            ).all()
        return [
            Transition(
                row.case_id,
                row.at,
                None if row.from_state is None else State(row.from_state),
                State(row.to_state),
                Event(row.event),
                row.reason,
                row.remedy,
            )
            for row in rows
        ]

    def notified(self, case_id: int, now: float) -> None:
        """A person was told that the case is HELD or FAILED."""
        with self._decide() as connection:
            connection.execute(update(CASES).where(CASES.c.id == case_id).values(notified_at=now))
