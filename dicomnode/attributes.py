"""The attributes that Query/Retrieve answers from: what the ledger's index holds of every object.

One table for the header's reader, the database's columns and the matching of keys. Levels are those of
the Query/Retrieve information models (PS3.4 C.6.1.1, C.6.2.1); an attribute stands at one of them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydicom.datadict import dictionary_VR, tag_for_keyword

# PS3.5 6.2 limits values to 64 characters or a text; what a defective writer adds is not kept. The columns
# of one index must fit into a third of PostgreSQL's page (2704 bytes): it would refuse the whole batch.
_MAX_CHARACTERS = 256
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)  # the dots are of ACR-NEMA 300
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d{1,10}", re.ASCII)
_SNAKE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Level(StrEnum):
    """QueryRetrieveLevel (PS3.4 C.6.1.1.1)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


LEVELS = tuple(Level)


class Kind(StrEnum):
    """How a value is kept and matched (PS3.4 C.2.2.2)."""

    UID = "UID"
    TEXT = "TEXT"
    NAME = "NAME"
    """Person Name: also folded, one column for each component group."""
    DATE = "DATE"
    TIME = "TIME"
    """Also at full precision, to be compared."""
    NUMBER = "NUMBER"
    SHOWN = "SHOWN"
    """Several values; returned, not matched."""


_KINDS = {
    "UI": Kind.UID,
    "PN": Kind.NAME,
    "DA": Kind.DATE,
    "TM": Kind.TIME,
    "IS": Kind.NUMBER,
    "US": Kind.NUMBER,
}
_GROUPS = ("alphabetic", "ideographic", "phonetic")  # PS3.5 6.2.1.1


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of the index."""

    keyword: str
    level: Level
    tag: int
    vr: str
    kind: Kind
    column: str
    """Its name in the database."""

    @property
    def matched(self) -> tuple[str, ...]:
        """The columns that keys are compared with."""
        if self.kind is Kind.NAME:
            return tuple(f"{self.column}_{group}" for group in _GROUPS)
        return (f"{self.column}_at",) if self.kind is Kind.TIME else (self.column,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it has."""
        return tuple(dict.fromkeys((self.column, *self.matched)))

    def stored(self, value: str) -> dict[str, str | int | None]:
        """The columns' values. An invalid date, time or number is as good as none."""
        value = cleaned(value)
        if self.kind is Kind.NUMBER:
            return {self.column: number(value)}
        if self.kind is Kind.DATE:
            return {self.column: date(value)}
        if self.kind is Kind.TIME:
            earliest = time_range(value)[0]
            return {self.column: value if earliest else "", self.matched[0]: earliest}
        if self.kind is Kind.NAME:
            # Folding may make a name longer.
            groups = [group[:_MAX_CHARACTERS] for group in (*folded_name(value).split("="), "", "", "")][:3]
            return {self.column: value, **dict(zip(self.matched, groups, strict=True))}
        return {self.column: value}


def cleaned(value: str) -> str:
    """Without padding, which is not significant (PS3.5 6.2), nor what no database takes."""
    return value.replace("\0", "").strip(" \t\r\n")[:_MAX_CHARACTERS]


def number(text: str) -> int | None:
    """A value of VR IS or US; None when it is none or beyond 32 bits."""
    if not _NUMBER.fullmatch(text):
        return None
    value = int(text)
    return value if -(2**31) <= value < 2**31 else None


def date(text: str) -> str:
    """A value of VR DA as YYYYMMDD; empty when it is none."""
    match = _DATE.fullmatch(text)
    if match is None or not (1 <= int(match[2]) <= 12 and 1 <= int(match[3]) <= 31):
        return ""
    return "".join(match.groups())


def time_range(text: str) -> tuple[str, str]:
    """The first and the last instant that a value of VR TM may mean, as HHMMSS.FFFFFF; empty when it is none.

    Components that are left out are not known (PS3.5 6.2).
    """
    match = _TIME.fullmatch(text)
    if match is None or int(match[1]) > 23 or int(match[2] or 0) > 59 or int(match[3] or 0) > 60:
        return "", ""
    hour, minute, second, fraction = match.groups()
    first = f"{hour}{minute or '00'}{second or '00'}.{(fraction or '').ljust(6, '0')}"
    last = f"{hour}{minute or '59'}{second or '59'}.{(fraction or '').ljust(6, '9')}"
    return first, last


