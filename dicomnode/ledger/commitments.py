"""Storage commitment that the node asks for: transactions, and what came of them (PS3.4 Annex J)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, exists, func, insert, select, update

from dicomnode.errors import IllegalTransition
from dicomnode.ledger.closing import close_if_done, outdated_case
from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import locked_case, to_case, to_record
from dicomnode.ledger.schema import CASES, COMMITMENT_ITEMS, COMMITMENTS, DELIVERIES, RESULTS, RUNS
from dicomnode.ledger.steps import insert_row, step
from dicomnode.records import Case, Commitment, Uncommitted
from dicomnode.states import Event, State


class Commitments(Database):
    """The ledger's knowledge of what destinations have committed to keep."""

    def to_deliver(self, committing: Collection[str]) -> list[Case]:
        """Cases with results to send, oldest first; without those that wait for a commitment alone.

        committing: names of the peers that are asked to commit.
        """
        query = select(CASES).where(CASES.c.state.in_([str(State.ENCODED), str(State.SENDING)]))
        if committing:
            waiting = _sent_runs().where(
                DELIVERIES.c.peer.in_(committing), DELIVERIES.c.committed_at.is_(None)
            )
            query = query.where(CASES.c.id.not_in(waiting.with_only_columns(CASES.c.id)))
        with self._read() as connection:
            return [to_case(row) for row in connection.execute(query.order_by(CASES.c.id)).all()]

    def open_destinations(self) -> dict[int, frozenset[str]]:
        """Case → the peers that still lack something of its newest results, of all cases that are sent."""
        query = (
            _newest_runs(State.ENCODED, State.SENDING)
            .where(DELIVERIES.c.delivered_at.is_(None))
            .with_only_columns(CASES.c.id, DELIVERIES.c.peer)
            .distinct()
        )
        found: dict[int, frozenset[str]] = {}
        with self._read() as connection:
            for case_id, peer in connection.execute(query):
                found[case_id] = found.get(case_id, frozenset()) | {peer}
        return found

    def uncommitted(self, peer: str) -> list[Uncommitted]:
        """What a peer has of cases that are sending, all of it, and has not committed to, oldest first.

        Another destination may still lack something.
        """
        last = COMMITMENTS.alias()
        newest = (
            select(func.max(COMMITMENTS.c.id))
            .where(COMMITMENTS.c.run_id == RUNS.c.id, COMMITMENTS.c.peer == peer)
            .correlate(RUNS)
            .scalar_subquery()
        )
        query = (
            _newest_runs(State.SENDING)
            .join(last, last.c.id == newest, isouter=True)
            .where(DELIVERIES.c.peer == peer)
            .group_by(CASES.c.id, RUNS.c.id, last.c.outcome, last.c.ask_again_at)
            .having(
                func.count(DELIVERIES.c.delivered_at) == func.count(DELIVERIES.c.id),
                func.count(DELIVERIES.c.committed_at) < func.count(DELIVERIES.c.id),
            )
            .with_only_columns(
                CASES.c.id.label("case_id"),
                RUNS.c.id.label("run_id"),
                func.max(DELIVERIES.c.delivered_at).label("since"),
                outdated_case().label("outdated"),
                exists(_still_open()).label("lacking"),
                func.count(DELIVERIES.c.commit_failure).label("failed"),
                last.c.outcome,
                last.c.ask_again_at,
            )
            .order_by(CASES.c.id)
        )
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [_to_uncommitted(row, peer) for row in rows]

    def commitments(self, run_id: int, peer: str | None = None) -> list[Commitment]:
        """The transactions about a run's results, oldest first."""
        query = select(COMMITMENTS).where(COMMITMENTS.c.run_id == run_id).order_by(COMMITMENTS.c.id)
        if peer is not None:
            query = query.where(COMMITMENTS.c.peer == peer)
        with self._read() as connection:
            return [to_record(Commitment, row) for row in connection.execute(query).all()]

    def ask(
        self, run_id: int, peer: str, transaction_uid: str, delivery_ids: Sequence[int], now: float
    ) -> int:
        """A transaction is about to be asked for. returns: its number.

        It is known before the request leaves: the report may come before the request's own answer.
        """
        with self._decide() as connection:
            number = insert_row(
                connection,
                COMMITMENTS,
                transaction_uid=transaction_uid,
                run_id=run_id,
                peer=peer,
                asked_at=now,
                outcome="asking",
            )
            rows = [{"commitment_id": number, "delivery_id": d} for d in delivery_ids]
            connection.execute(insert(COMMITMENT_ITEMS), rows)
            return number

    def asked(self, commitment_id: int, outcome: str, detail: str, ask_again_at: float) -> None:
        """What became of the request. A report that has come already says more, and is left alone."""
        condition = COMMITMENTS.c.outcome == "asking"
        with self._decide() as connection:
            connection.execute(
                update(COMMITMENTS)
                .where(COMMITMENTS.c.id == commitment_id, condition)
                .values(outcome=outcome, detail=detail)
            )
            connection.execute(
                update(COMMITMENTS).where(COMMITMENTS.c.id == commitment_id).values(ask_again_at=ask_again_at)
            )

    def reported(
        self,
        transaction_uid: str,
        peer: str,
        committed: Collection[str],
        failed: Mapping[str, int],
        now: float,
        committing: Collection[str],
    ) -> Commitment | None:
        """A peer has reported. committed, failed: SOP Instance UIDs, failed with their FailureReason.

        A report on a transaction that was asked again in vain still counts; one that was answered
        before changes nothing. The case is DONE when this was what it waited for.
        returns: the transaction as it was before; None when the peer was never asked for it.
        """
        theirs = (COMMITMENTS.c.transaction_uid == transaction_uid, COMMITMENTS.c.peer == peer)
        whose = select(RUNS.c.case_id).join(COMMITMENTS, COMMITMENTS.c.run_id == RUNS.c.id).where(*theirs)
        with self._decide() as connection:
            case_id = connection.execute(whose).scalar_one_or_none()
            if case_id is None:
                return None
            case = locked_case(connection, case_id)
            # Read under the lock: the same report may come over two associations at once.
            row = connection.execute(select(COMMITMENTS).where(*theirs)).one()
            before: Commitment = to_record(Commitment, row)
            if not before.has_ended:
                outcome, detail = _record_items(connection, row, committed, failed, now)
                connection.execute(
                    update(COMMITMENTS)
                    .where(COMMITMENTS.c.id == row.id)
                    .values(reported_at=now, outcome=outcome, detail=detail)
                )
                reason = f"{', '.join(sorted(committing))} committed to keeping every result"
                close_if_done(connection, case, row.run_id, now, committing, reason)
            return before

    def settle(self, case_id: int, run_id: int, now: float, committing: Collection[str]) -> bool:
        """Let a case go on whose results became outdated while a commitment was awaited."""
        with self._decide() as connection:
            return close_if_done(
                connection, locked_case(connection, case_id), run_id, now, committing, "settled"
            )

    def send_uncommitted_again(
        self, item: Uncommitted, now: float, reason: str, next_attempt_at: float
    ) -> None:
        """Open the deliveries of objects that the peer could not commit to."""
        failed = and_(
            DELIVERIES.c.peer == item.peer,
            DELIVERIES.c.commit_failure.is_not(None),
            DELIVERIES.c.result_id.in_(select(RESULTS.c.id).where(RESULTS.c.run_id == item.run_id)),
        )
        with self._decide() as connection:
            case = locked_case(connection, item.case_id)
            if case.state is not State.SENDING:
                return
            connection.execute(
                update(DELIVERIES).where(failed).values(delivered_at=None, commit_failure=None, detail=reason)
            )
            step(connection, case, Event.STUMBLE, now, reason=reason, next_attempt_at=next_attempt_at)

    def give_up(self, case_id: int, now: float, reason: str, remedy: str) -> bool:
        """A commitment will not come by itself. returns: False when the case moved on meanwhile."""
        with self._decide() as connection:
            case = locked_case(connection, case_id)
            try:
                step(connection, case, Event.GIVE_UP, now, reason=reason, remedy=remedy)
            except IllegalTransition:
                return False
            return True


