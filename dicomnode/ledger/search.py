"""Questions of Query/Retrieve as SQL over the index; no file is opened.

A question is answered in two steps: the numbers of the entities that match, then their attributes some
hundred at a time, so that a slow peer keeps no transaction open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    FromClause,
    Select,
    String,
    Table,
    and_,
    exists,
    false,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from dicomnode.attributes import (
    INDEXED,
    LEVELS,
    AnyOf,
    Condition,
    InItem,
    ItemSequence,
    Level,
    Like,
    Moment,
    Question,
    Test,
)
from dicomnode.ledger.database import Database
from dicomnode.ledger.rows import held_objects
from dicomnode.ledger.schema import (
    HELD_CLASSES,
    HELD_INSTANCES,
    HELD_ITEMS,
    HELD_SERIES,
    HELD_STUDIES,
    INSTANCES,
    RESULTS,
)
from dicomnode.records import Contents, HeldObject

# A patient is what the newest of its studies says.
_TABLES: dict[Level, Table] = {
    Level.PATIENT: HELD_STUDIES,
    Level.STUDY: HELD_STUDIES,
    Level.SERIES: HELD_SERIES,
    Level.IMAGE: HELD_INSTANCES,
}
_SERIES = HELD_STUDIES.join(HELD_SERIES, HELD_SERIES.c.study_id == HELD_STUDIES.c.id)
_FROM: dict[Level, FromClause] = {
    Level.PATIENT: HELD_STUDIES,
    Level.STUDY: HELD_STUDIES,
    Level.SERIES: _SERIES,
    Level.IMAGE: _SERIES.join(HELD_INSTANCES, HELD_INSTANCES.c.series_id == HELD_SERIES.c.id),
}
# Results first.
_ORDER: dict[Level, tuple[ColumnElement[Any], ...]] = {
    Level.PATIENT: (HELD_STUDIES.c.id,),
    Level.STUDY: (HELD_STUDIES.c.id,),
    Level.SERIES: (HELD_SERIES.c.is_result.desc(), HELD_SERIES.c.id),
    Level.IMAGE: (HELD_INSTANCES.c.is_result.desc(), HELD_INSTANCES.c.id),
}


class Search(Database):
    """What the index tells."""

    def find(self, question: Question, limit: int) -> list[int]:
        """Numbers of the entities that match, results first; at most `limit`."""
        query = matching(question).limit(limit)
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def attributes(self, level: Level, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Column → value of entities and of those above them, in the order of `numbers` (500 at most)."""
        key = _TABLES[level].c.id
        query = (
            select(key.label("number"), *_columns(level)).select_from(_FROM[level]).where(key.in_(numbers))
        )
        with self._read() as connection:
            rows = {row["number"]: dict(row) for row in connection.execute(query).mappings()}
        # One may have been removed since it was found.
        return [rows[number] for number in numbers if number in rows]

    def items(
        self, sequence: ItemSequence, conditions: Sequence[Condition], level: Level, numbers: Sequence[int]
    ) -> dict[int, list[dict[str, Any]]]:
        """The items for which every condition holds, of entities and of those above them (500 at most).

        returns: number of the entity → column → value of each.
        """
        table, key = HELD_ITEMS[sequence], _TABLES[level].c.id
        whose = table.c[sequence.owner] == _TABLES[sequence.level].c.id
        columns = [table.c[name] for attribute in sequence.attributes for name in attribute.columns]
        query = (
            select(key.label("number"), *columns)
            .select_from(_FROM[level].join(table, whose))
            .where(key.in_(numbers), *(_any_test(table, condition) for condition in conditions))
            .order_by(table.c.id)
        )
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
        with self._read() as connection:
            for row in connection.execute(query).mappings():
                found[row["number"]].append(dict(row))
        return found

    def contents(self, level: Level, numbers: Sequence[int]) -> dict[int, list[Contents]]:
        """What the series of patients, studies or series hold, by the entity's number (500 at most)."""
        query = _contents(level, numbers)
        found: dict[int, list[Contents]] = {number: [] for number in numbers}
        with self._read() as connection:
            for number, *fields in connection.execute(query):
                found[number].append(Contents(*fields))
        return found

    def held(self, question: Question, limit: int) -> list[HeldObject]:
        """The objects that a retrieval asks for, results first; at most `limit`.

        The question is of the level IMAGE.
        """
        columns = HELD_INSTANCES.c.sop_instance_uid, HELD_INSTANCES.c.is_result
        query = _chosen(question, *columns).order_by(*_ORDER[Level.IMAGE]).limit(limit)
        with self._read() as connection:
            rows = connection.execute(query).all()
            files: dict[str, HeldObject] = {}
            for table, is_result in ((RESULTS, 1), (INSTANCES, 0)):
                uids = [row[0] for row in rows if row[1] == is_result]
                files |= held_objects(connection, table, uids)
        return [files[row[0]] for row in rows if row[0] in files]


def matching(question: Question) -> Select[Any]:
    """The numbers of the entities that match a question."""
    return _chosen(question, _TABLES[question.level].c.id).order_by(*_ORDER[question.level])


def _chosen(question: Question, *columns: ColumnElement[Any]) -> Select[Any]:
    query = select(*columns).select_from(_FROM[question.level])
    for condition in question.conditions:
        query = query.where(_holds(condition, question.level))
    if question.level is Level.PATIENT:
        query = query.where(_newest_of_its_patient())
    return query


