"""The report (TID 1500, PS3.16): what was found in each region, by each engine.

::

    126000 DCM Imaging Measurement Report
    ├── observer: this installation
    ├── Imaging Measurements
    │   └── Measurement Group, one per region and engine
    │       ├── algorithm, segment of the SEG, dose-rate map (COMPOSITE)
    │       ├── volume, mass, activity; mean, maximum, minimum, SD; DR10, DR30, DR70, DR90
    │       └── of an engine with statistics: uncertainty of the mean and of the voxels
    └── Dose rate calculation
        ├── reference time, radionuclide, administered activity and the fraction of it found
        ├── sources, provenance, and what the reader must know

The last container extends the template, which PS3.16 allows. Images are referred to by IMAGE, the
RTDOSE by COMPOSITE, since readers reject an RTDOSE as an image. `read_table` reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import highdicom as hd
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DateTimeContentItem,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage

from dicomnode.results import vocabulary as v
from dicomnode.results.findings import (
    EncodingSettings,
    EngineMap,
    Findings,
    InstanceReference,
    ResultKind,
    RoiFindings,
)
from dicomnode.results.header import (
    ResultIdentity,
    apply_header,
    dicom_datetime,
    reference_of,
    sources,
    without_identity,
)
from pipeline.errors import InputRejected

_CONTAINS = RelationshipTypeValues.CONTAINS
_BQ_PER_MBQ = 1e6


@dataclass(frozen=True, slots=True)
class WrittenResults:
    """The objects of the same case that the report refers to. Maps by engine."""

    segmentation: InstanceReference
    dose: dict[str, InstanceReference]
    parametric_map: dict[str, InstanceReference]
    uncertainty: dict[str, InstanceReference]
    tracking: list[str]

    def all(self) -> Iterator[InstanceReference]:
        """In the order in which they were written."""
        yield self.segmentation
        yield from self.dose.values()
        yield from self.parametric_map.values()
        yield from self.uncertainty.values()


def build(
    findings: Findings,
    settings: EncodingSettings,
    identity: ResultIdentity,
    now: datetime,
    written: WrittenResults,
) -> Dataset:
    """The report of a case, complete and unverified.

    raises: InputRejected for a number that is not finite.
    """
    document = hd.sr.EnhancedSR if settings.sr == "enhanced" else hd.sr.Comprehensive3DSR
    report = document(
        evidence=_evidence(findings, written),
        content=_content(findings, settings, written),
        series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid,
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=[_instance(r) for r in findings.replaced(ResultKind.SR)] or None,
    )
    apply_header(report, findings, settings, identity, now)
    return report


def series_description(findings: Findings) -> str:
    """What a worklist shows."""
    return f"{findings.nuclide.name} dose rate report"


def _evidence(findings: Findings, written: WrittenResults) -> list[Dataset]:
    """Everything the report refers to; the first names patient and study, which the header then rewrites."""
    others = [_instance(reference) for reference in (*sources(findings), *written.all(), *_drawn(findings))]
    return [without_identity(findings.ct_headers[0]), *others]


def _drawn(findings: Findings) -> list[InstanceReference]:
    return [roi.source for roi in findings.rois if roi.source]


def _instance(reference: InstanceReference) -> Dataset:
    item = Dataset()
    item.SOPClassUID = reference.sop_class_uid
    item.SOPInstanceUID = reference.sop_instance_uid
    item.SeriesInstanceUID = reference.series_instance_uid
    item.StudyInstanceUID = reference.study_instance_uid
    return item


def _content(findings: Findings, settings: EncodingSettings, written: WrittenResults) -> Dataset:
    groups = [
        _group(findings, number, roi, engine_map, written)
        for engine_map in findings.maps
        for number, roi in enumerate(findings.rois, start=1)
    ]
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer(settings)),
        procedure_reported=v.PROCEDURE,
        imaging_measurements=groups,
        title=v.REPORT_TITLE,
    )
    report[0].ContentSequence.append(_calculation(findings))
    return report[0]


def observer(settings: EncodingSettings) -> hd.sr.ObserverContext:
    """This installation as the observer (PS3.16 TID 1004)."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=settings.device_uid,
        name=settings.station,
        manufacturer_name=settings.manufacturer,
        model_name=settings.model_name,
        serial_number=settings.serial_number,
        physical_location=settings.institution or None,
    )
    return hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)


