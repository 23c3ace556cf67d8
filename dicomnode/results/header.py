"""What every result has in common: patient, study, series, equipment, references, file meta.

Patient and study are the CT's own. One function writes them for all IODs, so that the objects of
one case can never disagree about whose they are.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import groupby

from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.results.findings import EncodingSettings, Findings, InstanceReference
from dicomnode.results.vocabulary import (
    ACQUISITION_EQUIPMENT,
    PRIVATE_SCHEME,
    PRIVATE_SCHEME_NAME,
    REPLACED_RESULT,
    SOURCE_IMAGE,
    code_item,
)

# PS3.3 C.7.1.1, C.7.2.1, C.7.2.2: what identifies patient and study, and what dosimetry reads.
_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID"),
    *("IssuerOfPatientIDQualifiersSequence", "OtherPatientIDsSequence"),
    *("PatientBirthDate", "PatientBirthTime", "PatientSex"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence"),
    *("ReferringPhysicianName", "ReferringPhysicianIdentificationSequence"),
    *("PatientAge", "PatientSize", "PatientWeight"),
)
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_EQUIPMENT = (
    *("InstitutionName", "InstitutionalDepartmentName", "StationName"),
    *("ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
)
_TEXT_VRS = frozenset({"PN", "LO", "SH", "ST", "LT", "UT", "UC"})


@dataclass(frozen=True, slots=True)
class ResultIdentity:
    """What tells one result from another; every result is the only instance of its series."""

    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    series_description: str


def apply_header(
    result: Dataset, findings: Findings, settings: EncodingSettings, identity: ResultIdentity, now: datetime
) -> None:
    """Write the shared modules into `result`, whose SOPClassUID and content are already there."""
    ct = findings.ct_headers[0]
    _copy_patient_and_study(result, ct)
    _write_series(result, identity)
    _write_equipment(result, settings, findings.provenance.software_version)
    _write_times(result, now, str(ct.get("TimezoneOffsetFromUTC", "") or ""))
    result.ContributingEquipmentSequence = list(_contributing_equipment(findings))
    _write_character_set(result, ct.get("SpecificCharacterSet"))
    _declare_private_codes(result)
    result.file_meta = file_meta(str(result.SOPClassUID), identity.sop_instance_uid)


def file_meta(sop_class_uid: str, sop_instance_uid: str) -> FileMetaDataset:
    """The file meta information of a result (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def without_identity(header: Dataset, keywords: Iterable[str] = ()) -> Dataset:
    """A stand-in for `header` where a library wants an image: its UIDs, `keywords`, and no person.

    highdicom refuses patient data that break a rule; who the patient is comes from `apply_header`.
    """
    stand_in = Dataset()
    uids = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    for keyword in (*uids, *keywords):
        if keyword in header:
            stand_in[keyword] = copy.deepcopy(header[keyword])
    for keyword in _TYPE_2:
        setattr(stand_in, keyword, "")
    return stand_in


def reference_of(instance: Dataset) -> InstanceReference:
    """The reference that names `instance`."""
    return InstanceReference(
        str(instance.SOPClassUID),
        str(instance.SOPInstanceUID),
        str(instance.SeriesInstanceUID),
        str(instance.StudyInstanceUID),
    )


def sources(findings: Findings) -> tuple[InstanceReference, ...]:
    """Everything that the results were derived from: SPECT first, then CT, then the rest."""
    headers = (*findings.spect_headers, *findings.ct_headers)
    return (*(reference_of(header) for header in headers), *findings.other_sources)


def referenced_sop(reference: InstanceReference) -> Dataset:
    """One item of the SOP Instance Reference Macro (PS3.3 Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return item


def referenced_instances(findings: Findings, replaced: Sequence[InstanceReference]) -> list[Dataset]:
    """ReferencedInstanceSequence: the sources, and the results that are replaced, each with its purpose."""
    purposes = [(reference, SOURCE_IMAGE) for reference in sources(findings)]
    purposes += [(reference, REPLACED_RESULT) for reference in replaced]
    items = []
    for reference, purpose in purposes:
        item = referenced_sop(reference)
        item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
        items.append(item)
    return items


def referenced_series(references: Iterable[InstanceReference], study_instance_uid: str) -> list[Dataset]:
    """ReferencedSeriesSequence (PS3.3 C.12.2): the references inside the result's own study."""

    def series_of(reference: InstanceReference) -> str:
        return reference.series_instance_uid

    inside = [r for r in references if r.study_instance_uid == study_instance_uid]
    items = []
    for series_uid, members in groupby(sorted(inside, key=series_of), key=series_of):
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        item.ReferencedInstanceSequence = [referenced_sop(member) for member in members]
        items.append(item)
    return items


def fix_dimension_uid(result: Dataset) -> None:
    """Derive the Dimension Organization UID, which highdicom draws at random, from the instance's own."""
    uid = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{result.SOPInstanceUID} dimensions').int}")
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def long_string(text: str, length: int = 64) -> str:
    """`text` as a value of VR LO (SH with length=16): no backslash, no control character, cut to fit."""
    printable = re.sub(r"[\x00-\x1f\x7f]", " ", text.replace("\\", "/"))
    return " ".join(printable.split())[:length].strip()


def dicom_datetime(moment: datetime) -> str:
    """A value of VR DT, with its offset from UTC where `moment` knows one."""
    return moment.strftime("%Y%m%d%H%M%S") + (moment.strftime("%z")[:5] if moment.tzinfo else "")


def _copy_patient_and_study(result: Dataset, ct: Dataset) -> None:
    for keyword in _PATIENT_AND_STUDY:
        if keyword in result:
            del result[keyword]
        if keyword in ct:
            result[keyword] = copy.deepcopy(ct[keyword])
            if result[keyword].VR == "SQ":
                for item in result[keyword].value:
                    item.remove_private_tags()
    for keyword in _TYPE_2:
        if keyword not in result:
            setattr(result, keyword, "")


def _write_series(result: Dataset, identity: ResultIdentity) -> None:
    result.SOPInstanceUID = UID(identity.sop_instance_uid)
    result.SeriesInstanceUID = UID(identity.series_instance_uid)
    result.SeriesNumber = identity.series_number
    result.SeriesDescription = long_string(identity.series_description)
    result.InstanceNumber = 1


def _write_equipment(result: Dataset, settings: EncodingSettings, software_version: str) -> None:
    result.Manufacturer = long_string(settings.manufacturer)
    result.ManufacturerModelName = long_string(settings.model_name)
    result.DeviceSerialNumber = long_string(settings.serial_number)
    result.SoftwareVersions = long_string(software_version)
    result.DeviceUID = UID(settings.device_uid)
    result.StationName = long_string(settings.station, 16)
    if settings.institution:
        result.InstitutionName = long_string(settings.institution)


def _write_times(result: Dataset, now: datetime, offset: str) -> None:
    """`offset`: the CT's TimezoneOffsetFromUTC; it governs every time in the object (PS3.3 C.12.1)."""
    if re.fullmatch(r"[+-]\d{4}", offset):
        result.TimezoneOffsetFromUTC = offset
        minutes = int(offset[:3]) * 60 + int(offset[0] + offset[3:])
        if now.tzinfo is not None:
            now = now.astimezone(timezone(timedelta(minutes=minutes)))
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    for event in ("InstanceCreation", "Content", "Series"):
        setattr(result, f"{event}Date", date)
        setattr(result, f"{event}Time", time)


def _contributing_equipment(findings: Findings) -> Iterator[Dataset]:
    """The scanners (PS3.3 C.12.1.1.5); once, where one machine made both images."""
    seen = []
    for header in (findings.spect_headers[0], findings.ct_headers[0]):
        item = Dataset()
        item.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
        item.Manufacturer = header.get("Manufacturer") or "UNKNOWN"
        for keyword in _EQUIPMENT:
            if header.get(keyword):
                item[keyword] = copy.deepcopy(header[keyword])
        if item not in seen:
            seen.append(item)
            yield item


def _write_character_set(result: Dataset, of_ct: str | Sequence[str] | None) -> None:
    """The CT's set where it can hold every text of the result, else UTF-8.

    A name of a region may come from an object in another alphabet than the patient's.
    """
    if "SpecificCharacterSet" in result:
        del result.SpecificCharacterSet
    # Undeclared means ASCII (PS3.3 C.12.1.1.2), although pydicom would write Latin-1.
    codecs = convert_encodings(list(of_ct) if not isinstance(of_ct, str) else of_ct) if of_ct else ["ascii"]
    if not all(_encodable(character, codecs) for character in _characters(result)):
        result.SpecificCharacterSet = "ISO_IR 192"
    elif of_ct:
        result.SpecificCharacterSet = of_ct if isinstance(of_ct, str) else list(of_ct)


def _characters(result: Dataset) -> set[str]:
    texts = (str(element.value) for element in result.iterall() if element.VR in _TEXT_VRS)
    return {character for text in texts for character in text}


def _encodable(character: str, codecs: Iterable[str]) -> bool:
    for codec in codecs:
        try:
            character.encode(codec)
        except UnicodeEncodeError:
            continue
        return True
    return False


def _declare_private_codes(result: Dataset) -> None:
    """PS3.3 C.12.1.1.7: a private scheme is declared by the object that uses it."""
    used = (element.value for element in result.iterall() if element.keyword == "CodingSchemeDesignator")
    if PRIVATE_SCHEME in used:
        item = Dataset()
        item.CodingSchemeDesignator = PRIVATE_SCHEME
        item.CodingSchemeName = PRIVATE_SCHEME_NAME
        result.CodingSchemeIdentificationSequence = [item]
