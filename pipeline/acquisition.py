"""What a SPECT or PET header says about the scan: nuclide, administration, corrections, times.

Units of RadionuclideTotalDose: MBq in NM (PS3.3 C.8.4.10), Bq in PET (PS3.3 C.8.9.2). Its magnitude is
never used to tell them apart; `pipeline.plausibility` catches a number in the wrong unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom.dataset import Dataset

from pipeline.camera import Camera
from pipeline.dataset import described, instant, items, numbers, required, seconds_between, texts
from pipeline.decay import Nuclide, nuclide
from pipeline.errors import InputRejected

PET_IMAGE = "1.2.840.10008.5.1.4.1.1.128"
DECAY_CORRECTION_WITHIN_S = 3600.0
"""From the start of the acquisition: longer than any, and 1 % of Y-90's activity."""


@dataclass(frozen=True, slots=True)
class Administration:
    """What was given, as far as the header tells. nuclide_name: empty when it is not named."""

    nuclide_name: str = ""
    activity_bq: float | None = None
    administered_at: datetime | None = None


def administration(image: Dataset) -> Administration:
    """What RadiopharmaceuticalInformationSequence tells, less what is missing, unreadable or told twice.

    RadiopharmaceuticalStartTime alone has no date, so it is not used: therapy patients are imaged days
    after the administration.
    """
    told = items(image, "RadiopharmaceuticalInformationSequence")
    names = {name for item in told if (name := _nuclide_name(item))}
    name = names.pop() if len(names) == 1 else ""
    if len(told) != 1:
        return Administration(name)
    try:
        dose = numbers(told[0], "RadionuclideTotalDose", 1, of=image)[0]
    except (InputRejected, ValueError, TypeError):
        dose = 0.0
    try:
        at = instant(told[0], "RadiopharmaceuticalStart", clock=image)
    except InputRejected:
        at = None
    unit_bq = 1.0 if is_pet(image) else 1e6
    return Administration(name, float(dose) * unit_bq if dose > 0 else None, at)


def nuclide_of(image: Dataset, camera: Camera) -> Nuclide:
    """The nuclide that was imaged.

    raises: InputRejected when the image names none (and the camera's entry neither), several, or one
        that the node has no kernel for.
    """
    told = items(image, "RadiopharmaceuticalInformationSequence")
    spellings = [spelling for item in told if (spelling := _nuclide_spellings(item))]
    if not spellings and camera.nuclide:
        return nuclide(camera.nuclide)
    if not spellings:
        raise InputRejected(
            f"{described(image)} names no radionuclide (RadionuclideCodeSequence)",
            "Correct the header at the camera, or set nuclide of its [[camera]] in config.toml",
        )
    found = {_known(spelling) for spelling in spellings}
    if len(found) > 1 or None in found:
        names = "; ".join(" ".join(spelling) for spelling in spellings)
        raise InputRejected(
            f"{described(image)} names the radionuclide {names}, which the node does not compute",
            "Only Lu-177, Y-90 and I-131, one at a time, have dose kernels",
        )
    return next(row for row in found if row is not None)


def require_corrected(image: Dataset, camera: Camera) -> None:
    """raises: InputRejected unless CorrectedImage (0028,0051) holds what the camera's entry asks for."""
    done = texts(image, "CorrectedImage")
    missing = [value for value in camera.require_corrected if value not in done]
    if missing:
        raise InputRejected(
            f"CorrectedImage of {described(image)} is {'/'.join(done) or 'empty'}, "
            f"it lacks {' and '.join(missing)}",
            "Send the attenuation and scatter corrected reconstruction; if the camera corrects without "
            "saying so, set require_corrected of its [[camera]] in config.toml",
        )


@dataclass(frozen=True, slots=True)
class Rotation:
    """One turn of the heads. views: stops of each head; view_s: time of each stop, s."""

    views: int
    view_s: float

    @property
    def duration_s(self) -> float:
        """From the first to the last count."""
        return self.views * self.view_s


def rotation_of(image: Dataset) -> Rotation:
    """RotationInformationSequence of a SPECT. raises: InputRejected when it is missing or not one turn."""
    turns = items(image, "RotationInformationSequence")
    remedy = "Export the reconstruction with its acquisition parameters"
    if not turns:
        raise InputRejected(f"{described(image)} has no RotationInformationSequence", remedy)
    found = {
        Rotation(
            int(numbers(turn, "NumberOfFramesInRotation", 1, of=image)[0]),
            float(numbers(turn, "ActualFrameDuration", 1, of=image)[0]) / 1000.0,  # ms, PS3.3 C.8.4.12
        )
        for turn in turns
    }
    one = found.pop()
    # A reconstruction is of one rotation (PS3.3 C.8.4.8.1.5); beds of equal turns count as one each.
    if found or one.views < 1 or one.view_s <= 0:
        raise InputRejected(
            f"the rotations of {described(image)} differ, or have no views or no duration",
            "Reconstruct each rotation by itself",
        )
    return one


