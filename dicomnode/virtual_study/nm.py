"""NM Image Storage, ImageType RECON TOMO (PS3.3 A.5): a SPECT as cameras write it.

Frame k lies at ImagePositionPatient + k · SpacingBetweenSlices · n, n = row × column of
ImageOrientationPatient, all three in DetectorInformationSequence[0] or beside it. The styles store the same
volume with rows, columns or frames reversed; the sign of SpacingBetweenSlices follows from them.

Counts are what a calibrated camera would have reconstructed::

    counts = (Bq/mL / 1e6) · voxel volume [mL] · sensitivity [cps/MBq] · duration [s]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import NuclearMedicineImageStorage

from dicomnode.virtual_study.study import (
    Study,
    add_image,
    add_lying,
    code,
    composed,
    decimals,
    orientation,
    position,
    radiopharmaceutical,
    save,
)
from pipeline.volume import Grid, Volume


class Quantification(StrEnum):
    """How stored values become Bq/mL."""

    REAL_WORLD_VALUE = "RealWorldValueMappingSequence in Bq/ml"
    RESCALE = "RescaleSlope, as some vendors write it outside the Standard"
    COUNTS = "counts, to be calibrated by the site"


@dataclass(frozen=True)
class NmStyle:
    """How the camera writes.

    rows_reversed, columns_reversed, frames_reversed: stored order against the volume's.
    position: False leaves ImagePositionPatient empty. modality, signed: Xeleris writes "OT" and int16.
    views, view_s: the rotation; duration_s is their product, with the sensitivity of one detector.
    """

    manufacturer: str = "Virtual"
    model: str = "SPECT"
    description: str = "SPECT AC SC"
    series: str = "NM"
    series_number: int = 3
    modality: str = "NM"
    signed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False
    frames_reversed: bool = False
    position: bool = True
    quantification: Quantification = Quantification.REAL_WORLD_VALUE
    corrected: tuple[str, ...] = ("ATTN", "SCAT", "DECY", "UNIF", "COR")
    sensitivity_cps_per_mbq: float = 9.5
    views: int = 120
    view_s: float = 20.0
    collimator: str = "MELP"
    kernel: str = "OSEM3D 16i4s"

    @property
    def duration_s(self) -> float:
        """Time over all views of the rotation."""
        return self.views * self.view_s


NM_VARIANTS: dict[str, NmStyle] = {
    "feet to head": NmStyle(),
    "head to feet": NmStyle(frames_reversed=True),
    "rows reversed": NmStyle(rows_reversed=True),
    "rows and frames reversed": NmStyle(rows_reversed=True, frames_reversed=True),
    "columns reversed": NmStyle(columns_reversed=True),
    "columns and frames reversed": NmStyle(columns_reversed=True, frames_reversed=True),
    "rows and columns reversed": NmStyle(rows_reversed=True, columns_reversed=True),
    "all reversed": NmStyle(rows_reversed=True, columns_reversed=True, frames_reversed=True),
    "Xeleris": NmStyle(
        manufacturer="GE MEDICAL SYSTEMS", model="Xeleris", modality="OT", signed=True, frames_reversed=True
    ),
}


def tilted(grid: Grid, degrees_x: float, degrees_y: float = 0.0) -> Grid:
    """The grid turned about its own centre, about the patient's x axis and then y: a tilted table."""
    a, b = np.radians([degrees_x, degrees_y])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn = about_y @ about_x
    axes = np.asarray(grid.direction) @ turn.T
    centre = grid.positions((np.asarray(grid.shape) - 1) / 2)
    origin = centre + turn @ (np.asarray(grid.origin_mm) - centre)
    return replace(
        grid, origin_mm=_triple(origin), direction=(_triple(axes[0]), _triple(axes[1]), _triple(axes[2]))
    )


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def write_nm(folder: Path, study: Study, spect: Volume, *, style: NmStyle | None = None) -> Path:
    """One multi-frame file, named after `style.series`. spect: (z, y, x) Bq/mL, any orientation.

    Raises ValueError where counts exceed 16 bits.
    """
    how = style or NmStyle()
    laid = _laid_out(spect, how)
    ds = composed(study, NuclearMedicineImageStorage, how.series, 1, study.acquired)
    add_image(ds, study, laid.grid, study.acquired)
    add_lying(ds)
    ds.Modality = how.modality
    ds.Manufacturer, ds.ManufacturerModelName = how.manufacturer, how.model
    ds.SeriesNumber, ds.SeriesDescription = how.series_number, how.description
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    ds.CountsAccumulated = ""
    ds.CorrectedImage = list(how.corrected) if how.corrected else ""
    _add_frames(ds, laid.grid)
    _add_isotope(ds, study)
    _add_acquisition(ds, laid.grid, how)
    _add_pixels(ds, laid, how)
    return save(ds, folder / f"{how.series}.dcm")


