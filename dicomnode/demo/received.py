"""What the PACS received, read as any other system would: from the DICOM objects alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from pipeline.dataset import numbers
from pipeline.errors import InputRejected
from pipeline.rois import Roi, rois_of
from pipeline.volume import Grid, Triple, Volume

_MGY_PER_GY = 1000.0


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """The objects of one case.

    dose_rate: mGy/h, of the RTDOSE whose header is `dose`. regions: of the Segmentation, on the same
    grid. report: the SR. files: where they lie now.
    """

    dose_rate: Volume
    dose: Dataset
    regions: tuple[Roi, ...]
    report: Dataset
    files: tuple[Path, ...]


def collect(objects: Iterable[Path], folder: Path) -> Results:
    """Move a case's result objects into `folder` under names that say what they are, and read them.

    Those of an earlier demonstration are replaced.
    raises: InputRejected when one of RTDOSE, SEG and SR is missing.
    """
    folder.mkdir(exist_ok=True)
    files: dict[str, Path] = {}
    for path in objects:
        modality = str(dcmread(path, specific_tags=["Modality"]).Modality)
        files[modality] = path.replace(folder / f"{modality.lower()}.dcm")
    missing = [modality for modality in ("RTDOSE", "SEG", "SR") if modality not in files]
    if missing:
        raise InputRejected(f"the PACS has no {' and no '.join(missing)} of this case")
    dose = dcmread(files["RTDOSE"])
    dose_rate = dose_rate_of(dose)
    del dose.PixelData
    regions = rois_of([dcmread(files["SEG"])], dose_rate.grid).found
    return Results(dose_rate, dose, regions, dcmread(files["SR"]), tuple(files.values()))


def dose_rate_of(dose: Dataset) -> Volume:
    """The dose-rate map of one of our RTDOSE objects, mGy/h: it stores rate x 1 h in Gy."""
    along_x, along_y = numbers(dose, "ImageOrientationPatient", 6).reshape(2, 3)
    row_mm, column_mm = numbers(dose, "PixelSpacing", 2)
    offsets = np.asarray(dose.GridFrameOffsetVector, dtype=np.float64)  # PS3.3 C.8.8.3.2
    stored = dose.pixel_array
    grid = Grid(
        (stored.shape[0], stored.shape[1], stored.shape[2]),
        _triple(numbers(dose, "ImagePositionPatient", 3)),
        (float(offsets[1] - offsets[0]), float(row_mm), float(column_mm)),
        (_triple(np.cross(along_x, along_y)), _triple(along_y), _triple(along_x)),
        str(dose.FrameOfReferenceUID),
    )
    rate = stored.astype(np.float32)
    rate *= np.float32(float(dose.DoseGridScaling) * _MGY_PER_GY)
    return Volume(rate, grid, "mGy/h")


def _triple(values: Iterable[float]) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
