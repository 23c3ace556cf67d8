"""The data sets of the Storage Commitment Push Model (PS3.4 Annex J): built, and read with suspicion."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.errors import NodeError
from dicomnode.reception.header import is_valid_uid

# Not deflated: what inflates without end would have to be bounded here too.
PUSH_MODEL_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.4 Table J.3-1: the only action.
REQUEST_STORAGE_COMMITMENT = 1

# A request of that many objects is no study.
MOST_OBJECTS = 100_000
_ITEM = b"\xfe\xff\x00\xe0"  # its tag in little endian, the only one of these data sets


class EventType(IntEnum):
    """PS3.4 Table J.3-2."""

    ALL_COMMITTED = 1
    SOME_FAILED = 2


class Status(IntEnum):
    """What an N-ACTION or an N-EVENT-REPORT is answered, PS3.7 Annex C."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT = 0x0115
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    # PS3.3 C.14.1.1 has it as Failure Reason. PS3.7 has no status that says it, and every other misleads.
    DUPLICATE_TRANSACTION_UID = 0x0131
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213


class FailureReason(IntEnum):
    """Why an object is not committed to, PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    RESOURCE_LIMITATION = 0x0213
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION_UID = 0x0131


_WORDS = {
    FailureReason.PROCESSING_FAILURE: "processing failure",
    FailureReason.NO_SUCH_OBJECT_INSTANCE: "no such object",
    FailureReason.RESOURCE_LIMITATION: "resource limitation",
    FailureReason.SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    FailureReason.CLASS_INSTANCE_CONFLICT: "the object is of another SOP class",
    FailureReason.DUPLICATE_TRANSACTION_UID: "duplicate transaction UID",
}


class Malformed(NodeError):
    """A data set of a peer is not what the Standard asks for. status: to be answered (PS3.7 Annex C)."""

    def __init__(self, reason: str, status: Status = Status.INVALID_ARGUMENT) -> None:
        super().__init__(reason)
        self.status = int(status)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: will you keep these?"""

    transaction_uid: str
    objects: tuple[tuple[str, str], ...]
    """(SOP Class UID, SOP Instance UID)."""

    @classmethod
    def new(cls, objects: Iterable[tuple[str, str]]) -> Request:
        """A transaction that nobody has used before."""
        return cls(f"2.25.{uuid.uuid4().int}", tuple(objects))


@dataclass(frozen=True, slots=True)
class Report:
    """What is answered, sooner or later."""

    transaction_uid: str
    committed: frozenset[str]
    """SOP Instance UIDs."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """SOP Instance UID → FailureReason."""


def words(failure_reason: int) -> str:
    """'0x0112 no such object'."""
    known = {int(reason): text for reason, text in _WORDS.items()}
    return f"0x{failure_reason:04X} {known.get(failure_reason, 'unknown reason')}"


def require_few_items(content: BytesIO | None) -> None:
    """Raises Malformed when a data set holds more items than any study has objects.

    Looked at before pydicom makes a data set of each: of 32 MB it would make gigabytes.
    """
    if content is not None and content.getvalue().count(_ITEM) > 2 * MOST_OBJECTS:
        raise Malformed(f"it names more than {MOST_OBJECTS} objects", Status.RESOURCE_LIMITATION)


@contextmanager
def of_a_peer() -> Iterator[None]:
    """Read a data set of a peer. Raises Malformed.

    pydicom decodes a value when it is asked for, and raises whatever its bytes lead to: not only the data set
    is read in here, but every element that is wanted of it.
    """
    try:
        yield
    except Malformed:
        raise
    except Exception as error:
        raise Malformed(f"its data set cannot be read: {type(error).__name__}: {error}"[:200]) from error


def request_to_dataset(request: Request) -> Dataset:
    """Action Information of an N-ACTION request (PS3.4 Table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = UID(request.transaction_uid)
    ds.ReferencedSOPSequence = Sequence(_reference(*pair) for pair in request.objects)
    return ds


def request_of(ds: Dataset) -> Request:
    """The same, of a peer. Raises Malformed."""
    transaction = _transaction_uid(ds)
    objects = tuple(dict.fromkeys(_references(ds, "ReferencedSOPSequence")))
    if not objects:
        raise Malformed("it names no object")
    if len(objects) > MOST_OBJECTS:
        # Resource limitation: a part of them may be asked about.
        text = f"it names {len(objects)} objects, more than {MOST_OBJECTS}"
        raise Malformed(text, Status.RESOURCE_LIMITATION)
    return Request(transaction, objects)


def report_to_dataset(
    request: Request, failed: Mapping[str, FailureReason], retrieve_ae_title: str
) -> tuple[EventType, Dataset]:
    """Event Information of an N-EVENT-REPORT request (PS3.4 Table J.3-2). failed: SOP Instance UIDs."""
    ds = Dataset()
    ds.TransactionUID = UID(request.transaction_uid)
    committed = [pair for pair in request.objects if pair[1] not in failed]
    if committed:
        ds.RetrieveAETitle = retrieve_ae_title
        ds.ReferencedSOPSequence = Sequence(_reference(*pair) for pair in committed)
    if not failed:
        return EventType.ALL_COMMITTED, ds
    ds.FailedSOPSequence = Sequence(
        _reference(*pair, failure=failed[pair[1]]) for pair in request.objects if pair[1] in failed
    )
    return EventType.SOME_FAILED, ds


def report_of(event_type: int, ds: Dataset) -> Report:
    """The same, of a peer. Raises Malformed."""
    if event_type not in {int(known) for known in EventType}:
        raise Malformed(f"event type {event_type} does not exist", Status.NO_SUCH_EVENT_TYPE)
    transaction = _transaction_uid(ds)
    committed = {instance for _, instance in _references(ds, "ReferencedSOPSequence")}
    failed = {}
    for item in _items(ds, "FailedSOPSequence"):
        reason = item.get("FailureReason")
        failed[_reference_of(item)[1]] = (
            reason if isinstance(reason, int) else int(FailureReason.PROCESSING_FAILURE)
        )
    if event_type == EventType.ALL_COMMITTED and not committed:
        raise Malformed("it names no object")
    # What is called both is not safe.
    return Report(transaction, frozenset(committed - failed.keys()), failed)


def _reference(sop_class_uid: str, sop_instance_uid: str, failure: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = UID(sop_class_uid)
    item.ReferencedSOPInstanceUID = UID(sop_instance_uid)
    if failure is not None:
        item.FailureReason = int(failure)
    return item


def _transaction_uid(ds: Dataset) -> str:
    uid = str(ds.get("TransactionUID") or "")
    if not is_valid_uid(uid):
        raise Malformed("Transaction UID is missing or not a valid UID")
    return uid


def _references(ds: Dataset, keyword: str) -> Iterable[tuple[str, str]]:
    return (_reference_of(item) for item in _items(ds, keyword))


def _items(ds: Dataset, keyword: str) -> Collection[Dataset]:
    value = ds.get(keyword)
    if value is None:
        return ()
    if not isinstance(value, Sequence):
        raise Malformed(f"{keyword} is no sequence", Status.MISTYPED_ARGUMENT)
    return value


def _reference_of(item: Dataset) -> tuple[str, str]:
    pair = str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or "")
    if not all(is_valid_uid(uid) for uid in pair):
        raise Malformed("a referenced SOP Class or Instance UID is missing or not a valid UID")
    return pair
