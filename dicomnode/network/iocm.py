"""What dcm4chee-arc answers to C-STORE in statuses of its own, within 0xA7xx.

Source: the constants of `org.dcm4chee.arc.store.StoreService` (dcm4chee-arc-light). PS3.4 Table B.2-1 means
a lack of resources by all of 0xA7xx; these say something of the object. It takes a rejection note whole or
not at all.
"""

from __future__ import annotations

from pydicom.uid import KeyObjectSelectionDocumentStorage

DUPLICATE_REJECTION_NOTE = 0xA770
NO_SUCH_INSTANCE = 0xA772
ALREADY_REJECTED = 0xA774

NEEDLESS = frozenset({NO_SUCH_INSTANCE, ALREADY_REJECTED})
"""A note that names what cannot be rejected there: the archive takes nothing of it. Where it names a single
object, nothing is left to reject."""

_OF_OBJECTS = {
    0xA771: "subsequent occurrence of a rejected object",
    0xA777: "Patient ID is missing",
    0xA778: "conflicting Patient ID",
    0xA779: "conflicting patient attributes",
}
_OF_NOTES = {
    DUPLICATE_REJECTION_NOTE: "it has this rejection note already",
    NO_SUCH_INSTANCE: "it lacks an object that the rejection note names: where its study was moved or "
    "merged, have the earlier result hidden there by hand",
    0xA773: "the rejection note names an object by another class",
    ALREADY_REJECTED: "an object that the rejection note names is rejected there already",
    0xA775: "rejection for an expired retention period is not allowed",
    0xA776: "the study's retention period is not yet over",
}


def words(status: int, sop_class_uid: str) -> str | None:
    """What a status says of an object of that class; None where it is not one of these."""
    of_notes = _OF_NOTES if sop_class_uid == KeyObjectSelectionDocumentStorage else {}
    return of_notes.get(status) or _OF_OBJECTS.get(status)
