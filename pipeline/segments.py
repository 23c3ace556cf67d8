"""Segmentation → regions (PS3.3 C.8.20): each segment's frames, by the nearest voxel on the CT's grid.

BINARY segments are taken as they are; a FRACTIONAL one counts where it is at least half of
MaximumFractionalValue. Frames that hold nothing may be left out of the object, so the planes of one
segment need not be contiguous: the lattice is that of all its frames together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from pipeline.dataset import described, items, numbers, required, texts
from pipeline.errors import InputRejected
from pipeline.grid import resample_nearest
from pipeline.lattice import box_corners, crop_box
from pipeline.regions import Mask, Region, UnusableRegion, require_frame
from pipeline.volume import Grid, Triple, Volume

_EVEN_WITHIN = 0.1  # of a plane spacing


@dataclass(frozen=True, slots=True)
class _Frames:
    """Where the frames of a Segmentation lie. plane: index along z of `grid` for each frame."""

    grid: Grid
    plane: NDArray[np.int_]
    segment: NDArray[np.int_]


def segment_regions(dataset: Dataset, ct: Grid) -> Iterator[Region]:
    """The segments of a Segmentation. raises: InputRejected for another frame of reference, or no places."""
    require_frame(str(dataset.get("FrameOfReferenceUID") or ""), ct, dataset)
    kind = str(dataset.get("SegmentationType"))
    if kind not in ("BINARY", "FRACTIONAL"):
        raise InputRejected(
            f"{described(dataset)} is a Segmentation of type {kind}",
            "Export it as BINARY, or as an RT Structure Set",
        )
    frames = _frames(dataset)
    for segment in items(dataset, "SegmentSequence"):
        number = int(required(segment, "SegmentNumber", of=dataset))
        name = " ".join(texts(segment, "SegmentLabel")) or f"segment {number}"
        yield _region(name, number, frames, dataset, ct)


def _region(name: str, number: int, frames: _Frames, dataset: Dataset, ct: Grid) -> Region:
    def mask() -> Mask:
        segment = _segment(number, frames, dataset)
        on_ct = _onto(segment, ct)
        if not on_ct.any():
            raise UnusableRegion("it lies outside the CT")
        return on_ct

    def beyond_ct() -> bool:
        corners = ct.indices(box_corners(_segment(number, frames, dataset).grid))
        # Half a voxel of the segmentation may stick out of a CT with other voxels.
        return bool(np.any(corners < -1.5) or np.any(corners > np.array(ct.shape) + 0.5))

    return Region(name, number, mask, beyond_ct)


def _segment(number: int, frames: _Frames, dataset: Dataset) -> Volume:
    """One segment, cropped to where it is set."""
    threshold = 0.5 * float(dataset.get("MaximumFractionalValue") or 1)
    array = np.zeros(frames.grid.shape, dtype=bool)
    for frame in np.flatnonzero(frames.segment == number):
        array[frames.plane[frame]] |= _pixels(dataset, int(frame)) >= threshold
    if not array.any():
        raise UnusableRegion("it is empty")
    return Volume(array.astype(np.float32), frames.grid, "1").boxed(crop_box(array))


def _pixels(dataset: Dataset, frame: int) -> NDArray[np.uint8]:
    try:
        return np.asarray(pixel_array(dataset, index=frame))
    except (AttributeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputRejected(
            f"frame {frame + 1} of {described(dataset)} cannot be decoded: {error}"
        ) from error


def _onto(segment: Volume, ct: Grid) -> Mask:
    """(z, y, x) on the CT; only the part of the CT near the segment is resampled."""
    mask = np.zeros(ct.shape, dtype=bool)
    corners = ct.indices(box_corners(segment.grid))
    start = np.clip(np.floor(corners.min(axis=0)), 0, None).astype(int)
    stop = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, ct.shape)
    if np.any(stop <= start):
        return mask
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    near = ct.boxed((z.start, y.start, x.start), (z.stop - z.start, y.stop - y.start, x.stop - x.start))
    mask[z, y, x] = resample_nearest(segment, near).array > 0.5
    return mask


def _frames(dataset: Dataset) -> _Frames:
    shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), Dataset())
    groups = items(dataset, "PerFrameFunctionalGroupsSequence")
    if not groups:
        raise InputRejected(f"{described(dataset)} says nowhere where its frames lie", "Export it again")
    places = [_macro(group, shared, "PlanePositionSequence", dataset) for group in groups]
    identities = [_macro(group, shared, "SegmentIdentificationSequence", dataset) for group in groups]
    positions = np.array([numbers(place, "ImagePositionPatient", 3, of=dataset) for place in places])
    turns = [_macro(group, shared, "PlaneOrientationSequence", dataset) for group in groups]
    cosines = np.array([numbers(turn, "ImageOrientationPatient", 6, of=dataset) for turn in turns])
    if np.ptp(cosines, axis=0).max() > 1e-3:
        raise InputRejected(f"the frames of {described(dataset)} are not parallel", "Export it as one volume")
    measures = _macro(groups[0], shared, "PixelMeasuresSequence", dataset)
    grid, plane = _lattice(positions, cosines[0], measures, dataset)
    segment = np.array([int(required(i, "ReferencedSegmentNumber", of=dataset)) for i in identities])
    return _Frames(grid, plane, segment)


def _macro(group: Dataset, shared: Dataset, keyword: str, dataset: Dataset) -> Dataset:
    """The one item of a functional group, of the frame or of all frames (PS3.3 C.7.6.16)."""
    found = items(group, keyword) or items(shared, keyword)
    if not found:
        raise InputRejected(f"{described(dataset)} has no {keyword}", "Export the Segmentation again")
    return found[0]


def _lattice(
    positions: NDArray[np.float64], cosines: NDArray[np.float64], measures: Dataset, dataset: Dataset
) -> tuple[Grid, NDArray[np.int_]]:
    """The lattice of all frames, and the plane of each."""
    row, column = cosines.reshape(2, 3)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    along = positions @ normal
    spacing = _plane_spacing(along, measures, dataset)
    plane = (along - along.min()) / spacing
    if np.abs(plane - np.round(plane)).max() > _EVEN_WITHIN:
        raise InputRejected(
            f"the planes of {described(dataset)} are spaced unevenly", "Export it as one volume"
        )
    row_mm, column_mm = numbers(measures, "PixelSpacing", 2, of=dataset)
    first = positions[int(along.argmin())]
    grid = Grid(
        shape=(int(np.round(plane.max())) + 1, int(dataset.Rows), int(dataset.Columns)),
        origin_mm=_triple(first),
        spacing_mm=(spacing, float(row_mm), float(column_mm)),
        direction=(_triple(normal), _triple(column), _triple(row)),
    )
    frame = str(dataset.FrameOfReferenceUID)
    return replace(grid, frame_of_reference_uid=frame), np.round(plane).astype(int)


def _plane_spacing(along: NDArray[np.float64], measures: Dataset, dataset: Dataset) -> float:
    """As stated; else the smallest step between planes; else, for one plane, its thickness. mm."""
    if measures.get("SpacingBetweenSlices"):
        return float(numbers(measures, "SpacingBetweenSlices", 1, of=dataset)[0])
    steps = np.diff(np.unique(np.round(along, 3)))
    return float(steps.min()) if steps.size else float(numbers(measures, "SliceThickness", 1, of=dataset)[0])


def _triple(values: Sequence[float] | NDArray[np.float64]) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
