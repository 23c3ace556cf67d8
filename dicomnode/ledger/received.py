"""Objects that arrived, and those that were set aside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import insert, select, update

from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import known, one_case, to_case, to_record
from dicomnode.ledger.steps import after, receive, step
from dicomnode.records import Instance, Quarantined
from dicomnode.schema import CASES, INSTANCES, QUARANTINE, RESULTS
from dicomnode.states import Event, State


class Received(Database):
    """The ledger's knowledge of objects."""

    def add_instances(self, instances: Sequence[Instance], now: float) -> set[int]:
        """Register received objects; their cases hear of it. returns: ids of the cases touched.

        Objects that are registered already are left as they are and touch no case.
        """
        if not instances:
            return set()
        touched = set()
        with self._batch() as connection:
            present = known(connection, [i.sop_instance_uid for i in instances])
            new = {i.sop_instance_uid: i for i in instances if i.sop_instance_uid not in present}
            by_study: dict[str, list[Instance]] = {}
            for instance in new.values():
                by_study.setdefault(instance.study_instance_uid, []).append(instance)
            for uid, group in by_study.items():
                case_id = receive(connection, uid, group, now)
                connection.execute(insert(INSTANCES), [asdict(i) | {"case_id": case_id} for i in group])
                touched.add(case_id)
        return touched

    def missing_from(self, sop_instance_uids: Iterable[str]) -> set[str]:
        """Those of the given UIDs that the ledger does not know as received objects."""
        uids = set(sop_instance_uids)
        with self._read() as connection:
            return uids - known(connection, list(uids))

    def instance(self, sop_instance_uid: str) -> Instance | None:
        """A received object, also one that a person discarded."""
        with self._read() as connection:
            row = connection.execute(
                select(INSTANCES).where(INSTANCES.c.sop_instance_uid == sop_instance_uid)
            ).one_or_none()
        return None if row is None else to_record(Instance, row)

    def instances(self, case_id: int) -> list[Instance]:
        """A case's objects that are to be used, in the order of their arrival."""
        with self._read() as connection:
            rows = connection.execute(
                select(INSTANCES)
                .where(INSTANCES.c.case_id == case_id, INSTANCES.c.discarded == 0)
                .order_by(INSTANCES.c.received_at)
            ).all()
        return [to_record(Instance, row) for row in rows]

    def discard(self, case_id: int, series_instance_uid: str, now: float) -> int:
        """A person sets a series of a case aside: kept, known, but not used. returns: how many objects.

        What is being made with the series ends, as when an object arrives. A case that has come to
        an end stays there until a person says `retry`.
        """
        with self._decide() as connection:
            case = one_case(connection, case_id)
            changed = connection.execute(
                update(INSTANCES)
                .where(INSTANCES.c.case_id == case_id, INSTANCES.c.series_instance_uid == series_instance_uid)
                .values(discarded=1)
            )
            if changed.rowcount and case.state not in (State.DONE, State.HELD, State.FAILED):
                reason = f"a person set {changed.rowcount} object(s) aside"
                latest = after(case.last_instance_at, now)
                step(connection, case, Event.INSTANCE, now, reason=reason, last_instance_at=latest)
        return changed.rowcount

    def is_result(self, sop_instance_uid: str) -> bool:
        """Whether it is one of our own results (a PACS may send it back)."""
        query = select(RESULTS.c.id).where(RESULTS.c.sop_instance_uid == sop_instance_uid)
        with self._read() as connection:
            return connection.execute(query).first() is not None

    def quarantine(self, item: Quarantined) -> None:
        """Remember an object that was set aside. Where its case exists, `show` tells of it."""
        with self._decide() as connection:
            connection.execute(insert(QUARANTINE).values(**asdict(item)))

    def quarantined(self, study_instance_uid: str) -> list[Quarantined]:
        """What was set aside of a study."""
        with self._read() as connection:
            rows = connection.execute(
                select(QUARANTINE)
                .where(QUARANTINE.c.study_instance_uid == study_instance_uid)
                .order_by(QUARANTINE.c.id)
            ).all()
        return [to_record(Quarantined, row) for row in rows]

    def conflict(self, study_instance_uid: str, reason: str, now: float) -> bool:
        """Two objects of a study contradict each other: `assemble` will hold the case.

        returns: False when the study has no case yet: register its first object, then say it again.
        """
        query = select(CASES).where(CASES.c.study_instance_uid == study_instance_uid)
        with self._decide() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return False
            case = to_case(row)
            latest = after(case.last_instance_at, now)
            step(
                connection, case, Event.INSTANCE, now, reason=reason, conflict=reason, last_instance_at=latest
            )
            return True
