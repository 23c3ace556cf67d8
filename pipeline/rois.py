"""Regions of interest of a study (RT Structure Sets, Segmentations) → masks on the CT's grid.

What cannot be used is told, never dropped in silence: an object in a wrong frame of reference is
rejected; a region that is empty, or lies outside the CT, becomes one of `Rois.problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dataset import described, read_object
from pipeline.errors import InputRejected
from pipeline.lattice import crop_box
from pipeline.regions import BEYOND_CT, Mask, Region, UnusableRegion
from pipeline.segments import segment_regions
from pipeline.structures import structure_regions
from pipeline.volume import Grid

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True, slots=True, eq=False)
class Roi:
    """One region.

    box: (z, y, x) slices of the grid that hold it; inside: the mask within the box, because twenty
    regions on a whole CT grid would take a gigabyte. shape: of the whole grid. number, source_uid: as in
    its object, and the SOP Instance UID of that.
    """

    name: str
    number: int
    box: tuple[slice, slice, slice]
    inside: Mask
    shape: tuple[int, int, int]
    source_uid: str

    @property
    def mask(self) -> Mask:
        """(z, y, x) on the whole grid; made anew each time."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[self.box] = self.inside
        return mask

    def values(self, array: NDArray[Any]) -> NDArray[Any]:
        """(n,): what `array`, on the same grid, holds inside the region."""
        return np.asarray(array[self.box][self.inside])


@dataclass(frozen=True, slots=True)
class Rois:
    """found: in the order of their objects. problems: one sentence for each region that is not whole."""

    found: tuple[Roi, ...]
    problems: tuple[str, ...]


def read_rois(paths: Sequence[Path], ct: Grid) -> Rois:
    """The regions of RT Structure Sets and Segmentations on the CT's grid.

    raises: InputRejected when an object lies in another frame of reference, or holds no regions.
    """
    return rois_of([read_object(path) for path in paths], ct)


def rois_of(datasets: Sequence[Dataset], ct: Grid) -> Rois:
    """As `read_rois`, of data sets in memory."""
    found: list[Roi] = []
    problems: list[str] = []
    for dataset in datasets:
        for region in _regions(dataset, ct):
            name = f"ROI {region.name!r} ({region.number}) of {described(dataset)}"
            try:
                found.append(_roi(region, dataset))
                if region.beyond_ct():
                    problems.append(f"{name}: {BEYOND_CT}")
            except UnusableRegion as why:
                problems.append(f"{name}: {why}")
    return Rois(tuple(found), tuple(problems))


def _regions(dataset: Dataset, ct: Grid) -> Iterator[Region]:
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class == RT_STRUCTURE_SET:
        return structure_regions(dataset, ct)
    if sop_class == SEGMENTATION:
        return segment_regions(dataset, ct)
    raise InputRejected(f"{described(dataset)} holds no ROIs", "Send an RT Structure Set or a Segmentation")


def _roi(region: Region, dataset: Dataset) -> Roi:
    mask = region.mask()
    box = crop_box(mask)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    inside = np.ascontiguousarray(mask[box])
    return Roi(region.name, region.number, box, inside, shape, str(dataset.SOPInstanceUID))
