"""One time point, from images to numbers: the steps in their order, each in its own module.

::

    CT ─ HU → density ─┬─ body, field of view, drawn ROIs ─┐
    SPECT ─ Bq/mL → onto the CT's lattice → engines → dose-rate maps → statistics of each region
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from pipeline.acquisition import Administration
from pipeline.body import Body, find_body
from pipeline.dataset import seconds_between
from pipeline.density import hu_to_density
from pipeline.dose_grid import GridField, Mask, dose_box, on_dose_grid, outside_grid
from pipeline.dose_rate import (
    AIR_BELOW_G_PER_CM3,
    DoseRate,
    DoseRequest,
    Heterogeneity,
    MonteCarloSettings,
    NetworkSettings,
    RegionUncertainty,
)
from pipeline.engines import engine
from pipeline.errors import InputRejected
from pipeline.grid import ResamplingReport, activity_onto
from pipeline.histogram import RegionKind, RoiStatistics, roi_statistics
from pipeline.lattice import active_box, field_of_view, recut, union_grid
from pipeline.network import unsuitable
from pipeline.plausibility import Plausibility, plausibility
from pipeline.rois import Roi
from pipeline.spect import SpectImage
from pipeline.volume import Grid, Triple, Volume

LITTLE_FOUND = 0.01
"""Part of the expected activity below which the results say so: no limit, for excretion has none."""

UNSEEN_FROM = 0.01
"""Part of a region outside the SPECT's field from which on the results say so."""