def folded_name(value: str) -> str:
    """A Person Name as it is compared: without case, padding and empty components at the end."""
    groups = unicodedata.normalize("NFC", value).lower().split("=")
    trimmed = ["^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups]
    return "=".join(trimmed).rstrip("=")


def _column(keyword: str) -> str:
    return _SNAKE.sub("_", keyword).lower()


def _attribute(keyword: str, level: Level) -> Attribute:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    vr = dictionary_VR(tag)
    kind = Kind.SHOWN if keyword in _SEVERAL_VALUES else _KINDS.get(vr, Kind.TEXT)
    return Attribute(keyword, level, int(tag), vr, kind, _column(keyword))


_SEVERAL_VALUES = frozenset({"ImageType"})
_KEYWORDS = {
    Level.PATIENT: """
        PatientID IssuerOfPatientID PatientName PatientBirthDate PatientSex
        """,
    Level.STUDY: """
        StudyInstanceUID StudyDate StudyTime AccessionNumber StudyID StudyDescription ReferringPhysicianName
        """,
    Level.SERIES: """
        SeriesInstanceUID Modality SeriesNumber SeriesDescription SeriesDate SeriesTime
        PerformedProcedureStepStartDate PerformedProcedureStepStartTime
        BodyPartExamined ProtocolName FrameOfReferenceUID
        Manufacturer ManufacturerModelName InstitutionName StationName
        """,
    Level.IMAGE: """
        SOPInstanceUID SOPClassUID InstanceNumber ImageType NumberOfFrames Rows Columns BitsAllocated
        ContentDate ContentTime AcquisitionDate AcquisitionTime InstanceCreationDate InstanceCreationTime
        DoseUnits DoseType DoseSummationType DoseComment
        ContentLabel ContentDescription CompletionFlag VerificationFlag
        """,
}
INDEXED: tuple[Attribute, ...] = tuple(
    _attribute(keyword, level) for level, text in _KEYWORDS.items() for keyword in text.split()
)
BY_KEYWORD: Mapping[str, Attribute] = {attribute.keyword: attribute for attribute in INDEXED}
BY_TAG: Mapping[int, Attribute] = {attribute.tag: attribute for attribute in INDEXED}
UNIQUE_KEY: Mapping[Level, Attribute] = {
    Level.PATIENT: BY_KEYWORD["PatientID"],
    Level.STUDY: BY_KEYWORD["StudyInstanceUID"],
    Level.SERIES: BY_KEYWORD["SeriesInstanceUID"],
    Level.IMAGE: BY_KEYWORD["SOPInstanceUID"],
}


# ── sequences ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ItemSequence:
    """A sequence of the index. Its items are rows of a table of their own."""

    keyword: str
    level: Level
    tag: int
    table: str
    attributes: tuple[Attribute, ...]
    """What is kept of an item."""
    flat: str = ""
    """Keyword of an older attribute that holds what is now the first attribute of each item."""

    @property
    def owner(self) -> str:
        """The column that tells whose an item is. Patients have no rows of their own: their studies do."""
        return "series_id" if self.level is Level.SERIES else "study_id"

    @property
    def by_keyword(self) -> dict[str, Attribute]:
        """What is kept of an item."""
        return {attribute.keyword: attribute for attribute in self.attributes}


# With which of these tables a series was described. A series of an older one is read again.
EDITION = 1
# Of a sequence; no request and no patient has as many.
MAX_ITEMS = 32
Item = Mapping[str, str]
"""The attributes of an item that have a value, by keyword."""


def _sequence(keyword: str, level: Level, table: str, keywords: str, flat: str = "") -> ItemSequence:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    attributes = tuple(_attribute(one, level) for one in keywords.split())
    return ItemSequence(keyword, level, int(tag), table, attributes, flat)


SEQUENCES: tuple[ItemSequence, ...] = (
    # PS3.3 C.7.1.1. The flat one is retired, and still what some archives and workstations know.
    _sequence(
        "OtherPatientIDsSequence",
        Level.PATIENT,
        "held_other_patient_ids",
        "PatientID IssuerOfPatientID TypeOfPatientID",
        "OtherPatientIDs",
    ),
    # PS3.3 10.6; of IHE RAD TF-2 4.14 the first two.
    _sequence(
        "RequestAttributesSequence",
        Level.SERIES,
        "held_requests",
        """
        ScheduledProcedureStepID RequestedProcedureID AccessionNumber
        ScheduledProcedureStepDescription RequestedProcedureDescription
        """,
    ),
)
SEQUENCE_BY_TAG: Mapping[int, ItemSequence] = {sequence.tag: sequence for sequence in SEQUENCES}
FLAT_BY_TAG: Mapping[int, ItemSequence] = {
    int(tag_for_keyword(sequence.flat) or 0): sequence for sequence in SEQUENCES if sequence.flat
}
# By the keyword of either.
SEQUENCE_OF: Mapping[str, ItemSequence] = {
    keyword: sequence for sequence in SEQUENCES for keyword in (sequence.keyword, sequence.flat) if keyword
}


def items_text(items: Sequence[Item]) -> str:
    """Items as one value, as an object's description has them; empty for none."""
    return json.dumps([dict(item) for item in items], ensure_ascii=False) if items else ""


def items_of(text: str) -> list[Item]:
    """The items of such a value."""
    found: list[Item] = json.loads(text) if text else []
    return found


# ── what a query asks ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Single value matching, or that of a list (PS3.4 C.2.2.2.1, C.2.2.2.2)."""

    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """Wild card matching: * for any characters, ? for one (PS3.4 C.2.2.2.4)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Between:
    """Range matching, both ends included (PS3.4 C.2.2.2.5). An empty end is open."""

    low: str
    high: str


Test = AnyOf | Like | Between


@dataclass(frozen=True, slots=True)
class Condition:
    """At least one of the tests holds for at least one of the columns of `level`.

    A level below that of the question: it holds for at least one of the series or instances there.
    """

    level: Level
    columns: tuple[str, ...]
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """Combined date and time matching (PS3.4 C.2.2.2.5.4). An empty date is an open end."""

    level: Level
    date: str
    """The date's column."""
    time: str
    """The time's column."""
    low: tuple[str, str]
    """YYYYMMDD and HHMMSS.FFFFFF."""
    high: tuple[str, str]


@dataclass(frozen=True, slots=True)
class InItem:
    """All of the conditions hold for one and the same item of a sequence (PS3.4 C.2.2.2.6)."""

    sequence: ItemSequence
    conditions: tuple[Condition, ...]
    """Of the columns of its table."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which entities of a level are asked for: those for which every condition holds."""

    level: Level
    conditions: tuple[Condition | Moment | InItem, ...] = ()
