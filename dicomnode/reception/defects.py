"""Why an object is refused: one table, defect → DIMSE status → quarantined or not.

Every status is of the Failure category, so that a sender never takes a refused object for a stored
one (PS3.7 Annex C; PS3.4 table B.2-1 for the ranges A7xx, A9xx and Cxxx). docs/conformance.md
prints this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SUCCESS = 0x0000


class Defect(StrEnum):
    """What is wrong with an object, or with the node at that moment."""

    UNREADABLE = "UNREADABLE"
    CUT_SHORT = "CUT_SHORT"
    SOP_INSTANCE_UID = "SOP_INSTANCE_UID"
    STUDY_INSTANCE_UID = "STUDY_INSTANCE_UID"
    SERIES_INSTANCE_UID = "SERIES_INSTANCE_UID"
    SOP_CLASS_MISMATCH = "SOP_CLASS_MISMATCH"
    SOP_INSTANCE_MISMATCH = "SOP_INSTANCE_MISMATCH"
    NO_PIXEL_DATA = "NO_PIXEL_DATA"
    PIXEL_DESCRIPTION = "PIXEL_DESCRIPTION"
    PIXEL_DATA_LENGTH = "PIXEL_DATA_LENGTH"
    PIXEL_DATA_CUT_SHORT = "PIXEL_DATA_CUT_SHORT"
    PIXEL_DATA_FRAMES = "PIXEL_DATA_FRAMES"
    OTHER_CONTENT = "OTHER_CONTENT"
    OTHER_STUDY = "OTHER_STUDY"
    DISK_FULL = "DISK_FULL"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    STOPPING = "STOPPING"
    TOO_LARGE = "TOO_LARGE"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a defect leads to."""

    status: int
    quarantined: bool
    """The object is kept in quarantine/ with its reason; otherwise nothing of it is kept."""
    sentence: str
    """For the sender (Error Comment, LO: 64 characters at most), the log and the conformance page."""


ANSWERS: dict[Defect, Answer] = {
    Defect.UNREADABLE: Answer(0xC000, True, "The data set is not DICOM in the agreed transfer syntax"),
    Defect.CUT_SHORT: Answer(0xC001, True, "The data set ends in the middle of an element"),
    Defect.SOP_INSTANCE_UID: Answer(0xC010, True, "SOP Instance UID is missing or not a valid UID"),
    Defect.STUDY_INSTANCE_UID: Answer(0xC011, True, "Study Instance UID is missing or not a valid UID"),
    Defect.SERIES_INSTANCE_UID: Answer(0xC012, True, "Series Instance UID is missing or not a valid UID"),
    Defect.SOP_CLASS_MISMATCH: Answer(0xA900, True, "SOP Class UID is not that of the C-STORE request"),
    Defect.SOP_INSTANCE_MISMATCH: Answer(0xA901, True, "SOP Instance UID is not that of the C-STORE request"),
    Defect.NO_PIXEL_DATA: Answer(0xA902, True, "Pixel Data is missing"),
    Defect.PIXEL_DESCRIPTION: Answer(0xA903, True, "Rows, Columns, Bits Allocated or Samples are unusable"),
    Defect.PIXEL_DATA_LENGTH: Answer(0xC020, True, "Pixel Data is longer than Rows x Columns x ... requires"),
    Defect.PIXEL_DATA_CUT_SHORT: Answer(0xC021, True, "Pixel Data is cut short"),
    Defect.PIXEL_DATA_FRAMES: Answer(0xC022, True, "Compressed Pixel Data has fewer frames than it should"),
    Defect.OTHER_CONTENT: Answer(0xC030, True, "The same SOP Instance UID came before with other content"),
    Defect.OTHER_STUDY: Answer(0xC031, True, "The same SOP Instance UID came before in another study"),
    Defect.DISK_FULL: Answer(0xA700, False, "No space to store the object durably"),
    Defect.LEDGER_UNAVAILABLE: Answer(0xA701, False, "The database does not answer; send again later"),
    Defect.STOPPING: Answer(0xA702, False, "The node is stopping; send again later"),
    Defect.TOO_LARGE: Answer(0xA703, False, "The object is larger than the node takes"),
    Defect.INTERNAL: Answer(0x0110, True, "The node failed while it received the object; see its log"),
}


class Flawed(Exception):
    """An object cannot be accepted.

    detail: which attribute or value, without patient data; empty when the sentence says it all.
    conflict_study_uid: the study of an object received before that this one contradicts; its case is held.
    """

    def __init__(self, defect: Defect, detail: str = "", *, conflict_study_uid: str = "") -> None:
        super().__init__(defect, detail)
        self.defect = defect
        self.detail = detail
        self.conflict_study_uid = conflict_study_uid

    @property
    def answer(self) -> Answer:
        """The row of the table."""
        return ANSWERS[self.defect]

    @property
    def reason(self) -> str:
        """The sentence with its detail."""
        return f"{self.answer.sentence} ({self.detail})" if self.detail else self.answer.sentence

    def __str__(self) -> str:
        return self.reason
