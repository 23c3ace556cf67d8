"""Which earlier results a rejection note has to name, and to whom."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

from pydicom.uid import KeyObjectSelectionDocumentStorage
from sqlalchemy import Connection, Row, func, select

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import to_record
from dicomnode.ledger.schema import DELIVERIES, RESULTS, RUNS
from dicomnode.records import NewResult, Rejection

# The node writes none but rejection notes.
NOTE = KeyObjectSelectionDocumentStorage


class Rejections(Database):
    """The ledger's knowledge of what was replaced."""

    def to_reject(self, case_id: int, peers: Collection[str]) -> tuple[Rejection, ...]:
        """One note for all of `peers` that may have the same results of earlier runs, oldest first.

        An archive may refuse a note whole that names what it never had. None is for a peer that has nothing,
        or whose notes have rejected everything.
        """
        notes: dict[tuple[NewResult, ...], list[str]] = {}
        with self._read() as connection:
            for peer in peers:
                if named := _named(connection, case_id, peer):
                    notes.setdefault(named, []).append(peer)
        return tuple(Rejection(tuple(names), named) for named, names in notes.items())


def _named(connection: Connection, case_id: int, peer: str) -> tuple[NewResult, ...]:
    """What a peer may have, back to the run whose note it took: what came before was rejected then."""
    found: list[NewResult] = []
    for _, of_run in groupby(_results(connection, case_id, peer), key=lambda row: row.run_id):
        rows = list(of_run)
        objects = [row for row in rows if row.sop_class_uid != NOTE and row.may_have]
        found = [*(to_record(NewResult, row) for row in objects), *found]
        if _is_settled(connection, [row for row in rows if row.sop_class_uid == NOTE]):
            break
    return tuple(found)


def _series(row: Row[Any]) -> str:
    return str(row.series_instance_uid)


def _is_settled(connection: Connection, notes: Sequence[Row[Any]]) -> bool:
    """Whether a peer's notes of a run have rejected all that they name.

    One that the peer did not keep stands for its parts, which are of its series: all of them, those too of
    which the peer was to get no more.
    """
    for series, of_series in groupby(sorted(notes, key=_series), key=_series):
        done = {row.id: row for row in of_series if row.delivered_at is not None}
        of_note = select(func.min(RESULTS.c.id), func.count()).where(RESULTS.c.series_instance_uid == series)
        whole, objects = connection.execute(of_note).one()
        if whole in done and done[whole].may_have:
            continue
        if len(done) < objects:
            return False
    return bool(notes)


def _results(connection: Connection, case_id: int, peer: str) -> list[Row[Any]]:
    """Every result of a case that was meant for a peer, with its delivery; those of the newest run first."""
    query = (
        select(RESULTS, DELIVERIES.c.may_have, DELIVERIES.c.delivered_at)
        .join(DELIVERIES, DELIVERIES.c.result_id == RESULTS.c.id)
        .join(RUNS, RUNS.c.id == RESULTS.c.run_id)
        .where(RUNS.c.case_id == case_id, DELIVERIES.c.peer == peer)
        .order_by(RUNS.c.id.desc(), RESULTS.c.id)
    )
    return list(connection.execute(query).all())
