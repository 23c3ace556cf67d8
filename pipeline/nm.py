"""Reconstructed SPECT: one NM Image of many frames → where its voxels lie.

Position and orientation stand in DetectorInformationSequence[0] (PS3.3 C.8.4.11); slice s = 1, 2, …
lies at (PS3.3 C.8.4.15)::

    position + (s − 1) · SpacingBetweenSlices · normal,    normal = row cosines × column cosines

The spacing's sign counts, and SliceVector says which slice a frame is. Modality is not asked: some
workstations write ``OT``. Cosines are used as they are, however slightly tilted.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pipeline.dataset import described, items, numbers, required, texts
from pipeline.errors import InputRejected
from pipeline.slices import Stack
from pipeline.volume import Grid, Triple

NM_IMAGE = "1.2.840.10008.5.1.4.1.1.20"
_RECONSTRUCTED = "Send the reconstructed transverse SPECT (NM, ImageType RECON TOMO)"
_REMEDIES = {
    "RECON GATED TOMO": "Send the ungated reconstruction (ImageType RECON TOMO)",
    "TOMO": f"These are projections. {_RECONSTRUCTED}",
    "GATED TOMO": f"These are gated projections. {_RECONSTRUCTED}",
}
# Vectors whose presence means that frames differ in more than their place (PS3.3 C.8.4.8.1).
_FORBIDDEN_VECTORS = {
    Tag("RRIntervalVector"): "R-R intervals",
    Tag("TimeSlotVector"): "time slots",
    Tag("PhaseVector"): "phases",
    Tag("TimeSliceVector"): "time slices",
    Tag("AngularViewVector"): "angular views",
}


def nm_geometry(header: Dataset) -> Stack:
    """The grid of a reconstructed SPECT and the order of its frames, from the header alone.

    returns: grid with positive spacing; ``frames[order]`` is the array on it.
    raises: InputRejected for what is not one reconstructed volume, or has no place in the patient.
    """
    _require_recon_tomo(header)
    detector = next(iter(items(header, "DetectorInformationSequence")), Dataset())
    position = numbers(detector, "ImagePositionPatient", 3, of=header)
    row, column = numbers(detector, "ImageOrientationPatient", 6, of=header).reshape(2, 3)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    spacing = float(numbers(header, "SpacingBetweenSlices", 1)[0])
    row_mm, column_mm = numbers(header, "PixelSpacing", 2)
    order = _frame_order(header)
    grid = Grid(
        shape=(len(order), int(numbers(header, "Rows", 1)[0]), int(numbers(header, "Columns", 1)[0])),
        origin_mm=_triple(position),
        spacing_mm=(abs(spacing), float(row_mm), float(column_mm)),
        direction=(_triple(np.copysign(1.0, spacing) * normal), _triple(column), _triple(row)),
        frame_of_reference_uid=str(
            required(header, "FrameOfReferenceUID", "Export SPECT and CT of one session")
        ),
    )
    return Stack(grid, order)


def _require_recon_tomo(header: Dataset) -> None:
    if str(header.get("SOPClassUID", "")) != NM_IMAGE:
        raise InputRejected(f"{described(header)} is no Nuclear Medicine image", _RECONSTRUCTED)
    image_type = texts(header, "ImageType")
    kind = image_type[2] if len(image_type) > 2 else "unknown"
    if kind != "RECON TOMO":
        raise InputRejected(
            f"{described(header)} is of type {kind}, not RECON TOMO", _REMEDIES.get(kind, _RECONSTRUCTED)
        )
    pointers = header.get("FrameIncrementPointer") or []
    for pointer in [pointers] if isinstance(pointers, int) else pointers:
        across = _FORBIDDEN_VECTORS.get(Tag(pointer))
        if across is not None:
            raise InputRejected(f"the frames of {described(header)} run over {across}", _RECONSTRUCTED)
    for keyword in ("EnergyWindowVector", "DetectorVector"):
        if len(set(texts(header, keyword))) > 1:
            raise InputRejected(
                f"the frames of {described(header)} belong to several volumes ({keyword})",
                "Send one reconstruction per object, of one energy window or of their sum",
            )


def _frame_order(header: Dataset) -> tuple[int, ...]:
    """Frame indices by rising slice number (PS3.3 C.8.4.8.1.7); in file order without a SliceVector."""
    frames = int(header.get("NumberOfFrames") or 1)
    slices = int(header.get("NumberOfSlices") or frames)
    if frames < 2 or slices != frames:
        raise InputRejected(
            f"{described(header)} has {frames} frame(s) for {slices} slice(s), which is not one volume",
            _RECONSTRUCTED,
        )
    vector = [int(number) for number in texts(header, "SliceVector")] or list(range(1, frames + 1))
    if sorted(vector) != list(range(1, frames + 1)):
        raise InputRejected(
            f"SliceVector of {described(header)} does not number its {frames} frames once each",
            _RECONSTRUCTED,
        )
    return tuple(int(i) for i in np.argsort(vector))


def _triple(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
