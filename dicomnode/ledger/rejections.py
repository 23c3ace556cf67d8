"""Which earlier results a rejection note has to name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydicom.uid import KeyObjectSelectionDocumentStorage
from sqlalchemy import Connection, Row, select

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import to_record
from dicomnode.ledger.schema import DELIVERIES, RESULTS, RUNS
from dicomnode.records import NewResult

# The node writes none but rejection notes.
NOTE = KeyObjectSelectionDocumentStorage


class Rejections(Database):
    """The ledger's knowledge of what was replaced."""

    def to_reject(self, case_id: int, peers: Collection[str]) -> list[NewResult]:
        """Results of earlier runs that one of `peers` may have and no note has rejected; oldest first."""
        found: list[NewResult] = []
        runs = select(RUNS.c.id).where(RUNS.c.case_id == case_id).order_by(RUNS.c.id.desc())
        with self._read() as connection:
            for run_id in connection.execute(runs).scalars().all():
                rows = _results(connection, run_id, peers)
                objects = [row for row in rows if row.sop_class_uid != NOTE]
                sent = {row.sop_instance_uid: to_record(NewResult, row) for row in objects if row.tries > 0}
                found = [*sent.values(), *found]
                told = {
                    row.peer for row in rows if row.sop_class_uid == NOTE and row.delivered_at is not None
                }
                if told >= set(peers):
                    break  # what came before was rejected then
        return found


def _results(connection: Connection, run_id: int, peers: Collection[str]) -> list[Row[Any]]:
    """Every result of a run with each of its deliveries to `peers`."""
    query = (
        select(RESULTS, DELIVERIES.c.peer, DELIVERIES.c.tries, DELIVERIES.c.delivered_at)
        .join(DELIVERIES, DELIVERIES.c.result_id == RESULTS.c.id)
        .where(RESULTS.c.run_id == run_id, DELIVERIES.c.peer.in_(list(peers)))
        .order_by(RESULTS.c.id)
    )
    return list(connection.execute(query).all())
