"""The grid that dose rates are computed and reported on: how coarse it is, and how much it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.body import Body
from pipeline.ct import AIR_HU
from pipeline.errors import InputRejected
from pipeline.grid import resample
from pipeline.lattice import coarser, crop_box
from pipeline.rois import Roi
from pipeline.volume import Grid, Triple, Volume

GridField = Literal["ct", "spect"]
"""How much: whatever of the patient and the ROIs the CT shows, or of that the SPECT's field alone."""

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]


def on_dose_grid(
    hu: Volume, body: Body, rois: Sequence[Roi], spacing_mm: Triple | None
) -> tuple[Volume, Body, list[Mask]]:
    """CT, body and ROIs on the grid that doses are computed on.

    A voxel belongs to a region when at least half of it does.
    """
    if spacing_mm is None:
        return hu, body, [roi.mask for roi in rois]
    grid = coarser(hu.grid, spacing_mm)

    def on_grid(mask: Mask) -> Mask:
        share = resample(Volume(mask.astype(np.float32), hu.grid, "1"), grid)
        return np.asarray(share.array >= 0.5)

    coarse = [on_grid(roi.mask) for roi in rois]
    for roi, mask in zip(rois, coarse, strict=True):
        if not mask.any():
            raise InputRejected(
                f"the ROI {roi.name!r} is smaller than a voxel of the dose grid ({spacing_mm} mm)",
                "Set a finer [dose] grid_spacing_mm, or discard that ROI",
            )
    apart = None if body.apart is None else on_grid(body.apart)
    # On a very coarse grid an arm may fill no voxel by half: nothing is left to enclose.
    if apart is not None and not apart.any():
        apart = None
    return _within_ct(hu, grid), Body(on_grid(body.mask), apart), coarse


def _within_ct(hu: Volume, grid: Grid) -> Volume:
    """CT numbers on a coarser lattice: the mean of that part of each voxel that the CT covers.

    The lattice sticks out of the CT by a part of a voxel; blended with air there, tissue at the end slices
    would be too thin, and its dose rate too high.
    """
    covered = resample(hu.with_array(np.ones_like(hu.array), "1"), grid).array
    ct_numbers = np.full(grid.shape, AIR_HU, np.float32)
    np.divide(resample(hu, grid).array, covered, out=ct_numbers, where=covered > 0)
    return Volume(ct_numbers, grid, hu.unit)


def dose_box(shown: Sequence[Mask], seen: Mask, field: GridField) -> Box:
    """The part of the grid that is reported.

    shown: what it must enclose, the patient and the ROIs. seen: what the SPECT covers. What lies outside
    the box still counts: activity gives its dose, tissue stops and scatters.
    """
    box = _enclosing([crop_box(mask) for mask in shown])
    return box if field == "ct" else _common(box, crop_box(seen))


def outside_grid(
    body: Mask, rois: Sequence[Roi], drawn: Sequence[Mask], box: Box
) -> tuple[list[tuple[Roi, Mask]], list[str], list[str]]:
    """What the box cuts off: it has no dose rate, and figures without a word would pass for the whole.

    returns: the ROIs of which it holds something; notes on the body, and on ROIs.
    """
    kept, on_body, on_rois = [], [], []
    limit = "lie outside the dose grid, which [dose] grid_field limits to the SPECT's field"
    if share := _share_outside(body, box):
        on_body.append(f"{share:.1%} of the body {limit}: the figures of the region Body are of the rest")
    for roi, mask in zip(rois, drawn, strict=True):
        share = _share_outside(mask, box)
        if share == 1.0:
            on_rois.append(f"all of the ROI {roi.name!r} {limit}: it has no figures")
            continue
        if share:
            on_rois.append(f"{share:.1%} of the ROI {roi.name!r} {limit}: its figures are of the rest")
        kept.append((roi, mask))
    return kept, on_body, on_rois


def _share_outside(mask: Mask, box: Box) -> float:
    total = np.count_nonzero(mask)
    return (total - np.count_nonzero(mask[box])) / total


def _enclosing(boxes: Sequence[Box]) -> Box:
    z, y, x = (
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes))
        for axis in range(3)
    )
    return z, y, x


def _common(one: Box, other: Box) -> Box:
    z, y, x = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return z, y, x
