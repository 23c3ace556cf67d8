"""The same SOP Instance UID again: is it the same object?

A PACS re-sends with coerced demographics or another compression: the pixels, the geometry and what
else a computation reads are the same, and nothing changes. Anything else is a contradiction that a
person must resolve.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.spool_file import Origin, file_meta, split_file

_PIXEL_DATA = 0x7FE00010
# What a computation reads besides the pixels. A difference here changes the result, so it must not
# pass for a difference of demographics. Group 3006 (structure sets) counts as a whole.
_CONTENT = """
    SOPClassUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality
    Rows Columns NumberOfFrames PixelSpacing SliceThickness SpacingBetweenSlices
    ImagePositionPatient ImageOrientationPatient PatientPosition GridFrameOffsetVector
    DetectorInformationSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    RescaleSlope RescaleIntercept RescaleType RealWorldValueMappingSequence Units DoseGridScaling DoseUnits
    AcquisitionDate AcquisitionTime AcquisitionDateTime SeriesDate SeriesTime
    DecayCorrection DecayFactor FrameReferenceTime ActualFrameDuration CorrectedImage
    RotationInformationSequence EnergyWindowInformationSequence RadiopharmaceuticalInformationSequence
    SegmentSequence RegistrationSequence ContentSequence
    ImageType SeriesType PixelRepresentation GantryDetectorTilt SegmentationType MaximumFractionalValue
    FrameIncrementPointer NumberOfSlices SliceVector DetectorVector EnergyWindowVector PhaseVector
    RRIntervalVector TimeSlotVector TimeSliceVector AngularViewVector
    TimezoneOffsetFromUTC DecayCorrectionDateTime ConvolutionKernel ReconstructionMethod
    """
CONTENT = frozenset(_CONTENT.split())
_STRUCTURE_SET_GROUP = 0x3006


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two objects of one UID: attribute keywords, never values."""

    content: tuple[str, ...]
    """Pixels, geometry or what else a computation reads; empty: the same object."""
    other: tuple[str, ...]
    """Demographics and the like."""


def compare(path: Path, origin: Origin, data: memoryview) -> Comparison:
    """The object in the spool against the data set that came.

    Raises Flawed when that cannot be told: pixels that cannot be decoded, say.
    """
    content = memoryview(path.read_bytes())
    try:
        return _compared(content, origin, data)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever the bytes lead to
        why = f"it cannot be compared with what came before: {type(error).__name__}: {error}"
        raise Flawed(Defect.UNREADABLE, why[:200]) from error


def _compared(content: memoryview, origin: Origin, data: memoryview) -> Comparison:
    stored_origin, stored_data = split_file(content)
    if stored_origin.transfer_syntax_uid == origin.transfer_syntax_uid and stored_data == data:
        return Comparison((), ())
    stored = dcmread(io.BytesIO(content))
    came = dcmread(io.BytesIO(file_meta(origin, data) + data))
    tags = {int(tag) for tag in (*stored.keys(), *came.keys())} - {_PIXEL_DATA}
    differing = [tag for tag in sorted(tags) if tag & 0xFFFF and _differs(stored, came, tag)]
    decisive = [tag for tag in differing if _is_content(tag)]
    names = [keyword_for_tag(tag) for tag in decisive]
    if not names and not _same_pixels(stored, came):
        names = ["PixelData"]
    if stored_origin.transfer_syntax_uid != origin.transfer_syntax_uid:
        differing.insert(0, 0x00020010)
    return Comparison(tuple(names), tuple(_name(tag) for tag in differing if tag not in decisive))


def _differs(stored: Dataset, came: Dataset, tag: int) -> bool:
    """Whether an element differs. Of a value that nobody can read, its bytes tell.

    pydicom decodes values here for the first time, and raises whatever they lead to.
    """
    try:
        return bool(stored.get(tag) != came.get(tag))
    except Exception:  # noqa: BLE001 - the node keeps such values and does not need them
        first, second = stored.get_item(tag), came.get_item(tag)
        return first is None or second is None or bool(first.value != second.value)


def _is_content(tag: int) -> bool:
    return tag >> 16 == _STRUCTURE_SET_GROUP or keyword_for_tag(tag) in CONTENT


def _same_pixels(stored: Dataset, came: Dataset) -> bool:
    if ("PixelData" in stored) != ("PixelData" in came):
        return False
    if "PixelData" not in stored:
        return True
    same_syntax = stored.file_meta.TransferSyntaxUID == came.file_meta.TransferSyntaxUID
    if same_syntax and stored.PixelData == came.PixelData:
        return True
    first, second = stored.pixel_array, came.pixel_array
    return bool(first.shape == second.shape and (first == second).all())


def _name(tag: int) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
