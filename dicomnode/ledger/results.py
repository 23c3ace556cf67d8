"""Runs, their results, and the deliveries of these."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, update

from dicomnode.errors import NodeError
from dicomnode.ledger.closing import close_if_done
from dicomnode.ledger.database import Database
from dicomnode.ledger.index import show_results
from dicomnode.ledger.rejections import NOTE
from dicomnode.ledger.rows import (
    day,
    latest_run,
    locked_case,
    one_case,
    sent_run,
    to_case,
    to_record,
    to_row,
    to_run,
)
from dicomnode.ledger.schema import ATTEMPTS, CASES, COMMITMENTS, DELIVERIES, RESULTS, RUNS, TRANSITIONS
from dicomnode.ledger.steps import insert_new, insert_row, step
from dicomnode.records import Attempt, Case, Delivery, NewResult, NewRun, Result, Run
from dicomnode.states import Event, State


class Results(Database):
    """The ledger's knowledge of what was computed and who has it."""

    def register(
        self,
        attempt: Attempt,
        run: NewRun,
        results: Sequence[NewResult],
        peers: Sequence[str],
        now: float,
        notes_to: Collection[str] = (),
    ) -> Run | None:
        """The results of an attempt are on disk: fix them, and what is to be sent to whom.

        notes_to: those of the peers that also get a rejection note, of those it was written for.
        returns: None, and nothing is registered, when the attempt is no longer the case's.
        """
        with self._decide() as connection:
            case = locked_case(connection, attempt.case_id)
            row = connection.execute(select(ATTEMPTS).where(ATTEMPTS.c.id == attempt.id)).one()
            if row.outcome != "running" or case.state is not State.COMPUTING:
                return None
            predecessor = sent_run(connection, case.id)
            run_id = insert_row(
                connection,
                RUNS,
                case_id=case.id,
                created_at=now,
                predecessor_id=None if predecessor is None else predecessor.id,
                **asdict(run),
            )
            for result in results:
                result_id = insert_row(connection, RESULTS, run_id=run_id, **_columns(result))
                only_for = peers if result.only_for is None else result.only_for
                for peer in _takers(result.sop_class_uid, peers, set(notes_to) & set(only_for)):
                    insert_row(connection, DELIVERIES, result_id=result_id, peer=peer)
            connection.execute(
                update(ATTEMPTS).where(ATTEMPTS.c.id == attempt.id).values(ended_at=now, outcome="ok")
            )
            show_results(connection, case.id)
            text = f"{len(results)} results"
            step(connection, case, Event.ENCODE, now, reason=text, attempts=0, next_attempt_at=0.0)
            return latest_run(connection, case.id)

    def latest_run(self, case_id: int) -> Run | None:
        """The newest results of a case, unless new input withdrew them."""
        with self._read() as connection:
            return latest_run(connection, case_id)

    def predecessor(self, case_id: int) -> Run | None:
        """The results that a new run of the case would replace: the newest that were ever sent."""
        with self._read() as connection:
            return sent_run(connection, case_id)

    def runs(self, case_id: int) -> list[Run]:
        """Every run of a case, oldest first."""
        with self._read() as connection:
            rows = connection.execute(select(RUNS).where(RUNS.c.case_id == case_id).order_by(RUNS.c.id)).all()
        return [to_run(row) for row in rows]

    def results(self, run_id: int) -> list[Result]:
        """The objects of a run in the order in which they are to be sent."""
        with self._read() as connection:
            rows = connection.execute(
                select(RESULTS).where(RESULTS.c.run_id == run_id).order_by(RESULTS.c.id)
            ).all()
        return [Result(row.id, row.run_id, to_record(NewResult, row)) for row in rows]

    def deliveries(self, run_id: int) -> list[tuple[Result, Delivery]]:
        """What of a run goes to whom and how it stands, in sending order."""
        with self._read() as connection:
            rows = connection.execute(
                select(DELIVERIES)
                .join(RESULTS, RESULTS.c.id == DELIVERIES.c.result_id)
                .where(RESULTS.c.run_id == run_id)
                .order_by(DELIVERIES.c.peer, RESULTS.c.id)
            ).all()
        by_id = {result.id: result for result in self.results(run_id)}
        return [(by_id[row.result_id], to_record(Delivery, row)) for row in rows]

    def answered(
        self,
        delivery: Delivery,
        now: float,
        *,
        status: int | None,
        detail: str,
        delivered: bool,
        refused: bool = False,
        sent: bool = True,
        keeps: bool = True,
    ) -> None:
        """Record what a destination said to one object.

        delivered: it needs it no more. sent: whether any of it left the node. status: None where no answer
        came. keeps: False where it has no use for the object; nobody asks it to commit to it then.
        """
        may_have = (delivered and keeps) or (sent and status is None)
        with self._decide() as connection:
            connection.execute(
                update(DELIVERIES)
                .where(DELIVERIES.c.id == delivery.id)
                .values(
                    delivered_at=now if delivered else None,
                    status=status,
                    detail=detail,
                    tries=DELIVERIES.c.tries + int(sent),
                    refusals=DELIVERIES.c.refusals + int(refused),
                    **({"may_have": 1} if may_have else {}),
                    **({} if keeps else {"committed_at": now}),
                )
            )

    def taken_apart(
        self,
        item: tuple[Result, Delivery],
        notes: Sequence[NewResult],
        now: float,
        *,
        status: int,
        detail: str,
    ) -> None:
        """A destination took nothing of a rejection note: these go there in its place, of one object each.

        They may be there since another destination did the same, or since the whole was sent before.
        """
        note, delivery = item
        rows = [_columns(each) | {"run_id": note.run_id} for each in notes]
        uids = [each.sop_instance_uid for each in notes]
        with self._decide() as connection:
            insert_new(connection, RESULTS, rows)
            query = select(RESULTS.c.id).where(RESULTS.c.sop_instance_uid.in_(uids)).order_by(RESULTS.c.id)
            numbers = connection.execute(query).scalars().all()
            insert_new(connection, DELIVERIES, [{"result_id": n, "peer": delivery.peer} for n in numbers])
            connection.execute(
                update(DELIVERIES)
                .where(DELIVERIES.c.id == delivery.id)
                .values(
                    delivered_at=now,
                    committed_at=now,
                    status=status,
                    detail=detail,
                    tries=DELIVERIES.c.tries + 1,
                    may_have=0,
                )
            )

    def delivered(
        self, attempt: Attempt, run: Run, now: float, reason: str = "", committing: Collection[str] = ()
    ) -> Case:
        """Close an attempt that sent everything it was given.

        The case moves on unless a person asked meanwhile to send something again, or one of the peers
        in `committing` has yet to commit to keeping the results.
        """
        with self._decide() as connection:
            case = locked_case(connection, run.case_id)
            connection.execute(
                update(ATTEMPTS).where(ATTEMPTS.c.id == attempt.id).values(ended_at=now, outcome="ok")
            )
            if not close_if_done(connection, case, run.id, now, committing, reason):
                text = f"waits for storage commitment of {', '.join(sorted(committing))}"
                step(connection, case, Event.AWAIT, now, reason=text, attempts=0, next_attempt_at=0.0)
            return one_case(connection, run.case_id)

    def failed_to_send(self) -> list[Case]:
        """The cases that are FAILED since they were sent, oldest first; not those that computing failed."""
        began = (
            select(func.max(TRANSITIONS.c.id))
            .where(TRANSITIONS.c.case_id == CASES.c.id, TRANSITIONS.c.event == str(Event.GIVE_UP))
            .correlate(CASES)
            .scalar_subquery()
        )
        query = (
            select(CASES)
            .join(TRANSITIONS, TRANSITIONS.c.id == began)
            .where(CASES.c.state == str(State.FAILED), TRANSITIONS.c.from_state == str(State.SENDING))
            .order_by(CASES.c.id)
        )
        with self._read() as connection:
            return [to_case(row) for row in connection.execute(query.with_only_columns(*CASES.c)).all()]

    def resend(self, case_id: int, now: float, peers: Sequence[str], notes_to: Collection[str] = ()) -> Case:
        """A person asks to send the newest results again, to `peers` as they are configured now.

        notes_to: as `register`.
        """
        with self._decide() as connection:
            case = locked_case(connection, case_id)
            run = latest_run(connection, case_id)
            if run is None:
                remedy = f"`dicomnode retry {case_id}` computes them"
                raise NodeError(f"case {case_id} has no results to send", remedy)
            if run.removed_at is not None:
                raise NodeError(
                    f"the results of case {case_id} were removed on {day(run.removed_at)}",
                    f"Send the study again, then `dicomnode retry {case_id}` computes them",
                )
            objects = select(RESULTS.c.id, RESULTS.c.sop_class_uid).where(RESULTS.c.run_id == run.id)
            for result_id, sop_class_uid in connection.execute(objects).all():
                # What a note names is known of those alone that it was written for.
                written_for = notes_to if sop_class_uid != NOTE else _peers_of(connection, result_id)
                takers = _takers(sop_class_uid, peers, set(notes_to) & set(written_for))
                _redeliver(connection, result_id, takers)
            # A late report on what was sent before says nothing of what is sent now.
            connection.execute(
                update(COMMITMENTS).where(COMMITMENTS.c.run_id == run.id).values(outcome="withdrawn")
            )
            reason = "a person asked to send again"
            step(connection, case, Event.RESEND, now, reason=reason, attempts=0, next_attempt_at=0.0)
            return one_case(connection, case_id)