def acquisition_start(image: Dataset) -> datetime:
    """Beginning of the acquisition. Series and content times may be those of the reconstruction.

    raises: InputRejected when the image does not name it.
    """
    start = instant(image, "Acquisition")
    if start is None:
        raise InputRejected(
            f"{described(image)} has no AcquisitionDate and AcquisitionTime",
            "Export the series with its times",
        )
    return start


def spect_reference_time(image: Dataset, camera: Camera) -> datetime:
    """The instant that the activity of an NM reconstruction belongs to, by the camera's setting."""
    start = acquisition_start(image)
    if camera.reference_time == "acquisition_start":
        return start
    return start + timedelta(seconds=rotation_of(image).duration_s / 2)


def refuse_distant_decay_correction(image: Dataset) -> None:
    """For NM, whose values are taken to hold for the acquisition.

    The NM IOD has no attribute that says otherwise; workstations that correct to the administration borrow
    those of PET, DecayCorrection (PS3.3 C.8.9.1) and DecayCorrectionDateTime.
    raises: InputRejected when one of them names another instant.
    """
    remedy = (
        "Export the reconstruction without decay correction, or corrected to the start of the acquisition"
    )
    correction = " ".join(texts(image, "DecayCorrection"))
    if correction not in ("", "NONE", "START"):
        raise InputRejected(f"DecayCorrection of {described(image)} is {correction!r}", remedy)
    to = instant(image, "DecayCorrection")
    if to is not None and abs(seconds_between(acquisition_start(image), to)) > DECAY_CORRECTION_WITHIN_S:
        raise InputRejected(f"{described(image)} was decay-corrected to {to:%Y-%m-%d %H:%M}", remedy)


@dataclass(frozen=True, slots=True)
class PetTimes:
    """corrected_to: the instant that the stored values hold for. reference: the one that is wanted."""

    corrected_to: datetime
    reference: datetime


def pet_times(slices: Sequence[Dataset], camera: Camera) -> PetTimes:
    """Where DecayCorrection put the activity of a PET series (PS3.3 C.8.9.1).

    START: to the series' start; when Series Time is later than the first slice's acquisition (a
    derived series), to that. ADMIN: to the administration. NONE: the values hold for the acquisition.
    raises: InputRejected when the time that is needed is missing.
    """
    first = min(slices, key=lambda image: acquisition_start(image).timestamp())
    start = acquisition_start(first)
    reference = start
    if camera.reference_time == "acquisition_middle":
        last = max(slices, key=lambda image: acquisition_start(image).timestamp())
        end = acquisition_start(last) + timedelta(
            milliseconds=float(numbers(last, "ActualFrameDuration", 1)[0])
        )
        reference = start + timedelta(seconds=seconds_between(start, end) / 2)
    correction = str(required(first, "DecayCorrection"))
    if correction == "START":
        series = instant(first, "Series") or start
        return PetTimes(series if seconds_between(series, start) >= 0 else start, reference)
    if correction == "ADMIN":
        return PetTimes(_administered_at(first), reference)
    if correction == "NONE":
        _require_one_bed(slices, first)
        return PetTimes(reference, reference)
    raise InputRejected(
        f"DecayCorrection of {described(first)} is {correction!r}", "Reconstruct with DecayCorrection START"
    )


def is_pet(image: Dataset) -> bool:
    """Whether the object is a PET slice."""
    return str(image.get("SOPClassUID", "")) == PET_IMAGE


def _administered_at(image: Dataset) -> datetime:
    at = administration(image).administered_at
    if at is None:
        raise InputRejected(
            f"{described(image)} is decay-corrected to the administration, "
            "which has no RadiopharmaceuticalStartDateTime",
            "Reconstruct with DecayCorrection START",
        )
    return at


def _require_one_bed(slices: Sequence[Dataset], first: Dataset) -> None:
    spread = max(seconds_between(acquisition_start(first), acquisition_start(image)) for image in slices)
    if spread > 60.0:
        raise InputRejected(
            f"the slices of {described(first)} were acquired over {spread:.0f} s without decay correction",
            "Reconstruct with DecayCorrection START",
        )


def _nuclide_spellings(item: Dataset) -> tuple[str, ...]:
    """Code value, then meaning: some sites write codes of their own beside a proper meaning."""
    code = next(iter(items(item, "RadionuclideCodeSequence")), Dataset())
    return texts(code, "CodeValue") + texts(code, "CodeMeaning")


def _nuclide_name(item: Dataset) -> str:
    spellings = _nuclide_spellings(item)
    known = _known(spellings)
    return known.name if known is not None else " ".join(spellings[-1:])


def _known(spellings: tuple[str, ...]) -> Nuclide | None:
    for spelling in spellings:
        try:
            return nuclide(spelling)
        except InputRejected:
            continue
    return None
