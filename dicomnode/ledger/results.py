"""Runs, their results, and the deliveries of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, Select, and_, delete, func, select, update

from dicomnode.errors import NodeError
from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import latest_run, one_case, sent_run, to_record, to_run
from dicomnode.ledger.steps import insert_row, step
from dicomnode.records import Attempt, Case, Delivery, NewResult, NewRun, Result, Run
from dicomnode.schema import ATTEMPTS, DELIVERIES, RESULTS, RUNS, TRANSITIONS
from dicomnode.states import Event, State


class Results(Database):
    """The ledger's knowledge of what was computed and who has it."""

    def register(
        self, attempt: Attempt, run: NewRun, results: Sequence[NewResult], peers: Sequence[str], now: float
    ) -> Run | None:
        """The results of an attempt are on disk: fix them, and what is to be sent to whom.

        returns: None, and nothing is registered, when the attempt is no longer the case's.
        """
        with self._decide() as connection:
            row = connection.execute(select(ATTEMPTS).where(ATTEMPTS.c.id == attempt.id)).one()
            case = one_case(connection, attempt.case_id)
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
                result_id = insert_row(connection, RESULTS, run_id=run_id, **asdict(result))
                for peer in dict.fromkeys(peers):
                    insert_row(connection, DELIVERIES, result_id=result_id, peer=peer)
            connection.execute(
                update(ATTEMPTS).where(ATTEMPTS.c.id == attempt.id).values(ended_at=now, outcome="ok")
            )
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
    ) -> None:
        """Record what a destination said to one object. sent: whether any of it left the node."""
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
                )
            )

    def delivered(self, attempt: Attempt, run: Run, now: float, reason: str = "") -> Case:
        """Close an attempt that sent everything it was given.

        The case moves on unless a person asked meanwhile to send something again.
        """
        with self._decide() as connection:
            connection.execute(
                update(ATTEMPTS).where(ATTEMPTS.c.id == attempt.id).values(ended_at=now, outcome="ok")
            )
            case = one_case(connection, run.case_id)
            if case.state is State.SENDING and _open_deliveries(connection, run.id) == 0:
                connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(delivered_at=now))
                outdated = _came_after_encoding(connection, case.id)
                step(
                    connection,
                    case,
                    Event.DELIVER_OUTDATED if outdated else Event.DELIVER,
                    now,
                    reason="objects arrived while the results were sent" if outdated else reason,
                    attempts=0,
                    next_attempt_at=0.0,
                )
            return one_case(connection, run.case_id)

    def resend(self, case_id: int, now: float, peers: Sequence[str]) -> Case:
        """A person asks to send the newest results again, to `peers` as they are configured now."""
        with self._decide() as connection:
            case = one_case(connection, case_id)
            run = latest_run(connection, case_id)
            if run is None:
                remedy = f"`dicomnode retry {case_id}` computes them"
                raise NodeError(f"case {case_id} has no results to send", remedy)
            for result_id in connection.execute(_result_ids(run.id)).scalars().all():
                _redeliver(connection, result_id, peers)
            reason = "a person asked to send again"
            step(connection, case, Event.RESEND, now, reason=reason, attempts=0, next_attempt_at=0.0)
            return one_case(connection, case_id)


def _result_ids(run_id: int) -> Select[int]:
    return select(RESULTS.c.id).where(RESULTS.c.run_id == run_id)


def _came_after_encoding(connection: Connection, case_id: int) -> bool:
    """Whether objects arrived since the results were encoded: by the story, for clocks are set back."""

    def last(event: Event) -> Select[int]:
        number = func.coalesce(func.max(TRANSITIONS.c.id), 0)
        return select(number).where(TRANSITIONS.c.case_id == case_id, TRANSITIONS.c.event == str(event))

    arrival, encoding = (connection.execute(last(e)).scalar_one() for e in (Event.INSTANCE, Event.ENCODE))
    return bool(arrival > encoding)


def _open_deliveries(connection: Connection, run_id: int) -> int:
    query = (
        select(func.count())
        .select_from(DELIVERIES)
        .where(DELIVERIES.c.result_id.in_(_result_ids(run_id)), DELIVERIES.c.delivered_at.is_(None))
    )
    return int(connection.execute(query).scalar_one())


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
            update(DELIVERIES).where(condition).values(delivered_at=None, status=None, detail="", refusals=0)
        )
        if reset.rowcount == 0:
            insert_row(connection, DELIVERIES, result_id=result_id, peer=peer)
