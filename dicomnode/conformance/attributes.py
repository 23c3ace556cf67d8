"""docs/conformance.md: the attributes of every object that the node writes (PS3.2 A.8.1).

The table is checked against what the encoders write: an attribute that is written and not here fails a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, tag_for_keyword

ALWAYS, MAY_BE_EMPTY, NOT_ALWAYS = "ALWAYS", "VNAP", "ANAP"  # PS3.2 A.8.1
OBJECTS = ("SEG", "RTDOSE", "PM", "SR", "KO")
# "SEG: `1`; RTDOSE: ...": what is said of each, and a value that is told as such and has no alternative.
_OF_OBJECT = re.compile(rf"\b({'|'.join(OBJECTS)}): ([^;]*)")
_FIXED = re.compile(r"`([^`\[]+)`(?! or\b)")
_ALL, _IMAGES, _VOLUMES, _DOCUMENTS = OBJECTS, OBJECTS[:3], ("SEG", "PM"), OBJECTS[3:]


@dataclass(frozen=True, slots=True)
class Written:
    """One attribute of the objects `of`: whether it is there, and where its value comes from.

    A value that is fixed stands between backquotes, and for each object by itself where they differ.
    """

    keyword: str
    of: tuple[str, ...]
    presence: str
    value: str


def fixed(written: Written, name: str) -> str | None:
    """The value that the attribute has in every object `name`; None where it is not fixed."""
    by_object = dict(_OF_OBJECT.findall(written.value))
    text = by_object.get(name, "" if by_object else written.value)
    found = _FIXED.match(text.strip())
    return None if found is None else found[1]


def _of(of: tuple[str, ...], text: str) -> list[Written]:
    """A line for each: keywords | presence | value."""
    rows = (line.split("|") for line in text.strip().splitlines())
    return [
        Written(keyword, of, presence.strip(), value.strip())
        for keywords, presence, value in rows
        for keyword in keywords.split()
    ]


WRITTEN: tuple[Written, ...] = (
    *_of(
        _ALL,
        """
        SpecificCharacterSet | ANAP | see Character sets
        InstanceCreationDate InstanceCreationTime | ALWAYS | when it was made, by the node's clock
        SOPClassUID | ALWAYS | of the object
        SOPInstanceUID SeriesInstanceUID | ALWAYS | generated; the same for the same input, settings, software
        StudyInstanceUID | ALWAYS | the CT's
        StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName | VNAP | the CT's
        StudyDescription IssuerOfAccessionNumberSequence ProcedureCodeSequence | ANAP | the CT's
        ReferringPhysicianIdentificationSequence | ANAP | the CT's
        PatientName PatientID PatientBirthDate PatientSex | VNAP | the CT's
        IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence | ANAP | the CT's
        OtherPatientIDsSequence PatientBirthTime | ANAP | the CT's
        PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence | ANAP | the CT's
        PatientAge PatientSize PatientWeight | ANAP | the CT's
        TimezoneOffsetFromUTC | ANAP | the CT's; all times of the object are in it
        SeriesDate SeriesTime ContentDate ContentTime | ALWAYS | that of Instance Creation
        Modality | ALWAYS | SEG: `SEG`; RTDOSE: `RTDOSE`; PM: `OT`; SR: `SR`; KO: `KO`
        Manufacturer ManufacturerModelName | ALWAYS | `dicomnode`
        SoftwareVersions | ALWAYS | the version of this software
        DeviceSerialNumber | ALWAYS | `1`
        DeviceUID | ALWAYS | of this installation, generated once
        StationName | ALWAYS | `[encode] station`
        InstitutionName | ANAP | `[encode] institution`
        SeriesDescription | ALWAYS | nuclide, engine and unit, or what the object is
        SeriesNumber | ALWAYS | from 9000 on, one for each object of a run
        InstanceNumber | ALWAYS | `1`
        ContributingEquipmentSequence | ALWAYS | SPECT and CT scanner: 109101 DCM, Acquisition Equipment
        """,
    ),
    *_of(
        OBJECTS[:4],
        """
        CodingSchemeIdentificationSequence | ANAP | where a private code is used
        """,
    ),
    *_of(
        _IMAGES,
        """
        FrameOfReferenceUID | ALWAYS | the dose grid's, which is the CT's
        PositionReferenceIndicator | VNAP | empty
        ReferencedSeriesSequence | ALWAYS | CT, SPECT and the ROIs' object, those of this study
        SamplesPerPixel | ALWAYS | `1`
        PhotometricInterpretation | ALWAYS | `MONOCHROME2`
        NumberOfFrames | ALWAYS | slices of the dose grid; SEG: those that each region lies in, added up
        Rows | ALWAYS | of the dose grid
        Columns | ALWAYS | of the dose grid
        BitsAllocated | ALWAYS | SEG: `1`; RTDOSE: `[encode] bits`; PM: `32`
        """,
    ),
    *_of(
        ("SEG", "RTDOSE"),
        """
        BitsStored | ALWAYS | SEG: `1`; RTDOSE: `[encode] bits`
        HighBit | ALWAYS | SEG: `0`; RTDOSE: `[encode] bits` - 1
        PixelRepresentation | ALWAYS | `0`
        PixelData | ALWAYS | SEG: the regions, a bit a voxel; RTDOSE: dose rate x 1 h / DoseGridScaling
        """,
    ),
    *_of(
        _VOLUMES,
        """
        ImageType | ALWAYS | SEG: `DERIVED\\PRIMARY`; PM: `DERIVED\\PRIMARY\\VOLUME\\QUANTITY`
        SourceImageSequence | ALWAYS | SEG: the CT; PM: the CT and the SPECT
        DimensionOrganizationSequence | ALWAYS | one item, UID from that of the instance
        DimensionIndexSequence | ALWAYS | SEG: segment, position; PM: position
        LossyImageCompression | ALWAYS | `00`
        ContentLabel | ALWAYS | SEG: `REGIONS`; PM: `DOSE_RATE` or, of the uncertainty, `DOSE_RATE_UNCERT`
        ContentDescription | ALWAYS | a sentence that says what it is
        PresentationLUTShape | ALWAYS | `IDENTITY`
        SharedFunctionalGroupsSequence | ALWAYS | orientation, voxel size; PM: also window, real world value \
mapping with its unit, frame type
        PerFrameFunctionalGroupsSequence | ALWAYS | source, position, index; SEG: also the segment
        """,
    ),
    *_of(
        ("SEG",),
        """
        SegmentationType | ALWAYS | `BINARY`
        SegmentsOverlap | ALWAYS | `YES`
        SegmentSequence | ALWAYS | body, field of view, every ROI; with Tracking UID
        """,
    ),
    *_of(
        ("RTDOSE",),
        """
        OperatorsName | VNAP | empty
        DerivationDescription | ALWAYS | engine and version
        ReferencedInstanceSequence | ALWAYS | the SEG, and the result that this one replaces (code REPLACED)
        SliceThickness | ALWAYS | distance of the dose grid's slices, mm
        ImagePositionPatient | ALWAYS | of the dose grid's first voxel
        ImageOrientationPatient PixelSpacing | ALWAYS | of the dose grid
        ImageComments | ALWAYS | what the numbers are, and the notes on them
        FrameIncrementPointer | ALWAYS | `(3004,000C)`, Grid Frame Offset Vector
        GridFrameOffsetVector | ALWAYS | distances of the slices from the first one, mm, from 0
        DoseUnits | ALWAYS | `[encode] dose_units`: `GY` or `RELATIVE`
        DoseType | ALWAYS | `PHYSICAL`
        DoseSummationType | ALWAYS | `PLAN_OVERVIEW`
        DoseComment | ALWAYS | engine, unit and reference time, in 64 characters
        DoseGridScaling | ALWAYS | Gy of one step of a stored value
        TissueHeterogeneityCorrection | ALWAYS | `IMAGE`
        PlanOverviewSequence | ALWAYS | stands for the administration; no RT Plan exists
        """,
    ),
    *_of(
        ("PM",),
        """
        PixelPresentation | ALWAYS | `MONOCHROME`
        ContentQualification | ALWAYS | `RESEARCH`
        Laterality AcquisitionContextSequence | VNAP | empty
        BurnedInAnnotation RecognizableVisualFeatures | ALWAYS | `NO`
        DimensionOrganizationType | ALWAYS | `3D`
        FloatPixelData | ALWAYS | dose rate, or its standard uncertainty, in mGy/h
        """,
    ),
    *_of(
        _DOCUMENTS,
        """
        ReferencedPerformedProcedureStepSequence | VNAP | empty
        ValueType | ALWAYS | `CONTAINER`
        ContinuityOfContent | ALWAYS | `CONTINUOUS`
        ConceptNameCodeSequence | ALWAYS | the title
        CurrentRequestedProcedureEvidenceSequence | ALWAYS | SR: what the numbers come from; KO: what it \
rejects
        ContentTemplateSequence | ALWAYS | SR: TID 1500; KO: TID 2010
        ContentSequence | ALWAYS | section Results
        """,
    ),
    *_of(
        ("SR",),
        """
        PerformedProcedureCodeSequence | VNAP | empty
        CompletionFlag | ALWAYS | `COMPLETE`
        VerificationFlag | ALWAYS | `UNVERIFIED`
        PreliminaryFlag | ALWAYS | `PRELIMINARY`
        PertinentOtherEvidenceSequence | ANAP | objects of other studies
        PredecessorDocumentsSequence | ANAP | the report that this one replaces
        """,
    ),
)

_INTRODUCTION = """\
### Attributes of the objects

On the main level of the data set. Presence after PS3.2: ALWAYS; VNAP, present, the value may be empty;
ANAP, not always present. *The CT's*: copied from the first slice of the CT. A value
`like this` is written as it stands, always. What differs between objects is told for each. All are
Explicit VR Little Endian with file meta information of PS3.10; none is anonymized and none is signed.

| attribute | VR | in | presence | value |
|---|---|---|---|---|"""


def attributes() -> str:
    """The section."""
    rows = sorted((tag_for_keyword(written.keyword) or 0, _row(written)) for written in WRITTEN)
    return "\n".join((_INTRODUCTION, *(row for _, row in rows)))


def _row(written: Written) -> str:
    tag = tag_for_keyword(written.keyword) or 0
    objects = "all" if written.of == _ALL else ", ".join(written.of)
    key = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {written.keyword} | {dictionary_VR(tag)}"
    return f"| {key} | {objects} | {written.presence} | {written.value} |"
