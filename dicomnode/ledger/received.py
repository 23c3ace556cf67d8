"""Objects that arrived, and those that were set aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, and_, insert, select, update

from dicomnode.ledger.database import Database
from dicomnode.ledger.index import add_to_index, describe_instance
from dicomnode.ledger.rows import in_chunks, known, locked_case, to_record, to_row
from dicomnode.ledger.schema import CASES, INSTANCES, QUARANTINE, REMOVED_SERIES, RESULTS, TRANSITIONS
from dicomnode.ledger.steps import after, case_of, case_of_any, insert_new, insert_row, receive, step
from dicomnode.records import Case, Instance, Quarantined
from dicomnode.states import Event, State

# A case that is held names so many objects, its story all of them, so many in a row.
_NAMED = 5
_NAMED_IN_A_ROW = 50
# What is held for more reasons than these characters hold is told by the story.
_CONFLICT_CHARACTERS = 2000
_AND_MORE = "; and more"


class Received(Database):
    """The ledger's knowledge of objects."""

    def add_instances(self, instances: Sequence[Instance], now: float) -> set[int]:
        """Register received objects; their cases hear of it. returns: ids of the cases touched.

        Objects that are registered already are left as they are, except what their file is, and touch no
        case.
        """
        if not instances:
            return set()
        touched = set()
        with self._batch() as connection:
            present = known(connection, [i.sop_instance_uid for i in instances])
            new = {i.sop_instance_uid: i for i in instances if i.sop_instance_uid not in present}
            _renew(connection, [i for i in instances if i.sop_instance_uid in present])
            by_study: dict[str, list[Instance]] = {}
            for instance in new.values():
                by_study.setdefault(instance.study_instance_uid, []).append(instance)
            # In one order everywhere, lest two receivers wait for each other's cases.
            for uid, group in sorted(by_study.items()):
                case_id = receive(connection, uid, group, now)
                aside = _set_aside(connection, case_id)
                insert_new(
                    connection,
                    INSTANCES,
                    [
                        to_row(i) | {"case_id": case_id, "discarded": int(i.series_instance_uid in aside)}
                        for i in group
                    ],
                )
                add_to_index(connection, [describe_instance(i) for i in group], is_result=False)
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
            case = locked_case(connection, case_id)
            removed = _set_removed_aside(connection, case_id, series_instance_uid)
            changed = connection.execute(
                update(INSTANCES)
                .where(INSTANCES.c.case_id == case_id, INSTANCES.c.series_instance_uid == series_instance_uid)
                .values(discarded=1)
            )
            count = changed.rowcount or removed
            if count and case.state not in (State.DONE, State.HELD, State.FAILED):
                reason = f"a person set {count} object(s) aside"
                latest = after(case.last_instance_at, now)
                step(connection, case, Event.INSTANCE, now, reason=reason, last_instance_at=latest)
        return count

    def is_result(self, sop_instance_uid: str) -> bool:
        """Whether it is one of our own results (a PACS may send it back)."""
        query = select(RESULTS.c.id).where(RESULTS.c.sop_instance_uid == sop_instance_uid)
        with self._read() as connection:
            return connection.execute(query).first() is not None

    def quarantine(self, item: Quarantined) -> None:
        """Remember an object that was set aside, once. Where its case exists, `show` tells of it."""
        with self._decide() as connection:
            if _is_set_aside(connection, item):
                return
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
        with self._decide() as connection:
            case = case_of(connection, study_instance_uid)
            if case is None:
                return False
            _contradict(connection, case, reason, now)
            return True

    def lacks(self, study_instance_uid: str, why: str, paths: Mapping[str, str], now: float) -> None:
        """Acknowledged objects cannot be registered: `assemble` will hold the case, and the story names them.

        A study without a case gets one of which nothing else is known. why: "the database did not take".
        paths: SOP Instance UID → file, relative to data_dir.
        """
        with self._decide() as connection:
            case = case_of_any(connection, study_instance_uid, now)
            objects = [f"{uid}, {path}" for uid, path in paths.items()]
            # Otherwise the step to COLLECTING tells of them.
            if case.state is State.COLLECTING or len(objects) > _NAMED:
                for start in range(0, len(objects), _NAMED_IN_A_ROW):
                    _tell(connection, case, _lacking(why, objects[start : start + _NAMED_IN_A_ROW]), now)
            more = [f"and {len(objects) - _NAMED} more, which `dicomnode show` names"]
            few = objects[:_NAMED] + (more if len(objects) > _NAMED else [])
            _contradict(connection, case, _lacking(why, few, len(objects)), now)

    def told_lacking(self, study_instance_uid: str, why: str) -> set[str]:
        """SOP Instance UIDs of which `lacks` told for that reason."""
        query = (
            select(TRANSITIONS.c.reason)
            .join(CASES, CASES.c.id == TRANSITIONS.c.case_id)
            .where(CASES.c.study_instance_uid == study_instance_uid)
            .where(TRANSITIONS.c.event == str(Event.INSTANCE))
            .where(TRANSITIONS.c.reason.startswith(why, autoescape=True))
        )
        with self._read() as connection:
            reasons = connection.execute(query).scalars().all()
        return {uid for reason in reasons for uid in _uids_lacking(reason)}

    def with_case(self, study_instance_uids: Iterable[str]) -> set[str]:
        """Those of the studies that have a case."""
        column = CASES.c.study_instance_uid
        found: set[str] = set()
        with self._read() as connection:
            for chunk in in_chunks(list(study_instance_uids)):
                found |= set(connection.execute(select(column).where(column.in_(chunk))).scalars())
        return found


