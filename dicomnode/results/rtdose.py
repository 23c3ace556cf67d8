"""RT Dose (PS3.3 A.18): one dose-rate map in the form that viewers and planning systems show.

DoseUnits knows no rate (PS3.3 C.8.8.3), so the map is stored as rate x 1 h, without decay within
the hour, and the object says so in every place that a person looks::

    D [Gy] = Ḋ [mGy/h] · 1 h / 1000        stored = round(D / DoseGridScaling)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RTDoseStorage
from pydicom.valuerep import format_number_as_ds

from dicomnode.results.findings import EncodingSettings, EngineMap, Findings, ResultKind
from dicomnode.results.frames import ascending, frames
from dicomnode.results.header import (
    ResultIdentity,
    apply_header,
    reference_of,
    referenced_instances,
    referenced_series,
    referenced_sop,
    sources,
)
from pipeline.dose_rate import percent
from pipeline.errors import InputRejected
from pipeline.volume import Grid

_MGY_PER_GY = 1000.0
_LO, _LT = 64, 10240  # characters of VR LO and LT (PS3.5 6.2)
_CUT = " ... The report holds the rest."
# Some readers take 32-bit pixels for signed whatever PixelRepresentation says; 16-bit ones do not.
_STORED_MAXIMUM = {16: 2**16 - 1, 32: 2**31 - 1}
_STORED_DTYPE: dict[int, np.dtype[np.unsignedinteger]] = {16: np.dtype("<u2"), 32: np.dtype("<u4")}


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """A map as integers. value = stored · float(scaling).

    stored: (frame, row, column) uint16 or uint32.
    scaling: the Decimal String that stands in DoseGridScaling, Gy.
    step: scaling / maximum, the largest possible rounding error being half of it.
    """

    stored: NDArray[np.unsignedinteger]
    scaling: str
    step: float


def quantise(dose_rate_mgy_per_h: NDArray[np.float32], bits: int) -> Quantised:
    """Round a map to integers of `bits` bits.

    dose_rate_mgy_per_h: any shape, mGy/h. raises: InputRejected for a map that cannot be right.
    """
    maximum_gy = _checked_maximum(dose_rate_mgy_per_h) / _MGY_PER_GY
    # One step of reserve: the 16 characters of DoseGridScaling may round it down.
    scaling = format_number_as_ds(maximum_gy / (_STORED_MAXIMUM[bits] - 1))
    # Readers see the 16 characters, so what they multiply with is what we divide by.
    step_mgy = float(scaling) * _MGY_PER_GY
    stored = np.empty(dose_rate_mgy_per_h.shape, _STORED_DTYPE[bits])
    for plane, source in zip(stored, dose_rate_mgy_per_h, strict=True):
        # Slice by slice in float64: the whole map would take twice its memory.
        plane[...] = np.rint(source.astype(np.float64) / step_mgy)
    return Quantised(stored, scaling, float(scaling) / maximum_gy)


def build(
    findings: Findings,
    engine_map: EngineMap,
    settings: EncodingSettings,
    identity: ResultIdentity,
    now: datetime,
) -> Dataset:
    """The RTDOSE of one engine's map.

    returns: a data set with file meta information, complete but for writing.
    raises: InputRejected when the map is empty, negative or not finite, or its grid is sheared.
    """
    volume = engine_map.dose_rate
    quantised = quantise(frames(volume.array, volume.grid), settings.bits)
    dose = Dataset()
    dose.SOPClassUID = RTDoseStorage
    dose.Modality = "RTDOSE"
    dose.OperatorsName = ""
    _write_geometry(dose, ascending(volume.grid), findings.ct_headers[0])
    _write_pixels(dose, quantised, settings.bits)
    _write_dose(dose, engine_map, settings, quantised.scaling)
    _write_references(dose, findings, engine_map.engine)
    dose.DoseComment = dose_comment(findings, engine_map, settings)
    dose.ImageComments = image_comments(findings, engine_map, settings, quantised.step)
    dose.DerivationDescription = f"{engine_map.algorithm_name} {engine_map.algorithm_version}"
    apply_header(dose, findings, settings, identity, now)
    return dose


def series_description(findings: Findings, engine_map: EngineMap, settings: EncodingSettings) -> str:
    """What a worklist shows."""
    unit = "Gy = Gy/h x 1 h" if settings.dose_units == "GY" else "relative: 1 = 1 Gy/h"
    return f"{findings.nuclide.name} {engine_map.engine.upper()} dose rate ({unit})"


def dose_comment(findings: Findings, engine_map: EngineMap, settings: EncodingSettings) -> str:
    """What a planning system shows; at most 64 characters (VR LO).

    u: standard uncertainty of the voxels, their mean in the region that is least certain.
    """
    unit = "Gy = Gy/h x 1 h" if settings.dose_units == "GY" else "1 = 1 Gy/h"
    worst = findings.least_certain(engine_map.engine)
    certain = "" if worst is None else f" u={percent(worst.of_voxels)}"
    at = f"{findings.reference_time:%Y-%m-%d %H:%M:%S}"
    comment = f"{engine_map.engine.upper()} dose rate{certain} ({unit}) at {at}"
    return comment if len(comment) <= _LO else comment.replace(certain, "")


def image_comments(
    findings: Findings, engine_map: EngineMap, settings: EncodingSettings, quantisation_step: float
) -> str:
    """What a person reads who wants to know everything (VR LT, 10240 characters)."""
    name = "Gy" if settings.dose_units == "GY" else "RELATIVE"
    replaced = findings.replaced(ResultKind.RTDOSE, engine_map.engine)
    sentences = [
        f"Absorbed dose RATE of {findings.nuclide.name} by {engine_map.engine.upper()} at the reference time "
        f"{findings.reference_time:%Y-%m-%d %H:%M:%S%z}, stored as rate x 1 h without decay within the hour: "
        f"a value of 1 {name} means 1 Gy/h (1000 mGy/h).",
        "It is no dose of the treatment.",
        f"Algorithm: {engine_map.algorithm_name} {engine_map.algorithm_version}.",
        f"Parameters: {'; '.join(engine_map.parameters)}." if engine_map.parameters else "",
        f"Tissue: {engine_map.heterogeneity}.",
        _uncertainty(findings, engine_map.engine),
        f"Stored in steps of {quantisation_step:.1e} of the maximum.",
        *(f"Replaces {reference.sop_instance_uid}." for reference in replaced),
        # Before the notes: these may be as many as there are regions, and what is too long is cut.
        *(f"{what}: {value}." for what, value in (*engine_map.described(), *findings.provenance.described())),
        *(_sentence(note) for note in (*findings.notes, *engine_map.notes)),
    ]
    comments = " ".join(sentence for sentence in sentences if sentence)
    return comments if len(comments) <= _LT else comments[: _LT - len(_CUT)] + _CUT


def _uncertainty(findings: Findings, engine: str) -> str:
    found = [str(roi.uncertainty[engine]) for roi in findings.rois if engine in roi.uncertainty]
    return f"Statistical standard uncertainty (k=1): {'; '.join(found)}." if found else ""


def _checked_maximum(dose_rate_mgy_per_h: NDArray[np.float32]) -> float:
    if dose_rate_mgy_per_h.size == 0:
        raise InputRejected("the dose-rate map holds no voxel", "Check that SPECT and CT overlap")
    # NaN makes minimum and maximum NaN, and no comparison with NaN holds.
    lowest, highest = float(dose_rate_mgy_per_h.min()), float(dose_rate_mgy_per_h.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise InputRejected(
            "the dose-rate map holds values that are not finite",
            "Check SPECT and CT for NaN or overflow, then retry; if they are sound, report this as a fault",
        )
    if lowest < 0:
        raise InputRejected(
            f"the dose-rate map holds negative values, down to {lowest:g} mGy/h",
            "Check the SPECT for negative activity, then retry",
        )
    if highest == 0:
        raise InputRejected(
            "the dose-rate map is zero everywhere", "Check that the SPECT holds activity inside the body"
        )
    return highest


def _write_geometry(dose: Dataset, grid: Grid, ct: Dataset) -> None:
    """PS3.3 C.7.4.1, C.7.6.2 and the Grid Frame Offset Vector of C.8.8.3.2."""
    across_rows, across_columns = grid.direction[2], grid.direction[1]
    dose.FrameOfReferenceUID = grid.frame_of_reference_uid
    dose.PositionReferenceIndicator = ct.get("PositionReferenceIndicator") or ""
    dose.ImageOrientationPatient = [_ds(v) for v in (*across_rows, *across_columns)]
    dose.ImagePositionPatient = [_ds(v) for v in grid.origin_mm]
    dose.PixelSpacing = [_ds(grid.spacing_mm[1]), _ds(grid.spacing_mm[2])]
    dose.SliceThickness = _ds(grid.spacing_mm[0])
    dose.GridFrameOffsetVector = [_ds(k * grid.spacing_mm[0]) for k in range(grid.shape[0])]
    dose.FrameIncrementPointer = 0x3004000C


def _write_pixels(dose: Dataset, quantised: Quantised, bits: int) -> None:
    dose.SamplesPerPixel = 1
    dose.PhotometricInterpretation = "MONOCHROME2"
    dose.NumberOfFrames, dose.Rows, dose.Columns = quantised.stored.shape
    dose.BitsAllocated = dose.BitsStored = bits
    dose.HighBit = bits - 1
    dose.PixelRepresentation = 0
    dose.PixelData = quantised.stored.tobytes()
    dose["PixelData"].VR = "OW"


def _write_dose(dose: Dataset, engine_map: EngineMap, settings: EncodingSettings, scaling: str) -> None:
    """PS3.3 C.8.8.3."""
    dose.DoseUnits = settings.dose_units
    dose.DoseType = "PHYSICAL"
    dose.DoseSummationType = "PLAN_OVERVIEW"
    dose.DoseGridScaling = scaling
    dose.TissueHeterogeneityCorrection = list(engine_map.tissue_correction)


def _write_references(dose: Dataset, findings: Findings, engine: str) -> None:
    study = str(findings.ct_headers[0].StudyInstanceUID)
    # PLAN_OVERVIEW is the only summation that needs no RT Plan; its one item says there is none.
    overview = Dataset()
    overview.PlanOverviewIndex = 1
    overview.RTPlanLabel = ""
    overview.TreatmentSite = ""
    overview.TreatmentSiteCodeSequence = Sequence()
    overview.PrescriptionOverviewSequence = Sequence()
    overview.ReferencedImageSequence = [referenced_sop(reference_of(ct)) for ct in findings.ct_headers]
    dose.PlanOverviewSequence = [overview]
    replaced = findings.replaced(ResultKind.RTDOSE, engine)
    dose.ReferencedInstanceSequence = referenced_instances(findings, replaced)
    dose.ReferencedSeriesSequence = referenced_series((*sources(findings), *replaced), study)


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:].rstrip(' .')}." if note else ""


def _ds(value: float) -> str:
    return format_number_as_ds(float(value))
