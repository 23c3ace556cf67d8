"""Storage commitment that the node is asked for: what it was asked, and whether the peer was told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, update

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import held_objects, to_record
from dicomnode.ledger.schema import INSTANCES, PROMISES, RESULTS
from dicomnode.ledger.steps import insert_row
from dicomnode.records import HeldObject, Promise

_COLUMNS = [column for column in PROMISES.c if column is not PROMISES.c.objects_json]


class Promises(Database):
    """The ledger's knowledge of storage commitment requests of peers."""

    def promise(
        self, peer: str, transaction_uid: str, objects: Sequence[tuple[str, str]], now: float
    ) -> tuple[int, bool] | None:
        """A peer asks for storage commitment. objects: SOP Class and SOP Instance UIDs.

        The same transaction again is the same request, and is reported on again: its sender may not
        have heard the first answer. returns: its number, and whether it is new; None when the peer has
        asked about other objects under that UID.
        """
        values = {
            "objects_json": json.dumps([list(pair) for pair in objects]),
            "asked_at": now,
            "next_attempt_at": 0.0,
            "tries": 0,
            "ended_at": None,
            "outcome": "open",
            "detail": "",
        }
        theirs = (PROMISES.c.peer == peer, PROMISES.c.transaction_uid == transaction_uid)
        with self._decide() as connection:
            query = select(PROMISES.c.id, PROMISES.c.objects_json).where(*theirs)
            before = connection.execute(query).one_or_none()
            if before is not None:
                if {tuple(pair) for pair in json.loads(before.objects_json)} != set(objects):
                    return None
                connection.execute(update(PROMISES).where(PROMISES.c.id == before.id).values(**values))
                return before.id, False
            added = insert_row(connection, PROMISES, peer=peer, transaction_uid=transaction_uid, **values)
            return added, True

    def unanswered(self, peer: str) -> int:
        """How many requests of a peer (AE title) wait for it to be told."""
        query = select(func.count()).where(PROMISES.c.peer == peer, PROMISES.c.outcome == "open")
        with self._read() as connection:
            return int(connection.execute(query).scalar_one())

    def open_promises(self) -> list[Promise]:
        """Those whose peers have not been told, oldest first."""
        # Without what they ask about: they are looked at at every tick, and it may be thousands of objects.
        query = select(*_COLUMNS).where(PROMISES.c.outcome == "open").order_by(PROMISES.c.id)
        with self._read() as connection:
            return [to_record(Promise, row) for row in connection.execute(query).all()]

    def promised(self, promise_id: int) -> tuple[tuple[str, str], ...]:
        """What a request asks about: (SOP Class UID, SOP Instance UID)."""
        query = select(PROMISES.c.objects_json).where(PROMISES.c.id == promise_id)
        with self._read() as connection:
            pairs = json.loads(connection.execute(query).scalar_one())
        return tuple((str(sop_class), str(instance)) for sop_class, instance in pairs)

    def told(self, promise_id: int, now: float) -> None:
        """The peer has taken the report."""
        self._end(promise_id, outcome="told", ended_at=now, detail="")

    def not_told(self, promise_id: int, reason: str, next_attempt_at: float) -> None:
        """The peer could not be told: once more later."""
        self._end(promise_id, detail=reason, next_attempt_at=next_attempt_at, tries=PROMISES.c.tries + 1)

    def given_up(self, promise_id: int, now: float, reason: str) -> None:
        """The peer is told no more."""
        self._end(promise_id, outcome="given up", ended_at=now, detail=reason)

    def kept(self, sop_instance_uids: Sequence[str]) -> dict[str, HeldObject]:
        """What the node holds, by SOP Instance UID.

        Received objects, also those that a person discarded, and our own results.
        """
        with self._read() as connection:
            return held_objects(connection, RESULTS, sop_instance_uids) | held_objects(
                connection, INSTANCES, sop_instance_uids
            )

    def _end(self, promise_id: int, **values: Any) -> None:
        with self._decide() as connection:
            connection.execute(update(PROMISES).where(PROMISES.c.id == promise_id).values(**values))
