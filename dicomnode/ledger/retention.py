"""What is kept, what may go, and what has gone.

A removal is decided in one transaction, which also names the files that must follow: `removals` tells
after a crash which of them may still lie there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Exists,
    FromClause,
    and_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)

from dicomnode.ledger.database import Database
from dicomnode.ledger.index import forget, show_results
from dicomnode.ledger.rejections import NOTE
from dicomnode.ledger.rows import held_by, in_chunks, locked_case, one_case, still_collecting, to_record
from dicomnode.ledger.schema import (
    CASES,
    DELIVERIES,
    INSTANCES,
    QUARANTINE,
    REMOVALS,
    REMOVED_SERIES,
    RESULTS,
    RUNS,
)
from dicomnode.ledger.steps import insert_row, step
from dicomnode.records import Case, Holding, Kept, Removal, RemovedSeries
from dicomnode.states import Event, State

# What is under way, or waits for a person, is never removed.
ENDED = (State.DONE, State.FAILED)
_RESULTS_OF_RUNS = RESULTS.join(RUNS, RUNS.c.id == RESULTS.c.run_id)
# Where it is counted, what it weighs, and which of it is the case's at hand.
_WHERE: dict[Kept, tuple[FromClause, ColumnElement[int], ColumnElement[bool]]] = {
    "inputs": (INSTANCES, INSTANCES.c.size_bytes, INSTANCES.c.case_id == CASES.c.id),
    "results": (
        _RESULTS_OF_RUNS,
        RESULTS.c.size_bytes,
        and_(RUNS.c.case_id == CASES.c.id, RUNS.c.removed_at.is_(None)),
    ),
}


class Retention(Database):
    """The ledger's knowledge of what was removed."""

    def removable_cases(self, what: Kept, state: State, until: float, limit: int) -> list[Holding]:
        """Cases that came to the end `state` at `until` or before and of which `what` lies on the disk.

        Oldest first. A DONE case of which a destination still lacks something, or whose results nobody
        was to get, is left out.
        """
        if state not in ENDED:
            raise ValueError(f"a case in {state} is not at its end")
        tables, size, mine = _WHERE[what]
        conditions = [CASES.c.state == str(state), CASES.c.updated_at <= until, _one(tables, mine)]
        if state is State.DONE:
            conditions.append(~_undelivered())
        counted, summed = _figure(tables, func.count(), mine), _figure(tables, func.sum(size), mine)
        query = (
            select(CASES.c.id, CASES.c.study_instance_uid, CASES.c.updated_at, counted, summed)
            .where(*conditions)
            .order_by(CASES.c.updated_at, CASES.c.id)
            .limit(limit)
        )
        with self._read() as connection:
            rows = connection.execute(query).all()
        return [Holding(what, r[0], r[1], state, r[2], int(r[3]), int(r[4])) for r in rows]

    def kept_bytes(self) -> int:
        """What received objects and results take together."""
        received = select(func.coalesce(func.sum(INSTANCES.c.size_bytes), 0))
        results = (
            select(func.coalesce(func.sum(RESULTS.c.size_bytes), 0))
            .select_from(_RESULTS_OF_RUNS)
            .where(RUNS.c.removed_at.is_(None))
        )
        with self._read() as connection:
            return sum(int(connection.execute(query).scalar_one()) for query in (received, results))

    def received_uids(self, case_id: int) -> list[str]:
        """SOP Instance UIDs of everything that was received of a case, discarded objects too."""
        query = select(INSTANCES.c.sop_instance_uid).where(INSTANCES.c.case_id == case_id)
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def remove_inputs(self, case_id: int, state: State, now: float) -> list[Removal]:
        """Give up what was received of a case. returns: the files that must follow.

        Nothing when the case is no longer in `state`: an object came, or a person asked for something.
        """
        with self._decide() as connection:
            if not _at_its_end(connection, case_id, state):
                return []
            query = select(INSTANCES.c.path, INSTANCES.c.sop_instance_uid).where(
                INSTANCES.c.case_id == case_id
            )
            rows = connection.execute(query).all()
            paths = [row.path for row in rows]
            if not paths:
                return []
            forget(connection, [row.sop_instance_uid for row in rows])
            _remember_series(connection, case_id, now)
            connection.execute(delete(INSTANCES).where(INSTANCES.c.case_id == case_id))
            connection.execute(update(CASES).where(CASES.c.id == case_id).values(inputs_removed_at=now))
            return _mark(connection, paths, now)

    def remove_results(self, case_id: int, state: State, now: float) -> list[Removal]:
        """Give up the files of a case's results. returns: those; as `remove_inputs`.

        The results stay known by their UIDs: they may come back from a PACS, and a later one names them.
        """
        with self._decide() as connection:
            if not _at_its_end(connection, case_id, state):
                return []
            mine = and_(RUNS.c.case_id == case_id, RUNS.c.removed_at.is_(None))
            query = select(RESULTS.c.path).select_from(_RESULTS_OF_RUNS).where(mine)
            paths = list(connection.execute(query).scalars())
            if paths:
                connection.execute(update(RUNS).where(mine).values(removed_at=now))
                show_results(connection, case_id)
            return _mark(connection, paths, now)

    def removable_quarantine(self, until: float) -> list[tuple[int, str]]:
        """(number, path) of the objects set aside at `until` or before that no open case speaks of."""
        spoken_of = exists().where(
            CASES.c.study_instance_uid == QUARANTINE.c.study_instance_uid, CASES.c.state != str(State.DONE)
        )
        query = (
            select(QUARANTINE.c.id, QUARANTINE.c.path)
            .where(QUARANTINE.c.path != "", QUARANTINE.c.received_at <= until, ~spoken_of)
            .order_by(QUARANTINE.c.id)
        )
        with self._read() as connection:
            return [(row.id, row.path) for row in connection.execute(query)]

    def remove_quarantined(self, numbers: Sequence[int], now: float) -> list[Removal]:
        """Give up objects that were set aside; that they were, and why, stays known."""
        removals: list[Removal] = []
        with self._decide() as connection:
            for chunk in in_chunks(numbers):
                chosen = QUARANTINE.c.id.in_(chunk)
                paths = list(connection.execute(select(QUARANTINE.c.path).where(chosen)).scalars())
                # The JSON file first: it is what tells that the object is there.
                notes = [path.removesuffix(".dcm") + ".json" for path in paths]
                removals += _mark(connection, [*notes, *paths], now)
                connection.execute(update(QUARANTINE).where(chosen).values(path=""))
        return removals

    def removals(self) -> list[Removal]:
        """Files that were given up and not yet seen to be gone."""
        with self._read() as connection:
            rows = connection.execute(select(REMOVALS).order_by(REMOVALS.c.id)).all()
        return [to_record(Removal, row) for row in rows]

    def in_use(self, paths: Iterable[str]) -> set[str]:
        """Those of the given files that are received objects (again)."""
        with self._read() as connection:
            return held_by(connection, INSTANCES.c.path, list(paths))

    def gone(self, removals: Sequence[Removal]) -> None:
        """The files have gone, durably."""
        numbers = [removal.id for removal in removals]
        with self._decide() as connection:
            for chunk in in_chunks(numbers):
                chosen = REMOVALS.c.id.in_(chunk)
                connection.execute(delete(REMOVALS).where(chosen))

    def removed_series(self, case_id: int) -> list[RemovedSeries]:
        """What was removed of a case, also what has come again since."""
        query = select(REMOVED_SERIES).where(REMOVED_SERIES.c.case_id == case_id)
        with self._read() as connection:
            rows = connection.execute(query.order_by(REMOVED_SERIES.c.id)).all()
        return [
            RemovedSeries(
                r.case_id, r.series_instance_uid, r.modality, r.objects, bool(r.discarded), r.removed_at
            )
            for r in rows
        ]

    def nothing_new(self, of: Case, now: float, reason: str) -> Case | None:
        """What came since a case was DONE does not change its inputs. returns: as `assembled`."""
        with self._decide() as connection:
            current = still_collecting(connection, of)
            if current is None:
                return None
            step(connection, current, Event.UNCHANGED, now, reason=reason)
            return one_case(connection, of.id)


