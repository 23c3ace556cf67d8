"""Which files of a study are computed: one SPECT, one CT, and what belongs to them.

Chosen by SOP class, ImageType, CorrectedImage and geometry, never by a description that a
technologist typed. Where that leaves more than one candidate, the site's preference decides, and
without one the case is held and the candidates are shown: a guess would look right and be wrong.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    RadiopharmaceuticalRadiationDoseSRStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    SpatialRegistrationStorage,
)

from dicomnode.errors import Incomplete, Rejected
from dicomnode.records import Inputs
from pipeline.acquisition import is_pet
from pipeline.ct import ct_geometry
from pipeline.errors import InputRejected
from pipeline.lattice import box_corners
from pipeline.nm import nm_geometry
from pipeline.pet import pet_geometry

SPECT_CLASSES = (NuclearMedicineImageStorage, PositronEmissionTomographyImageStorage)
ROI_CLASSES = (RTStructureSetStorage, SegmentationStorage)
# What a computation may be made from; anything else changes no result.
INPUT_CLASSES = (
    CTImageStorage,
    *SPECT_CLASSES,
    *ROI_CLASSES,
    SpatialRegistrationStorage,
    RadiopharmaceuticalRadiationDoseSRStorage,
)
# Classes whose single-frame siblings the node reads: the message can say what to export instead.
ENHANCED_CLASSES = (EnhancedCTImageStorage, EnhancedPETImageStorage)


@dataclass(frozen=True, slots=True)
class Header:
    """A file and its attributes up to the pixel data."""

    path: str
    dataset: Dataset

    def text(self, keyword: str) -> str:
        """An attribute as text; empty when it is absent."""
        value = self.dataset.get(keyword)
        return "" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Preferences:
    """fnmatch patterns over SeriesDescription that break a tie, best first."""

    ct: tuple[str, ...] = ()
    spect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """The files of one series."""

    uid: str
    headers: tuple[Header, ...] = field(repr=False)

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(h.path for h in self.headers)

    def __str__(self) -> str:
        head = self.first
        parts = [
            f"series {head.text('SeriesNumber') or '?'} {head.text('SeriesDescription')!r}",
            f"{len(self.headers)} object(s) of {head.text('Rows')} x {head.text('Columns')}",
            *filter(None, (_values(head, "CorrectedImage"), head.text("ConvolutionKernel"))),
            f"UID {self.uid}",
        ]
        return ", ".join(parts)


def read_header(path: Path, name: str | None = None) -> Header:
    """Attributes of a file, without pixels. name: how the selection calls it (default: the path)."""
    return Header(name or str(path), dcmread(path, stop_before_pixels=True))


def choose(headers: Sequence[Header], preferences: Preferences) -> Inputs:
    """Choose the inputs of one study.

    Raises Incomplete when something is missing that may still arrive, Rejected when a person must
    act. Objects of other kinds are left aside.
    """
    check_one_patient(headers)
    notes: list[str] = []
    spect = _choose_spect(_series(headers, SPECT_CLASSES), headers, preferences.spect, notes)
    registrations = _of(headers, (SpatialRegistrationStorage,))
    ct = _choose_ct(_series(headers, (CTImageStorage,)), spect, registrations, preferences.ct, notes)
    related = {spect.first.text("FrameOfReferenceUID"), ct.first.text("FrameOfReferenceUID")}
    _check_stack(ct)
    return Inputs(
        ct=ct.paths,
        spect=spect.paths,
        rois=tuple(h.path for h in _of(headers, ROI_CLASSES)),
        registrations=tuple(h.path for h in registrations) if len(related) > 1 else (),
        dose_reports=tuple(h.path for h in _of(headers, (RadiopharmaceuticalRadiationDoseSRStorage,))),
        notes=tuple(notes),
    )


def digest(uids: Iterable[str]) -> str:
    """sha256 over the SOP Instance UIDs that were chosen: the same inputs give the same digest."""
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()


def check_one_patient(headers: Sequence[Header]) -> None:
    """Raises Rejected when the objects belong to more than one patient (or to nobody)."""
    patients: dict[str, set[str]] = {}
    for header in headers:
        patients.setdefault(header.text("PatientID"), set()).add(header.text("IssuerOfPatientID"))
    if "" in patients:
        raise Rejected(
            "an object of the study has no Patient ID", "Correct it at its source and send it again"
        )
    # An issuer that is left out contradicts nothing.
    if len(patients) > 1 or any(len(issuers - {""}) > 1 for issuers in patients.values()):
        # Without the IDs: the reason also goes into the log and into mails.
        counts = sorted(Counter((h.text("PatientID"), h.text("IssuerOfPatientID")) for h in headers).values())
        raise Rejected(
            "two patients under one Study Instance UID: objects of different Patient IDs or issuers, "
            f"{' and '.join(map(str, counts))} of each",
            "`dicomnode show` lists the series with their Patient IDs: correct the study at its source, or "
            "`dicomnode discard` the series that does not belong to it, then `dicomnode retry`",
        )


# ── SPECT ────────────────────────────────────────────────────────────────────────────────────────


def _choose_spect(
    candidates: list[Series], headers: Sequence[Header], preferred: tuple[str, ...], notes: list[str]
) -> Series:
    tomographic = [s for s in candidates if _is_reconstructed(s)]
    if not tomographic:
        raise Incomplete(f"no SPECT: {_what_there_is(headers)}", _spect_remedy(candidates), ("SPECT",))
    corrected = [s for s in tomographic if {"ATTN", "SCAT"} <= set(_list(s.first, "CorrectedImage"))]
    if corrected and len(corrected) < len(tomographic):
        notes.append("SPECT series without attenuation and scatter correction were left aside")
    return _decide("SPECT", corrected or tomographic, preferred, "prefer_spect", notes)


def _is_reconstructed(series: Series) -> bool:
    if series.first.text("SOPClassUID") == PositronEmissionTomographyImageStorage:
        return True
    return "RECON TOMO" in _list(series.first, "ImageType")  # PS3.3 C.8.4.9.1.3


def _spect_remedy(candidates: list[Series]) -> str:
    if candidates:
        return "The NM series are projections or planar: reconstruct the SPECT and send ImageType RECON TOMO"
    return "Send the reconstructed SPECT (NM RECON TOMO, or PET in Bq/mL) of this study"


# ── CT ───────────────────────────────────────────────────────────────────────────────────────────


def _choose_ct(
    candidates: list[Series],
    spect: Series,
    registrations: list[Header],
    preferred: tuple[str, ...],
    notes: list[str],
) -> Series:
    volumes = [s for s in candidates if "LOCALIZER" not in _list(s.first, "ImageType")]
    if not volumes:
        what = "only a localizer" if candidates else "none"
        remedy = "Send the CT of the SPECT/CT under the same study"
        raise Incomplete(f"SPECT without CT: {what} came", remedy, ("CT",))
    frame = spect.first.text("FrameOfReferenceUID")
    reachable = {frame} | _registered_with(frame, registrations)
    same = [s for s in volumes if s.first.text("FrameOfReferenceUID") in reachable and frame]
    if not same:
        raise Rejected(
            f"mixed frames of reference: SPECT has {frame or 'none'}, CT has "
            + ", ".join(sorted({s.first.text("FrameOfReferenceUID") or "none" for s in volumes})),
            "Send a Spatial Registration object that relates them, or the CT of the SPECT/CT session",
        )
    # The CT of the session comes before one that a registration brought there.
    same = [s for s in same if s.first.text("FrameOfReferenceUID") == frame] or same
    axial = [s for s in same if "ORIGINAL" in _list(s.first, "ImageType")] or same
    covering = _most_coverage(axial, spect)
    if len(covering) < len(volumes):
        notes.append(
            f"{len(volumes) - len(covering)} CT series were left aside by frame, ImageType or coverage"
        )
    return _decide("CT", covering, preferred, "prefer_ct", notes)


def _most_coverage(candidates: list[Series], spect: Series) -> list[Series]:
    """Those that reach over the largest part of the SPECT along the patient, within 2 %."""
    if len(candidates) == 1:
        return candidates
    field = _field_mm(spect)
    covered = {s.uid: _covered_mm(s, spect, field) for s in candidates}
    most = max(covered.values())
    return [s for s in candidates if covered[s.uid] >= 0.98 * most]


def _field_mm(spect: Series) -> tuple[float, float]:
    """From where to where the SPECT reaches along patient z; everything when its header does not tell."""
    datasets = [h.dataset for h in spect.headers]
    try:
        stack = pet_geometry(datasets) if is_pet(datasets[0]) else nm_geometry(datasets[0])
    except InputRejected:
        return -math.inf, math.inf  # the reading of the SPECT says what is wrong with it
    z = box_corners(stack.grid)[:, 2]
    return float(z.min()), float(z.max())


def _covered_mm(ct: Series, spect: Series, field: tuple[float, float]) -> float:
    """Length of the SPECT that a CT covers; of a CT in another frame, at most its own length."""
    positions = [h.dataset.get("ImagePositionPatient") for h in ct.headers]
    z = [float(p[2]) for p in positions if p]
    if len(z) < 2:
        return 0.0
    if ct.first.text("FrameOfReferenceUID") != spect.first.text("FrameOfReferenceUID"):
        return min(max(z) - min(z), field[1] - field[0])
    return max(min(max(z), field[1]) - max(min(z), field[0]), 0.0)


def _check_stack(ct: Series) -> None:
    try:
        ct_geometry([h.dataset for h in ct.headers])
    except InputRejected as error:
        # Slices may still be on their way.
        raise Incomplete(f"CT {error.reason}", error.remedy) from None


def _registered_with(frame: str, registrations: list[Header]) -> set[str]:
    """Frames of reference that a Spatial Registration object relates to `frame`."""
    related: set[str] = set()
    for header in registrations:
        frames = {header.text("FrameOfReferenceUID")} | {
            str(item.get("FrameOfReferenceUID", ""))
            for item in header.dataset.get("RegistrationSequence", [])
        }
        if frame in frames:
            related |= frames
    return related - {""}


# ── deciding ─────────────────────────────────────────────────────────────────────────────────────


def _decide(
    what: str, candidates: list[Series], preferred: tuple[str, ...], setting: str, notes: list[str]
) -> Series:
    if len(candidates) == 1:
        return candidates[0]
    for pattern in preferred:
        matching = [s for s in candidates if fnmatch.fnmatch(s.first.text("SeriesDescription"), pattern)]
        if len(matching) == 1:
            notes.append(f"{what}: {setting} {pattern!r} chose {matching[0]} among {len(candidates)}")
            return matching[0]
    listing = "; ".join(f"({n}) {s}" for n, s in enumerate(candidates, 1))
    raise Rejected(
        f"{len(candidates)} {what} series fit and nothing tells which one to use: {listing}",
        f'Name one by [assemble] {setting} = ["..."] (a pattern of its SeriesDescription), or '
        "`dicomnode discard` the others; then `dicomnode retry`",
    )


def _series(headers: Sequence[Header], classes: tuple[str, ...]) -> list[Series]:
    return _grouped(_of(headers, classes), lambda h: h.text("SeriesInstanceUID"))


def _grouped(headers: list[Header], key: Callable[[Header], str]) -> list[Series]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(key(header), []).append(header)
    return [Series(uid, tuple(group)) for uid, group in sorted(groups.items())]


def _of(headers: Sequence[Header], classes: tuple[str, ...]) -> list[Header]:
    return [h for h in headers if h.text("SOPClassUID") in classes]


def _what_there_is(headers: Sequence[Header]) -> str:
    kinds: dict[str, int] = {}
    for header in headers:
        kinds[header.text("Modality") or "?"] = kinds.get(header.text("Modality") or "?", 0) + 1
    if any(h.text("SOPClassUID") in ENHANCED_CLASSES for h in headers):
        return "the images are Enhanced multi-frame objects; export them as single-frame CT and PET"
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"the study holds {shown or 'nothing that is used'}"


def _list(header: Header, keyword: str) -> list[str]:
    value = header.dataset.get(keyword)
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _values(header: Header, keyword: str) -> str:
    return " ".join(_list(header, keyword))
