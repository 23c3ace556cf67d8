"""RT Structure Set → regions (PS3.3 C.8.8.5, C.8.8.6): closed planar contours on the CT's slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.contours import NotParallel, fill
from pipeline.dataset import items, required
from pipeline.regions import Mask, Region, UnusableRegion, require_frame
from pipeline.volume import Grid

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def structure_regions(dataset: Dataset, ct: Grid) -> Iterator[Region]:
    """The regions of an RT Structure Set. raises: InputRejected for another frame of reference."""
    drawn = {
        int(required(item, "ReferencedROINumber", of=dataset)): item
        for item in items(dataset, "ROIContourSequence")
    }
    for roi in items(dataset, "StructureSetROISequence"):
        number = int(required(roi, "ROINumber", of=dataset))
        require_frame(_frame(roi, dataset), ct, dataset)
        contours = items(drawn[number], "ContourSequence") if number in drawn else []
        yield _region(str(roi.get("ROIName") or f"ROI {number}"), number, contours, ct)


def _frame(roi: Dataset, dataset: Dataset) -> str:
    return str(roi.get("ReferencedFrameOfReferenceUID") or dataset.get("FrameOfReferenceUID") or "")


def _region(name: str, number: int, contours: Sequence[Dataset], ct: Grid) -> Region:
    def mask() -> Mask:
        kinds = {str(contour.get("ContourGeometricType")) for contour in contours}
        if not kinds:
            raise UnusableRegion("it has no contours")
        if kinds - set(_CLOSED):
            raise UnusableRegion(
                f"contours of type {', '.join(sorted(kinds - set(_CLOSED)))} enclose no volume"
            )
        try:
            found = fill(_points(contours), ct)
        except NotParallel as error:
            raise UnusableRegion(str(error)) from error
        if not found.any():
            raise UnusableRegion("it lies outside the CT, or is smaller than a voxel")
        return found

    def beyond_ct() -> bool:
        indices = ct.indices(np.concatenate(_points(contours)))
        return bool(np.any(indices < -0.5) or np.any(indices > np.array(ct.shape) - 0.5))

    return Region(name, number, mask, beyond_ct)


def _points(contours: Sequence[Dataset]) -> list[NDArray[np.float64]]:
    """(n, 3) patient mm each; fewer than three points enclose nothing."""
    points = [np.array(contour.get("ContourData") or [], dtype=np.float64) for contour in contours]
    return [p.reshape(-1, 3) for p in points if p.size >= 9 and p.size % 3 == 0]
