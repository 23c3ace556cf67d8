"""Segmentation (PS3.3 A.51): the regions that the report measures, one segment each.

Segments lie on the dose grid, because there they were measured: which voxels entered a mean can be
read back exactly. A frame without a voxel of its segment is left out.
"""

from __future__ import annotations

from datetime import datetime

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from dicomnode.results.findings import EncodingSettings, Findings, RoiFindings
from dicomnode.results.frames import affine, frames
from dicomnode.results.header import (
    ResultIdentity,
    apply_header,
    fix_dimension_uid,
    long_string,
    referenced_series,
    sources,
    without_identity,
)
from dicomnode.results.vocabulary import SEGMENT_PROPERTY, SEGMENTATION_FAMILY
from pipeline.histogram import RegionKind

GEOMETRY = (
    *("Rows", "Columns", "PixelSpacing", "SliceThickness", "Modality"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator"),
)
# How a region came about; the node itself draws none by hand.
_ALGORITHM = {
    RegionKind.BODY: (hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, "Body: largest region above -400 HU"),
    RegionKind.FIELD_OF_VIEW: (
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        "Part of the body in the field of SPECT and CT",
    ),
    RegionKind.ROI: (hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC, "Given region on the dose grid"),
}
# sRGB; the body and the field stay pale, regions go round the rest.
_PALE = {RegionKind.BODY: (200, 200, 200), RegionKind.FIELD_OF_VIEW: (150, 180, 200)}
_COLOURS = ((230, 85, 65), (70, 150, 80), (75, 115, 190), (240, 170, 60), (145, 95, 175), (60, 175, 175))


def build(
    findings: Findings,
    settings: EncodingSettings,
    identity: ResultIdentity,
    now: datetime,
    tracking: list[str],
) -> hd.seg.Segmentation:
    """The SEG of a case; segment n is region n - 1 of `findings.rois`.

    tracking: one UID per region; the report uses the same.
    """
    grid = findings.maps[0].dose_rate.grid
    numbers = list(range(1, len(findings.rois) + 1))
    segmentation = hd.seg.Segmentation(
        source_images=[without_identity(header, GEOMETRY) for header in findings.ct_headers],
        pixel_array=hd.Volume(
            _stacked(findings),
            affine(grid),
            "PATIENT",
            grid.frame_of_reference_uid,
            channels={"SegmentNumber": numbers},
        ),
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(number, roi, uid, findings.provenance.software_version)
            for number, roi, uid in zip(numbers, findings.rois, tracking, strict=True)
        ],
        series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid,
        instance_number=1,
        manufacturer=long_string(settings.manufacturer),
        manufacturer_model_name=long_string(settings.model_name),
        software_versions=long_string(findings.provenance.software_version),
        device_serial_number=long_string(settings.serial_number),
        content_label="REGIONS",
        content_description="Regions of the dose-rate report",
        omit_empty_frames=True,
    )
    study = str(findings.ct_headers[0].StudyInstanceUID)
    segmentation.ReferencedSeriesSequence = referenced_series(sources(findings), study)
    fix_dimension_uid(segmentation)
    apply_header(segmentation, findings, settings, identity, now)
    return segmentation


def series_description(findings: Findings) -> str:
    """What a worklist shows."""
    return f"{findings.nuclide.name} dose rate regions"


def _stacked(findings: Findings) -> NDArray[np.uint8]:
    """(frame, row, column, segment): a view whose segments are each contiguous, as highdicom reads them."""
    grid = findings.maps[0].dose_rate.grid
    masks = np.empty((len(findings.rois), *grid.shape), np.uint8)
    for mask, roi in zip(masks, findings.rois, strict=True):
        mask[...] = frames(roi.mask, grid)
    return np.moveaxis(masks, 0, -1)


def _description(number: int, roi: RoiFindings, tracking_uid: str, version: str) -> hd.seg.SegmentDescription:
    category, kind = SEGMENT_PROPERTY[roi.kind]
    algorithm_type, algorithm = _ALGORITHM[roi.kind]
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=long_string(roi.name) or f"Region {number}",
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=algorithm_type,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm, family=SEGMENTATION_FAMILY, version=version
        ),
        tracking_uid=tracking_uid,
        tracking_id=roi.name,
        display_color=_colour(number, roi.kind),
    )


def _colour(number: int, kind: RegionKind) -> hd.color.CIELabColor:
    red, green, blue = _PALE.get(kind, _COLOURS[number % len(_COLOURS)])
    return hd.color.CIELabColor.from_rgb(red, green, blue)
