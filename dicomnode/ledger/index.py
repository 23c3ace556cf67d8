"""The index that Query/Retrieve is answered from: filled with what arrives, emptied with what goes.

It follows in the transaction that changes what is held, while the case is locked; so its rows and counts
are never wrong by what happens at the same time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from dicomnode.attributes import EDITION, INDEXED, Level
from dicomnode.ledger.database import Database
from dicomnode.ledger.nested import add_items, forget_items
from dicomnode.ledger.rows import in_chunks, latest_run, locked_case
from dicomnode.ledger.schema import (
    CASES,
    HELD_CLASSES,
    HELD_INSTANCES,
    HELD_SERIES,
    HELD_STUDIES,
    INSTANCES,
    RESULTS,
    RUNS,
)
from dicomnode.records import Instance, Unread

Described = Mapping[str, str]
"""An object's attributes by keyword."""
_Values = dict[str, "str | int | None"]

_OF = {level: tuple(a for a in INDEXED if a.level is level) for level in Level}
_BLANK: dict[Level, _Values] = {
    level: {column: value for a in of_level for column, value in a.stored("").items()}
    for level, of_level in _OF.items()
}

# Asked of every study in every batch; to put a statement together takes as long as to execute it.
_STUDY = select(HELD_STUDIES).where(HELD_STUDIES.c.study_instance_uid == bindparam("uid"))
_SERIES = select(HELD_SERIES).where(
    HELD_SERIES.c.study_id == bindparam("study"), HELD_SERIES.c.series_instance_uid == bindparam("uid")
)
_ONE_OF = {
    table: select(table.c.sop_instance_uid).where(
        table.c.sop_instance_uid.in_(bindparam("uids", expanding=True))
    )
    for table in (HELD_INSTANCES, INSTANCES)
}
_MORE = (
    update(HELD_CLASSES)
    .where(HELD_CLASSES.c.series_id == bindparam("series"), HELD_CLASSES.c.sop_class_uid == bindparam("uid"))
    .values(instances=HELD_CLASSES.c.instances + bindparam("more"))
)


class Index(Database):
    """What the index lacks: objects that came before it was there, or whose maker did not describe them."""

    def unread_instances(self, after: str, limit: int) -> list[Unread]:
        """Received objects beyond the SOP Instance UID `after`, in that order, indexed or not."""
        columns = INSTANCES.c.sop_instance_uid, INSTANCES.c.path, INSTANCES.c.transfer_syntax_uid
        known = exists().where(HELD_INSTANCES.c.sop_instance_uid == INSTANCES.c.sop_instance_uid)
        query = (
            select(*columns, known.label("known"))
            .where(INSTANCES.c.sop_instance_uid > after)
            .order_by(INSTANCES.c.sop_instance_uid)
            .limit(limit)
        )
        with self._read() as connection:
            return [Unread(row[0], row[1], row[2], bool(row.known)) for row in connection.execute(query)]

    def unread_results(self, limit: int, after: int = 0) -> list[Unread]:
        """Results that nobody has described, of runs whose files are there, beyond the number `after`."""
        query = (
            select(RESULTS.c.sop_instance_uid, RESULTS.c.path, RESULTS.c.transfer_syntax_uid, RESULTS.c.id)
            .join(RUNS, RUNS.c.id == RESULTS.c.run_id)
            .where(RESULTS.c.attributes_json.is_(None), RUNS.c.removed_at.is_(None), RESULTS.c.id > after)
            .order_by(RESULTS.c.id)
            .limit(limit)
        )
        with self._read() as connection:
            return [Unread(row[0], row[1], row[2], False, row.id) for row in connection.execute(query)]

    def index_received(self, described: Sequence[Described]) -> None:
        """Received objects have been read. One that was removed meanwhile is left out."""
        with self._batch() as connection:
            for study_uid in sorted({d["StudyInstanceUID"] for d in described}):
                at = CASES.c.study_instance_uid == study_uid
                connection.execute(select(CASES.c.id).where(at).with_for_update(key_share=True))
            uids = [d["SOPInstanceUID"] for d in described]
            here = set(_those_in(connection, INSTANCES, uids))
            add_to_index(connection, [d for d in described if d["SOPInstanceUID"] in here], is_result=False)

    def index_result(self, sop_instance_uid: str, described: Described) -> None:
        """A result has been read; nothing is known of one that cannot be."""
        with self._batch() as connection:
            mine = RESULTS.c.sop_instance_uid == sop_instance_uid
            connection.execute(
                update(RESULTS).where(mine).values(attributes_json=json.dumps(dict(described)))
            )
            query = select(RUNS.c.case_id).join(RESULTS, RESULTS.c.run_id == RUNS.c.id).where(mine)
            show_results(connection, locked_case(connection, connection.execute(query).scalar_one()).id)

    def outdated_series(self, is_result: bool, after: int, limit: int) -> list[Unread]:
        """One object of each series that an older version described, of series beyond the number `after`."""
        files = RESULTS if is_result else INSTANCES
        firsts = select(func.min(HELD_INSTANCES.c.id)).where(HELD_INSTANCES.c.series_id == HELD_SERIES.c.id)
        first = HELD_INSTANCES.c.id == firsts.correlate(HELD_SERIES).scalar_subquery()
        query = (
            select(files.c.sop_instance_uid, files.c.path, files.c.transfer_syntax_uid, HELD_SERIES.c.id)
            .select_from(HELD_SERIES)
            .join(HELD_INSTANCES, first)
            .join(files, files.c.sop_instance_uid == HELD_INSTANCES.c.sop_instance_uid)
            .where(
                HELD_SERIES.c.edition < EDITION,
                HELD_SERIES.c.is_result == int(is_result),
                HELD_SERIES.c.id > after,
            )
            .order_by(HELD_SERIES.c.id)
            .limit(limit)
        )
        with self._read() as connection:
            return [Unread(row[0], row[1], row[2], True, row[3]) for row in connection.execute(query)]

    def index_again(self, series: int, described: Described, *, is_result: bool) -> None:
        """An object of a series that an older version described has been read."""
        with self._batch() as connection:
            uid = described["SOPInstanceUID"]
            at = CASES.c.study_instance_uid == described["StudyInstanceUID"]
            connection.execute(select(CASES.c.id).where(at).with_for_update(key_share=True))
            if not list(_those_in(connection, HELD_INSTANCES, [uid])):
                return  # removed meanwhile
            if is_result:
                told = update(RESULTS).where(RESULTS.c.sop_instance_uid == uid)
                connection.execute(told.values(attributes_json=json.dumps(dict(described))))
            _describe(connection, [described], is_result)
            done = update(HELD_SERIES).where(HELD_SERIES.c.id == series).values(edition=EDITION)
            connection.execute(done)

    def remove_from_index(self, sop_instance_uids: Iterable[str]) -> None:
        """Objects are no longer held."""
        with self._decide() as connection:
            forget(connection, list(sop_instance_uids))


