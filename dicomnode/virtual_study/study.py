"""Who, when and with what: the attributes that every object of a study shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from pydicom import Dataset, FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from pipeline.volume import Grid

_IMPLEMENTATION = PYDICOM_IMPLEMENTATION_UID
_SOFTWARE = "virtual"

# CID 18 of PS3.16 in SNOMED CT, and in the older SNOMED RT that cameras still write.
NUCLIDES: dict[str, tuple[str, str, str]] = {
    "Lu-177": ("447553000", "C-101ED", "^177^Lutetium"),
    "Y-90": ("14691008", "C-162A7", "^90^Yttrium"),
    "I-131": ("1368003", "C-114B1", "^131^Iodine"),
}


@dataclass(frozen=True)
class Identity:
    """The patient and the order."""

    patient_name: str = "Virtual^Patient"
    patient_id: str = "VP-0001"
    issuer_of_patient_id: str = "VIRTUAL"
    birth_date: str = "19600401"
    sex: str = "F"
    accession_number: str = "ACC0001"
    study_id: str = "1"
    study_description: str = "SPECT/CT abdomen after Lu-177 DOTATATE"


@dataclass(frozen=True)
class Injection:
    """What was given. nuclide: a key of NUCLIDES, or None for an empty sequence.

    coding: "SCT" or "SRT". hours_before: from injection to the start of the acquisition.
    """

    nuclide: str | None = "Lu-177"
    administered_bq: float | None = 7.4e9
    hours_before: float = 24.0
    radiopharmaceutical: str = "Lu-177 DOTATATE"
    coding: str = "SCT"


@dataclass(frozen=True)
class Study:
    """One study. seed: decides every UID; two studies of different seeds share none.

    acquired: the start of the SPECT; the CT is two minutes older.
    """

    seed: str = "0"
    identity: Identity = field(default_factory=Identity)
    injection: Injection = field(default_factory=Injection)
    acquired: datetime = datetime(2026, 3, 4, 10, 30)

    def uid(self, *names: str | int) -> UID:
        """The UID of this name in this study."""
        return generate_uid(entropy_srcs=["virtual study", self.seed, *(str(n) for n in names)])

    @property
    def study_instance_uid(self) -> UID:
        """Study Instance UID."""
        return self.uid("study")

    def frame_of_reference(self, grid: Grid) -> str:
        """The grid's Frame of Reference UID, or the study's where the grid names none."""
        return grid.frame_of_reference_uid or self.uid("frame of reference")


def date_and_time(moment: datetime) -> tuple[str, str]:
    """DA and TM."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")


def decimals(values: Sequence[float]) -> list[str]:
    """DS of at most 16 characters each; nothing is rounded before that."""
    return [format_number_as_ds(float(v)) for v in values]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def composed(study: Study, sop_class: str, series: str, instance: int, moment: datetime) -> Dataset:
    """Patient, General Study, General Series, Frame of Reference and SOP Common of one instance."""
    ds = Dataset()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION
    meta.ImplementationVersionName = "VIRTUALSTUDY"
    ds.file_meta = meta
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = meta.MediaStorageSOPClassUID = UID(sop_class)
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = study.uid(series, instance)
    _add_patient_and_study(ds, study)
    ds.SeriesInstanceUID = study.uid(series)
    ds.InstanceNumber = instance
    ds.SeriesDate, ds.SeriesTime = date_and_time(moment)
    ds.SoftwareVersions = _SOFTWARE
    return ds


def _add_patient_and_study(ds: Dataset, study: Study) -> None:
    who = study.identity
    ds.PatientName = who.patient_name
    ds.PatientID = who.patient_id
    ds.IssuerOfPatientID = who.issuer_of_patient_id
    ds.PatientBirthDate = who.birth_date
    ds.PatientSex = who.sex
    ds.StudyInstanceUID = study.study_instance_uid
    ds.StudyDate, ds.StudyTime = date_and_time(study.acquired - timedelta(minutes=5))
    ds.ReferringPhysicianName = ""
    ds.StudyID = who.study_id
    ds.AccessionNumber = who.accession_number
    ds.StudyDescription = who.study_description


def add_image(ds: Dataset, study: Study, grid: Grid, moment: datetime) -> None:
    """Frame of Reference, part of the body, time and voxel size of an image."""
    ds.FrameOfReferenceUID = study.frame_of_reference(grid)
    ds.PositionReferenceIndicator = ""
    ds.BodyPartExamined = "ABDOMEN"
    ds.ContentDate, ds.ContentTime = date_and_time(moment)
    ds.AcquisitionDate, ds.AcquisitionTime = date_and_time(moment)
    ds.PixelSpacing = decimals(grid.spacing_mm[1:])
    ds.SliceThickness = decimals(grid.spacing_mm[:1])[0]


def add_lying(ds: Dataset) -> None:
    """NM/PET Patient Orientation (PS3.3 C.8.4.6): it excludes PatientPosition."""
    position = code("102538003", "SCT", "Recumbent body position")
    position.PatientOrientationModifierCodeSequence = [code("40199007", "SCT", "Supine body position")]
    ds.PatientOrientationCodeSequence = [position]
    ds.PatientGantryRelationshipCodeSequence = [code("102540008", "SCT", "Headfirst")]


def orientation(grid: Grid) -> list[str]:
    """ImageOrientationPatient: direction of rising column index, then of rising row index."""
    return decimals([*grid.direction[2], *grid.direction[1]])


def position(grid: Grid, slice_index: int) -> list[str]:
    """ImagePositionPatient of a slice."""
    return decimals(grid.positions((slice_index, 0, 0)).tolist())


def radiopharmaceutical(study: Study, dose_unit_bq: float) -> list[Dataset]:
    """Items of RadiopharmaceuticalInformationSequence; dose_unit_bq: 1e6 for NM, 1 for PET.

    RadionuclideTotalDose is in MBq in NM (PS3.3 C.8.4.10) and in Bq in PET (PS3.3 C.8.9.2).
    """
    given = study.injection
    if given.nuclide is None:
        return []
    item = Dataset()
    sct, srt, meaning = NUCLIDES[given.nuclide]
    item.RadionuclideCodeSequence = [code(sct if given.coding == "SCT" else srt, given.coding, meaning)]
    start = study.acquired - timedelta(hours=given.hours_before)
    day, time = date_and_time(start)
    item.Radiopharmaceutical = given.radiopharmaceutical
    item.RadiopharmaceuticalRoute = "Intravenous"
    item.RadiopharmaceuticalStartTime = time
    item.RadiopharmaceuticalStartDateTime = day + time
    if given.administered_bq is not None:
        item.RadionuclideTotalDose = decimals([given.administered_bq / dose_unit_bq])[0]
    return [item]


def save(ds: Dataset, path: Path) -> Path:
    """Write a DICOM file (explicit VR little endian) and return its path."""
    ds.save_as(path, enforce_file_format=True, little_endian=True, implicit_vr=False)
    return path