def _newest_of_its_patient() -> ColumnElement[bool]:
    """Studies without Patient ID are nobody's: no patient can be made of them."""
    newer = HELD_STUDIES.alias("newer")
    same = and_(
        newer.c.patient_id == HELD_STUDIES.c.patient_id,
        newer.c.issuer_of_patient_id == HELD_STUDIES.c.issuer_of_patient_id,
        newer.c.id > HELD_STUDIES.c.id,
    )
    return and_(HELD_STUDIES.c.patient_id != "", ~exists().where(same))


# ── conditions ───────────────────────────────────────────────────────────────────────────────────


def _holds(condition: Condition | Moment | InItem, level: Level) -> ColumnElement[bool]:
    if isinstance(condition, InItem):
        return _has_item(condition)
    table = _TABLES[condition.level]
    if isinstance(condition, Moment):
        return _within(table.c[condition.date], table.c[condition.time], condition)
    if LEVELS.index(condition.level) > LEVELS.index(level):
        return _somewhere_below(condition, level)
    return _any_test(table, condition)


def _has_item(wanted: InItem) -> ColumnElement[bool]:
    """Found from the items, which have an index, not looked for in every entity."""
    sequence, table = wanted.sequence, HELD_ITEMS[wanted.sequence]
    tests = (_any_test(table, condition) for condition in wanted.conditions)
    return _TABLES[sequence.level].c.id.in_(select(table.c[sequence.owner]).where(*tests))


def _any_test(table: FromClause, condition: Condition) -> ColumnElement[bool]:
    tests = [_test(table.c[name], test) for name in condition.columns for test in condition.tests]
    return or_(false(), *tests) if len(tests) != 1 else tests[0]


def _somewhere_below(condition: Condition, level: Level) -> ColumnElement[bool]:
    """Modality of one of the series, SOP class of one of the instances."""
    series = HELD_SERIES.alias("below")
    if level is Level.SERIES:
        inside = HELD_CLASSES.c.series_id == HELD_SERIES.c.id
        return exists().where(inside, _any_test(HELD_CLASSES, condition))
    mine = series.c.study_id == HELD_STUDIES.c.id
    if condition.level is Level.SERIES:
        return exists().where(mine, _any_test(series, condition))
    inside = HELD_CLASSES.c.series_id == series.c.id
    return exists().where(mine, inside, _any_test(HELD_CLASSES, condition))


def _test(column: ColumnElement[Any], test: Test) -> ColumnElement[bool]:
    if isinstance(test, AnyOf):
        return column == test.values[0] if len(test.values) == 1 else column.in_(test.values)
    if isinstance(test, Like):
        return _wildcard(column, test.pattern)
    # An empty value is not known: it lies in no range.
    low = column >= test.low if test.low else column != ""
    return and_(low, column <= test.high) if test.high else low


def _within(date: ColumnElement[Any], time: ColumnElement[Any], moment: Moment) -> ColumnElement[bool]:
    """A study without time is taken to last the whole day."""
    (first_day, first_time), (last_day, last_time) = moment.low, moment.high
    known = date != ""
    from_low = or_(date > first_day, and_(date == first_day, or_(time >= first_time, time == "")))
    to_high = or_(date < last_day, and_(date == last_day, or_(time <= last_time, time == "")))
    return and_(known, from_low if first_day else true(), to_high if last_day else true())


class _Wildcard(FunctionElement[bool]):
    """Wild card matching, case-sensitive. clauses: column, pattern of GLOB, pattern of LIKE."""

    type = Boolean()
    inherit_cache = True


@compiles(_Wildcard)
def _as_like(element: _Wildcard, compiler: Any, **options: Any) -> str:
    column, _, pattern = element.clauses
    return f"{compiler.process(column, **options)} LIKE {compiler.process(pattern, **options)} ESCAPE '/'"


@compiles(_Wildcard, "sqlite")
def _as_glob(element: _Wildcard, compiler: Any, **options: Any) -> str:
    # SQLite's LIKE knows no difference of case.
    column, pattern, _ = element.clauses
    return f"{compiler.process(column, **options)} GLOB {compiler.process(pattern, **options)}"


def _wildcard(column: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    glob = pattern.replace("[", "[[]")
    like = pattern.replace("/", "//").replace("%", "/%").replace("_", "/_")
    like = like.replace("*", "%").replace("?", "_")
    return _Wildcard(column, literal(glob, String), literal(like, String))


# ── what is returned ─────────────────────────────────────────────────────────────────────────────


def _columns(level: Level) -> list[ColumnElement[Any]]:
    above = LEVELS[: LEVELS.index(level) + 1]
    return [_TABLES[a.level].c[a.column] for a in INDEXED if a.level in above]


def _contents(level: Level, numbers: Sequence[int]) -> Select[Any]:
    """(number of the entity, study, series, Modality, SOP Class UID, instances)."""
    study, series, classes = HELD_STUDIES.alias("study"), HELD_SERIES, HELD_CLASSES
    inside = study.join(series, series.c.study_id == study.c.id)
    inside = inside.join(classes, classes.c.series_id == series.c.id)
    key: ColumnElement[Any] = series.c.id if level is Level.SERIES else study.c.id
    if level is Level.PATIENT:
        same = and_(
            study.c.patient_id == HELD_STUDIES.c.patient_id,
            study.c.issuer_of_patient_id == HELD_STUDIES.c.issuer_of_patient_id,
        )
        inside, key = HELD_STUDIES.join(inside, same), HELD_STUDIES.c.id
    what = study.c.id, series.c.id, series.c.modality, classes.c.sop_class_uid, classes.c.instances
    return select(key, *what).select_from(inside).where(key.in_(numbers))
