"""RT Structure Set Storage (PS3.3 A.19): closed planar contours round masks on CT slices.

A hole is a contour of its own inside the outer one: what an odd number of contours encloses belongs to
the ROI, the exclusive-or convention that planning systems use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage, RTStructureSetStorage
from skimage.measure import approximate_polygon, find_contours

from dicomnode.virtual_study.study import Study, composed, date_and_time, save
from pipeline.volume import Grid

_COLOURS = ((230, 60, 60), (60, 180, 75), (60, 110, 230), (240, 190, 40), (160, 70, 200), (60, 200, 210))


def write_rtstruct(
    folder: Path,
    study: Study,
    grid: Grid,
    rois: Mapping[str, NDArray[np.bool_]],
    *,
    series: str = "RTSTRUCT",
    ct_series: str = "CT",
    tolerance_pixels: float = 0.1,
) -> Path:
    """One file.

    grid: the CT's. rois: name to (z, y, x) mask on it; an empty mask gives an ROI without contours.
    ct_series: the `CtStyle.series` whose slices are referenced. tolerance_pixels: how far a simplified
    contour may leave the outline of the mask.
    """
    ds = composed(study, RTStructureSetStorage, series, 1, study.acquired)
    ds.Modality = "RTSTRUCT"
    ds.Manufacturer, ds.OperatorsName = "Virtual", ""
    ds.SeriesNumber, ds.SeriesDescription = 5, "ROIs"
    ds.StructureSetLabel = "ROIs"
    ds.StructureSetDate, ds.StructureSetTime = date_and_time(study.acquired)
    ds.FrameOfReferenceUID = study.frame_of_reference(grid)
    ds.PositionReferenceIndicator = ""
    ds.ReferencedFrameOfReferenceSequence = [_referenced_frame(study, grid, ct_series)]
    ds.StructureSetROISequence = [_roi(n, name, study, grid) for n, name in enumerate(rois, 1)]
    ds.ROIContourSequence = [
        _contours(n, mask, study, grid, ct_series, tolerance_pixels)
        for n, mask in enumerate(rois.values(), 1)
    ]
    ds.RTROIObservationsSequence = [_observation(n, name) for n, name in enumerate(rois, 1)]
    ds.ApprovalStatus = "UNAPPROVED"
    return save(ds, folder / f"{series}.dcm")


def _referenced_slice(study: Study, ct_series: str, k: int) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = CTImageStorage
    item.ReferencedSOPInstanceUID = study.uid(ct_series, k + 1)
    return item


def _referenced_frame(study: Study, grid: Grid, ct_series: str) -> Dataset:
    of_series, of_study, frame = Dataset(), Dataset(), Dataset()
    of_series.SeriesInstanceUID = study.uid(ct_series)
    of_series.ContourImageSequence = [_referenced_slice(study, ct_series, k) for k in range(grid.shape[0])]
    of_study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as PS3.3 asks
    of_study.ReferencedSOPInstanceUID = study.study_instance_uid
    of_study.RTReferencedSeriesSequence = [of_series]
    frame.FrameOfReferenceUID = study.frame_of_reference(grid)
    frame.RTReferencedStudySequence = [of_study]
    return frame


def _roi(number: int, name: str, study: Study, grid: Grid) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = number, name
    item.ReferencedFrameOfReferenceUID = study.frame_of_reference(grid)
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _observation(number: int, name: str) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.ROIObservationLabel = name[:16]
    item.RTROIInterpretedType = "ORGAN"
    item.ROIInterpreter = ""
    return item


def _contours(
    number: int, mask: NDArray[np.bool_], study: Study, grid: Grid, ct_series: str, tolerance_pixels: float
) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(_COLOURS[(number - 1) % len(_COLOURS)])
    item.ReferencedROINumber = number
    drawn = [
        _contour(outline, k, study, grid, ct_series)
        for k in np.flatnonzero(mask.any(axis=(1, 2))).tolist()
        for outline in _outlines(mask[k], tolerance_pixels)
    ]
    if drawn:
        item.ContourSequence = drawn
    return item


def _outlines(mask: NDArray[np.bool_], tolerance_pixels: float) -> list[NDArray[np.float64]]:
    """(n, 2) row and column of the points of each closed outline, the first not repeated at the end."""
    padded = np.pad(mask, 1).astype(np.float32)  # closes outlines at the edge of the image
    closed = find_contours(padded, 0.5)  # type: ignore[no-untyped-call]
    simple = [approximate_polygon(c, tolerance_pixels) for c in closed]  # type: ignore[no-untyped-call]
    return [points[:-1] - 1 for points in simple if len(points) > 3]


def _contour(outline: NDArray[np.float64], k: int, study: Study, grid: Grid, ct_series: str) -> Dataset:
    item = Dataset()
    item.ContourImageSequence = [_referenced_slice(study, ct_series, k)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(outline)
    points = grid.positions(np.column_stack([np.full(len(outline), k), outline]))
    item.ContourData = [f"{v:.3f}" for v in points.ravel()]
    return item
