"""Small findings for the encoders: a few voxels, real headers, every orientation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from pydicom import Dataset

from dicomnode.results.findings import (
    EncodingSettings,
    EngineMap,
    Findings,
    InstanceReference,
    Predecessor,
    Provenance,
    ResultKind,
    RoiFindings,
)
from pipeline.decay import nuclide
from pipeline.dose_rate import RegionUncertainty
from pipeline.histogram import RegionKind, roi_statistics
from pipeline.volume import Grid, Volume

STUDY = "1.2.826.0.1.3680043.8.498.1"
FRAME = "1.2.826.0.1.3680043.8.498.2"
CT_SERIES = "1.2.826.0.1.3680043.8.498.3"
NM_SERIES = "1.2.826.0.1.3680043.8.498.4"
RTSTRUCT = InstanceReference("1.2.840.10008.5.1.4.1.1.481.3", "1.2.3.9.1", "1.2.3.9", STUDY)
NOW = datetime(2024, 5, 7, 8, 9, 10)
REFERENCE_TIME = datetime(2024, 5, 6, 10, 12, 13)
SETTINGS = EncodingSettings(device_uid="2.25.7", institution="General Hospital")
SHAPE = (5, 6, 7)
HOT = (1, 4, 2)


def _unit(vector: Sequence[float]) -> np.ndarray[Any, Any]:
    unit: np.ndarray[Any, Any] = np.asarray(vector) / np.linalg.norm(vector)
    return unit


def _axes(row: Sequence[float], column: Sequence[float], sign: float) -> Any:
    """Directions (z, y, x) from row and column cosines; sign -1: slices run against their normal."""
    x = _unit(row)
    y = _unit(np.asarray(column) - np.dot(column, x) * x)
    z = sign * np.cross(x, y)
    return tuple(tuple(float(v) for v in axis) for axis in (z, y, x))


DIRECTIONS = {
    "axial": _axes((1, 0, 0), (0, 1, 0), 1),
    "axial, head first slice": _axes((1, 0, 0), (0, 1, 0), -1),
    "prone": _axes((-1, 0, 0), (0, -1, 0), 1),
    "rows mirrored": _axes((-1, 0, 0), (0, 1, 0), 1),
    "coronal": _axes((1, 0, 0), (0, 0, -1), 1),
    "sagittal, reversed": _axes((0, 1, 0), (0, 0, -1), -1),
    "slightly tilted": _axes((1, 1e-3, -2e-3), (-1e-3, 1, 3e-3), 1),
    "oblique, reversed": _axes((0.8, 0.5, -0.3), (-0.4, 0.9, 0.2), -1),
}


def grid(direction: Any = DIRECTIONS["axial"]) -> Grid:
    return Grid(SHAPE, (-101.25, 37.5, -412.75), (3.0, 1.25, 0.9765625), direction, FRAME)


def header(sop_class: str, series: str, number: int, modality: str, **attributes: Any) -> Dataset:
    """A header as a camera writes it, without pixels."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, f"{series}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, series, FRAME
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = modality, "ACME", f"ACME {modality}"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "4711", "19500101", "F"
    ds.IssuerOfPatientID = "HOSPITAL"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240506", "101112", "S1", "A1"
    ds.ReferringPhysicianName = ""
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def ct_headers(slices: int = 6, **attributes: Any) -> tuple[Dataset, ...]:
    return tuple(
        header(
            "1.2.840.10008.5.1.4.1.1.2",
            CT_SERIES,
            k,
            "CT",
            **{
                "Rows": 16,
                "Columns": 16,
                "PixelSpacing": [0.9765625, 0.9765625],
                "SliceThickness": 3.0,
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "ImagePositionPatient": [-110.0, 30.0, -415.0 + 3.0 * k],
                "PositionReferenceIndicator": "",
                **attributes,
            },
        )
        for k in range(slices)
    )


def dose_rate(on: Grid, seed: int = 1) -> Volume:
    """Noise of up to 10 mGy/h and one hot voxel of 250 mGy/h at HOT."""
    array = np.random.default_rng(seed).uniform(0, 10, on.shape).astype(np.float32)
    array[HOT] = 250.0
    return Volume(array, on, "mGy/h")


