"""CT Image Storage (PS3.3 A.3): one file per slice, 16 bits, RescaleIntercept -1024."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from dicomnode.virtual_study.study import Study, add_image, composed, decimals, orientation, position, save
from pipeline.volume import Volume

_INTERCEPT = -1024


@dataclass(frozen=True)
class CtStyle:
    """How the scanner writes. signed: int16; otherwise 12 bits unsigned in 16 (HU above 3071 are cut)."""

    manufacturer: str = "Virtual"
    model: str = "CT"
    kernel: str = "B08s"
    description: str = "CT low dose"
    signed: bool = True
    series: str = "CT"
    series_number: int = 2


def write_ct(folder: Path, study: Study, hu: Volume, *, style: CtStyle | None = None) -> list[Path]:
    """One file per slice, named after `style.series`; returned in the order of the volume's slices.

    hu: (z, y, x) HU. Two series of one study need two names in `style.series`.
    """
    how = style or CtStyle()
    stored = _stored(hu, how)
    return [
        save(_slice(study, hu, stored[k], k, how), folder / f"{how.series}{k + 1:04d}.dcm")
        for k in range(len(stored))
    ]


def _stored(hu: Volume, style: CtStyle) -> NDArray[np.int16] | NDArray[np.uint16]:
    shifted = np.rint(hu.array - _INTERCEPT)
    if style.signed:
        return np.clip(shifted, -32768, 32767).astype("<i2")
    return np.clip(shifted, 0, 4095).astype("<u2")


def _slice(
    study: Study, hu: Volume, pixels: NDArray[np.int16] | NDArray[np.uint16], k: int, style: CtStyle
) -> Dataset:
    moment = study.acquired - timedelta(minutes=2)
    ds = composed(study, CTImageStorage, style.series, k + 1, moment)
    add_image(ds, study, hu.grid, moment)
    ds.Modality = "CT"
    ds.Manufacturer, ds.ManufacturerModelName = style.manufacturer, style.model
    ds.SeriesNumber, ds.SeriesDescription = style.series_number, style.description
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.AcquisitionNumber = 1
    ds.PatientPosition = "HFS"
    ds.KVP, ds.ConvolutionKernel = "130", style.kernel
    ds.ImagePositionPatient = position(hu.grid, k)
    ds.ImageOrientationPatient = orientation(hu.grid)
    ds.SliceLocation = decimals([float(hu.grid.positions((k, 0, 0))[2])])[0]
    _add_pixels(ds, pixels, style)
    return ds


def _add_pixels(ds: Dataset, pixels: NDArray[np.int16] | NDArray[np.uint16], style: CtStyle) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = 16
    ds.BitsStored = 16 if style.signed else 12
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(style.signed)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(_INTERCEPT), "1", "HU"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.PixelData = pixels.tobytes()


def recompress(files: Iterable[Path], transfer_syntax_uid: str) -> None:
    """Compress files in place and lossless, as a PACS does on its way: the same SOP Instance UIDs.

    transfer_syntax_uid: e.g. pydicom.uid.JPEGLSLossless or JPEG2000Lossless.
    """
    for path in files:
        ds = dcmread(path)
        ds.compress(transfer_syntax_uid, generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)