def _one(tables: FromClause, condition: ColumnElement[bool]) -> Exists:
    """Whether there is a row."""
    return select(literal(1)).select_from(tables).where(condition).correlate(CASES).exists()


def _figure(tables: FromClause, figure: Any, condition: ColumnElement[bool]) -> Any:
    """A figure over the rows that belong to the case at hand."""
    chosen = select(figure).select_from(tables).where(condition).correlate(CASES)
    return func.coalesce(chosen.scalar_subquery(), 0)


def _undelivered() -> ColumnElement[bool]:
    """Whether a destination still lacks something of the case's results, those of withdrawn runs aside.

    What is meant for nobody ([deliver] to was empty) was delivered to nobody: nobody else has it. Of a run
    that a later one replaced, it can no longer be sent, as of one that was withdrawn.
    """
    of_case = and_(RUNS.c.case_id == CASES.c.id, RUNS.c.withdrawn == 0)
    open_ones = and_(of_case, DELIVERIES.c.delivered_at.is_(None))
    is_open = _one(_RESULTS_OF_RUNS.join(DELIVERIES, DELIVERIES.c.result_id == RESULTS.c.id), open_ones)
    newest = select(func.max(RUNS.c.id)).where(of_case).correlate(CASES).scalar_subquery()
    meant_for_nobody = exists().where(
        RESULTS.c.run_id == newest,
        # A rejection note is for those alone that take notes.
        RESULTS.c.sop_class_uid != NOTE,
        ~exists().where(DELIVERIES.c.result_id == RESULTS.c.id),
    )
    return or_(is_open, meant_for_nobody)


def _at_its_end(connection: Connection, case_id: int, state: State) -> bool:
    if locked_case(connection, case_id).state is not state:
        return False
    lacks = select(CASES.c.id).where(CASES.c.id == case_id, _undelivered())
    return state is not State.DONE or connection.execute(lacks).first() is None


def _mark(connection: Connection, paths: Sequence[str], now: float) -> list[Removal]:
    return [Removal(insert_row(connection, REMOVALS, path=p, marked_at=now), p, now) for p in paths]


def _remember_series(connection: Connection, case_id: int, now: float) -> None:
    """What the case holds, so that it is known when all of it has come again."""
    query = (
        select(
            INSTANCES.c.series_instance_uid,
            func.max(INSTANCES.c.modality),
            func.count(),
            func.min(INSTANCES.c.discarded),
        )
        .where(INSTANCES.c.case_id == case_id)
        .group_by(INSTANCES.c.series_instance_uid)
    )
    for uid, modality, objects, discarded in connection.execute(query).all():
        mine = and_(REMOVED_SERIES.c.case_id == case_id, REMOVED_SERIES.c.series_instance_uid == uid)
        before = connection.execute(select(REMOVED_SERIES.c.objects).where(mine)).scalar_one_or_none()
        connection.execute(delete(REMOVED_SERIES).where(mine))
        insert_row(
            connection,
            REMOVED_SERIES,
            case_id=case_id,
            series_instance_uid=uid,
            modality=modality,
            objects=max(objects, before or 0),
            discarded=discarded,
            removed_at=now,
        )
