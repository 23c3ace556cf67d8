"""Small DICOM data sets made in memory: the least that each reader needs, and nothing that it ignores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    SpatialRegistrationStorage,
    generate_uid,
)

FRAME = "1.2.826.0.1.3680043.8.498.1"
OTHER_FRAME = "1.2.826.0.1.3680043.8.498.2"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LU177 = ("447553000", "SCT", "^177^Lutetium")


def item(**values: Any) -> Dataset:
    """A data set, or an item of a sequence, with these attributes."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def instance(sop_class: str, modality: str, **values: Any) -> Dataset:
    """A composite object that pydicom can write and decode."""
    dataset = item(SOPClassUID=sop_class, SOPInstanceUID=generate_uid(), Modality=modality, **values)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def with_pixels(dataset: Dataset, pixels: NDArray[Any]) -> Dataset:
    """pixels: (rows, columns) or (frames, rows, columns), 16-bit integers of either sign."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    return dataset


def ct_series(
    pixels: NDArray[Any] | None = None,
    *,
    shape: tuple[int, int, int] = (5, 4, 6),
    spacing_mm: float = 3.0,
    origin: ArrayLike = (-10.0, -20.0, 100.0),
    orientation: Sequence[float] = AXIAL,
    **values: Any,
) -> list[Dataset]:
    """Slices that ascend along the normal, numbered the other way round."""
    pixels = np.zeros(shape, dtype=np.int16) if pixels is None else pixels
    normal = np.cross(orientation[:3], orientation[3:])
    series = generate_uid()
    slices = []
    for k, plane in enumerate(pixels):
        dataset = instance(
            CTImageStorage,
            "CT",
            SeriesInstanceUID=series,
            FrameOfReferenceUID=FRAME,
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            InstanceNumber=len(pixels) - k,
            ImagePositionPatient=list(np.asarray(origin) + k * spacing_mm * normal),
            ImageOrientationPatient=list(orientation),
            PixelSpacing=[2.0, 1.5],
            RescaleSlope=1.0,
            RescaleIntercept=-1024.0,
            RescaleType="HU",
        )
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        slices.append(with_pixels(dataset, plane))
    return slices


def radiopharmaceutical(nuclide: tuple[str, str, str] = LU177, **values: Any) -> Dataset:
    return item(RadionuclideCodeSequence=[code(*nuclide)], **values)


def nm_object(
    pixels: NDArray[Any] | None = None,
    *,
    position: Sequence[float] = (-50.0, -60.0, 30.0),
    orientation: Sequence[float] = AXIAL,
    spacing_mm: float = 4.8,
    **values: Any,
) -> Dataset:
    """A reconstructed SPECT of counts: one rotation of 60 views of 20 s."""
    pixels = np.ones((4, 5, 6), dtype=np.uint16) if pixels is None else pixels
    dataset = instance(
        NuclearMedicineImageStorage,
        "NM",
        SeriesInstanceUID=generate_uid(),
        FrameOfReferenceUID=FRAME,
        ImageType=["DERIVED", "PRIMARY", "RECON TOMO", "EMISSION"],
        Manufacturer="ACME",
        ManufacturerModelName="Gamma 2",
        CorrectedImage=["UNIF", "ATTN", "SCAT"],
        AcquisitionDate="20240305",
        AcquisitionTime="101530",
        PixelSpacing=[4.0, 5.0],
        SpacingBetweenSlices=spacing_mm,
        FrameIncrementPointer=0x00540080,
        SliceVector=list(range(1, len(pixels) + 1)),
        NumberOfSlices=len(pixels),
        NumberOfDetectors=1,
        DetectorInformationSequence=[
            item(
                CollimatorGridName="MELP",
                ImagePositionPatient=list(position),
                ImageOrientationPatient=list(orientation),
            )
        ],
        RotationInformationSequence=[item(NumberOfFramesInRotation=60, ActualFrameDuration=20000)],
        RadiopharmaceuticalInformationSequence=[
            radiopharmaceutical(
                RadionuclideTotalDose=7400.0, RadiopharmaceuticalStartDateTime="20240304101530"
            )
        ],
    )
    with_pixels(dataset, pixels)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def in_bq_per_ml(slope: float, unit: str = "Bq/ml", intercept: float = 0.0) -> Dataset:
    """An item of RealWorldValueMappingSequence."""
    return item(
        RealWorldValueSlope=slope,
        RealWorldValueIntercept=intercept,
        MeasurementUnitsCodeSequence=[code(unit, "UCUM", "activity concentration")],
    )


def pet_series(pixels: NDArray[Any], slopes: Sequence[float], **values: Any) -> list[Dataset]:
    slices = ct_series(pixels, spacing_mm=2.0)
    for dataset, slope in zip(slices, slopes, strict=True):
        dataset.SOPClassUID = PositronEmissionTomographyImageStorage
        dataset.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        dataset.Modality = "PT"
        del dataset.RescaleType
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0.0
        dataset.SeriesType = ["STATIC", "IMAGE"]
        dataset.Units = "BQML"
        dataset.DecayCorrection = "START"
        dataset.CorrectedImage = ["DECY", "ATTN", "SCAT"]
        dataset.SeriesDate = dataset.AcquisitionDate = "20240305"
        dataset.SeriesTime = dataset.AcquisitionTime = "101530"
        dataset.ActualFrameDuration = 1200000
        dataset.RadiopharmaceuticalInformationSequence = [
            radiopharmaceutical(
                ("14691008", "SCT", "^90^Yttrium"),
                RadionuclideTotalDose=2.0e9,
                RadiopharmaceuticalStartDateTime="20240305081530",
            )
        ]
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    return slices


def structure_set(
    rois: dict[str, Sequence[ArrayLike]], frame: str = FRAME, kind: str = "CLOSED_PLANAR"
) -> Dataset:
    """rois: contours, (n, 3) patient mm each, by name."""
    named = list(enumerate(rois.items(), 1))
    return instance(
        RTStructureSetStorage,
        "RTSTRUCT",
        StructureSetROISequence=[
            item(ROINumber=n, ROIName=name, ReferencedFrameOfReferenceUID=frame) for n, (name, _) in named
        ],
        ROIContourSequence=[
            item(
                ReferencedROINumber=n,
                ContourSequence=[
                    item(
                        ContourGeometricType=kind,
                        NumberOfContourPoints=len(np.asarray(points)),
                        ContourData=[float(v) for v in np.asarray(points).ravel()],
                    )
                    for points in contours
                ],
            )
            for n, (_, contours) in named
        ],
    )


def segmentation(
    segments: dict[str, NDArray[Any]],
    *,
    origin: Sequence[float],
    spacing_mm: tuple[float, float, float],
    frame: str = FRAME,
    kind: str = "BINARY",
) -> Dataset:
    """segments: (z, y, x) on an axial lattice, by label; 0/1, or 0 to 255 when FRACTIONAL. Empty planes
    are left out, as PS3.3 C.8.20.2 allows."""
    planes = [
        (number, z, array[z])
        for number, array in enumerate(segments.values(), 1)
        for z in range(len(array))
        if array[z].any()
    ]
    dataset = instance(
        SegmentationStorage,
        "SEG",
        FrameOfReferenceUID=frame,
        SegmentationType=kind,
        SegmentSequence=[item(SegmentNumber=n, SegmentLabel=label) for n, label in enumerate(segments, 1)],
        SharedFunctionalGroupsSequence=[
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
                PixelMeasuresSequence=[item(PixelSpacing=list(spacing_mm[1:]), SliceThickness=spacing_mm[0])],
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            item(
                PlanePositionSequence=[
                    item(ImagePositionPatient=[origin[0], origin[1], origin[2] + z * spacing_mm[0]])
                ],
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
            )
            for number, z, _ in planes
        ],
    )
    frames = np.array([plane for _, _, plane in planes], dtype=np.uint8)
    with_pixels(dataset, frames)
    dataset.BitsAllocated = dataset.BitsStored = 1 if kind == "BINARY" else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.MaximumFractionalValue = 255
    packed = np.packbits(frames.ravel(), bitorder="little") if kind == "BINARY" else frames
    data = packed.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    if kind == "BINARY":
        del dataset.MaximumFractionalValue
    return dataset


def spatial_registration(matrix: ArrayLike, source: str = OTHER_FRAME, own: str = FRAME) -> Dataset:
    """The matrix takes `source` into `own`."""

    def relates(frame: str, values: ArrayLike) -> Dataset:
        step = item(
            FrameOfReferenceTransformationMatrixType="RIGID",
            FrameOfReferenceTransformationMatrix=[float(v) for v in np.asarray(values).ravel()],
        )
        return item(FrameOfReferenceUID=frame, MatrixRegistrationSequence=[item(MatrixSequence=[step])])

    return instance(
        SpatialRegistrationStorage,
        "REG",
        FrameOfReferenceUID=own,
        RegistrationSequence=[relates(source, matrix), relates(own, np.eye(4))],
    )


def written(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """The data sets as files, one each."""
    paths = [folder / f"{n:03d}.dcm" for n in range(len(datasets))]
    for dataset, path in zip(datasets, paths, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths
