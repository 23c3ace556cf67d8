"""One time point, from images to numbers: the steps in their order, each in its own module.

::

    CT ─ HU → density ─┐                         ┌─ body, field of view, drawn ROIs
    SPECT ─ Bq/mL → onto the CT's lattice → engines → dose-rate maps → statistics of each region
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.acquisition import Administration
from pipeline.body import body_mask
from pipeline.dataset import seconds_between
from pipeline.density import hu_to_density
from pipeline.dose_rate import AIR_BELOW_G_PER_CM3, DoseRate, engine
from pipeline.errors import InputRejected
from pipeline.grid import ResamplingReport, activity_onto, resample
from pipeline.histogram import RoiStatistics, roi_statistics
from pipeline.lattice import active_box, coarser, crop_box, field_of_view, recut, union_grid
from pipeline.plausibility import Plausibility, plausibility
from pipeline.rois import Roi
from pipeline.spect import SpectImage
from pipeline.volume import Triple, Volume

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]
Progress = Callable[[str, float], None]


class RegionKind(StrEnum):
    """Where a region comes from."""

    BODY = "body"
    FIELD_OF_VIEW = "field of view"
    ROI = "roi"


@dataclass(frozen=True, slots=True)
class DosimetrySettings:
    """What a site decides. engines: names in `pipeline.dose_rate.ENGINES`.

    grid_spacing_mm: (z, y, x) of the dose grid, never finer than the CT; None: the CT's own.
    plausibility_limit: largest accepted (found / administered) activity.
    """

    curve: Sequence[Sequence[float]]
    engines: tuple[str, ...] = ("dvk",)
    device: str = "cpu"
    grid_spacing_mm: Triple | None = None
    plausibility_limit: float = 1.10


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A region on the dose grid and its figures by engine. roi: as it was drawn, for kind ROI."""

    name: str
    kind: RegionKind
    mask: Mask
    statistics: dict[str, RoiStatistics]
    roi: Roi | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Dosimetry:
    """Everything that was found. All maps and masks lie on one dose grid, the body's box.

    maps: mGy/h at `reference_time`. density: g/cm³. activity: Bq/mL. plausibility: None when the
    administered activity is not known. notes: what a reader of the results should know.
    """

    maps: tuple[DoseRate, ...]
    regions: tuple[Region, ...]
    density: Volume
    activity: Volume
    reference_time: datetime
    resampling: ResamplingReport
    plausibility: Plausibility | None
    notes: tuple[str, ...]


def compute_dosimetry(
    hu: Volume,
    spect: SpectImage,
    rois: Sequence[Roi],
    given: Administration,
    settings: DosimetrySettings,
    progress: Progress = lambda _what, _part: None,
) -> Dosimetry:
    """Dose rates of a study.

    hu: the CT. spect: in the CT's frame of reference. rois: masks on the CT's grid. given: the
    administration, as far as it is known. progress: called with (step, 0 ... 1).
    raises: InputRejected when a person must act, EngineFailed when the machine is at fault.
    """
    notes = list(spect.notes)
    checked = _plausible(spect, given, settings.plausibility_limit, notes)
    progress("density", 0.0)
    hu, drawn = _on_dose_grid(hu, rois, settings.grid_spacing_mm)
    density = hu_to_density(hu, settings.curve)
    body = body_mask(hu)
    progress("activity onto the CT", 0.15)
    lattice = union_grid(hu.grid, active_box(spect.activity))
    activity, resampling = activity_onto(spect.activity, lattice, hu.grid)
    _note_outside(resampling, notes)
    field = field_of_view(spect.activity.grid, hu.grid) & (density.array >= AIR_BELOW_G_PER_CM3)
    box = _enclosing([crop_box(body), *(crop_box(mask) for mask in drawn)])
    # Only what is reported is computed: the density's grid tells an engine where.
    density = density.boxed(box)
    maps = _maps(activity, density, spect, settings, progress)
    for map_ in maps:
        notes += [note for note in map_.notes if note not in notes]
    activity = recut(activity, density.grid)
    progress("regions", 0.9)
    masks = [body[box], field[box], *(mask[box] for mask in drawn)]
    regions = _regions(masks, rois, maps, density, activity)
    return Dosimetry(
        maps, regions, density, activity, spect.reference_time, resampling, checked, tuple(notes)
    )


