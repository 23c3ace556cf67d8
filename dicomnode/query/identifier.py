"""The Identifier of a request: its bytes → its keys, or the status with which it is refused.

Hierarchical (PS3.4 C.4.1.1.3.1): a unique key with a single value for each level above that of the query.
Nothing of it is decoded but the keys; structure and depth are checked as those of received objects are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO

from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID

from dicomnode.attributes import (
    BY_KEYWORD,
    BY_TAG,
    FLAT_BY_TAG,
    LEVELS,
    SEQUENCE_BY_TAG,
    SEQUENCE_OF,
    UNIQUE_KEY,
    Attribute,
    Condition,
    InItem,
    Kind,
    Level,
    Moment,
    Question,
)
from dicomnode.query.matching import BadKey, condition_below, conditions, is_universal, moments
from dicomnode.query.sequences import ItemKeys, Nested, item_keys, nested
from dicomnode.reception.defects import Flawed
from dicomnode.reception.elements import Encoding, elements
from dicomnode.reception.texts import CHARACTER_SET, Items, encodings_of, items_in, text_of

# PS3.4 Tables C.4-1, C.4-2, C.4-3.
OUT_OF_RESOURCES = 0xA700
UNABLE_TO_COUNT = 0xA701
UNABLE_TO_PERFORM = 0xA702
DESTINATION_UNKNOWN = 0xA801
IDENTIFIER_MISMATCH = 0xA900
UNABLE_TO_PROCESS = 0xC000
BAD_KEY = 0xC001
SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6

# Of an Identifier: the longest list of UIDs that is taken, and some more.
MAX_BYTES = 1 << 20

_LEVEL = 0x00080052
_UNREADABLE = "the Identifier cannot be read"
# What says how to read the others, and is neither matched nor returned as they are.
_ASIDE = frozenset({CHARACTER_SET, _LEVEL, 0x00080201})  # the last: Timezone Offset From UTC
# Computed when it is returned: keyword → its level.
COMPUTED: dict[str, Level] = {
    "NumberOfPatientRelatedStudies": Level.PATIENT,
    "NumberOfPatientRelatedSeries": Level.PATIENT,
    "NumberOfPatientRelatedInstances": Level.PATIENT,
    "ModalitiesInStudy": Level.STUDY,
    "SOPClassesInStudy": Level.STUDY,
    "NumberOfStudyRelatedSeries": Level.STUDY,
    "NumberOfStudyRelatedInstances": Level.STUDY,
    "NumberOfSeriesRelatedInstances": Level.SERIES,
}
# Of every level (PS3.4 C.4.1.1.3.2).
EVERYWHERE = ("RetrieveAETitle", "InstanceAvailability")
_COMPUTED_TAGS = {tag_for_keyword(keyword): keyword for keyword in (*COMPUTED, *EVERYWHERE)}


class Refused(Exception):
    """A request is refused.

    comment: for the peer and the log, without a patient's data or our settings (Error Comment, LO: 64
    characters at most). detail: for the log alone.
    """

    def __init__(self, status: int, comment: str, offending: int | None = None, *, detail: str = "") -> None:
        super().__init__(comment)
        self.status, self.comment, self.offending = status, comment, offending
        self.reason = f"{comment} ({detail})" if detail else comment


@dataclass(frozen=True, slots=True)
class Keys:
    """What an Identifier holds."""

    level: Level
    values: dict[str, str]
    """Keyword → value, of the attributes that the index has or that are computed."""
    nested: dict[str, ItemKeys]
    """By keyword: those that are answered from the items of a sequence."""
    others: int
    """How many keys there are of which the index knows nothing."""
    character_set: str
    """As it stands in the request."""


@dataclass(frozen=True, slots=True)
class Query:
    """A C-FIND request, understood."""

    level: Level
    question: Question
    returned: tuple[str, ...]
    """Keywords, in the order of the model."""
    complete: bool
    """Whether every key is supported."""
    character_set: str = field(default="")
    nested: tuple[Nested, ...] = ()
    """What is returned besides: from the items of sequences."""


def read(content: BytesIO | None, transfer_syntax_uid: str) -> Keys:
    """Raises Refused, whatever the bytes of a peer lead to when they are decoded."""
    try:
        return _read(content, UID(transfer_syntax_uid))
    except (Refused, MemoryError):
        raise
    except Flawed as flaw:
        raise Refused(UNABLE_TO_PROCESS, _UNREADABLE, detail=flaw.detail) from None
    except Exception as error:
        raise Refused(UNABLE_TO_PROCESS, _UNREADABLE, detail=type(error).__name__) from error


def _read(content: BytesIO | None, syntax: UID) -> Keys:
    data = memoryview(b"" if content is None else content.getvalue())
    if len(data) > MAX_BYTES:
        raise Refused(UNABLE_TO_PROCESS, f"the Identifier has more than {MAX_BYTES} bytes")
    encoding = Encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    values: dict[int, bytes] = {}
    items: dict[int, Items] = {}
    for element in elements(data, encoding):
        if element.tag in SEQUENCE_BY_TAG:
            items[element.tag] = items_in(SEQUENCE_BY_TAG[element.tag], data, element, encoding)
        else:
            values[element.tag] = bytes(data[element.start : element.end])
    encodings = encodings_of(values)
    known: dict[str, str] = {}
    nested_keys = {
        SEQUENCE_BY_TAG[tag].keyword: item_keys(SEQUENCE_BY_TAG[tag], some, encodings, encoding.little)
        for tag, some in items.items()
    }
    others = 0
    for tag, value in values.items():
        if tag in BY_TAG:
            known[BY_TAG[tag].keyword] = text_of(BY_TAG[tag], value, encodings, encoding.little)
        elif tag in FLAT_BY_TAG:
            sequence = FLAT_BY_TAG[tag]
            first = sequence.attributes[0]
            text = text_of(first, value, encodings, encoding.little)
            nested_keys[sequence.flat] = ItemKeys(({first.keyword: text},))
        elif tag in _COMPUTED_TAGS:
            known[_COMPUTED_TAGS[tag]] = value.decode("ascii", "replace").strip(" \0")
        elif tag not in _ASIDE and tag & 0xFFFF:
            others += 1
    character_set = values.get(CHARACTER_SET, b"").decode("ascii", "replace").strip(" \0")
    return Keys(_level(values), known, nested_keys, others, character_set)


def _level(values: dict[int, bytes]) -> Level:
    text = values.get(_LEVEL, b"").decode("ascii", "replace").strip(" \0")
    if not text:
        raise Refused(IDENTIFIER_MISMATCH, "QueryRetrieveLevel is missing", _LEVEL)
    if text not in LEVELS:
        detail = ascii(text[:16])
        raise Refused(IDENTIFIER_MISMATCH, "QueryRetrieveLevel is none that there is", _LEVEL, detail=detail)
    return Level(text)


def levels_of(patient_root: bool) -> tuple[Level, ...]:
    """The levels of an information model (PS3.4 C.6.1, C.6.2)."""
    return LEVELS if patient_root else LEVELS[1:]


def to_query(keys: Keys, *, patient_root: bool, combined: bool) -> Query:
    """What a C-FIND asks. combined: date and time matching was negotiated. Raises Refused."""
    wanted: list[Condition | Moment | InItem] = list(_unique_keys_above(keys, patient_root))
    reach = LEVELS[: LEVELS.index(keys.level) + 1]
    above = {UNIQUE_KEY[level].keyword for level in reach[:-1] if level in levels_of(patient_root)}
    together: frozenset[str] = frozenset()
    if combined:
        try:
            found, together = moments(keys.values)
        except BadKey as error:
            raise Refused(BAD_KEY, f"a range of date and time: {error}") from None
        wanted += [moment for moment in found if moment.level in reach]
    complete = keys.others == 0
    returned = []
    for keyword, value in keys.values.items():
        attribute = BY_KEYWORD.get(keyword)
        inside = _inside(keyword, attribute, keys.level, reach)
        complete = complete and inside and _can_match(attribute, keyword, value)
        if inside:
            returned.append(keyword)
            if keyword not in together and keyword not in above:
                wanted += _conditions(attribute, keyword, value)
    items = tuple(_nested(k, asked) for k, asked in keys.nested.items() if SEQUENCE_OF[k].level in reach)
    wanted += [condition for one in items for condition in one.wanted]
    complete = complete and len(items) == len(keys.nested)
    complete = complete and not any(asked.others for asked in keys.nested.values())
    uniques = [UNIQUE_KEY[level].keyword for level in levels_of(patient_root) if level in reach]
    ordered = sorted({*returned, *uniques, "RetrieveAETitle"}, key=lambda k: tag_for_keyword(k) or 0)
    question = Question(keys.level, tuple(wanted))
    return Query(keys.level, question, tuple(ordered), complete, keys.character_set, items)


def _nested(keyword: str, keys: ItemKeys) -> Nested:
    try:
        return nested(keyword, keys)
    except BadKey as error:
        raise Refused(BAD_KEY, f"{keyword}: {error}", tag_for_keyword(keyword)) from None


def to_retrieval(keys: Keys, *, patient_root: bool) -> Question:
    """The instances that a C-MOVE or C-GET asks for (PS3.4 C.4.2.2.1). Raises Refused."""
    wanted = list(_unique_keys_above(keys, patient_root))
    attribute = UNIQUE_KEY[keys.level]
    value = keys.values.get(attribute.keyword, "")
    if is_universal(value):
        raise Refused(IDENTIFIER_MISMATCH, f"{attribute.keyword} has no value", attribute.tag)
    if attribute.kind is not Kind.UID and ("\\" in value or "*" in value or "?" in value):
        raise Refused(IDENTIFIER_MISMATCH, f"{attribute.keyword} has no single value", attribute.tag)
    wanted += _conditions(attribute, attribute.keyword, value)
    return Question(Level.IMAGE, tuple(wanted))


def _unique_keys_above(keys: Keys, patient_root: bool) -> list[Condition]:
    levels = levels_of(patient_root)
    if keys.level not in levels:
        raise Refused(IDENTIFIER_MISMATCH, f"the model has no level {keys.level}", _LEVEL)
    found: list[Condition] = []
    for level in levels[: levels.index(keys.level)]:
        attribute = UNIQUE_KEY[level]
        value = keys.values.get(attribute.keyword, "")
        if is_universal(value) or any(sign in value for sign in "\\*?"):
            comment = f"{attribute.keyword} must have a single value at level {keys.level}"
            raise Refused(IDENTIFIER_MISMATCH, comment, attribute.tag)
        found += _conditions(attribute, attribute.keyword, value)
    return found


def _inside(keyword: str, attribute: Attribute | None, level: Level, reach: tuple[Level, ...]) -> bool:
    """Whether the query's level can tell of a key."""
    if attribute is not None:
        return attribute.level in reach
    return keyword in EVERYWHERE or COMPUTED[keyword] is level


def _can_match(attribute: Attribute | None, keyword: str, value: str) -> bool:
    if is_universal(value):
        return True
    if attribute is None:
        return keyword in ("ModalitiesInStudy", "SOPClassesInStudy")
    return attribute.kind is not Kind.SHOWN


def _conditions(attribute: Attribute | None, keyword: str, value: str) -> tuple[Condition, ...]:
    try:
        if attribute is not None:
            return () if attribute.kind is Kind.SHOWN else conditions(attribute, value)
        if keyword == "ModalitiesInStudy":
            return condition_below(BY_KEYWORD["Modality"].column, Level.SERIES, value)
        if keyword == "SOPClassesInStudy":
            return condition_below(BY_KEYWORD["SOPClassUID"].column, Level.IMAGE, value)
    except BadKey as error:
        tag = attribute.tag if attribute is not None else tag_for_keyword(keyword)
        raise Refused(BAD_KEY, f"{keyword}: {error}", tag) from None
    return ()
