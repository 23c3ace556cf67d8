"""Engine `mc`: dose rates by Monte Carlo transport of all that a decay emits, in the patient's own tissue.

Density decides medium and mass of every voxel (`materials.py`); electrons and photons are followed as
`simulate.py` says. What is simulated is the box that holds all tissue and all activity: outside it is
vacuum, so that a voxel outside it could only take energy away.

A SPECT is often longer than the CT. Beyond the CT's end slices the patient goes on, and without tissue
there the electrons would fly in from afar and photons would not scatter back: the end slices are repeated.
Beside the CT there is air.

Activity beside the known densities is that of air, or of an arm that the CT cuts off; there is no telling.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.constants import AIR_G_PER_CM3
from pipeline.dose_rate import (
    AIR_BELOW_G_PER_CM3,
    DoseRate,
    DoseRequest,
    Mask,
    MonteCarloSettings,
    Progress,
    RegionUncertainty,
    lattice_offset,
    percent,
    require_computable,
    silent,
)
from pipeline.errors import EngineFailed, InputRejected
from pipeline.lattice import crop_box, recut
from pipeline.volume import Grid, Volume

if TYPE_CHECKING:
    from pipeline.montecarlo.decay_data import DecaySource
    from pipeline.montecarlo.simulate import Simulation

NAMED_AT_MOST = 6
"""So many regions that missed the limit are named in a note."""

BESIDE_FROM = 0.001
"""Part of the activity beside the CT from which on a note says so."""

Interval = tuple[int, int]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What is simulated: all on one grid, the smallest box that holds all tissue and all activity.

    regions, reported: masks on that grid.
    """

    activity: Volume
    density: Volume
    regions: dict[str, Mask]
    reported: dict[str, Mask]
    notes: tuple[str, ...]


def mc_dose_rate(
    request: DoseRequest, progress: Progress = silent, simulate: Callable[..., Simulation] | None = None
) -> DoseRate:
    """Dose rate by Monte Carlo, until every region is certain enough or the time is over.

    simulate: with the signature of `pipeline.montecarlo.simulate.simulate`, which is the default.
    returns: the map with its statistical uncertainty; where the time limit ended the run, a note names
        the regions that are less certain than was wanted.
    raises: as `pipeline.dose_rate.Engine` says.
    """
    # Compiled code is loaded when it is needed: whoever only lists the engines does not wait for it.
    from pipeline.montecarlo.data import load_physics
    from pipeline.montecarlo.decay_data import load_source
    from pipeline.montecarlo.setup import source_hash
    from pipeline.montecarlo.simulate import Limits
    from pipeline.montecarlo.simulate import simulate as simulate_with_all

    require_computable(request.activity, request.density)
    settings = request.montecarlo
    source = load_source(request.nuclide.name)
    try:
        seen = scene(request)
        start = partial(
            simulate or simulate_with_all,
            seen.activity,
            seen.density,
            source,
            regions=seen.regions,
            reported=seen.reported,
            limits=Limits(
                decays=None, time_s=settings.time_limit_s, mean_uncertainty=settings.mean_uncertainty
            ),
            seed=settings.seed,
            device=request.device,
            # One name for all of it: the steps of a case are added up by name.
            progress=lambda _what, part: progress("transport", part),
            checkpoint=settings.checkpoint,
        )
        run = _anew_where_needed(start, settings.checkpoint)
    except MemoryError as error:
        raise EngineFailed(
            f"memory did not suffice for a Monte Carlo of {request.density.grid.shape} (z, y, x) voxels",
            "Set a coarser [dose] grid_spacing_mm, or give the node more memory",
        ) from error
    _require_result(run, settings)
    progress("dose rate", 1.0)
    return DoseRate(
        volume=recut(run.dose_rate, request.density.grid),
        engine="mc",
        device=run.device,
        kernel_sha256=_sha256(load_physics().sha256, source_hash(source)),
        uncertainty=recut(run.uncertainty, request.density.grid),
        regions=_certain(run),
        parameters=_parameters(run, source, settings, seen.reported),
        notes=(*seen.notes, *run.notes, *_missed(run, settings, seen.reported)),
    )