def _columns(result: NewResult) -> dict[str, Any]:
    described = json.dumps(dict(result.attributes)) if result.attributes else None
    return to_row(result) | {"attributes_json": described}


def _peers_of(connection: Connection, result_id: int) -> list[str]:
    query = select(DELIVERIES.c.peer).where(DELIVERIES.c.result_id == result_id)
    return list(connection.execute(query).scalars())


def _takers(sop_class_uid: str, peers: Sequence[str], notes_to: Collection[str]) -> list[str]:
    """Who gets an object: a rejection note those of the peers that take one, anything else all of them."""
    return [peer for peer in dict.fromkeys(peers) if sop_class_uid != NOTE or peer in notes_to]


def _redeliver(connection: Connection, result_id: int, peers: Sequence[str]) -> None:
    """Open the deliveries to `peers`; what others were still to get, they get no more."""
    connection.execute(
        delete(DELIVERIES).where(
            DELIVERIES.c.result_id == result_id,
            DELIVERIES.c.peer.not_in(peers),
            DELIVERIES.c.delivered_at.is_(None),
        )
    )
    for peer in dict.fromkeys(peers):
        condition = and_(DELIVERIES.c.result_id == result_id, DELIVERIES.c.peer == peer)
        reset = connection.execute(
            update(DELIVERIES)
            .where(condition)
            .values(
                delivered_at=None,
                status=None,
                detail="",
                refusals=0,
                committed_at=None,
                commit_failure=None,
                commit_failures=0,
            )
        )
        if reset.rowcount == 0:
            insert_row(connection, DELIVERIES, result_id=result_id, peer=peer)
