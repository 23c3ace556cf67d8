"""The section Query/Retrieve of docs/conformance.md, from the tables that the services themselves use."""

from __future__ import annotations

import textwrap

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import UID

from dicomnode.attributes import INDEXED, MAX_ITEMS, SEQUENCES, UNIQUE_KEY, ItemSequence, Kind, Level
from dicomnode.contexts import FIND_MODELS, GET_MODELS, MOVE_MODELS
from dicomnode.query.identifier import COMPUTED, EVERYWHERE
from dicomnode.query.objects import TURN_WITHIN_S
from dicomnode.query.retrieve import RETRIEVED_CLASSES

_HELD = """\
## Query/Retrieve

The node is an SCP of Query/Retrieve over what it holds: the results of each study's newest run, and what it
received as long as that is kept. Results come first. Results that a newer run has replaced, or that new input
has withdrawn before they were sent, are neither found nor retrieved; refused objects never are.

{models}

For C-FIND, C-MOVE and C-GET: implicit and explicit little endian. For the C-STORE sub-operations of a C-GET
the peer must propose to be SCP of the storage class (role selection, PS3.7 D.3.3.4); the node then is its SCU
in the transfer syntaxes of the section Receiving. Storage classes that are retrieved:

{classes}.

Queries are hierarchical (PS3.4 C.4.1.1.3.1): of every level above that of the query the unique key must have
a single value. Extended negotiation: combined date and time matching is accepted; relational queries, fuzzy
semantic matching of names, timezone adjustment and the rest are not."""

_KEYS = """\
### Keys

*Matched*: also as a key with a value; the others are returned only. Attributes of a level above that of the
query are returned and matched too. Retrieve AE Title is always returned, and so is the unique key of every
level down to that of the query. `>` stands before the attributes of a sequence's items.

{table}

A key that is not in the table, or of a level below that of the query, is not returned (PS3.4 C.2.2.1.3), and
every match comes with 0xFF01 instead of 0xFF00. So it is with sequences, and with the keys in their items."""

_MATCHING = """\
### Matching

After PS3.4 C.2.2.2. What an object does not say, or says in a way that its value representation does not
allow, is matched by universal matching alone.

- **Universal**: an empty key, or `*` alone.
- **Single value**: exactly, without padding and with its case. Person names: without regard to case, padding
  and empty components at the end; accents count. A key without `=` matches where any component group of the
  name does; with `=`, each group that has a value matches its own.
- **List**: values with a backslash between them, of any attribute, not of UIDs alone; one of them matches.
- **Wild card**: `*` and `?`, of AE, CS, LO, LT, PN, SH and ST. Elsewhere they are refused, but for `*` alone.
- **Range**: of dates and times, both ends included. A time that is not given to its end stands for every
  instant that it may mean: 1030 is the whole minute.
- **Date and time together**, where it was negotiated and both keys are ranges: from the first moment to the
  last.
- ModalitiesInStudy and SOPClassesInStudy match where one of the series or instances has one of the values.
- **Sequence**: every key of the request's one item matches in one and the same item of the entity. The items
  that match are returned, with the attributes that were asked for. No item, or one without keys, is universal
  matching: every item is returned, with the attributes of the table.

OtherPatientIDs and OtherPatientIDsSequence are two ways to ask for the same: the other IDs of a patient,
however the objects hold them. An ID of which an object gives no issuer and type is an item with neither. Of
OtherPatientIDs one value must match, and all are returned (PS3.4 C.2.2.3). Of a sequence {most_items} items
are kept.

A patient is told by Patient ID with its issuer; name, birth date and sex are those of the newest study. Of
studies without Patient ID no patient is made: they are found in the Study Root model. A study or series is
told by what the first of its objects says; what that leaves empty, later ones fill in. The items of a
sequence are those of the first object that has some.

Keys are read in the Specific Character Set of the request. A response in ASCII has none; otherwise it has the
request's, where that is a single ISO_IR that can write the values, or ISO_IR 192 (UTF-8)."""