BODY = "Body"
FIELD_OF_VIEW = "Field of view"

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class DosimetrySettings:
    """What a site decides. engines: names in `pipeline.engines.ENGINES`.

    grid_spacing_mm: (z, y, x) of the dose grid, never finer than the CT; None: the CT's own. grid_field: how
    much of the patient it holds.
    plausibility_limit: largest accepted (found / administered) activity.
    max_outside_ct: largest accepted part of the SPECT's activity that lies outside the CT's box.
    heterogeneity, kernel_cache: of DVK. montecarlo: when a Monte Carlo ends. network: of engine cnn.
    """

    curve: Sequence[Sequence[float]]
    engines: tuple[str, ...] = ("dvk",)
    device: str = "cpu"
    grid_spacing_mm: Triple | None = None
    grid_field: GridField = "ct"
    plausibility_limit: float = 1.10
    max_outside_ct: float = 0.5
    heterogeneity: Heterogeneity = "density_scaling"
    kernel_cache: Path | None = None
    montecarlo: MonteCarloSettings = field(default_factory=MonteCarloSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A region on the dose grid and its figures by engine. roi: as it was drawn, for kind ROI.

    uncertainty: by engine; only of engines with statistics, and of regions that they were asked for.
    """

    name: str
    kind: RegionKind
    mask: Mask
    statistics: dict[str, RoiStatistics]
    roi: Roi | None = None
    uncertainty: dict[str, RegionUncertainty] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Dosimetry:
    """Everything that was found. All maps and masks lie on one dose grid.

    It is the box of the body, of what tissue lies apart from it (arms: they get a dose too, and a reader of
    the map looks there) and of the ROIs; with grid_field "spect", its part in the SPECT's field. The figures
    of the region Body are of the body alone.

    maps: mGy/h at `reference_time`. density: g/cm³. activity: Bq/mL. plausibility: None when the
    administered activity is not known. notes: what a reader of the results should know. flags: those of the
    notes that a person must not overlook.
    """

    maps: tuple[DoseRate, ...]
    regions: tuple[Region, ...]
    density: Volume
    activity: Volume
    reference_time: datetime
    resampling: ResamplingReport
    plausibility: Plausibility | None
    notes: tuple[str, ...]
    flags: tuple[str, ...] = ()


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
    notes, flags = list(spect.notes), []
    checked = _plausible(spect, given, settings.plausibility_limit, notes)
    progress("density", 0.0)
    # Found where the CT is sharp: a thin chest wall would open on a coarse grid, and the lungs fall out.
    found = find_body(hu)
    _note_apart(found, hu.grid, notes)
    hu, found, drawn = on_dose_grid(hu, found, rois, settings.grid_spacing_mm)
    body = found.mask
    density = hu_to_density(hu, settings.curve)
    progress("activity onto the CT", 0.15)
    lattice = union_grid(hu.grid, active_box(spect.activity))
    activity, resampling = activity_onto(spect.activity, lattice, hu.grid)
    _require_overlap(resampling, settings.max_outside_ct)
    _note_outside(resampling, notes)
    seen = field_of_view(spect.activity.grid, hu.grid)
    # Of the body alone: the table and what lies on it are no patient.
    field = seen & body & (density.array >= AIR_BELOW_G_PER_CM3)
    if not field.any():
        raise InputRejected(
            "the SPECT's field of view holds no part of the body",
            "Check that SPECT and CT are of one session and that the positions in both headers are right",
        )
    apart = [] if found.apart is None else [found.apart]
    box = dose_box([body, *apart, *drawn], seen, settings.grid_field)
    held, cut, cut_rois = outside_grid(body, rois, drawn, box)
    notes += [*cut, *cut_rois]
    flags += cut_rois
    rois = [roi for roi, _ in held]
    masks = [body[box], field[box], *(mask[box] for _, mask in held)]
    _note_unseen(seen[box], ["body", *(f"ROI {roi.name!r}" for roi in rois)], [masks[0], *masks[2:]], notes)
    engines, without = _engines(settings, spect, density.grid)
    flags += without
    notes += without
    # Only what is reported is computed: the density's grid tells an engine where. What lies around it counts.
    whole, density = density, density.boxed(box)
    maps = _maps(
        _request(activity, density, whole, spect, _asked(rois, masks), _beside(masks), settings),
        engines,
        progress,
    )
    for map_ in maps:
        notes += [note for note in map_.notes if note not in notes]
        flags += map_.flags
    activity = recut(activity, density.grid)
    progress("regions", 0.9)
    regions = _regions(masks, rois, maps, density, activity)
    return Dosimetry(
        maps,
        regions,
        density,
        activity,
        spect.reference_time,
        resampling,
        checked,
        tuple(notes),
        tuple(flags),
    )


def _engines(settings: DosimetrySettings, spect: SpectImage, grid: Grid) -> tuple[tuple[str, ...], list[str]]:
    """The engines that may compute this study, and why one of those that were asked for may not.

    Where the network may not, DVK stands in its place.
    raises: InputRejected when the approved weights are missing or altered.
    """
    if "cnn" not in settings.engines:
        return settings.engines, []
    reason = unsuitable(settings.network, spect.nuclide, grid)
    if not reason:
        return settings.engines, []
    instead = tuple(dict.fromkeys("dvk" if name == "cnn" else name for name in settings.engines))
    return instead, [f"engine cnn was not used, and dvk stands in its place: {reason}"]


def _request(
    activity: Volume,
    density: Volume,
    whole: Volume,
    spect: SpectImage,
    asked: dict[str, Mask],
    beside: dict[str, Mask],
    settings: DosimetrySettings,
) -> DoseRequest:
    return DoseRequest(
        activity,
        density,
        spect.nuclide,
        settings.device,
        regions=asked,
        reported={name: mask for name, mask in beside.items() if name not in asked},
        heterogeneity=settings.heterogeneity,
        kernel_cache=settings.kernel_cache,
        montecarlo=settings.montecarlo,
        surroundings=whole,
        network=settings.network,
        image=spect.activity,
    )


def _maps(request: DoseRequest, engines: Sequence[str], progress: Progress) -> tuple[DoseRate, ...]:
    maps = []
    for number, name in enumerate(engines):

        def told(what: str, part: float, number: int = number, name: str = name) -> None:
            progress(f"{name}: {what}", 0.3 + 0.6 * (number + part) / len(engines))

        maps.append(engine(name)(request, told))
    return tuple(maps)


def _names(rois: Sequence[Roi]) -> list[str]:
    """A name for each region of interest that no other has: two objects may both hold a "Liver"."""
    names: list[str] = []
    for roi in rois:
        name, number = roi.name, 1
        while name in (BODY, FIELD_OF_VIEW, *names):
            number += 1
            name = f"{roi.name} ({number})"
        names.append(name)
    return names


def _asked(rois: Sequence[Roi], masks: Sequence[Mask]) -> dict[str, Mask]:
    """Where an engine with statistics must become certain enough: the ROIs; without any, the field of view.

    Never the body: most of it holds so little dose that no run would end.
    """
    return dict(zip(_names(rois), masks[2:], strict=True)) if rois else {FIELD_OF_VIEW: masks[1]}


def _beside(masks: Sequence[Mask]) -> dict[str, Mask]:
    """What is reported as well, however certain it is by then."""
    return {BODY: masks[0], FIELD_OF_VIEW: masks[1]}


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
    checked = plausibility(spect.activity_bq, given.activity_bq, hours, spect.nuclide, limit)
    if checked.fraction < LITTLE_FOUND:
        notes.append(
            f"little of the administered activity was found: {checked}. It may have left the patient or lie "
            "outside the field; a wrong sensitivity, duration or unit looks the same"
        )
    return checked


def _note_apart(found: Body, grid: Grid, notes: list[str]) -> None:
    if found.apart is not None:
        volume_ml = float(found.apart.sum()) * grid.voxel_volume_ml
        notes.append(
            f"tissue of {volume_ml:.0f} mL lies apart from the body (arms?): the dose map shows it, but the "
            "figures of the region Body leave it out"
        )


def _require_overlap(report: ResamplingReport, limit: float) -> None:
    share = report.outside_ct_mbq / report.total_mbq
    if share > limit:
        raise InputRejected(
            f"SPECT and CT overlap too little: {report.within_ct_mbq:.4g} MBq lie inside the CT and "
            f"{report.outside_ct_mbq:.4g} MBq ({share:.1%}) outside; at most {limit:.1%} may",
            "Check that SPECT and CT are of one session and bed position and that the positions in both "
            "headers are right; where the CT shows a part of the patient on purpose, raise "
            "[dose] max_outside_ct",
        )


def _note_outside(report: ResamplingReport, notes: list[str]) -> None:
    share = report.outside_ct_mbq / report.total_mbq
    if share >= 0.001:
        notes.append(
            f"{report.outside_ct_mbq:.4g} MBq ({share:.1%} of the SPECT's activity) lie outside the CT; "
            "they give their photon dose inside it"
        )


def _note_unseen(seen: Mask, names: Sequence[str], masks: Sequence[Mask], notes: list[str]) -> None:
    """seen: what the SPECT covers. A region beyond it has a dose rate, and one that is too low."""
    for name, mask in zip(names, masks, strict=True):
        share = 1.0 - float(seen[mask].mean())
        if share >= UNSEEN_FROM:
            notes.append(
                f"{share:.1%} of the {name} lie outside the SPECT's field of view, where activity is not "
                "known and counts as none: dose rates there are too low"
            )


def _regions(
    masks: Sequence[Mask], rois: Sequence[Roi], maps: Sequence[DoseRate], density: Volume, activity: Volume
) -> tuple[Region, ...]:
    """masks: body, field of view, then one for each ROI."""
    fixed: list[tuple[str, RegionKind, Roi | None]] = [
        (BODY, RegionKind.BODY, None),
        (FIELD_OF_VIEW, RegionKind.FIELD_OF_VIEW, None),
    ]
    named = [*fixed, *((roi.name, RegionKind.ROI, roi) for roi in rois)]
    asked_as = [BODY, FIELD_OF_VIEW, *_names(rois)]
    certain = {(m.engine, found.name): found for m in maps for found in m.regions}
    return tuple(
        Region(
            name,
            kind,
            np.ascontiguousarray(mask),
            {m.engine: roi_statistics(name, mask, m.volume, density, activity) for m in maps},
            roi,
            {m.engine: certain[m.engine, key] for m in maps if (m.engine, key) in certain},
        )
        for (name, kind, roi), key, mask in zip(named, asked_as, masks, strict=True)
    )
