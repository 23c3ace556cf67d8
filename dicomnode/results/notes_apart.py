"""A rejection note taken apart: one for each object that it names.

An archive takes a note whole or not at all. What it lacks, or has rejected already, would keep the rest of
what the note names unmarked there, beside the dose that replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID

from dicomnode.records import NewResult
from dicomnode.results.writing import uid_source, write_durably


def taken_apart(note: NewResult, data_dir: Path) -> tuple[NewResult, ...]:
    """Write a note beside `note` for each object that it names; empty when it names only one.

    The same note gives the same notes, whenever it is taken apart and whatever is configured then: their
    UIDs are derived from its own, under 2.25. note: with its path below `data_dir`. Raises OSError when the
    disk fails.
    """
    place = Path(note.path)
    whole = dcmread(data_dir / place)
    named = [uid for item in whole.ContentSequence if (uid := _named(item))]
    if len(named) < 2:
        return ()
    uids = uid_source("", note.sop_instance_uid)
    notes = []
    for number, (uid, single) in enumerate(zip(named, _singles(whole, named), strict=True), start=1):
        single.SOPInstanceUID = single.file_meta.MediaStorageSOPInstanceUID = UID(uids(f"alone {uid}"))
        single.InstanceNumber = 1 + number  # the whole one is the first of the series
        # Not "KO-2": a run's second note has that name.
        path = place.with_stem(f"{place.stem}-part-{number}")
        write_durably(single, data_dir / path)
        notes.append(
            NewResult(
                sop_instance_uid=single.SOPInstanceUID,
                sop_class_uid=note.sop_class_uid,
                series_instance_uid=note.series_instance_uid,
                transfer_syntax_uid=note.transfer_syntax_uid,
                kind=note.kind,
                engine=note.engine,
                path=str(path),
                size_bytes=(data_dir / path).stat().st_size,
            )
        )
    return tuple(notes)


def _named(item: Dataset) -> str:
    """The object that a content item refers to; empty where it is of another kind."""
    if "ReferencedSOPSequence" not in item:
        return ""
    return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


def _singles(whole: Dataset, named: list[str]) -> Iterator[Dataset]:
    """The note with one of its references each, in its tree and in its evidence."""
    for uid in named:
        single = deepcopy(whole)
        single.ContentSequence = [item for item in single.ContentSequence if _named(item) in ("", uid)]
        studies = single.CurrentRequestedProcedureEvidenceSequence
        for study in studies:
            for series in study.ReferencedSeriesSequence:
                series.ReferencedSOPSequence = [
                    sop for sop in series.ReferencedSOPSequence if sop.ReferencedSOPInstanceUID == uid
                ]
            study.ReferencedSeriesSequence = [
                series for series in study.ReferencedSeriesSequence if series.ReferencedSOPSequence
            ]
        single.CurrentRequestedProcedureEvidenceSequence = [
            study for study in studies if study.ReferencedSeriesSequence
        ]
        yield single
