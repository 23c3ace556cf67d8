"""A diagnostic PET/CT as a virtual patient: activity, density and VOIs for `dicomnode train --data`.

As Li 2022 (doi 10.1002/mp.15397) had its virtual patients from Ga-68 DOTATATE PET/CT, the PET says where the
activity is, and a number says how much there is::

    activity = PET on the CT's voxels, in the body · factor of its VOI · scale
    Σ activity · V = activity_mbq

The nuclide's decay until the PET is a common factor, and falls out. What does not fall out: the ratios
between organs are those of the tracer at the time of the PET, and the truth has the PET's own blur and noise
(nothing is sharpened). `LIMITS` says so in every account.

What a phantom is, on disk::

    FOLDER/NAME/activity.npz, density.npz, vois/VOI.npz     as in `pipeline.learning.example`
    FOLDER/NAME/phantom.json                                where it comes from and what was done to it
    FOLDER/NAME/data.toml                                   the nuclide, for `pipeline.learning.foreign`
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.body import find_body
from pipeline.decay import nuclide as nuclide_named
from pipeline.density import hu_to_density
from pipeline.dose_rate import BQ_PER_MBQ
from pipeline.errors import InputRejected
from pipeline.grid import activity_onto, resample
from pipeline.lattice import box_corners, recentred
from pipeline.learning.example import save_volume
from pipeline.volume import Grid, Volume

if TYPE_CHECKING:
    from pipeline.rois import Roi

FORMAT = "dicomnode phantom 1"
ACCOUNT, SETTINGS = "phantom.json", "data.toml"

FIELD_MM = 390.0
"""Length of a phantom: what one SPECT sees, 81 slices of 4.8 mm, and the network's 130 of 3 mm."""

STRAY_VOXELS = 0.5
"""A CT whose axes stray from the patient's by less than this part of a voxel over its field is transverse."""

TELL_FROM = 0.01
"""Part of the activity from which on its loss is worth a note."""

LIMITS = (
    "Ratios between organs are those of the PET's tracer at the time of the PET; days after the therapy they "
    "are others. Organs were rescaled only where rescaled says so",
    "The truth has the blur and the noise of the PET: small lesions and cortices are less hot than they were",
    "It ends where the field ends: no activity and no tissue lies beyond",
)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the PET is turned into.

    activity_mbq: in the field, in the end. nuclide: of the therapy.
    rescale: VOI -> factor on its activity, before all is scaled to `activity_mbq`. Where such VOIs overlap,
        the smaller one's holds: a lesion's within its organ.
    centre_mm: patient z of the field's middle; None: where the field holds the most activity.
    """

    activity_mbq: float = 1000.0
    nuclide: str = "Lu-177"
    rescale: Mapping[str, float] = field(default_factory=dict)
    centre_mm: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.activity_mbq) and self.activity_mbq > 0):
            raise InputRejected(
                f"an activity of {self.activity_mbq} MBq cannot be", "Give --activity-mbq above 0"
            )
        nuclide_named(self.nuclide)  # raises for one that has no dose kernel
        for name, factor in self.rescale.items():
            if not (math.isfinite(factor) and factor >= 0):
                raise InputRejected(
                    f"the factor {factor} of VOI {name!r} cannot be", "Give a factor of 0 or more"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """activity: Bq/mL. density: g/cm3. vois: by name. All on one axial grid, the CT's voxels.

    account: what was done, for phantom.json. notes: what a person should know of it.
    """

    activity: Volume
    density: Volume
    vois: Mapping[str, Roi]
    account: Mapping[str, Any]
    notes: tuple[str, ...]


def phantom(pet: Volume, hu: Volume, rois: Sequence[Roi], wanted: Wanted) -> Phantom:
    """A virtual patient from a PET/CT.

    pet: Bq/mL at one instant, on any grid of the CT's frame of reference. hu: the CT, HU, its axes along
        (z, y, x), feet to head, front to back, right to left (`nifti.laid_axial`). rois: on the CT's grid.
    raises: InputRejected for a tilted CT, no activity within it or in its field or body, no body, a VOI to
        rescale that there is not; and where activity would be lost in resampling.
    """
    hu = _straight(hu)
    notes: list[str] = []
    slices = _field(pet, hu.grid, wanted.centre_mm)
    cut = hu.boxed((slices, slice(0, hu.grid.shape[1]), slice(0, hu.grid.shape[2])))
    vois = _within(_by_name(rois), slices, cut.grid, notes)
    factors = _factors_of(wanted.rescale, vois)
    found, report = activity_onto(pet, cut.grid, hu.grid)
    array, outside_mbq = _in_body(found, cut)
    used_mbq = _some_mbq(array, cut.grid)
    if factors:
        array *= _map_of(factors, vois, cut.grid)
    scale = wanted.activity_mbq / _some_mbq(array, cut.grid)
    array *= np.float32(scale)
    activity = Volume(array, cut.grid, "Bq/mL")
    notes += _lost(report.outside_ct_mbq, report.total_mbq, "of the PET lies outside the CT")
    notes += _lost(outside_mbq, used_mbq + outside_mbq, "in the field lies outside the body")
    notes += _uncovered(pet.grid, cut.grid)
    if not vois:
        notes.append("no VOIs: doses cannot be judged organ by organ")
    z = box_corners(cut.grid)[:, 2]
    account = {
        "activity": {
            "pet_mbq": report.total_mbq,
            "outside_ct_mbq": report.outside_ct_mbq,
            "outside_field_mbq": max(report.within_ct_mbq - used_mbq - outside_mbq, 0.0),
            "outside_body_mbq": outside_mbq,
            "used_mbq": used_mbq,
            "resampling_difference": report.common_difference,
        },
        "scaling": {
            "nuclide": nuclide_named(wanted.nuclide).name,
            "activity_mbq": wanted.activity_mbq,
            "rescaled": factors,
            "factor": scale,
        },
        "field": {
            "z_mm": [float(z.min()), float(z.max())],
            "voxels": list(cut.grid.shape),
            "spacing_mm": list(cut.grid.spacing_mm),
        },
        "vois": {name: _told(roi, activity) for name, roi in vois.items()},
        "limits": list(LIMITS),
    }
    return Phantom(activity, hu_to_density(cut), vois, account, tuple(notes))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def require_free(folder: Path, overwrite: bool) -> None:
    """raises: InputRejected where `folder` is there, unless it is a phantom that may be overwritten."""
    if not folder.exists():
        return
    if not overwrite:
        raise InputRejected(f"{folder} is there already", "Give another --name, or --overwrite")
    if not (folder / ACCOUNT).is_file():
        raise InputRejected(
            f"{folder} is no phantom: it has no {ACCOUNT}", "Remove it yourself, or give another --name"
        )


def save(made: Phantom, folder: Path, source: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a phantom as `folder`, which appears when it is complete. source: what it was made from.

    raises: InputRejected as `require_free`; OSError where it cannot be written.
    """
    require_free(folder, overwrite)
    # Two deep: whoever lists the patients meanwhile, or after a crash, finds none in it.
    aside = folder.parent / f".{folder.name}.{os.getpid()}.part"
    part = aside / "new"
    try:
        save_volume(part / "activity.npz", made.activity)
        save_volume(part / "density.npz", made.density)
        for name, roi in made.vois.items():
            mask = Volume(roi.mask.astype(np.float32), made.activity.grid, "1")
            save_volume(part / "vois" / f"{name}.npz", mask)
        nuclide = made.account["scaling"]["nuclide"]
        (part / SETTINGS).write_text(f'nuclide = "{nuclide}"\n', encoding="utf-8")
        told = {"format": FORMAT, "name": folder.name, "source": dict(source), **made.account}
        told["notes"] = list(made.notes)
        (part / ACCOUNT).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _put(part, folder, aside / "old")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(new: Path, folder: Path, old: Path) -> None:
    """`new` in the place of `folder`, which is kept where that fails."""
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if replaced:
            old.rename(folder)
        raise