def describe_instance(instance: Instance) -> Described:
    """What is known of a received object, even if its header was not read for the index."""
    return {
        "PatientID": instance.patient_id,
        "IssuerOfPatientID": instance.issuer_of_patient_id,
        "AccessionNumber": instance.accession_number,
        "Modality": instance.modality,
        **instance.attributes,
        "StudyInstanceUID": instance.study_instance_uid,
        "SeriesInstanceUID": instance.series_instance_uid,
        "SOPInstanceUID": instance.sop_instance_uid,
        "SOPClassUID": instance.sop_class_uid,
    }


def add_to_index(connection: Connection, described: Sequence[Described], *, is_result: bool) -> None:
    """Objects are held from now on. Those that the index has already are left as they are."""
    present = set(_those_in(connection, HELD_INSTANCES, [d["SOPInstanceUID"] for d in described]))
    new = [d for d in described if d["SOPInstanceUID"] not in present]
    for series_id, of_series in _describe(connection, new, is_result):
        _add_instances(connection, series_id, of_series, is_result)


def _describe(
    connection: Connection, described: Sequence[Described], is_result: bool
) -> list[tuple[int, list[Described]]]:
    """Studies and series of the objects, made if need be. returns: the series' rows, with their objects."""
    found = []
    for study_uid, of_study in _grouped(described, "StudyInstanceUID"):
        values = _values(of_study, Level.PATIENT, Level.STUDY)
        study_id = _entity(connection, HELD_STUDIES, _STUDY, {"uid": study_uid}, values)
        add_items(connection, Level.PATIENT, study_id, of_study)
        for series_uid, of_series in _grouped(of_study, "SeriesInstanceUID"):
            values = _values(of_series, Level.SERIES)
            own = {"study_id": study_id, "is_result": int(is_result), "edition": EDITION}
            at = {"study": study_id, "uid": series_uid}
            series_id = _entity(connection, HELD_SERIES, _SERIES, at, values, own)
            add_items(connection, Level.SERIES, series_id, of_series)
            found.append((series_id, of_series))
    return found


def forget(connection: Connection, sop_instance_uids: Sequence[str]) -> None:
    """Objects are no longer held; series and studies go with their last object."""
    table = HELD_INSTANCES
    for chunk in in_chunks(sop_instance_uids):
        chosen = table.c.sop_instance_uid.in_(chunk)
        rows = connection.execute(select(table.c.series_id, table.c.sop_class_uid).where(chosen)).all()
        connection.execute(delete(table).where(chosen))
        for (series_id, sop_class), count in Counter((r[0], r[1]) for r in rows).items():
            _count(connection, series_id, sop_class, -count)
        _prune(connection, sorted({row[0] for row in rows}))


def show_results(connection: Connection, case_id: int) -> None:
    """The index holds the results of the case's newest run that was not withdrawn, and none of another."""
    run = latest_run(connection, case_id)
    shown = None if run is None or run.removed_at is not None else run.id
    query = (
        select(RESULTS.c.run_id, RESULTS.c.sop_instance_uid, RESULTS.c.attributes_json)
        .join(RUNS, RUNS.c.id == RESULTS.c.run_id)
        .where(RUNS.c.case_id == case_id)
        .order_by(RESULTS.c.id)
    )
    rows = connection.execute(query).all()
    forget(connection, [row.sop_instance_uid for row in rows if row.run_id != shown])
    described = [json.loads(r.attributes_json or "{}") for r in rows if r.run_id == shown]
    add_to_index(connection, [d for d in described if d], is_result=True)


def _values(described: Sequence[Described], *levels: Level) -> _Values:
    """The columns of the entity that the objects belong to: of each attribute the first value there is."""
    present = set[str]().union(*described)
    values: _Values = {}
    for level in levels:
        values |= _BLANK[level]
        for attribute in _OF[level]:
            if attribute.keyword in present:
                texts = (d.get(attribute.keyword, "") for d in described)
                if text := next((text for text in texts if text), ""):
                    values |= attribute.stored(text)
    return values


def _entity(
    connection: Connection,
    table: Table,
    query: Select[Any],
    at: Mapping[str, Any],
    values: _Values,
    own: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """The row of a study or series, made if need be; what it did not know yet is filled in.

    own: what a new row has besides.
    """
    row = connection.execute(query, at).one_or_none()
    if row is None:
        key = connection.execute(insert(table).values(**values, **own)).inserted_primary_key
        assert key is not None
        return int(key[0])
    learnt = {name: value for name, value in values.items() if value and not row._mapping[name]}
    if learnt:
        connection.execute(update(table).where(table.c.id == row.id).values(**learnt))
    return int(row.id)


def _add_instances(
    connection: Connection, series_id: int, described: Sequence[Described], is_result: bool
) -> None:
    own: _Values = {"series_id": series_id, "is_result": int(is_result)}
    rows = [_values([d], Level.IMAGE) | own for d in described]
    connection.execute(insert(HELD_INSTANCES), rows)
    for sop_class, count in Counter(str(row["sop_class_uid"]) for row in rows).items():
        _count(connection, series_id, sop_class, count)


def _count(connection: Connection, series_id: int, sop_class_uid: str, more: int) -> None:
    changed = connection.execute(_MORE, {"series": series_id, "uid": sop_class_uid, "more": more})
    if changed.rowcount == 0:
        row = {"series_id": series_id, "sop_class_uid": sop_class_uid, "instances": more}
        connection.execute(insert(HELD_CLASSES).values(**row))


def _prune(connection: Connection, series_ids: Sequence[int]) -> None:
    """Series without objects go, and studies without series."""
    empty = and_(HELD_CLASSES.c.series_id.in_(series_ids), HELD_CLASSES.c.instances <= 0)
    connection.execute(delete(HELD_CLASSES).where(empty))
    has_objects = exists().where(HELD_CLASSES.c.series_id == HELD_SERIES.c.id)
    bare = and_(HELD_SERIES.c.id.in_(series_ids), ~has_objects)
    studies = connection.execute(select(HELD_SERIES.c.study_id).where(bare).distinct()).scalars().all()
    gone = connection.execute(select(HELD_SERIES.c.id).where(bare)).scalars().all()
    forget_items(connection, "series_id", gone)
    connection.execute(delete(HELD_SERIES).where(HELD_SERIES.c.id.in_(gone)))
    has_series = exists().where(HELD_SERIES.c.study_id == HELD_STUDIES.c.id)
    without = and_(HELD_STUDIES.c.id.in_(studies), ~has_series)
    gone = connection.execute(select(HELD_STUDIES.c.id).where(without)).scalars().all()
    forget_items(connection, "study_id", gone)
    connection.execute(delete(HELD_STUDIES).where(HELD_STUDIES.c.id.in_(gone)))


def _grouped(described: Sequence[Described], keyword: str) -> Iterator[tuple[str, list[Described]]]:
    groups: dict[str, list[Described]] = {}
    for one in described:
        groups.setdefault(one[keyword], []).append(one)
    yield from groups.items()


def _those_in(connection: Connection, table: Table, uids: Sequence[str]) -> Iterator[str]:
    """Those of the SOP Instance UIDs that the table has."""
    for chunk in in_chunks(uids):
        yield from connection.execute(_ONE_OF[table], {"uids": chunk}).scalars()
