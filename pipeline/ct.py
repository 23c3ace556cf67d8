"""CT slices on disk → Hounsfield units on a grid.

::

    HU = stored value · RescaleSlope + RescaleIntercept      (PS3.3 C.11.1, each slice with its own)

`ct_geometry` needs headers only: the assembling stage asks it whether a series is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dataset import described, numbers, read_header, read_object, required, stored_values, texts
from pipeline.errors import InputRejected
from pipeline.slices import Stack, stack_geometry
from pipeline.volume import Volume

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
AIR_HU = -1000.0
# A padding value inside this range would also be some tissue's: the header is wrong, not the tissue.
_TISSUE_HU = (-500.0, 3071.0)


def ct_geometry(headers: Sequence[Dataset]) -> Stack:
    """The grid of a CT series and the order of its slices, from headers without pixels.

    raises: InputRejected for what is no CT, for a localizer, for slices without a Hounsfield scale,
        and for every defect of a stack (`pipeline.slices`).
    """
    for header in headers:
        _require_ct(header)
    stack = stack_geometry(headers, "CT")
    for header in headers:
        _require_hounsfield(header)
    return stack


def read_ct(paths: Sequence[Path], progress: Callable[[int], None] | None = None) -> Volume:
    """A CT series as HU.

    paths: its slices in any order. progress: called with the number of slices read so far.
    returns: (z, y, x) HU, padding as air.
    raises: InputRejected as `ct_geometry`, and when pixels cannot be decoded.
    """
    stack = ct_geometry([read_header(path) for path in paths])
    array = np.empty(stack.grid.shape, dtype=np.float32)
    for z, index in enumerate(stack.order):
        array[z] = hounsfield(read_object(paths[index]))
        if progress is not None:
            progress(z + 1)
    return Volume(array, stack.grid, "HU")


def hounsfield(dataset: Dataset) -> NDArray[np.float32]:
    """(rows, columns) HU of one slice; padded pixels as air."""
    stored = stored_values(dataset)
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise InputRejected(
            f"{described(dataset)} holds {stored.shape} pixels, not one slice", "Send single slices"
        )
    slope, intercept = numbers(dataset, "RescaleSlope", 1)[0], numbers(dataset, "RescaleIntercept", 1)[0]
    hu = (stored * np.float32(slope) + np.float32(intercept)).astype(np.float32)
    padding = _padding(dataset)
    if padding is not None and not _TISSUE_HU[0] < padding[0] * slope + intercept < _TISSUE_HU[1]:
        hu[(stored >= min(padding)) & (stored <= max(padding))] = AIR_HU
    return hu


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Stored values between which pixels are padding (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    first, last = (_as_stored(dataset, v) for v in (value, value if limit is None else limit))
    return first, last


def _as_stored(dataset: Dataset, value: int) -> int:
    """Some scanners write the padding of signed pixels as its unsigned bit pattern (63536 for −2000)."""
    signed = dataset.get("PixelRepresentation", 0) == 1
    return value - 65536 if signed and value > 32767 else value


def _require_ct(header: Dataset) -> None:
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in ENHANCED_CT:
        raise InputRejected(
            f"{described(header)} is an Enhanced (multi-frame) CT",
            "Export the CT as classic single-slice images (CT Image Storage)",
        )
    if sop_class != CT_IMAGE:
        raise InputRejected(f"{described(header)} is no CT image (SOP class {sop_class})", "Send a CT series")
    if "LOCALIZER" in texts(header, "ImageType"):
        raise InputRejected(f"{described(header)} is a localizer", "Send the transverse CT series")


def _require_hounsfield(header: Dataset) -> None:
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        required(header, keyword, "Export the CT with its Hounsfield scale")
    if numbers(header, "RescaleSlope", 1)[0] <= 0:
        raise InputRejected(f"RescaleSlope of {described(header)} is not positive", "Export the CT again")
    scale = texts(header, "RescaleType")
    if scale not in ((), ("HU",)):
        raise InputRejected(
            f"the pixels of {described(header)} are {scale[0]}, not Hounsfield units",
            "Send the ordinary (single-energy) CT reconstruction",
        )
