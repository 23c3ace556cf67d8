"""A diagnostic PET/CT, a folder of DICOM files → activity concentration, CT numbers and regions.

Unlike the images that doses are computed from, the PET may be of any nuclide (Ga-68 as a rule): what counts
is where the activity is, not how much. Series are chosen by SOP class and corrections, never by description:

* PET: the series with attenuation correction; CT: the original, in the PET's frame of reference, or related
  to it by a Spatial Registration. Where several remain, a person names one.
* Decay correction must be to one instant, START or ADMIN (PS3.3 C.8.9.1.1.5): then it is a common factor.

Nothing that names the patient leaves this module but `Chosen.words`, by which a pseudonym is checked.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.acquisition import PET_IMAGE, acquisition_start, administration, pet_times
from pipeline.activity import conversion_of, without_undershoot
from pipeline.camera import UNLISTED
from pipeline.ct import CT_IMAGE, ENHANCED_CT, read_ct
from pipeline.dataset import (
    described,
    read_header,
    read_object,
    required,
    seconds_between,
    stored_values,
    texts,
)
from pipeline.decay import HOUR_S, NUCLIDES
from pipeline.errors import InputRejected
from pipeline.learning.nifti import laid_axial
from pipeline.pet import ENHANCED_PET, pet_geometry
from pipeline.registration import SPATIAL_REGISTRATION, registration
from pipeline.rois import RT_STRUCTURE_SET, SEGMENTATION, Roi, read_rois
from pipeline.volume import Volume

_ONE_INSTANT = ("START", "ADMIN")


@dataclass(frozen=True, slots=True)
class File:
    """A DICOM file and its header without pixels."""

    path: Path
    header: Dataset = field(repr=False)

    def text(self, keyword: str) -> str:
        """An attribute as text; empty when it is absent."""
        return " ".join(texts(self.header, keyword))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The files that are used. notes: what was left aside. words: names and numbers of the patient."""

    pet: tuple[File, ...]
    ct: tuple[File, ...]
    rois: tuple[Path, ...]
    registrations: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the SOP Instance UIDs of PET and CT: the same study gives the same digest."""
        uids = sorted(file.text("SOPInstanceUID") for file in (*self.pet, *self.ct))
        return hashlib.sha256("\n".join(uids).encode()).hexdigest()

    @property
    def words(self) -> frozenset[str]:
        """What of the patient's names and IDs a pseudonym must not hold, in lower case."""
        keywords = ("PatientName", "PatientID", "AccessionNumber")
        told = (str(self.pet[0].header.get(keyword) or "") for keyword in keywords)
        parts = {part for text in told for part in re.split(r"[\^=\s]+", text.lower())}
        return frozenset(part for part in parts if len(part) > 2)  # initials are in half of all words