def _laid_out(volume: Volume, style: NmStyle) -> Volume:
    """The same volume in the order in which it is stored."""
    reversed_axes = [
        axis
        for axis, is_reversed in enumerate(
            (style.frames_reversed, style.columns_reversed, style.rows_reversed)
        )
        if is_reversed
    ]
    corner = [n - 1 if axis in reversed_axes else 0 for axis, n in enumerate(volume.grid.shape)]
    signs = [-1.0 if axis in reversed_axes else 1.0 for axis in range(3)]
    axes = np.asarray(volume.grid.direction) * np.array(signs)[:, None]
    grid = replace(
        volume.grid,
        origin_mm=_triple(volume.grid.positions(corner)),
        direction=(_triple(axes[0]), _triple(axes[1]), _triple(axes[2])),
    )
    return Volume(np.ascontiguousarray(np.flip(volume.array, tuple(reversed_axes))), grid, volume.unit)


def _add_frames(ds: Dataset, grid: Grid) -> None:
    """NM Multi-frame (PS3.3 C.8.4.8) and NM Reconstruction (PS3.3 C.8.4.15)."""
    frames = grid.shape[0]
    ds.NumberOfFrames = frames
    ds.FrameIncrementPointer = Tag("SliceVector")
    ds.SliceVector = list(range(1, frames + 1))
    ds.NumberOfSlices = frames
    normal = np.cross(grid.direction[2], grid.direction[1])
    ds.SpacingBetweenSlices = decimals([float(np.sign(normal @ grid.direction[0])) * grid.spacing_mm[0]])[0]
    ds.NumberOfEnergyWindows = ds.NumberOfDetectors = ds.NumberOfRotations = 1


def _add_isotope(ds: Dataset, study: Study) -> None:
    """NM Isotope (PS3.3 C.8.4.10): the 208 keV photopeak of Lu-177, 20 % wide."""
    window = Dataset()
    window.EnergyWindowName = "208 keV"
    bounds = Dataset()
    bounds.EnergyWindowLowerLimit, bounds.EnergyWindowUpperLimit = "187.2", "228.8"
    window.EnergyWindowRangeSequence = [bounds]
    ds.EnergyWindowInformationSequence = [window]
    ds.RadiopharmaceuticalInformationSequence = radiopharmaceutical(study, 1e6)


def _add_acquisition(ds: Dataset, grid: Grid, style: NmStyle) -> None:
    """NM Detector and NM TOMO Acquisition (PS3.3 C.8.4.11, C.8.4.12)."""
    detector = Dataset()
    detector.CollimatorGridName, detector.CollimatorType = style.collimator, "PARA"
    detector.FocalDistance = "0"
    detector.ImageOrientationPatient = orientation(grid)
    detector.ImagePositionPatient = position(grid, 0) if style.position else None
    ds.DetectorInformationSequence = [detector]
    rotation = Dataset()
    rotation.TableHeight = rotation.TableTraverse = "0"
    rotation.RotationDirection = "CW"
    rotation.RadialPosition = "250"
    rotation.StartAngle, rotation.ScanArc = "0", "360"
    rotation.AngularStep = decimals([360 / style.views])[0]
    rotation.ActualFrameDuration = str(round(style.view_s * 1000))
    rotation.NumberOfFramesInRotation = style.views
    ds.RotationInformationSequence = [rotation]
    ds.TypeOfDetectorMotion = "STEP AND SHOOT"
    ds.ConvolutionKernel = style.kernel


def _add_pixels(ds: Dataset, spect: Volume, style: NmStyle) -> None:
    low, high = (-32768, 32767) if style.signed else (0, 65535)
    per_stored = _bq_per_ml_per_stored_value(spect, style, high)
    stored = np.rint(spect.array / per_stored)
    if not np.all((stored >= low) & (stored <= high)):
        raise ValueError(
            f"stored values from {stored.min():.0f} to {stored.max():.0f} do not fit {low} to {high}: "
            "lower views, view_s or sensitivity_cps_per_mbq of the style, or set signed for negative activity"
        )
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = spect.grid.shape[1:]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, int(style.signed)
    ds.PixelData = stored.astype("<i2" if style.signed else "<u2").tobytes()
    if style.quantification is Quantification.REAL_WORLD_VALUE:
        ds.RealWorldValueMappingSequence = [_real_world_value(per_stored, low, high, style)]
    elif style.quantification is Quantification.RESCALE:
        ds.RescaleIntercept, ds.RescaleSlope = "0", decimals([per_stored])[0]


def _bq_per_ml_per_stored_value(spect: Volume, style: NmStyle, limit: int) -> float:
    if style.quantification is Quantification.COUNTS:
        counts_per_mbq = style.sensitivity_cps_per_mbq * style.duration_s
        return 1e6 / (counts_per_mbq * spect.grid.voxel_volume_ml)
    peak = float(spect.array.max())
    slope = peak / limit if peak > 0 else 1.0
    if style.quantification is Quantification.RESCALE:
        return float(decimals([np.nextafter(slope, np.inf) * (1 + 1e-9)])[0])
    return slope


def _real_world_value(slope: float, low: int, high: int, style: NmStyle) -> Dataset:
    """Real World Value Mapping (PS3.3 C.7.6.16.2.11)."""
    item = Dataset()
    vr = "SS" if style.signed else "US"
    item.add_new("RealWorldValueFirstValueMapped", vr, low)
    item.add_new("RealWorldValueLastValueMapped", vr, high)
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, slope
    item.LUTExplanation, item.LUTLabel = "Activity concentration", "BQML"
    item.MeasurementUnitsCodeSequence = [code("Bq/ml", "UCUM", "Becquerels/milliliter")]
    return item
