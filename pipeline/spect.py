"""Emission images on disk (NM SPECT, or PET) → activity concentration at one instant.

`describe_spect` decides everything that the headers decide; `read_spect` adds the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.acquisition import (
    Administration,
    acquisition_start,
    administration,
    is_pet,
    nuclide_of,
    pet_times,
    refuse_distant_decay_correction,
    require_corrected,
    spect_reference_time,
)
from pipeline.activity import Conversion, conversion_of, without_undershoot
from pipeline.camera import Camera, camera_of
from pipeline.dataset import described, read_header, read_object, seconds_between, stored_values, texts
from pipeline.decay import Nuclide, decay_factor
from pipeline.errors import InputRejected
from pipeline.nm import nm_geometry
from pipeline.pet import pet_geometry
from pipeline.slices import Stack
from pipeline.volume import Volume


@dataclass(frozen=True, slots=True)
class SpectDescription:
    """What the headers say of an emission image.

    headers: one of an NM object, or those of the PET slices. stack: the order of NM frames or PET slices.
    conversions: one for each header. reference_time: the instant that the activity is wanted for.
    corrected_to: the instant that the stored values hold for; it differs for decay-corrected PET only.
    """

    headers: tuple[Dataset, ...]
    stack: Stack
    camera: Camera
    nuclide: Nuclide
    administration: Administration
    conversions: tuple[Conversion, ...]
    corrected_to: datetime
    reference_time: datetime
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SpectImage:
    """Activity at an instant, and where it comes from.

    activity: Bq/mL at `reference_time`, on the image's own grid. reference_time: aware when the image
    names its time zone, otherwise the site's local time. conversion: the rule and its factor (of the
    first slice, for PET). camera: the configuration's name for it. notes: what a reader of the result
    should know.
    """

    activity: Volume
    reference_time: datetime
    nuclide: Nuclide
    administration: Administration
    conversion: Conversion
    camera: str
    notes: tuple[str, ...]

    @property
    def activity_bq(self) -> float:
        """In the whole field."""
        total = self.activity.array.sum(dtype=np.float64)
        return float(total) * self.activity.grid.voxel_volume_ml

    @property
    def calibration_sha256(self) -> str | None:
        """Of the site's calibration, when one was used."""
        calibration = self.conversion.calibration
        return None if calibration is None else calibration.sha256


def describe_spect(headers: Sequence[Dataset], cameras: tuple[Camera, ...]) -> SpectDescription:
    """Geometry, nuclide, units and times of an emission image, from its headers.

    headers: of one NM object, or of the slices of one PET series.
    raises: InputRejected, naming the object and what to do.
    """
    if not headers:
        raise InputRejected("there is no SPECT", "Send the reconstructed SPECT of the study")
    first = headers[0]
    camera = camera_of(first, cameras)
    stack = pet_geometry(headers) if is_pet(first) else nm_geometry(_only(headers))
    require_corrected(first, camera)
    nuclide = nuclide_of(first, camera)
    corrected_to, reference = _times(headers, camera)
    day = acquisition_start(first).date()
    conversions = tuple(conversion_of(header, camera, nuclide, day, stack.grid) for header in headers)
    if len({conversion.rule for conversion in conversions}) > 1:
        raise InputRejected(
            f"the slices of {described(first)} state their units differently", "Send one series"
        )
    return SpectDescription(
        tuple(headers),
        stack,
        camera,
        nuclide,
        administration(first),
        conversions,
        corrected_to,
        reference,
        _notes(first),
    )


def read_spect(
    paths: Sequence[Path], cameras: tuple[Camera, ...], progress: Callable[[int], None] | None = None
) -> SpectImage:
    """An emission image as activity concentration.

    paths: one NM object, or the slices of one PET series in any order. cameras: of the configuration.
    progress: called with the number of objects read so far.
    raises: InputRejected for everything that a person must put right.
    """
    facts = describe_spect([read_header(path) for path in paths], cameras)
    parts = []
    for number, (path, header, conversion) in enumerate(
        zip(paths, facts.headers, facts.conversions, strict=True)
    ):
        parts.append(conversion.apply(stored_values(read_object(path)), header))
        if progress is not None:
            progress(number + 1)
    frames = np.stack(parts) if len(parts) > 1 else parts[0]
    array, undershoot = without_undershoot(_on_grid(frames, facts), facts.headers[0])
    seconds = seconds_between(facts.corrected_to, facts.reference_time)
    notes = facts.notes + ((undershoot,) if undershoot else ())
    if seconds != 0.0:
        array = array * np.float32(decay_factor(facts.nuclide, seconds))
        notes += (f"decayed by {seconds / 3600:.2f} h from the instant of the image's own decay correction",)
    return SpectImage(
        Volume(array, facts.stack.grid, "Bq/mL"),
        facts.reference_time,
        facts.nuclide,
        facts.administration,
        facts.conversions[0],
        facts.camera.name,
        notes,
    )


def _on_grid(frames: NDArray[np.float32], facts: SpectDescription) -> NDArray[np.float32]:
    expected = facts.stack.grid.shape
    if frames.shape != expected:
        raise InputRejected(
            f"{described(facts.headers[0])} holds {frames.shape} pixels instead of {expected} (z, y, x)",
            "Send the object again",
        )
    return np.ascontiguousarray(frames[list(facts.stack.order)])


def _only(headers: Sequence[Dataset]) -> Dataset:
    if len(headers) > 1:
        raise InputRejected(
            f"{len(headers)} NM objects for one SPECT, the second is {described(headers[1])}",
            "A reconstructed SPECT is one object; name the one to use",
        )
    return headers[0]


def _times(headers: Sequence[Dataset], camera: Camera) -> tuple[datetime, datetime]:
    """(instant that the stored values hold for, instant that is wanted)."""
    if is_pet(headers[0]):
        times = pet_times(headers, camera)
        return times.corrected_to, times.reference
    refuse_distant_decay_correction(headers[0])
    reference = spect_reference_time(headers[0], camera)
    return reference, reference


def _notes(image: Dataset) -> tuple[str, ...]:
    silent = not is_pet(image) and not texts(image, "DecayCorrection")
    if silent and "DECY" in texts(image, "CorrectedImage"):
        return (
            "the camera corrected for decay (CorrectedImage DECY) and does not say to which instant; "
            "the reference time is taken",
        )
    return ()