def _to_uncommitted(row: Row[Any], peer: str) -> Uncommitted:
    return Uncommitted(
        case_id=row.case_id,
        run_id=row.run_id,
        peer=peer,
        since=row.since,
        outdated=bool(row.outdated),
        lacking=bool(row.lacking),
        failed=bool(row.failed),
        last_outcome=row.outcome or "",
        ask_again_at=row.ask_again_at or 0.0,
    )


def _newest_runs(*states: State) -> Select[Any]:
    """Deliveries of the newest run of each case in these states."""
    newest = (
        select(func.max(RUNS.c.id))
        .where(RUNS.c.case_id == CASES.c.id, RUNS.c.withdrawn == 0)
        .correlate(CASES)
        .scalar_subquery()
    )
    return (
        select(CASES.c.id)
        .select_from(CASES)
        .join(RUNS, RUNS.c.id == newest)
        .join(RESULTS, RESULTS.c.run_id == RUNS.c.id)
        .join(DELIVERIES, DELIVERIES.c.result_id == RESULTS.c.id)
        .where(CASES.c.state.in_([str(state) for state in states]))
    )


def _sent_runs() -> Select[Any]:
    """The same of cases that are sending, of runs that every destination has whole."""
    return _newest_runs(State.SENDING).where(~exists(_still_open()))


def _still_open() -> Select[Any]:
    """What any destination lacks of a run; within a query on `runs`."""
    other, theirs = DELIVERIES.alias(), RESULTS.alias()
    return (
        select(other.c.id)
        .join(theirs, theirs.c.id == other.c.result_id)
        .where(theirs.c.run_id == RUNS.c.id, other.c.delivered_at.is_(None))
        .correlate(RUNS)
    )


def _record_items(
    connection: Connection,
    transaction: Row[Any],
    committed: Collection[str],
    failed: Mapping[str, int],
    now: float,
) -> tuple[str, str]:
    """What the report says of each object that was asked about. returns: outcome and its words."""
    asked = connection.execute(
        select(COMMITMENT_ITEMS.c.delivery_id, RESULTS.c.sop_instance_uid, RESULTS.c.kind)
        .join(DELIVERIES, DELIVERIES.c.id == COMMITMENT_ITEMS.c.delivery_id)
        .join(RESULTS, RESULTS.c.id == DELIVERIES.c.result_id)
        .where(COMMITMENT_ITEMS.c.commitment_id == transaction.id)
    ).all()
    lacking, unnamed = [], []
    for item in asked:
        delivery = update(DELIVERIES).where(
            DELIVERIES.c.id == item.delivery_id, DELIVERIES.c.committed_at.is_(None)
        )
        if item.sop_instance_uid in failed:
            code = failed[item.sop_instance_uid]
            lacking.append(f"{item.kind} 0x{code:04X}")
            connection.execute(
                delivery.values(commit_failure=code, commit_failures=DELIVERIES.c.commit_failures + 1)
            )
        elif item.sop_instance_uid in committed:
            connection.execute(delivery.values(committed_at=now, commit_failure=None))
        else:
            unnamed.append(item.kind)
    if lacking:
        return "failed", f"not committed: {', '.join(lacking)}"
    if unnamed:
        return "incomplete", f"the report does not name {', '.join(unnamed)}"
    return "committed", ""