def _maps(
    activity: Volume, density: Volume, spect: SpectImage, settings: DosimetrySettings, progress: Progress
) -> tuple[DoseRate, ...]:
    maps = []
    for number, name in enumerate(settings.engines):

        def told(what: str, part: float, number: int = number, name: str = name) -> None:
            progress(f"{name}: {what}", 0.3 + 0.6 * (number + part) / len(settings.engines))

        maps.append(engine(name)(activity, density, spect.nuclide, settings.device, told))
    return tuple(maps)


def _on_dose_grid(hu: Volume, rois: Sequence[Roi], spacing_mm: Triple | None) -> tuple[Volume, list[Mask]]:
    """CT and ROIs on the grid that doses are computed on.

    A voxel belongs to an ROI when at least half of it does.
    """
    masks = [roi.mask for roi in rois]
    if spacing_mm is None:
        return hu, masks
    grid = coarser(hu.grid, spacing_mm)
    shares = (resample(Volume(mask.astype(np.float32), hu.grid, "1"), grid) for mask in masks)
    coarse = [share.array >= 0.5 for share in shares]
    for roi, mask in zip(rois, coarse, strict=True):
        if not mask.any():
            raise InputRejected(
                f"the ROI {roi.name!r} is smaller than a voxel of the dose grid ({spacing_mm} mm)",
                "Set a finer [dose] grid_spacing_mm, or discard that ROI",
            )
    return resample(hu, grid, outside=-1000.0), coarse


def _enclosing(boxes: Sequence[Box]) -> Box:
    z, y, x = (
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes))
        for axis in range(3)
    )
    return z, y, x


def _plausible(
    spect: SpectImage, given: Administration, limit: float, notes: list[str]
) -> Plausibility | None:
    if given.activity_bq is None or given.administered_at is None:
        notes.append(
            "the administered activity or its time is not known: the activity was not checked against it"
        )
        return None
    if given.nuclide_name and given.nuclide_name != spect.nuclide.name:
        raise InputRejected(
            f"{given.nuclide_name} was administered, but the SPECT is of {spect.nuclide.name}",
            "Correct the radionuclide in the dose report or in the SPECT's header",
        )
    hours = seconds_between(given.administered_at, spect.reference_time) / 3600.0
    return plausibility(spect.activity_bq, given.activity_bq, hours, spect.nuclide, limit)


def _note_outside(report: ResamplingReport, notes: list[str]) -> None:
    share = report.outside_ct_mbq / report.total_mbq
    if share >= 0.001:
        notes.append(
            f"{report.outside_ct_mbq:.4g} MBq ({share:.1%} of the SPECT's activity) lie outside the CT; "
            "they give their photon dose inside it"
        )


def _regions(
    masks: Sequence[Mask], rois: Sequence[Roi], maps: Sequence[DoseRate], density: Volume, activity: Volume
) -> tuple[Region, ...]:
    """masks: body, field of view, then one for each ROI."""
    fixed: list[tuple[str, RegionKind, Roi | None]] = [
        ("Body", RegionKind.BODY, None),
        ("Field of view", RegionKind.FIELD_OF_VIEW, None),
    ]
    named = [*fixed, *((roi.name, RegionKind.ROI, roi) for roi in rois)]
    return tuple(
        Region(
            name,
            kind,
            np.ascontiguousarray(mask),
            {m.engine: roi_statistics(name, mask, m.volume, density, activity) for m in maps},
            roi,
        )
        for (name, kind, roi), mask in zip(named, masks, strict=True)
    )
