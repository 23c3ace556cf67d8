"""The value of a key → conditions for the ledger (PS3.4 C.2.2.2).

An empty value, or * alone, is universal matching and gives no condition. A list of values matches where one
of them does, of any attribute. Values that an entity does not have match universally alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dicomnode.attributes import (
    BY_KEYWORD,
    AnyOf,
    Attribute,
    Between,
    Condition,
    Kind,
    Level,
    Like,
    Moment,
    Test,
    date,
    folded_name,
    number,
    time_range,
)
from dicomnode.reception.header import is_valid_uid

# Which date and time are one moment, where combined matching was negotiated.
MOMENTS = (
    ("StudyDate", "StudyTime"),
    ("SeriesDate", "SeriesTime"),
    ("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
    ("ContentDate", "ContentTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("InstanceCreationDate", "InstanceCreationTime"),
)
# What a database takes in one question; no person asks for more.
_MAX_VALUES = 10_000
_MAX_PATTERNS = 100
_MAX_CHARACTERS = 1024  # as much as is kept of a value
_STARS = re.compile(r"\*+")
_END_OF_DAY = "235960.999999"


class BadKey(Exception):
    """A key's value cannot be understood. The message says why, without the value, in few words: with the
    key's name before it, it is an Error Comment (`Refused`)."""


def is_universal(text: str) -> bool:
    """Whether a value matches every entity (PS3.4 C.2.2.2.3, C.2.2.2.4)."""
    return not text.replace("\\", "").strip() or _STARS.fullmatch(text.strip()) is not None


def conditions(attribute: Attribute, text: str) -> tuple[Condition, ...]:
    """What must hold for a key to match. text: several values with a backslash between them.

    Raises BadKey.
    """
    if is_universal(text):
        return ()
    values = [value.strip() for value in text.split("\\") if value.strip()]
    if attribute.kind is Kind.NAME:
        return _of_names(attribute, values)
    tests = tuple(_test(attribute, value) for value in values)
    return (Condition(attribute.level, attribute.matched, _joined(tests)),)


def condition_below(column: str, level: Level, text: str) -> tuple[Condition, ...]:
    """ModalitiesInStudy or SOPClassesInStudy: one of the series or instances has one of the values."""
    if is_universal(text):
        return ()
    tests = tuple(_text_test(value.strip()) for value in text.split("\\") if value.strip())
    return (Condition(level, (column,), _joined(tests)),)


def moments(keys: Mapping[str, str]) -> tuple[tuple[Moment, ...], frozenset[str]]:
    """Combined date and time matching, where both keys are ranges. returns: and the keywords so used.

    Raises BadKey.
    """
    found, used = [], set()
    for date_keyword, time_keyword in MOMENTS:
        dates, times = keys.get(date_keyword, ""), keys.get(time_keyword, "")
        if "-" in dates and "-" in times:
            days, clock = _date_test(dates.strip()), _time_test(times.strip())
            assert isinstance(days, Between)
            day, hour = BY_KEYWORD[date_keyword], BY_KEYWORD[time_keyword]
            low, high = (days.low, clock.low), (days.high, clock.high or _END_OF_DAY)
            found.append(Moment(day.level, day.column, hour.matched[0], low, high))
            used |= {date_keyword, time_keyword}
    return tuple(found), frozenset(used)


def _test(attribute: Attribute, value: str) -> Test:
    match attribute.kind:
        case Kind.UID:
            return AnyOf((_uid(value),))
        case Kind.DATE:
            return _date_test(value)
        case Kind.TIME:
            return _time_test(value)
        case Kind.NUMBER:
            whole = number(value)
            if whole is None:
                raise BadKey("it is no whole number")
            return AnyOf((whole,))
    return _text_test(value)


def _uid(value: str) -> str:
    if not is_valid_uid(value):
        raise BadKey("no UID and no list of UIDs")
    return value


def _text_test(value: str) -> Test:
    if len(value) > _MAX_CHARACTERS:
        raise BadKey("it is longer than any value")
    return Like(_STARS.sub("*", value)) if "*" in value or "?" in value else AnyOf((value,))


def _date_test(value: str) -> Test:
    low, dash, high = value.partition("-")
    if not dash:
        return AnyOf((_date(value),))
    if not (low.strip() or high.strip()):
        raise BadKey("its range has no end")
    return Between(_date(low) if low.strip() else "", _date(high) if high.strip() else "")


def _date(text: str) -> str:
    day = date(text.strip())
    if not day:
        raise BadKey("a date is YYYYMMDD(-YYYYMMDD)")
    return day


def _time_test(value: str) -> Between:
    """A time stands for every instant that it may mean; a range's ends are included with all of theirs."""
    low, dash, high = (part.strip() for part in value.partition("-"))
    if not dash:
        return Between(*_time(value))
    if not (low or high):
        raise BadKey("its range has no end")
    return Between(_time(low)[0] if low else "", _time(high)[1] if high else "")


def _time(text: str) -> tuple[str, str]:
    first, last = time_range(text)
    if not first:
        raise BadKey("a time is HHMMSS(-HHMMSS)")
    return first, last


def _of_names(attribute: Attribute, values: list[str]) -> tuple[Condition, ...]:
    """One component group matches where any group of the name does; several, each its own (PS3.5 6.2.1.1)."""
    if not all(map(folded_name, values)):
        return ()  # nothing but delimiters: a name without a value
    if not any("=" in value for value in values):
        tests = tuple(test for value in values for test in _name_tests(folded_name(value)))
        return (Condition(attribute.level, attribute.matched, _joined(tests)),)
    if len(values) > 1:
        raise BadKey("give one name where it has '='")
    groups = folded_name(values[0]).split("=")
    if len(groups) > len(attribute.matched):
        raise BadKey("more than three name groups")
    return tuple(
        Condition(attribute.level, (column,), _name_tests(group))
        for column, group in zip(attribute.matched, groups, strict=False)
        if not is_universal(group)
    )


def _name_tests(group: str) -> tuple[Test, ...]:
    """Components at the end that are empty are as good as none: DOE^* also means DOE."""
    tests = [_text_test(group)]
    while group.endswith("^*"):
        group = group.removesuffix("^*").rstrip("^")
        if group:
            # A name that is not known matches universally alone.
            tests.append(_text_test("?*" if _STARS.fullmatch(group) else group))
    return tuple(tests)


def _joined(tests: tuple[Test, ...]) -> tuple[Test, ...]:
    """Single values as one list: one look into the index."""
    values = (value for test in tests if isinstance(test, AnyOf) for value in test.values)
    singles = tuple(dict.fromkeys(values))
    others = tuple(dict.fromkeys(test for test in tests if not isinstance(test, AnyOf)))
    if len(singles) > _MAX_VALUES or len(others) > _MAX_PATTERNS:
        raise BadKey("too many values at once")
    return ((AnyOf(singles),) if singles else ()) + others