def scene(request: DoseRequest) -> Scene:
    """Activity, density and regions on the box that is simulated.

    raises: InputRejected when activity and density do not share a lattice.
    """
    result = request.density
    known = request.surroundings or result
    offset = lattice_offset(request.activity.grid, result.grid)
    sources = crop_box(request.activity.array > 0)
    tissue = crop_box(result.array >= AIR_BELOW_G_PER_CM3)
    spans = [
        (min(t.start, s.start + at), max(t.stop, s.stop + at))
        for t, s, at in zip(tissue, sources, offset, strict=True)
    ]
    grid = _boxed(result.grid, spans)
    # On exactly that lattice: the activity's own may be a hundredth of a voxel off.
    lattice = result.grid.boxed(offset, request.activity.grid.shape)
    activity = recut(Volume(request.activity.array, lattice, request.activity.unit), grid)
    density, added = _continued(known, grid)
    notes = (*_note_longer(added), *_note_beside(activity, known.grid))
    return Scene(
        activity,
        density,
        _regions(request.regions, request, grid),
        _regions(request.reported, request, grid),
        notes,
    )


def _boxed(grid: Grid, spans: list[Interval]) -> Grid:
    (z, zz), (y, yy), (x, xx) = spans
    return grid.boxed((z, y, x), (zz - z, yy - y, xx - x))


def _continued(known: Volume, grid: Grid) -> tuple[Volume, int]:
    """Density on another box of the lattice: end slices repeated along z, air beside; slices added."""
    array = recut(known, grid, outside=AIR_G_PER_CM3).array
    first = round(float(grid.indices(known.grid.origin_mm)[0]))  # of the known slices, within the box
    last = first + known.grid.shape[0] - 1
    n = grid.shape[0]
    # Where the box lies wholly beyond the known slices, there is no end slice within it to repeat.
    if 0 < first < n:
        array[:first] = array[first]
    if 0 <= last < n - 1:
        array[last + 1 :] = array[last]
    return Volume(array, grid, known.unit), max(first, 0) + max(n - 1 - last, 0)


def _note_longer(added: int) -> tuple[str, ...]:
    if not added:
        return ()
    return (f"the SPECT reaches {added} slices beyond the CT: its end slice was taken to go on unchanged",)


def _note_beside(activity: Volume, known: Grid) -> tuple[str, ...]:
    """Activity that lies beside the known densities, not before or behind them."""
    start = np.rint(activity.grid.indices(known.origin_mm)).astype(int)
    y, x = (
        slice(max(int(at), 0), max(int(at) + n, 0)) for at, n in zip(start[1:], known.shape[1:], strict=True)
    )
    total = float(activity.array.sum(dtype=np.float64))
    share = 1.0 - float(activity.array[:, y, x].sum(dtype=np.float64)) / total
    if share < BESIDE_FROM:
        return ()
    return (f"{share:.1%} of the activity lies beside the CT, where the Monte Carlo takes it to be in air",)


def _regions(regions: Mapping[str, Mask], request: DoseRequest, grid: Grid) -> dict[str, Mask]:
    """The request's regions on the box. It holds all tissue: what it may cut off a mask is air."""

    def on_box(mask: Mask) -> Mask:
        of = Volume(mask.astype(np.float32), request.density.grid, "1")
        return np.asarray(recut(of, grid).array > 0)

    return {name: on_box(mask) for name, mask in regions.items()}


def _anew_where_needed(start: Callable[[], Simulation], checkpoint: Path | None) -> Simulation:
    """What a damaged checkpoint, or one of software that was changed since, costs is time, and no person's.

    raises: InputRejected when the images themselves cannot be computed.
    """
    if checkpoint is None or not checkpoint.exists():
        return start()
    try:
        return start()
    except InputRejected as error:
        log.warning("the Monte Carlo begins anew: %s", error.reason)
        checkpoint.unlink(missing_ok=True)
        return start()


