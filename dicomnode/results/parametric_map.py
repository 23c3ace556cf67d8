"""Parametric Map (PS3.3 A.75): the exact dose-rate map beside the RTDOSE, or its uncertainty, in UCUM mGy/h.

Few viewers show it, so it is a setting; its float32 values are those of the computation, unrounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import highdicom as hd
import numpy as np
from pydicom.sr.coding import Code

from dicomnode.results.findings import EncodingSettings, EngineMap, Findings, InstanceReference
from dicomnode.results.frames import affine, frames
from dicomnode.results.header import (
    ResultIdentity,
    apply_header,
    fix_dimension_uid,
    long_string,
    referenced_series,
    referenced_sop,
    sources,
    without_identity,
)
from dicomnode.results.vocabulary import (
    DOSE_RATE,
    DOSE_RATE_UNCERTAINTY,
    MGY_PER_H,
    UNCERTAINTY_OF,
    code_item,
)
from pipeline.volume import Volume

_GEOMETRY = (
    *("Rows", "Columns", "PixelSpacing", "SliceThickness", "Modality"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator"),
)


@dataclass(frozen=True, slots=True, eq=False)
class _Quantity:
    """What a map shows. volume: mGy/h. label: at most 16 characters (VR CS)."""

    volume: Volume
    code: Code
    label: str
    explanation: str


def build(
    findings: Findings,
    engine_map: EngineMap,
    settings: EncodingSettings,
    identity: ResultIdentity,
    now: datetime,
) -> hd.pm.ParametricMap:
    """The Parametric Map of one engine's map."""
    quantity = _Quantity(engine_map.dose_rate, DOSE_RATE, "DOSE_RATE", "Absorbed dose rate")
    parametric_map = _map_of(quantity, findings, settings, identity)
    apply_header(parametric_map, findings, settings, identity, now)
    return parametric_map


def build_uncertainty(
    findings: Findings,
    engine_map: EngineMap,
    settings: EncodingSettings,
    identity: ResultIdentity,
    now: datetime,
    dose: InstanceReference,
) -> hd.pm.ParametricMap:
    """The standard uncertainty (k=1) of one engine's voxels, of an engine with statistics. dose: its RTDOSE.

    Not an RTDOSE of DoseType ERROR: that is the difference of desired and planned dose (PS3.3 C.8.8.3).
    """
    if engine_map.uncertainty is None:
        raise ValueError(f"the engine {engine_map.engine} has no statistics")
    explanation = "Standard uncertainty (k=1) of dose rate"
    quantity = _Quantity(engine_map.uncertainty, DOSE_RATE_UNCERTAINTY, "DOSE_RATE_UNCERT", explanation)
    parametric_map = _map_of(quantity, findings, settings, identity)
    of = referenced_sop(dose)
    of.PurposeOfReferenceCodeSequence = [code_item(UNCERTAINTY_OF)]
    parametric_map.ReferencedInstanceSequence = [of]
    study = str(findings.ct_headers[0].StudyInstanceUID)
    parametric_map.ReferencedSeriesSequence = referenced_series((*sources(findings), dose), study)
    apply_header(parametric_map, findings, settings, identity, now)
    return parametric_map


def series_description(findings: Findings, engine_map: EngineMap) -> str:
    """What a worklist shows."""
    return f"{findings.nuclide.name} {engine_map.engine.upper()} dose rate (mGy/h)"


def uncertainty_description(findings: Findings, engine_map: EngineMap) -> str:
    """What a worklist shows."""
    return f"{findings.nuclide.name} {engine_map.engine.upper()} dose rate uncertainty k=1 (mGy/h)"


def _map_of(
    quantity: _Quantity, findings: Findings, settings: EncodingSettings, identity: ResultIdentity
) -> hd.pm.ParametricMap:
    """Everything but the shared header."""
    volume = quantity.volume
    # A map that is zero everywhere still needs a window.
    maximum = float(volume.array.max()) or 1.0
    parametric_map = hd.pm.ParametricMap(
        source_images=[without_identity(header, _GEOMETRY) for header in findings.ct_headers],
        pixel_array=hd.Volume(
            np.ascontiguousarray(frames(volume.array, volume.grid)),
            affine(volume.grid),
            "PATIENT",
            volume.grid.frame_of_reference_uid,
        ),
        series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid,
        instance_number=1,
        manufacturer=long_string(settings.manufacturer),
        manufacturer_model_name=long_string(settings.model_name),
        software_versions=long_string(findings.provenance.software_version),
        device_serial_number=long_string(settings.serial_number),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(quantity, maximum)],
        voi_lut_transformations=[_window(maximum)],
        content_label=quantity.label,
        content_description=long_string(
            f"{quantity.explanation} at {findings.reference_time:%Y-%m-%d %H:%M:%S}, mGy/h"
        ),
    )
    study = str(findings.ct_headers[0].StudyInstanceUID)
    parametric_map.ReferencedSeriesSequence = referenced_series(sources(findings), study)
    fix_dimension_uid(parametric_map)
    # PS3.3 C.7.3.1: nothing says that the body is no paired part, so the side is declared unknown.
    parametric_map.Laterality = ""
    return parametric_map


def _window(maximum: float) -> hd.VOILUTTransformation:
    """From 0 to the maximum. A LINEAR window could not be narrower than 1 (PS3.3 C.11.2.1.2.1)."""
    return hd.VOILUTTransformation(
        window_center=maximum / 2,
        window_width=maximum,
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,
    )


def _mapping(quantity: _Quantity, maximum: float) -> hd.pm.RealWorldValueMapping:
    return hd.pm.RealWorldValueMapping(
        lut_label="mGy/h",
        lut_explanation=quantity.explanation,
        unit=MGY_PER_H,
        value_range=(0.0, maximum),
        slope=1.0,
        intercept=0.0,
        quantity_definition=quantity.code,
    )