def _group(
    findings: Findings, number: int, roi: RoiFindings, engine_map: EngineMap, written: WrittenResults
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411."""
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=written.tracking[number - 1], identifier=roi.name),
        referenced_segment=hd.sr.ReferencedSegment(
            SegmentationStorage,
            written.segmentation.sop_instance_uid,
            number,
            source_series=hd.sr.SourceSeriesForSegmentation(str(findings.ct_headers[0].SeriesInstanceUID)),
        ),
        finding_type=v.SEGMENT_PROPERTY[roi.kind][1],
        algorithm_id=AlgorithmIdentification(
            engine_map.algorithm_name, engine_map.algorithm_version, list(engine_map.parameters) or None
        ),
        measurements=list(_measurements(roi, engine_map.engine)),
    )
    group[0].ContentSequence.extend(_group_references(roi, engine_map.engine, written))
    return group


def _group_references(roi: RoiFindings, engine: str, written: WrittenResults) -> Iterator[ContentItem]:
    dose = written.dose[engine]
    yield _composite(v.SOURCE_OF_MEASUREMENT, dose)
    for images in (written.parametric_map, written.uncertainty):
        if engine in images:
            sop = images[engine].sop_class_uid, images[engine].sop_instance_uid
            yield ImageContentItem(v.SOURCE_OF_MEASUREMENT, *sop, relationship_type=_CONTAINS)
    if roi.source:
        yield _composite(v.SOURCE_OF_REGION, roi.source)


def _composite(name: Code, reference: InstanceReference) -> CompositeContentItem:
    return CompositeContentItem(name, reference.sop_class_uid, reference.sop_instance_uid, _CONTAINS)


def _measurements(roi: RoiFindings, engine: str) -> Iterator[hd.sr.Measurement]:
    """TID 300."""
    found = roi.statistics[engine]
    yield _measured(roi, v.VOLUME, found.volume_ml, v.ML)
    yield _measured(roi, v.MASS, found.mass_g, v.GRAM)
    yield _measured(roi, v.ACTIVITY, found.activity_mbq, v.MBQ)
    mean = _measured(roi, v.DOSE_RATE, found.mean, v.MGY_PER_H, v.MEAN)
    uncertainty = roi.uncertainty.get(engine)
    if uncertainty is not None:
        mean[0].ContentSequence.append(_plus_minus(uncertainty.of_mean * found.mean))
    yield mean
    yield _measured(roi, v.DOSE_RATE, found.maximum, v.MGY_PER_H, v.MAXIMUM)
    yield _measured(roi, v.DOSE_RATE, found.minimum, v.MGY_PER_H, v.MINIMUM)
    yield _measured(roi, v.DOSE_RATE, found.sd, v.MGY_PER_H, v.STANDARD_DEVIATION)
    for percent, value in ((10, found.dr10), (30, found.dr30), (70, found.dr70), (90, found.dr90)):
        yield _measured(roi, v.DR[percent], value, v.MGY_PER_H)
    if uncertainty is not None:
        yield _measured(roi, v.MEAN_UNCERTAINTY, 100.0 * uncertainty.of_mean, v.PERCENT)
        yield _measured(roi, v.VOXEL_UNCERTAINTY, 100.0 * uncertainty.of_voxels, v.PERCENT)


def _plus_minus(value: float) -> NumContentItem:
    """The uncertainty of a measurement as one of its properties (TID 310); it is one standard deviation."""
    item = NumContentItem(
        v.UNCERTAINTY_RANGE, value, v.MGY_PER_H, relationship_type=RelationshipTypeValues.HAS_PROPERTIES
    )
    of = RelationshipTypeValues.HAS_CONCEPT_MOD
    item.ContentSequence = ContentSequence([CodeContentItem(codes.DCM.Derivation, v.STANDARD_DEVIATION, of)])
    _shorten(item)
    return item


def _measured(
    roi: RoiFindings, name: Code, value: float, unit: Code, derivation: Code | None = None
) -> hd.sr.Measurement:
    """One figure of a region."""
    if not math.isfinite(value):
        what = name.meaning if derivation is None else f"{name.meaning}, {derivation.meaning}"
        raise InputRejected(
            f"{what} of the region {roi.name!r} is {value}",
            "Check CT and SPECT inside the region; a region without mass or activity must be left out",
        )
    measurement = hd.sr.Measurement(name=name, value=float(value), unit=unit, derivation=derivation)
    _shorten(measurement[0])
    return measurement


def _shorten(item: Dataset) -> None:
    """What people read gets seven digits, more than any figure is worth; FloatingPointValue keeps all."""
    measured = item.MeasuredValueSequence[0]
    measured.NumericValue = f"{float(measured.FloatingPointValue):.7g}"


def _calculation(findings: Findings) -> ContainerContentItem:
    container = ContainerContentItem(v.CALCULATION, relationship_type=_CONTAINS)
    container.ContentSequence = ContentSequence(
        [*_administration(findings), *_source_items(findings), *_provenance(findings), *_notes(findings)]
    )
    return container


def _administration(findings: Findings) -> Iterator[ContentItem]:
    nuclide = Code(findings.nuclide.sct_code, "SCT", findings.nuclide.code_meaning)
    yield DateTimeContentItem(v.REFERENCE_TIME, dicom_datetime(findings.reference_time), _CONTAINS)
    yield CodeContentItem(v.RADIONUCLIDE, nuclide, _CONTAINS)
    if findings.administered_bq is not None:
        activity_mbq = float(findings.administered_bq) / _BQ_PER_MBQ
        yield NumContentItem(v.ADMINISTERED_ACTIVITY, activity_mbq, v.MBQ, relationship_type=_CONTAINS)
    if findings.administered_at is not None:
        yield DateTimeContentItem(v.ADMINISTRATION_START, dicom_datetime(findings.administered_at), _CONTAINS)
    if findings.fraction_found is not None:
        per_cent = 100.0 * float(findings.fraction_found)
        found = NumContentItem(v.FRACTION_FOUND, per_cent, v.PERCENT, relationship_type=_CONTAINS)
        _shorten(found)
        yield found


def _source_items(findings: Findings) -> Iterator[ContentItem]:
    """The NM by IMAGE; a series of slices by its UID, its slices standing in the evidence."""
    for headers in (findings.spect_headers, findings.ct_headers):
        first = reference_of(headers[0])
        if len(headers) == 1:
            yield ImageContentItem(
                v.SOURCE_IMAGE, first.sop_class_uid, first.sop_instance_uid, relationship_type=_CONTAINS
            )
        else:
            yield UIDRefContentItem(v.SOURCE_SERIES, first.series_instance_uid, _CONTAINS)
    for other in findings.other_sources:
        yield _composite(v.OTHER_SOURCE, other)


def _provenance(findings: Findings) -> Iterator[ContentItem]:
    for what, value in findings.provenance.described():
        yield _text(v.PROVENANCE, f"{what}: {value}")
    for engine_map in findings.maps:
        yield _text(
            v.PROVENANCE,
            f"{engine_map.engine.upper()}: {engine_map.algorithm_name} {engine_map.algorithm_version}, "
            f"on {engine_map.device}, {engine_map.data_name} {engine_map.kernel_sha256}; "
            f"{engine_map.heterogeneity}",
        )
        if engine_map.weights is not None:
            used = engine_map.weights
            text = f"network weights {used.name}, version {used.version}, SHA-256 {used.sha256}"
            yield _text(v.PROVENANCE, f"{engine_map.engine.upper()}: {text}")


def _notes(findings: Findings) -> Iterator[ContentItem]:
    for note in findings.notes:
        yield _text(v.COMMENT, note)
    for engine_map in findings.maps:
        for note in engine_map.notes:
            yield _text(v.COMMENT, f"{engine_map.engine.upper()}: {note}")


def _text(name: Code, value: str) -> TextContentItem:
    return TextContentItem(name, value, _CONTAINS)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One measurement group. Volume mL, mass g, activity MBq, dose rates mGy/h.

    mean_uncertainty, voxel_uncertainty: %, one standard deviation; None where the engine has no statistics.
    """

    roi: str
    algorithm: str
    volume_ml: float
    mass_g: float
    activity_mbq: float
    mean: float
    maximum: float
    minimum: float
    sd: float
    dr10: float
    dr30: float
    dr70: float
    dr90: float
    mean_uncertainty: float | None = None
    voxel_uncertainty: float | None = None


def read_table(report: Dataset) -> tuple[ReportRow, ...]:
    """The measurement groups of a report, from the SR object alone.

    report: as written by `build`, e.g. from pydicom.dcmread. raises: InputRejected for another document.
    """
    content = report.get("ContentSequence", [])
    measurements = next((item for item in content if _is(item, codes.DCM.ImagingMeasurements)), None)
    if measurements is None:
        raise InputRejected("the object is not an imaging measurement report", "Name the SR of a case")
    groups = (item for item in measurements.ContentSequence if _is(item, codes.DCM.MeasurementGroup))
    return tuple(_row(group) for group in groups)


def _row(group: Dataset) -> ReportRow:
    values = {_key(item): _value(item) for item in group.ContentSequence if item.ValueType == "NUM"}
    rates = (values[v.DOSE_RATE.value, d.value] for d in (v.MEAN, v.MAXIMUM, v.MINIMUM, v.STANDARD_DEVIATION))
    return ReportRow(
        _text_of(group, codes.DCM.TrackingIdentifier),
        _text_of(group, codes.DCM.AlgorithmName),
        *(values[name.value, ""] for name in (v.VOLUME, v.MASS, v.ACTIVITY)),
        *rates,
        *(values[v.DR[percent].value, ""] for percent in (10, 30, 70, 90)),
        *(values.get((name.value, "")) for name in (v.MEAN_UNCERTAINTY, v.VOXEL_UNCERTAINTY)),
    )


def _key(item: Dataset) -> tuple[str, str]:
    """(what, derivation) of a NUM item, as code values."""
    derivations = [child for child in item.get("ContentSequence", []) if _is(child, codes.DCM.Derivation)]
    derivation = derivations[0].ConceptCodeSequence[0].CodeValue if derivations else ""
    return str(item.ConceptNameCodeSequence[0].CodeValue), str(derivation)


def _value(item: Dataset) -> float:
    measured = item.MeasuredValueSequence[0]
    return float(measured.get("FloatingPointValue", measured.NumericValue))


def _text_of(group: Dataset, name: Code) -> str:
    return next((str(item.TextValue) for item in group.ContentSequence if _is(item, name)), "")


def _is(item: Dataset, name: Code) -> bool:
    names = item.get("ConceptNameCodeSequence")
    return bool(names) and (names[0].CodeValue, names[0].CodingSchemeDesignator) == (
        name.value,
        name.scheme_designator,
    )
