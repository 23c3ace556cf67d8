"""A series of single slices (CT, PET) as one grid.

Slices are sorted by their position along the normal of their planes (PS3.3 C.7.6.2.1.1), never by
Instance Number, which may start anywhere and run either way. What is tolerated:

* the slices of one stack lie within `EVEN_WITHIN` of a slice spacing of an even lattice;
* they lie within `STRAIGHT_WITHIN_MM` of one line along the normal: a stack from a tilted gantry does
  not, and is refused;
* orientation and pixel spacing differ by no more than the rounding of decimal strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dataset import described, numbers, required
from pipeline.errors import InputRejected
from pipeline.volume import Grid, Triple

EVEN_WITHIN = 0.1
STRAIGHT_WITHIN_MM = 0.2
_SAME_PLACE_MM = 0.01
_SAME_TEXT = ("SeriesInstanceUID", "FrameOfReferenceUID")
# Attribute, number of values, tolerance: 1e-3 in a cosine moves the far corner by 0.5 mm.
_SAME_NUMBERS = (
    ("Rows", 1, 0.0),
    ("Columns", 1, 0.0),
    ("PixelSpacing", 2, 1e-3),
    ("ImageOrientationPatient", 6, 1e-3),
)


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the slices of a series lie. order: index into the given headers, slice 0 of the grid first."""

    grid: Grid
    order: tuple[int, ...]


def stack_geometry(headers: Sequence[Dataset], kind: str) -> Stack:
    """The grid of a stack and the order of its slices, from headers alone.

    kind: what to call the series in messages, e.g. ``CT``.
    raises: InputRejected for fewer than two slices, for slices that do not belong together, for
        several at one position, for missing ones, and for a stack that is not straight or even.
    """
    if len(headers) < 2:
        raise InputRejected(
            f"the {kind} series has {len(headers)} slice(s), no volume", f"Send the whole {kind} series"
        )
    _require_uniform(headers, kind)
    row, column = numbers(headers[0], "ImageOrientationPatient", 6).reshape(2, 3)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([numbers(header, "ImagePositionPatient", 3) for header in headers])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    _require_distinct([headers[i] for i in order], along[order], kind)
    _require_straight(positions[order], normal, kind)
    spacing = _even_spacing(along[order], kind)
    row_mm, column_mm = numbers(headers[0], "PixelSpacing", 2)
    grid = Grid(
        shape=(len(headers), int(headers[0].Rows), int(headers[0].Columns)),
        origin_mm=_triple(positions[order[0]]),
        spacing_mm=(spacing, float(row_mm), float(column_mm)),
        direction=(_triple(normal), _triple(column), _triple(row)),
        frame_of_reference_uid=str(headers[0].FrameOfReferenceUID),
    )
    return Stack(grid, tuple(int(i) for i in order))


def _require_uniform(headers: Sequence[Dataset], kind: str) -> None:
    for keyword in _SAME_TEXT:
        values = [str(required(header, keyword)) for header in headers]
        usual = Counter(values).most_common(1)[0][0]
        _refuse_odd(headers, [value != usual for value in values], keyword, kind)
    for keyword, count, tolerance in _SAME_NUMBERS:
        table = np.array([numbers(header, keyword, count) for header in headers])
        # The lower median is one of the values, so a half-and-half mixture is caught as well.
        usual_values = np.sort(table, axis=0)[(len(table) - 1) // 2]
        _refuse_odd(headers, list(np.any(np.abs(table - usual_values) > tolerance, axis=1)), keyword, kind)


def _refuse_odd(headers: Sequence[Dataset], odd: Sequence[bool], keyword: str, kind: str) -> None:
    strangers = [header for header, is_odd in zip(headers, odd, strict=True) if is_odd]
    if strangers:
        raise InputRejected(
            f"{len(strangers)} of {len(headers)} {kind} slices differ in {keyword}, "
            f"first {described(strangers[0])} with {strangers[0].get(keyword)}",
            f"Send one {kind} series at a time, reconstructed as one volume",
        )


def _require_distinct(headers: Sequence[Dataset], along: NDArray[np.float64], kind: str) -> None:
    for i in map(int, np.flatnonzero(np.diff(along) < _SAME_PLACE_MM)):
        raise InputRejected(
            f"two {kind} slices lie at {along[i]:.2f} mm along the normal: "
            f"{described(headers[i])} and {described(headers[i + 1])}",
            "Remove the repeated slices, or send the phases of the series as separate series",
        )


def _require_straight(positions: NDArray[np.float64], normal: NDArray[np.float64], kind: str) -> None:
    lateral = positions - np.outer(positions @ normal, normal)
    stray = float(np.max(np.linalg.norm(lateral - lateral[0], axis=1)))
    if stray > STRAIGHT_WITHIN_MM:
        # Shear shows in the positions. GantryDetectorTilt alone says nothing about a resliced series.
        raise InputRejected(
            f"the {kind} slices are shifted sideways by up to {stray:.1f} mm (a tilted gantry, mixed stacks)",
            f"Reconstruct the {kind} without gantry tilt",
        )


def _even_spacing(along: NDArray[np.float64], kind: str) -> float:
    """Distance between slices that lie on an even lattice, mm; `along` ascends."""
    gaps = np.diff(along)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    lost = [along[i] + usual * k for i, gap in enumerate(gaps) for k in range(1, round(gap / usual))]
    if lost:
        places = ", ".join(f"{place:.1f}" for place in lost[:10]) + (" …" if len(lost) > 10 else "")
        raise InputRejected(
            f"{len(lost)} {kind} slice(s) are missing, at {places} mm along the normal ({usual:.3g} mm step)",
            f"Send the {kind} series again, complete",
        )
    spacing = float(along[-1] - along[0]) / len(gaps)
    stray = np.abs(along - (along[0] + spacing * np.arange(len(along))))
    if stray.max() > EVEN_WITHIN * spacing:
        raise InputRejected(
            f"the {kind} slices are spaced unevenly, {gaps.min():.3g} to {gaps.max():.3g} mm; "
            f"the one at {along[int(stray.argmax())]:.1f} mm is {stray.max():.2f} mm out of place",
            f"Reconstruct the {kind} with one slice spacing",
        )
    return spacing


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