def _contradict(connection: Connection, case: Case, reason: str, now: float) -> None:
    """One more reason to hold a case; those that stand already stay."""
    conflict = case.conflict
    if not conflict:
        conflict = reason
    elif len(conflict) > _CONFLICT_CHARACTERS:
        conflict = f"{conflict.removesuffix(_AND_MORE)}{_AND_MORE}"
    elif f"; {reason};" not in f"; {conflict};":
        conflict = f"{conflict}; {reason}"
    latest = after(case.last_instance_at, now)
    step(connection, case, Event.INSTANCE, now, reason=reason, conflict=conflict, last_instance_at=latest)


def _tell(connection: Connection, case: Case, reason: str, now: float) -> None:
    """A row of the story that takes the case nowhere."""
    state, event = str(case.state), str(Event.INSTANCE)
    told = {"case_id": case.id, "at": now, "from_state": state, "to_state": state, "event": event}
    insert_row(connection, TRANSITIONS, **told, reason=reason)


def _lacking(why: str, objects: Sequence[str], count: int | None = None) -> str:
    count = count or len(objects)
    many = "an object that was received" if count == 1 else f"{count} objects that were received"
    return f"{why} {many}: {'; '.join(objects)}"


def _uids_lacking(reason: str) -> Iterable[str]:
    """The SOP Instance UIDs of `_lacking`."""
    _, _, objects = reason.partition(": ")
    return (one.partition(", ")[0] for one in objects.split("; "))


def _renew(connection: Connection, instances: Sequence[Instance]) -> None:
    """Their files were damaged and set aside: they have come again, perhaps in another transfer syntax."""
    for i in instances:
        file = {"transfer_syntax_uid": i.transfer_syntax_uid, "path": i.path, "size_bytes": i.size_bytes}
        mine = INSTANCES.c.sop_instance_uid == i.sop_instance_uid
        connection.execute(update(INSTANCES).where(mine).values(**file))


def _set_aside(connection: Connection, case_id: int) -> set[str]:
    """Series that a person discarded before retention removed them: sent again, they stay discarded."""
    query = select(REMOVED_SERIES.c.series_instance_uid).where(
        REMOVED_SERIES.c.case_id == case_id, REMOVED_SERIES.c.discarded == 1
    )
    return set(connection.execute(query).scalars())


def _set_removed_aside(connection: Connection, case_id: int, series_instance_uid: str) -> int:
    """A series that retention removed is not waited for any more. returns: how many objects it had."""
    mine = and_(
        REMOVED_SERIES.c.case_id == case_id, REMOVED_SERIES.c.series_instance_uid == series_instance_uid
    )
    connection.execute(update(REMOVED_SERIES).where(mine).values(discarded=1))
    objects = connection.execute(select(REMOVED_SERIES.c.objects).where(mine)).scalar_one_or_none()
    return objects or 0


def _is_set_aside(connection: Connection, item: Quarantined) -> bool:
    """Two nodes that share the folder may both find it there."""
    query = select(QUARANTINE.c.id).where(
        QUARANTINE.c.study_instance_uid == item.study_instance_uid, QUARANTINE.c.path == item.path
    )
    return item.path != "" and connection.execute(query).first() is not None
