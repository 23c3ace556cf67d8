"""Parametric Map (PS3.3 A.75): the exact dose-rate map beside the RTDOSE, in UCUM mGy/h.

Few viewers show it, so it is a setting; its float32 values are those of the computation, unrounded.
"""

from __future__ import annotations

from datetime import datetime

import highdicom as hd
import numpy as np

from dicomnode.findings import EncodingSettings, EngineMap, Findings
from dicomnode.frames import affine, frames
from dicomnode.result_header import (
    ResultIdentity,
    apply_header,
    fix_dimension_uid,
    long_string,
    referenced_series,
    sources,
    without_identity,
)
from dicomnode.vocabulary import DOSE_RATE, MGY_PER_H

_GEOMETRY = (
    *("Rows", "Columns", "PixelSpacing", "SliceThickness", "Modality"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator"),
)


def build(
    findings: Findings,
    engine_map: EngineMap,
    settings: EncodingSettings,
    identity: ResultIdentity,
    now: datetime,
) -> hd.pm.ParametricMap:
    """The Parametric Map of one engine's map."""
    volume = engine_map.dose_rate
    maximum = float(volume.array.max())
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
        real_world_value_mappings=[_mapping(maximum)],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=maximum / 2, window_width=maximum)],
        content_label="DOSE_RATE",
        content_description=long_string(
            f"Absorbed dose rate at {findings.reference_time:%Y-%m-%d %H:%M:%S}, mGy/h"
        ),
    )
    study = str(findings.ct_headers[0].StudyInstanceUID)
    parametric_map.ReferencedSeriesSequence = referenced_series(sources(findings), study)
    fix_dimension_uid(parametric_map)
    # PS3.3 C.7.3.1: nothing says that the body is no paired part, so the side is declared unknown.
    parametric_map.Laterality = ""
    apply_header(parametric_map, findings, settings, identity, now)
    return parametric_map


def series_description(findings: Findings, engine_map: EngineMap) -> str:
    """What a worklist shows."""
    return f"{findings.nuclide.name} {engine_map.engine.upper()} dose rate (mGy/h)"


def _mapping(maximum: float) -> hd.pm.RealWorldValueMapping:
    return hd.pm.RealWorldValueMapping(
        lut_label="mGy/h",
        lut_explanation="Absorbed dose rate",
        unit=MGY_PER_H,
        value_range=(0.0, maximum),
        slope=1.0,
        intercept=0.0,
        quantity_definition=DOSE_RATE,
    )
