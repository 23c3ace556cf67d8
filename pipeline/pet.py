"""A PET series (of Y-90) → where its voxels lie; units and times stand elsewhere.

Slices stack as those of a CT; each has its own RescaleSlope (`pipeline.activity`, rules 1 and 2) and
they share one decay correction (`pipeline.acquisition`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from pipeline.acquisition import PET_IMAGE
from pipeline.dataset import described, texts
from pipeline.errors import InputRejected
from pipeline.slices import Stack, stack_geometry

ENHANCED_PET = ("1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1")
_ONE_VOLUME = ("STATIC", "WHOLE BODY")  # PS3.3 C.8.9.1.1.4: the others are gated or dynamic


def pet_geometry(headers: Sequence[Dataset]) -> Stack:
    """The grid of a PET series and the order of its slices, from headers without pixels.

    raises: InputRejected for what is no PET, for gated and dynamic series, for slices that differ in
        units or decay correction, and for every defect of a stack (`pipeline.slices`).
    """
    for header in headers:
        _require_pet(header)
    for keyword in ("Units", "DecayCorrection"):
        values = {str(header.get(keyword)) for header in headers}
        if len(values) > 1:
            raise InputRejected(
                f"the PET slices differ in {keyword}: {', '.join(sorted(values))}", "Send one series"
            )
    return stack_geometry(headers, "PET")


def _require_pet(header: Dataset) -> None:
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in ENHANCED_PET:
        raise InputRejected(
            f"{described(header)} is an Enhanced (multi-frame) PET",
            "Export the PET as classic single-slice images (Positron Emission Tomography Image Storage)",
        )
    if sop_class != PET_IMAGE:
        raise InputRejected(
            f"{described(header)} is no PET image (SOP class {sop_class})", "Send a PET series"
        )
    series_type = texts(header, "SeriesType")
    if series_type and series_type[0] not in _ONE_VOLUME:
        raise InputRejected(
            f"{described(header)} is of SeriesType {series_type[0]}",
            "Send the static reconstruction (STATIC, WHOLE BODY)",
        )