@dataclass(frozen=True, slots=True, eq=False)
class PetCt:
    """pet: Bq/mL on its own grid, in the CT's frame of reference. hu: HU, axes along (z, y, x), LPS.

    rois: on the CT's grid.

    facts: nuclide, hours after the injection, scanner and voxels, for an account that names nobody.
    notes: what a person should know; problems: likewise, of the ROIs, with their objects' UIDs.
    """

    pet: Volume
    hu: Volume
    rois: tuple[Roi, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def choose(folder: Path, series: Sequence[str] = ()) -> Chosen:
    """The PET and the CT among the files under `folder`, and the regions drawn on them.

    series: Series Instance UIDs of those to use, where there are several.
    raises: InputRejected when there is no such series, or more than one, with what to do.
    """
    files, notes = _files(folder)
    _require_series(files, series)
    pet = _choose_pet(files, series, notes)
    ct, registrations = _choose_ct(files, series, pet, notes)
    rois = [file for file in files if file.text("SOPClassUID") in (RT_STRUCTURE_SET, SEGMENTATION)]
    _require_one_patient([*pet, *ct, *registrations, *rois])
    return Chosen(
        tuple(pet),
        tuple(ct),
        tuple(file.path for file in rois),
        tuple(file.path for file in registrations),
        tuple(notes),
    )


def read(chosen: Chosen) -> PetCt:
    """The pixels of the files that were chosen.

    raises: InputRejected for everything that `pipeline.pet`, `pipeline.ct` and `pipeline.rois` refuse: units
        that are not Bq/mL, gated or dynamic series, missing slices, more negative activity than a filter
        leaves; and for a PET whose slices belong to several instants.
    """
    pet, undershoot = _read_pet(chosen.pet)
    hu = laid_axial(read_ct([file.path for file in chosen.ct]))
    if chosen.registrations:
        frames = pet.grid.frame_of_reference_uid, hu.grid.frame_of_reference_uid
        pet = registration([read_object(path) for path in chosen.registrations], *frames).move(pet)
    rois = read_rois(chosen.rois, hu.grid)
    header = chosen.pet[0].header
    facts = {
        "radionuclide": administration(header).nuclide_name or "not stated",
        "hours_after_injection": _hours_after_injection(header),
        "pet": _scanner(header, pet),
        "ct": _scanner(chosen.ct[0].header, hu),
        "registered_by": "Spatial Registration" if chosen.registrations else "Frame of Reference",
    }
    notes = [*chosen.notes, *([undershoot] if undershoot else [])]
    if "SCAT" not in texts(header, "CorrectedImage"):
        notes.append(
            "CorrectedImage of the PET does not say SCAT: scattered coincidences may be in the truth"
        )
    return PetCt(pet, hu, rois.found, facts, tuple(notes), rois.problems)


# ── which files ──────────────────────────────────────────────────────────────────────────────────


def _files(folder: Path) -> tuple[list[File], list[str]]:
    files, other = [], 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            files.append(File(path, read_header(path)))
        except InputRejected:
            other += 1
    return files, [f"{other} file(s) are not DICOM, or cannot be read, and were left aside"] if other else []


def _choose_pet(files: Sequence[File], series: Sequence[str], notes: list[str]) -> list[File]:
    candidates = _series(files, PET_IMAGE, series)
    if not candidates:
        raise InputRejected(
            f"no PET: {_what_there_is(files, ENHANCED_PET)}",
            "Add the PET in Bq/mL, as single slices (Positron Emission Tomography Image Storage)",
        )
    corrected = [group for group in candidates if "ATTN" in texts(group[0].header, "CorrectedImage")]
    if not corrected:
        raise InputRejected(
            f"no PET with attenuation correction: {_listed(candidates)}",
            "Add the reconstruction with attenuation correction (CorrectedImage holds ATTN)",
        )
    if len(corrected) < len(candidates):
        notes.append(
            f"{len(candidates) - len(corrected)} PET series without attenuation correction left aside"
        )
    return _only("PET", corrected)


def _choose_ct(
    files: Sequence[File], series: Sequence[str], pet: Sequence[File], notes: list[str]
) -> tuple[list[File], list[File]]:
    """The CT, and the registrations where it lies in another frame of reference."""
    all_of_them = _series(files, CT_IMAGE, series)
    volumes = [group for group in all_of_them if "LOCALIZER" not in texts(group[0].header, "ImageType")]
    if not volumes:
        what = "only a localizer" if all_of_them else _what_there_is(files, ENHANCED_CT)
        raise InputRejected(f"no CT: {what}", "Add the CT of the PET/CT, as single slices (CT Image Storage)")
    frame = pet[0].text("FrameOfReferenceUID")
    same = [group for group in volumes if group[0].text("FrameOfReferenceUID") == frame and frame]
    registrations = [file for file in files if file.text("SOPClassUID") == SPATIAL_REGISTRATION]
    if not same and not registrations:
        raise InputRejected(
            f"PET and CT share no Frame of Reference UID: {frame or 'none'} and "
            + ", ".join(sorted({group[0].text("FrameOfReferenceUID") or "none" for group in volumes})),
            "Add the CT of the same PET/CT session, or a Spatial Registration of the two",
        )
    candidates = same or volumes
    original = [group for group in candidates if "ORIGINAL" in texts(group[0].header, "ImageType")]
    candidates = original or candidates
    if len(candidates) < len(volumes):
        notes.append(f"{len(volumes) - len(candidates)} CT series left aside by frame or ImageType")
    return _only("CT", candidates), [] if same else registrations


def _series(files: Sequence[File], sop_class: str, wanted: Sequence[str]) -> list[list[File]]:
    """By series; those that a person named, where any of this kind is among them."""
    groups: dict[str, list[File]] = {}
    for file in files:
        if file.text("SOPClassUID") == sop_class:
            groups.setdefault(file.text("SeriesInstanceUID"), []).append(file)
    return [groups[uid] for uid in groups if uid in wanted] or list(groups.values())


def _only(kind: str, candidates: Sequence[list[File]]) -> list[File]:
    if len(candidates) > 1:
        raise InputRejected(
            f"{len(candidates)} {kind} series fit and nothing tells which one to use: {_listed(candidates)}",
            "Name one by its UID with --series, or leave only one in the folder",
        )
    return candidates[0]


def _require_series(files: Sequence[File], wanted: Iterable[str]) -> None:
    known = {file.text("SeriesInstanceUID") for file in files}
    missing = [uid for uid in wanted if uid not in known]
    if missing:
        raise InputRejected(f"the folder holds no series {missing[0]}", "Give a Series Instance UID of it")


def _require_one_patient(files: Sequence[File]) -> None:
    counts = sorted(Counter(file.text("PatientID") for file in files).values())
    if len(counts) > 1:
        # Without the IDs: errors end in logs.
        raise InputRejected(
            f"PET, CT and what belongs to them bear different Patient IDs, {' and '.join(map(str, counts))} "
            "objects of each",
            "Leave the objects of one patient in the folder",
        )


def _listed(candidates: Sequence[list[File]]) -> str:
    return "; ".join(f"({n}) {_named(group)}" for n, group in enumerate(candidates, 1))


def _named(group: Sequence[File]) -> str:
    head = group[0]
    parts = [
        f"series {head.text('SeriesNumber') or '?'} {head.text('SeriesDescription')!r}",
        f"{len(group)} slice(s) of {head.text('Rows')} x {head.text('Columns')}",
        *filter(None, (head.text("CorrectedImage"), head.text("ConvolutionKernel"))),
        f"UID {head.text('SeriesInstanceUID')}",
    ]
    return ", ".join(parts)


def _what_there_is(files: Sequence[File], enhanced: Sequence[str]) -> str:
    if any(file.text("SOPClassUID") in enhanced for file in files):
        return "the images are Enhanced multi-frame objects; export them as single slices"
    kinds = Counter(file.text("Modality") or "?" for file in files)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"the folder holds {shown or 'no DICOM file'}"


# ── what is in them ──────────────────────────────────────────────────────────────────────────────


def _read_pet(files: Sequence[File]) -> tuple[Volume, str]:
    """Bq/mL at the instant of the decay correction, and a note on negative values."""
    headers = [file.header for file in files]
    stack = pet_geometry(headers)
    _require_one_instant(headers)
    # The nuclide and the day choose among the calibrations of a gamma camera: a PET has none.
    day = acquisition_start(headers[0]).date()
    conversions = [conversion_of(header, UNLISTED, NUCLIDES[0], day, stack.grid) for header in headers]
    if len({conversion.rule for conversion in conversions}) > 1:
        raise InputRejected(
            f"the slices of {described(headers[0])} state their units differently",
            "Put one series in the folder",
        )
    array = np.empty(stack.grid.shape, np.float32)
    for z, index in enumerate(stack.order):
        stored = stored_values(read_object(files[index].path))
        array[z] = _slice(conversions[index].apply(stored, headers[index]), stack.grid.shape, headers[index])
    try:
        array, note = without_undershoot(array, headers[0])
    except InputRejected as error:
        raise InputRejected(error.reason, "Reconstruct or export the PET again") from error
    return Volume(array, stack.grid, "Bq/mL"), f"PET: {note}" if note else ""


def _slice(plane: NDArray[np.float32], shape: tuple[int, int, int], header: Dataset) -> NDArray[np.float32]:
    if plane.shape != shape[1:]:
        raise InputRejected(
            f"{described(header)} holds {plane.shape} pixels instead of {shape[1:]} (y, x)",
            "Export the PET again",
        )
    return plane


def _require_one_instant(headers: Sequence[Dataset]) -> None:
    """A correction to one instant scales all slices alike; without any, beds differ by their decay."""
    correction = str(required(headers[0], "DecayCorrection"))
    if correction == "NONE":
        pet_times(headers, UNLISTED)  # raises for more than one bed
    elif correction not in _ONE_INSTANT:
        raise InputRejected(
            f"DecayCorrection of {described(headers[0])} is {correction!r}",
            "Reconstruct the PET with DecayCorrection START",
        )


def _hours_after_injection(header: Dataset) -> float | None:
    at = administration(header).administered_at
    if at is None:
        return None
    return round(seconds_between(at, acquisition_start(header)) / HOUR_S, 2)


def _scanner(header: Dataset, volume: Volume) -> dict[str, Any]:
    return {
        "scanner": " ".join(
            text for keyword in ("Manufacturer", "ManufacturerModelName") for text in texts(header, keyword)
        ),
        "voxels": list(volume.grid.shape),
        "spacing_mm": [round(value, 4) for value in volume.grid.spacing_mm],
    }
