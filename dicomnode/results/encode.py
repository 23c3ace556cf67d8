"""Stage: findings -> DICOM files on disk, their UIDs fixed.

Where results are replaced that archives shall reject, the notes that say so; SEG, then one RTDOSE (and its
Parametric Maps) per engine, then the SR, which refers to the others. Each file is durable before the next
is begun: `.part`, fsync, rename, fsync of the folder. The same findings and UIDs write the same files
again, so an attempt that died halfway is simply repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pydicom import Dataset

from dicomnode.durable import sync_folder
from dicomnode.privacy import FOLDER_MODE
from dicomnode.results import parametric_map, rejection, rtdose, segmentation, summary_report
from dicomnode.results.findings import EncodingSettings, Findings, InstanceReference, ResultKind
from dicomnode.results.header import ResultIdentity, reference_of
from dicomnode.results.summary_report import WrittenResults
from dicomnode.results.writing import UidSource, write_durably


@dataclass(frozen=True, slots=True)
class EncodedObject:
    """One result on disk. engine: empty for the objects that belong to all engines."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    kind: ResultKind
    engine: str


def encode(
    findings: Findings, settings: EncodingSettings, folder: Path, now: datetime, uids: UidSource
) -> tuple[EncodedObject, ...]:
    """Write every result of a case into `folder`, which is made if it is not there.

    now: the time of creation that the objects carry. uids: see `uid_source`.
    returns: the objects in the order in which they should be sent: rejection notes first, the SR last.
    raises: InputRejected when a map or number cannot be right, OSError when the disk fails; files
        that are complete by then stay.
    """
    _make_durably(folder)
    case = _Case(findings, settings, folder, now, uids)
    notes = [case.rejection(number) for number in range(len(findings.rejected))]
    tracking = [uids(f"region {number}") for number in range(1, len(findings.rois) + 1)]
    segments, reference = case.segmentation(tracking)
    written = WrittenResults(reference, {}, {}, {}, tracking)
    maps = [encoded for number in range(len(findings.maps)) for encoded in case.maps(number, written)]
    return (*notes, segments, *maps, case.report(written))


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """What each result of one case needs; a result is freed as soon as it is on disk."""

    findings: Findings
    settings: EncodingSettings
    folder: Path
    now: datetime
    uids: UidSource

    def rejection(self, number: int) -> EncodedObject:
        # After all the others: they keep their numbers whether there is a note or not.
        place = 2 + 3 * len(self.findings.maps) + number
        which = str(number + 1) if number else ""
        identity = self._identity(ResultKind.REJECTION, which, place, rejection.series_description())
        result = rejection.build(self.findings, number, self.settings, identity, self.now)
        return replace(self._write(result, ResultKind.REJECTION, which), engine="")

    def segmentation(self, tracking: list[str]) -> tuple[EncodedObject, InstanceReference]:
        identity = self._identity(ResultKind.SEG, "", 0, segmentation.series_description(self.findings))
        result = segmentation.build(self.findings, self.settings, identity, self.now, tracking)
        return self._write(result, ResultKind.SEG, ""), reference_of(result)

    def maps(self, number: int, written: WrittenResults) -> Iterator[EncodedObject]:
        yield self._dose(number, written)
        if self.settings.parametric_map:
            yield self._parametric_map(number, written)
        if self.settings.uncertainty_map and self.findings.maps[number].uncertainty is not None:
            yield self._uncertainty(number, written)

    def report(self, written: WrittenResults) -> EncodedObject:
        number = 1 + 2 * len(self.findings.maps)
        description = summary_report.series_description(self.findings)
        identity = self._identity(ResultKind.SR, "", number, description)
        result = summary_report.build(self.findings, self.settings, identity, self.now, written)
        return self._write(result, ResultKind.SR, "")

    def _dose(self, number: int, written: WrittenResults) -> EncodedObject:
        engine_map = self.findings.maps[number]
        description = rtdose.series_description(self.findings, engine_map, self.settings)
        identity = self._identity(ResultKind.RTDOSE, engine_map.engine, 1 + 2 * number, description)
        result = rtdose.build(self.findings, engine_map, self.settings, identity, self.now)
        written.dose[engine_map.engine] = reference_of(result)
        return self._write(result, ResultKind.RTDOSE, engine_map.engine)

    def _parametric_map(self, number: int, written: WrittenResults) -> EncodedObject:
        engine_map = self.findings.maps[number]
        description = parametric_map.series_description(self.findings, engine_map)
        identity = self._identity(ResultKind.PM, engine_map.engine, 2 + 2 * number, description)
        result = parametric_map.build(self.findings, engine_map, self.settings, identity, self.now)
        written.parametric_map[engine_map.engine] = reference_of(result)
        return self._write(result, ResultKind.PM, engine_map.engine)

    def _uncertainty(self, number: int, written: WrittenResults) -> EncodedObject:
        engine_map = self.findings.maps[number]
        description = parametric_map.uncertainty_description(self.findings, engine_map)
        # After the SR: the other objects keep their numbers whether there is such a map or not.
        place = 2 + 2 * len(self.findings.maps) + number
        identity = self._identity(ResultKind.UNCERTAINTY, engine_map.engine, place, description)
        dose = written.dose[engine_map.engine]
        result = parametric_map.build_uncertainty(
            self.findings, engine_map, self.settings, identity, self.now, dose
        )
        written.uncertainty[engine_map.engine] = reference_of(result)
        return self._write(result, ResultKind.UNCERTAINTY, engine_map.engine)

    def _identity(self, kind: ResultKind, engine: str, number: int, description: str) -> ResultIdentity:
        return ResultIdentity(
            sop_instance_uid=self.uids(f"instance {kind} {engine}"),
            series_instance_uid=self.uids(f"series {kind} {engine}"),
            series_number=self.settings.series_number + number,
            series_description=description,
        )

    def _write(self, result: Dataset, kind: ResultKind, engine: str) -> EncodedObject:
        path = self.folder / (f"{kind}-{engine}.dcm" if engine else f"{kind}.dcm")
        write_durably(result, path)
        reference = reference_of(result)
        uids = reference.sop_class_uid, reference.sop_instance_uid, reference.series_instance_uid
        return EncodedObject(path, *uids, kind, engine)


def _make_durably(folder: Path) -> None:
    """The folder of an attempt (results/CASE/ATTEMPT), and that of its case, which may be as new."""
    folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    sync_folder(folder.parent)
    # A folder that we may not read was there before us.
    with contextlib.suppress(PermissionError):
        sync_folder(folder.parent.parent)
