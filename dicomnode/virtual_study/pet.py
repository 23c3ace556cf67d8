"""Positron Emission Tomography Image Storage (PS3.3 A.21) in BQML, one file per slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage

from dicomnode.virtual_study.study import (
    Study,
    add_image,
    add_lying,
    composed,
    decimals,
    orientation,
    position,
    radiopharmaceutical,
    save,
)
from pipeline.volume import Volume

_LIMIT = 32767


def write_pet(
    folder: Path, study: Study, activity: Volume, *, series: str = "PT", decay_correction: str = "START"
) -> list[Path]:
    """One file per slice, in the order of the volume's slices. activity: (z, y, x) Bq/mL.

    decay_correction: NONE, START or ADMIN, written as it is; the values are not touched.
    """
    peak = float(activity.array.max())
    # Formatted first: the values are divided by the slope that readers will find.
    slope = decimals([peak / _LIMIT * (1 + 1e-9) if peak > 0 else 1.0])[0]
    stored = np.rint(np.clip(activity.array / float(slope), 0, _LIMIT)).astype("<i2")
    files = []
    for k, pixels in enumerate(stored):
        ds = _slice(study, activity, k, series)
        ds.DecayCorrection = decay_correction
        if decay_correction != "NONE":
            ds.DecayFactor = "1"
        _add_pixels(ds, pixels, slope)
        files.append(save(ds, folder / f"{series}{k + 1:04d}.dcm"))
    return files


def _slice(study: Study, activity: Volume, k: int, series: str) -> Dataset:
    ds = composed(study, PositronEmissionTomographyImageStorage, series, k + 1, study.acquired)
    add_image(ds, study, activity.grid, study.acquired)
    add_lying(ds)
    ds.Modality = "PT"
    ds.Manufacturer, ds.ManufacturerModelName = "Virtual", "PET"
    ds.SeriesNumber, ds.SeriesDescription = 4, "PET AC"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SeriesType, ds.Units, ds.CountsSource = ["STATIC", "IMAGE"], "BQML", "EMISSION"
    ds.NumberOfSlices, ds.ImageIndex = activity.grid.shape[0], k + 1
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"]
    ds.CollimatorType = "NONE"
    ds.FrameReferenceTime, ds.ActualFrameDuration = "0", "1200000"
    ds.ImagePositionPatient = position(activity.grid, k)
    ds.ImageOrientationPatient = orientation(activity.grid)
    ds.RadiopharmaceuticalInformationSequence = radiopharmaceutical(study, 1.0)
    return ds


def _add_pixels(ds: Dataset, pixels: NDArray[np.int16], slope: str) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = "0", slope
    ds.PixelData = pixels.tobytes()