# ── where ────────────────────────────────────────────────────────────────────────────────────────


def _straight(hu: Volume) -> Volume:
    """The CT on a grid whose axes are exactly the patient's; those that read phantoms rely on it."""
    grid = hu.grid
    axial = replace(grid, direction=Grid((1, 1, 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).direction)
    middle = (np.asarray(grid.shape) - 1) / 2
    x, y, z = (
        float(v) for v in np.asarray(grid.origin_mm) + grid.positions(middle) - axial.positions(middle)
    )
    axial = replace(axial, origin_mm=(x, y, z))
    if not grid.same_as(axial, STRAY_VOXELS * min(grid.spacing_mm)):
        degrees = math.degrees(math.acos(min(1.0, grid.direction[0][2])))
        raise InputRejected(
            f"the CT is not transverse: its slices lie {degrees:.2f} degrees askew, or turned in their plane",
            "Reconstruct transverse slices along the patient's axes",
        )
    return Volume(hu.array, axial, hu.unit)


def _field(pet: Volume, ct: Grid, centre_mm: float | None) -> slice:
    """Slices of the CT: `FIELD_MM` long, or all of a shorter CT."""
    step = ct.spacing_mm[0]
    count = min(max(round(FIELD_MM / step), 1), ct.shape[0])
    last = ct.shape[0] - count
    if centre_mm is not None:
        low, high = ct.origin_mm[2] - step / 2, ct.origin_mm[2] + (ct.shape[0] - 0.5) * step
        if not low <= centre_mm <= high:
            raise InputRejected(
                f"the CT reaches from {low:.0f} to {high:.0f} mm (patient z): {centre_mm:g} is not within",
                "Give --centre-mm within it, or leave it out",
            )
        first = min(max(round((centre_mm - ct.origin_mm[2]) / step - (count - 1) / 2), 0), last)
        return slice(first, first + count)
    slabs = recentred(
        ct, (ct.shape[0], 1, 1), (step, ct.shape[1] * ct.spacing_mm[1], ct.shape[2] * ct.spacing_mm[2])
    )
    profile = resample(pet, slabs).array.ravel().astype(np.float64)
    if not profile.sum() > 0:
        raise InputRejected(
            "no activity of the PET lies within the CT",
            "Check that PET and CT are of one session and that the positions in both headers are right",
        )
    sums = np.convolve(profile, np.ones(count), mode="valid")
    best = np.flatnonzero(sums >= sums.max() * (1 - 1e-6))
    middle = float(profile @ np.arange(len(profile)) / profile.sum())
    first = int(best[np.argmin(np.abs(best + (count - 1) / 2 - middle))])
    return slice(first, first + count)


def _in_body(activity: Volume, hu: Volume) -> tuple[NDArray[np.float32], float]:
    """Bq/mL in the patient, arms included, and the MBq outside: noise, and movement since the CT."""
    body = find_body(hu)
    inside = body.mask if body.apart is None else body.mask | body.apart
    array = np.where(inside, activity.array, np.float32(0))
    return array, _mbq(activity.array, hu.grid) - _mbq(array, hu.grid)


def _uncovered(pet: Grid, field: Grid) -> list[str]:
    """A note where the PET ends within the field."""
    seen, wanted = box_corners(pet)[:, 2], box_corners(field)[:, 2]
    missing = max(seen.min() - wanted.min(), 0.0) + max(wanted.max() - seen.max(), 0.0)
    if missing <= pet.spacing_mm[0]:
        return []
    return [f"the PET does not reach {missing:.0f} mm of the field's length: there the activity is 0"]


# ── VOIs ─────────────────────────────────────────────────────────────────────────────────────────


def _by_name(rois: Iterable[Roi]) -> dict[str, Roi]:
    """Names that can be files, told apart where they are the same."""
    named: dict[str, Roi] = {}
    for roi in rois:
        name = re.sub(r"[^\w +()-]+", "_", roi.name).strip(" _") or f"ROI {roi.number}"
        taken, again = {other.lower() for other in named}, 1
        unique = name
        while unique.lower() in taken:
            again += 1
            unique = f"{name} ({again})"
        named[unique] = roi
    return named


def _within(rois: Mapping[str, Roi], slices: slice, grid: Grid, notes: list[str]) -> dict[str, Roi]:
    """The VOIs as far as they lie in the field."""
    kept = {}
    for name, roi in rois.items():
        z, y, x = roi.box
        low, high = max(z.start, slices.start), min(z.stop, slices.stop)
        inside = roi.inside[max(low - z.start, 0) : max(high - z.start, 0)]
        if not inside.any():
            notes.append(f"VOI {name!r} lies outside the field and is left out")
            continue
        if inside.sum() < roi.inside.sum():
            notes.append(f"VOI {name!r} is cut by an end of the field")
        box = slice(low - slices.start, high - slices.start), y, x
        kept[name] = replace(roi, box=box, inside=np.ascontiguousarray(inside), shape=grid.shape)
    return kept


def _factors_of(rescale: Mapping[str, float], vois: Mapping[str, Roi]) -> dict[str, float]:
    """The factors by the names that the VOIs have here."""
    names = {name.lower(): name for name in vois} | {roi.name.lower(): name for name, roi in vois.items()}
    unknown = [name for name in rescale if name.lower() not in names]
    if unknown:
        there = ", ".join(repr(name) for name in vois) or "none: no RT Structure Set or Segmentation with one"
        raise InputRejected(f"there is no VOI {unknown[0]!r} in the field", f"There is {there}")
    return {names[name.lower()]: factor for name, factor in rescale.items()}


def _map_of(factors: Mapping[str, float], vois: Mapping[str, Roi], grid: Grid) -> NDArray[np.float32]:
    """(z, y, x): the factor of every voxel; the smallest VOI is painted last."""
    painted = np.ones(grid.shape, np.float32)
    for name in sorted(factors, key=lambda name: -int(vois[name].inside.sum())):
        painted[vois[name].box][vois[name].inside] = factors[name]
    return painted


def _told(roi: Roi, activity: Volume) -> dict[str, float]:
    values = roi.values(activity.array)
    voxel_ml = activity.grid.voxel_volume_ml
    return {
        "volume_ml": len(values) * voxel_ml,
        "mbq": float(values.sum(dtype=np.float64)) * voxel_ml / BQ_PER_MBQ,
    }


# ── amounts ──────────────────────────────────────────────────────────────────────────────────────


def _mbq(array: NDArray[np.float32], grid: Grid) -> float:
    return float(array.sum(dtype=np.float64)) * grid.voxel_volume_ml / BQ_PER_MBQ


def _some_mbq(array: NDArray[np.float32], grid: Grid) -> float:
    """As `_mbq`; raises InputRejected for none."""
    mbq = _mbq(array, grid)
    if not mbq > 0:
        raise InputRejected(
            "no activity is left in the patient's body within the field",
            "Check that PET and CT are of one session, --centre-mm and the factors of --rescale",
        )
    return mbq


def _lost(mbq: float, of_mbq: float, where: str) -> list[str]:
    share = mbq / of_mbq
    return [f"{share:.1%} of the activity {where} and is left out"] if share >= TELL_FROM else []