_STATUSES = """\
### Statuses

| status | C-FIND | C-MOVE, C-GET |
|---|---|---|
| 0x0000 | all matches were sent | every sub-operation succeeded, or nothing matched |
| 0xFF00 | a match; every key is supported | one more sub-operation has ended, with the four counts |
| 0xFF01 | a match; some key is not supported | |
| 0xB000 | | some failed or had a warning; those that failed stand in Failed SOP Instance UID List |
| 0xFE00 | cancelled | cancelled, with the count of what remains |
| 0x0122 | the request came in the context of another SOP class | the same |
| 0xA700 | more than `[query] max_matches`, the database does not answer, or the node is stopping | |
| 0xA701 | | more than `[query] max_matches`, or the database does not answer |
| 0xA702 | | every sub-operation failed, the destination cannot be reached, or the node is stopping |
| 0xA801 | | (C-MOVE) no `[[peers]]` entry with `host` and `port` has this AE title |
| 0xA900 | the level or a unique key does not fit the model; Offending Element names it | the same |
| 0xC000 | the Identifier cannot be read or is too long, or an error of the node's | the same |
| 0x0211 | the command is not of its context's SOP class | the same |
| 0xC001 | a key's value cannot be understood; Offending Element and Error Comment name it | the same |

### Sub-operations

C-MOVE opens an association to the destination as C-STORE SCU, with Move Originator AE Title and Message ID.
An object's file is read and held against its checksum, then sent as it lies; one that is gone or damaged
fails, with its path and a remedy in the log (a damaged one that was received is set aside, and its case
held, until it is sent again). Where its transfer syntax was not accepted, it is decompressed or rewritten,
without loss and under its own UIDs, in explicit or implicit VR little endian; what cannot be (no decoder,
Explicit VR Big Endian, larger than the limit in section Security, no turn within {turn_s:g} s, for one
object is converted at a time) fails. 0xB000, 0xB006 and 0xB007 of the receiver count as warnings, every
other status but 0x0000 as a failure. At level PATIENT the key is a single
Patient ID; at the others, lists of UIDs are taken."""


def query() -> str:
    """The section."""
    names = ", ".join(uid.name.removesuffix(" Storage") for uid in RETRIEVED_CLASSES)
    classes = "\n".join(textwrap.wrap(names, 108))
    matching = _MATCHING.format(most_items=MAX_ITEMS)
    held, keys = _HELD.format(models=_models(), classes=classes), _KEYS.format(table=_table())
    return "\n\n".join((held, keys, matching, _STATUSES.format(turn_s=TURN_WITHIN_S)))


def _models() -> str:
    rights = (("find", FIND_MODELS), ("move", MOVE_MODELS), ("get", GET_MODELS))
    rows = [f"| {UID(uid).name} | {uid} | `{right}` |" for right, models in rights for uid in models]
    return "\n".join(("| SOP class (SCP) | UID | right in `may` |", "|---|---|---|", *rows))


def _table() -> str:
    unique = {attribute.keyword for attribute in UNIQUE_KEY.values()}
    rows = []
    for level in Level:
        for attribute in (a for a in INDEXED if a.level is level):
            kind = "unique" if attribute.keyword in unique else "optional"
            matched = "no" if attribute.kind is Kind.SHOWN else "yes"
            key = f"{_tag(attribute.tag)} {attribute.keyword} | {attribute.vr}"
            rows.append(f"| {level} | {key} | {kind} | {matched} |")
        for sequence in (s for s in SEQUENCES if s.level is level):
            rows += _sequence(sequence)
        for keyword in (k for k, of in COMPUTED.items() if of is level):
            matched = "yes" if keyword.endswith("InStudy") else "no"
            rows.append(_computed(str(level), keyword, matched))
    rows += [_computed("every", keyword, "no") for keyword in EVERYWHERE]
    return "\n".join(("| level | key | VR | | matched |", "|---|---|---|---|---|", *rows))


def _sequence(sequence: ItemSequence) -> list[str]:
    rows = [_computed(str(sequence.level), sequence.flat, "yes")] if sequence.flat else []
    rows.append(_computed(str(sequence.level), sequence.keyword, "yes"))
    items = (f"> {_tag(a.tag)} {a.keyword} | {a.vr}" for a in sequence.attributes)
    return rows + [f"| {sequence.level} | {item} | optional | yes |" for item in items]


def _computed(level: str, keyword: str, matched: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return f"| {level} | {_tag(tag)} {keyword} | {dictionary_VR(tag)} | optional | {matched} |"


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
