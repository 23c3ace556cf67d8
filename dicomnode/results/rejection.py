"""Key Object Selection Document (PS3.3 A.35.4): the rejection note for results that new ones replace.

IHE RAD TF-1, Imaging Object Change Management: a document whose title is a reason for rejection (PS3.16
CID 7010) names the objects; an archive that takes part in it hides or marks them. It is the first object of
a run and goes out before the others, so that an archive never shows two doses of one study side by side.
"""

from __future__ import annotations

from datetime import datetime

import highdicom as hd
from pydicom import Dataset
from pydicom.uid import ParametricMapStorage, SegmentationStorage

from dicomnode.results.findings import EncodingSettings, Findings, Predecessor
from dicomnode.results.header import ResultIdentity, apply_header, without_identity
from dicomnode.results.summary_report import observer
from dicomnode.results.vocabulary import REJECTION_TITLES

# Readers know these as images; the others are named by COMPOSITE, as in the report.
_IMAGES = (SegmentationStorage, ParametricMapStorage)
_DESCRIPTION = "These results are replaced by those that were sent with this note"


def series_description() -> str:
    """What a list of series shows."""
    return "Rejection note: replaced dose-rate results"


def build(
    findings: Findings, number: int, settings: EncodingSettings, identity: ResultIdentity, now: datetime
) -> hd.ko.KeyObjectSelectionDocument:
    """The note that rejects `findings.rejected[number]`; patient and study are those of the CT."""
    rejected = [_stand_in(one) for one in findings.rejected[number]]
    content = hd.ko.KeyObjectSelection(
        document_title=REJECTION_TITLES[settings.rejection_reason],
        referenced_objects=rejected,
        observer_device_context=observer(settings),
        description=_DESCRIPTION,
    )
    note = hd.ko.KeyObjectSelectionDocument(
        evidence=rejected,
        content=content,
        series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid,
        instance_number=1,
        manufacturer=settings.manufacturer,
    )
    apply_header(note, findings, settings, identity, now)
    return note


def _stand_in(rejected: Predecessor) -> Dataset:
    """What highdicom wants of an object: its UIDs. The object itself may be gone from this disk."""
    instance, ds = rejected.instance, Dataset()
    ds.SOPClassUID = instance.sop_class_uid
    ds.SOPInstanceUID = instance.sop_instance_uid
    ds.SeriesInstanceUID = instance.series_instance_uid
    ds.StudyInstanceUID = instance.study_instance_uid
    if instance.sop_class_uid in _IMAGES:
        ds.Rows = ds.Columns = 1  # this makes highdicom name it by IMAGE
    return without_identity(ds, ("Rows", "Columns"))