def engine_map(on: Grid, engine: str = "dvk", **changes: Any) -> EngineMap:
    values: dict[str, Any] = {
        "engine": engine,
        "dose_rate": dose_rate(on),
        "algorithm_name": "Dose-voxel-kernel convolution",
        "algorithm_version": "0.1.0",
        "parameters": ("density_scaling=1.04/rho", "zero_below_g_per_cm3=0.1"),
        "kernel_sha256": "ab" * 32,
        "heterogeneity": "scaled by 1.04/density; zero below 0.1 g/cm3",
    }
    return EngineMap(**{**values, **changes})


def montecarlo_map(on: Grid) -> EngineMap:
    """A map with statistics: every voxel is known to 2 %, the hot one to 1 %."""
    rate = dose_rate(on, seed=2)
    uncertainty = rate.array * np.float32(0.02)
    uncertainty[HOT] = 2.5
    return engine_map(
        on,
        "mc",
        dose_rate=rate,
        uncertainty=rate.with_array(uncertainty),
        algorithm_name="Monte Carlo",
        parameters=("electron_decays=1200000", "seed=1"),
        kernel_sha256="ef" * 32,
        device="cuda:0",
        data_name="physics and decay data",
    )


def regions(on: Grid, maps: tuple[EngineMap, ...], names: tuple[str, ...] = ("Kidney left",)) -> Any:
    """The field of view, the body, and one overlapping region per name."""
    field = np.ones(on.shape, bool)
    body = field.copy()
    body[:, 0] = False
    masks = [("Field of view", RegionKind.FIELD_OF_VIEW, field), ("Body", RegionKind.BODY, body)]
    for number, name in enumerate(names):
        mask = np.zeros(on.shape, bool)
        mask[1:4, 2:5, 1 : 4 + number] = True
        masks.append((name, RegionKind.ROI, mask))
    density = Volume(np.full(on.shape, 1.04, np.float32), on, "g/cm3")
    return tuple(
        RoiFindings(
            name,
            kind,
            mask,
            {
                m.engine: roi_statistics(
                    name, mask, m.dose_rate, density, Volume(m.dose_rate.array * 1e4, on, "Bq/mL")
                )
                for m in maps
            },
            RTSTRUCT if kind is RegionKind.ROI else None,
            {
                m.engine: RegionUncertainty(name, 0.001 * (number + 1), 0.005 * (number + 1))
                for m in maps
                if m.uncertainty is not None and kind is RegionKind.ROI
            },
        )
        for number, (name, kind, mask) in enumerate(masks)
    )


def findings(
    direction: Any = DIRECTIONS["axial"], engines: tuple[str, ...] = ("dvk",), **changes: Any
) -> Findings:
    """Findings on a small grid; `changes` replace fields, `names` the drawn regions."""
    on = grid(direction)
    maps = changes.pop("maps", None) or tuple(engine_map(on, engine) for engine in engines)
    values: dict[str, Any] = {
        "ct_headers": ct_headers(),
        "spect_headers": (header("1.2.840.10008.5.1.4.1.1.20", NM_SERIES, 1, "NM"),),
        "nuclide": nuclide("Lu-177"),
        "reference_time": REFERENCE_TIME,
        "maps": maps,
        "rois": regions(on, maps, changes.pop("names", ("Kidney left",))),
        "provenance": Provenance("0.1.0", "cd" * 32, "units of the image (Bq/ml)"),
        "administered_bq": 7.4e9,
        "administered_at": datetime(2024, 5, 5, 10, 0, 0),
        "fraction_found": 0.83,
        "notes": ("1.2 % of the activity lies outside the CT.",),
        "other_sources": (RTSTRUCT,),
    }
    return Findings(**{**values, **changes})


def predecessor(kind: ResultKind, engine: str = "") -> Predecessor:
    classes = {
        ResultKind.RTDOSE: "1.2.840.10008.5.1.4.1.1.481.2",
        ResultKind.SR: "1.2.840.10008.5.1.4.1.1.88.34",
    }
    uid = f"1.2.3.8.{list(ResultKind).index(kind)}"
    return Predecessor(InstanceReference(classes[kind], uid, "1.2.3.8", STUDY), kind, engine)
