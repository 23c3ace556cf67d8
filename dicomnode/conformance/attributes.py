"""docs/conformance.md: the attributes of every object that the node writes (PS3.2 A.8.1).

The table is checked against what the encoders write: an attribute that is written and not here fails a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, tag_for_keyword

ALWAYS, MAY_BE_EMPTY, NOT_ALWAYS = "ALWAYS", "VNAP", "ANAP"  # PS3.2 A.8.1
OBJECTS = ("SEG", "RTDOSE", "PM", "SR", "KO")
_ALL, _IMAGES, _VOLUMES, _DOCUMENTS = OBJECTS, OBJECTS[:3], ("SEG", "PM"), OBJECTS[3:]


@dataclass(frozen=True, slots=True)
class Written:
    """One attribute of the objects `of`: whether it is there, and where its value comes from."""

    keyword: str
    of: tuple[str, ...]
    presence: str
    value: str


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
        InstanceCreationDate InstanceCreationTime | ALWAYS | the clock
        SOPClassUID | ALWAYS | of the object
        SOPInstanceUID SeriesInstanceUID | ALWAYS | made; the same for the same input, settings and software
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
        SeriesDate SeriesTime ContentDate ContentTime | ALWAYS | the clock
        Modality | ALWAYS | SEG, RTDOSE, OT (Parametric Map), SR, KO
        Manufacturer ManufacturerModelName SoftwareVersions DeviceSerialNumber | ALWAYS | this software's
        DeviceUID | ALWAYS | of this installation, made once
        StationName | ALWAYS | `[encode] station`
        InstitutionName | ANAP | `[encode] institution`
        SeriesDescription | ALWAYS | nuclide, engine and unit, or what the object is
        SeriesNumber | ALWAYS | from 9000
        InstanceNumber | ALWAYS | 1
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
        SamplesPerPixel PhotometricInterpretation | ALWAYS | 1, MONOCHROME2
        NumberOfFrames Rows Columns BitsAllocated | ALWAYS | of the dose grid
        """,
    ),
    *_of(
        ("SEG", "RTDOSE"),
        """
        BitsStored HighBit PixelRepresentation | ALWAYS | SEG: 1 bit; RTDOSE: `[encode] bits`, unsigned
        PixelData | ALWAYS | regions; dose rate x 1 h / DoseGridScaling
        """,
    ),
    *_of(
        _VOLUMES,
        """
        ImageType | ALWAYS | DERIVED, PRIMARY; Parametric Map: DERIVED, PRIMARY, VOLUME, QUANTITY
        SourceImageSequence | ALWAYS | the CT, with the SPECT where it is a map
        DimensionOrganizationSequence DimensionIndexSequence | ALWAYS | segment and position; position
        LossyImageCompression | ALWAYS | 00
        ContentLabel ContentDescription | ALWAYS | REGIONS, DOSE_RATE, UNCERTAINTY, and a sentence
        PresentationLUTShape | ALWAYS | IDENTITY
        SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence | ALWAYS | geometry, source, \
segment; of a map real world value mapping with its unit
        """,
    ),
    *_of(
        ("SEG",),
        """
        SegmentationType | ALWAYS | BINARY
        SegmentsOverlap | ALWAYS | YES
        SegmentSequence | ALWAYS | body, field of view, every ROI; with Tracking UID
        """,
    ),
    *_of(
        ("RTDOSE",),
        """
        OperatorsName | VNAP | empty
        DerivationDescription | ALWAYS | engine and version
        ReferencedInstanceSequence | ALWAYS | the SEG, and the result that this one replaces (code REPLACED)
        SliceThickness ImagePositionPatient ImageOrientationPatient PixelSpacing | ALWAYS | of the dose grid
        ImageComments | ALWAYS | what the numbers are, and the notes on them
        FrameIncrementPointer GridFrameOffsetVector | ALWAYS | of the dose grid
        DoseUnits | ALWAYS | `[encode] dose_units`: GY, RELATIVE
        DoseType DoseSummationType | ALWAYS | PHYSICAL, PLAN_OVERVIEW
        DoseComment | ALWAYS | engine, unit and reference time, in 64 characters
        DoseGridScaling | ALWAYS | Gy of one step of a stored value
        TissueHeterogeneityCorrection | ALWAYS | IMAGE
        PlanOverviewSequence | ALWAYS | stands for the administration; no RT Plan exists
        """,
    ),
    *_of(
        ("PM",),
        """
        PixelPresentation | ALWAYS | MONOCHROME
        ContentQualification | ALWAYS | RESEARCH
        Laterality AcquisitionContextSequence | VNAP | empty
        BurnedInAnnotation RecognizableVisualFeatures | ALWAYS | NO
        DimensionOrganizationType | ALWAYS | 3D
        FloatPixelData | ALWAYS | dose rate, or its standard uncertainty, in mGy/h
        """,
    ),
    *_of(
        _DOCUMENTS,
        """
        ReferencedPerformedProcedureStepSequence | VNAP | empty
        ValueType ContinuityOfContent ConceptNameCodeSequence | ALWAYS | CONTAINER, CONTINUOUS, the title
        CurrentRequestedProcedureEvidenceSequence | ALWAYS | what the numbers come from; KO: what it rejects
        ContentTemplateSequence | ALWAYS | TID 1500; TID 2010
        ContentSequence | ALWAYS | section Results
        """,
    ),
    *_of(
        ("SR",),
        """
        PerformedProcedureCodeSequence | VNAP | empty
        CompletionFlag VerificationFlag PreliminaryFlag | ALWAYS | COMPLETE, UNVERIFIED, PRELIMINARY
        PertinentOtherEvidenceSequence | ANAP | objects of other studies
        PredecessorDocumentsSequence | ANAP | the report that this one replaces
        """,
    ),
)

_INTRODUCTION = """\
### Attributes of the objects

On the main level of the data set. Presence after PS3.2: ALWAYS; VNAP, present, the value may be empty;
ANAP, not always present. *The CT's*: copied from the first slice of the CT. All objects in all options are
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