def _require_result(run: Simulation, settings: MonteCarloSettings) -> None:
    """raises: EngineFailed for a run whose map nobody could judge."""
    if run.stopped_by.value == "cancelled":
        raise EngineFailed("the Monte Carlo was stopped", "The next attempt goes on where it stopped")
    if _knows_nothing(run):
        raise EngineFailed(
            f"the time limit of {settings.time_limit_s:g} s ended the Monte Carlo before it knew anything",
            "Raise [montecarlo] time_limit_s",
        )


def _knows_nothing(run: Simulation) -> bool:
    """No map, or none whose uncertainty is known: electrons or photons have run once at most."""
    dosed = [r for r in run.regions if r.mean_mgy_per_h > 0]
    unknown = bool(dosed) and not any(math.isfinite(r.uncertainty_of_mean) for r in dosed)
    return unknown or not run.uncertainty.array.any()


def _certain(run: Simulation) -> tuple[RegionUncertainty, ...]:
    """Regions without dose have no relative uncertainty, and are left out."""
    found = [
        RegionUncertainty(r.name, float(r.uncertainty_of_mean), float(r.mean_voxel_uncertainty))
        for r in run.regions
    ]
    return tuple(r for r in found if math.isfinite(r.of_mean) and math.isfinite(r.of_voxels))


def _missed(run: Simulation, settings: MonteCarloSettings, reported: Mapping[str, Mask]) -> tuple[str, ...]:
    """Which regions are less certain than was wanted when the time was over; nothing if it was not."""
    if run.stopped_by.value != "time":
        return ()
    wanted = settings.mean_uncertainty
    decided = [r for r in run.regions if r.name not in reported]
    missed = [r for r in decided if r.mean_mgy_per_h > 0 and not r.mean_voxel_uncertainty <= wanted]
    if decided and not missed:
        return ()
    missed.sort(key=lambda r: -r.mean_voxel_uncertainty)
    named = ", ".join(f"{r.name} {_known(r.mean_voxel_uncertainty)}" for r in missed[:NAMED_AT_MOST])
    others = f" and {len(missed) - NAMED_AT_MOST} more" if len(missed) > NAMED_AT_MOST else ""
    return (
        f"the time limit of {settings.time_limit_s:g} s ended the Monte Carlo before the mean uncertainty of "
        f"the voxels came down to {percent(wanted)} everywhere" + (f": {named}{others}" if named else ""),
    )


def _known(uncertainty: float) -> str:
    return percent(uncertainty) if math.isfinite(uncertainty) else "not known"


def _parameters(
    run: Simulation, source: DecaySource, settings: MonteCarloSettings, reported: Mapping[str, Mask]
) -> tuple[str, ...]:
    """reported: regions that decided nothing; the mean uncertainty is that of the others."""
    worst = max((r.of_voxels for r in _certain(run) if r.name not in reported), default=None)
    return (
        f"electron_decays={run.electron_decays}",
        f"photon_decays={run.photon_decays}",
        *(() if worst is None else (f"mean_uncertainty={percent(worst)}",)),
        f"mean_uncertainty_limit={percent(settings.mean_uncertainty)}",
        f"time_limit_s={settings.time_limit_s:g}",
        f"stopped_by={run.stopped_by.value}",
        f"device={run.device}",
        f"seed={settings.seed}",
        f"decay_data={source.evaluation}",
        f"zero_below_g_per_cm3={AIR_BELOW_G_PER_CM3:g}",
    )


def _sha256(of_physics: str, of_source: str) -> str:
    """Which data the numbers rest on: the physics tables and the decay of this nuclide."""
    return hashlib.sha256(f"{of_physics} {of_source}".encode()).hexdigest()
