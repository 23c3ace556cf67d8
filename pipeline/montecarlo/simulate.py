"""A Monte Carlo run: from activity and density to a dose-rate map with its uncertainty.

::

    dose rate = A · 3600 s/h · (e_electrons + e_photons) / m

A: decays per second in the whole map; e: energy that a decay leaves in the voxel in the mean; m: mass of the
voxel. Electrons and photons of the decays run in batches of their own (`schedule`), on the processor or the
graphics card.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.constants import JOULE_PER_KEV
from pipeline.dose_rate import AIR_BELOW_G_PER_CM3, HOUR_S, lattice_offset, require_computable
from pipeline.errors import InputRejected
from pipeline.lattice import recut
from pipeline.montecarlo import checkpoint as checkpoints
from pipeline.montecarlo.batches import (
    Estimate,
    Region,
    RegionFigures,
    empty_estimate,
    region_figures,
    regions_of,
)
from pipeline.montecarlo.compiled import PACKAGE_STAMP
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.sampling import Emission
from pipeline.montecarlo.schedule import LEAST_BATCHES, Limits, next_batch
from pipeline.montecarlo.setup import source_hash, voxel_transport
from pipeline.montecarlo.threads import Runner, ThreadRunner, Transport
from pipeline.volume import Volume

__all__ = ["Limits", "RegionUncertainty", "Simulation", "StopReason", "simulate"]

MGY_PER_GY = 1e3
GRAM_PER_KG = 1e3
CHECKPOINT_EVERY_S = 60.0
MEASURE_EVERY = 10.0

Progress = Callable[[str, float], None]
Cancelled = Callable[[], bool]


class StopReason(Enum):
    """Why a run ended."""

    DECAYS = "decays"
    TIME = "time"
    UNCERTAINTY = "uncertainty"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class RegionUncertainty:
    """A region's dose rate and how certain it is; one standard deviation each.

    uncertainty_of_mean: relative, of the mean dose rate. mean_voxel_uncertainty: relative, the mean over the
        region's
    voxels of theirs. Infinite before two batches of every kind have run. Air belongs to no region.
    """

    name: str
    mean_mgy_per_h: float
    uncertainty_of_mean: float
    mean_voxel_uncertainty: float


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What a run gave.

    dose_rate, uncertainty: mGy/h on the density's grid; uncertainty is one standard deviation of each voxel
        from the spread of the batches, 0 where no history came. emitted, deposited, escaped: energy, keV, of
        all histories.
    electron_decays, photon_decays: decays whose electrons, and whose photons, were followed.
    """

    dose_rate: Volume
    uncertainty: Volume
    regions: tuple[RegionUncertainty, ...]
    electron_decays: int
    photon_decays: int
    emitted_kev: float
    deposited_kev: float
    escaped_kev: float
    stopped_by: StopReason
    device: str
    seconds: float
    notes: tuple[str, ...] = ()


def simulate(
    activity: Volume,
    density: Volume,
    source: Emission,
    *,
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
    reported: Mapping[str, NDArray[np.bool_]] | None = None,
    limits: Limits,
    seed: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    checkpoint: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    threads: int | None = None,
) -> Simulation:
    """Dose rate of an activity in a body.

    activity: Bq/mL. density: g/cm³; both on one lattice, all activity inside the density's grid.
    regions: name -> (z, y, x) mask on the density's grid; they decide when `limits.mean_uncertainty` is
        reached (all tissue when there are none) and are reported. reported: others, which decide nothing.
    seed: same seed and same limit of decays, same result.
    device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; falls back to the processor and says so in the notes.
    progress: called with (what is done, 0 ... 1). cancelled: asked about ten times a second; the result is
        then what the complete batches gave.
    checkpoint: file that an unfinished run keeps its state in and goes on from; removed when a limit is
        reached.
    threads: of the processor; all cores that the process may use by default.
    raises: InputRejected for what cannot be computed, before any history runs.
    """
    activity = on_density_grid(activity, density)
    masks, others = dict(regions or {}), dict(reported or {})
    require_masks(masks | others, density)
    gram = density.array * np.float32(density.grid.voxel_volume_ml)
    least = AIR_BELOW_G_PER_CM3 * density.grid.voxel_volume_ml
    deciding = regions_of(masks or {"tissue": density.array >= AIR_BELOW_G_PER_CM3}, gram, least)
    followed = (*deciding, *regions_of(others, gram, least))
    transport = voxel_transport(activity, density, source)
    inputs = _inputs_hash(activity, density, source, masks | others, limits, seed)
    estimates = _begin(checkpoint, inputs, activity.array.size, source)
    runner, notes = _runner(device, transport, seed, threads)
    run = _Run(
        limits, followed, len(deciding), estimates, runner, clock, progress or _silent, cancelled or _never
    )
    if checkpoint is not None:
        run.save = lambda: checkpoints.save(checkpoint, inputs, estimates)
    reason = run.to_the_end()
    if checkpoint is not None:
        run.save() if reason is StopReason.CANCELLED else checkpoint.unlink(missing_ok=True)
    runner.close()  # the maps take its place
    bq = float(activity.array.sum(dtype=np.float64)) * density.grid.voxel_volume_ml
    return _result(run, reason, density, gram, bq, 0 if masks else 1, notes)


@dataclass(slots=True, eq=False)
class _Run:
    """The loop over batches."""

    limits: Limits
    regions: tuple[Region, ...]  # the first `deciding` of them decide when it is enough
    deciding: int
    estimates: tuple[Estimate, ...]
    runner: Runner
    clock: Callable[[], float]
    progress: Progress
    cancelled: Cancelled
    save: Callable[[], None] = lambda: None
    seconds: float = 0.0
    figures: tuple[RegionFigures, ...] = ()
    _saved_at: float = field(default=0.0, init=False)
    _measured_at: float = field(default=0.0, init=False)
    _measuring_s: float = field(default=0.0, init=False)

    def to_the_end(self) -> StopReason:
        """Run batches until a limit is reached. returns: which."""
        began = self.clock() - sum(estimate.seconds for estimate in self.estimates)
        self._saved_at = self.clock()
        self._measure()
        self.progress("Monte Carlo", 0.0)
        while True:
            self.seconds = self.clock() - began
            reason = self._reached()
            if reason is not None:
                break
            electrons, photons = self.estimates[0], self.estimates[1] if len(self.estimates) > 1 else None
            batch = next_batch(self.limits, electrons, photons, self._variances())
            if batch is None:
                reason = StopReason.DECAYS
                break
            estimate = self.estimates[batch.photons]
            start = self.clock()
            if self.runner.run(batch.photons, estimate.decays, batch.size, lambda: self._stop(began)):
                histories_s = max(self.clock() - start, 1e-9)
                self.runner.take_in(estimate, batch.size, self.regions)
                estimate.seconds += max(self.clock() - start, 1e-9)
                estimate.histories_s += histories_s
                estimate.per_second = batch.size / histories_s
                self._measure_now_and_then()
                self.progress("Monte Carlo", self._part())
                self._save_now_and_then()
        self._measure()
        return reason

    def _stop(self, began: float) -> bool:
        late = self.limits.time_s is not None and self.clock() - began >= self.limits.time_s
        return self.cancelled() or late

    def _reached(self) -> StopReason | None:
        if self.cancelled():
            return StopReason.CANCELLED
        wanted = self.limits.mean_uncertainty
        enough = all(len(estimate.sizes) >= LEAST_BATCHES for estimate in self.estimates)
        if wanted is not None and enough and self._worst() <= wanted:
            return StopReason.UNCERTAINTY
        if self.limits.time_s is not None and self.seconds >= self.limits.time_s:
            return StopReason.TIME
        return None

    def _measure_now_and_then(self) -> None:
        """Looking at every voxel of every region takes its time: at most a tenth of all."""
        if self.clock() - self._measured_at >= MEASURE_EVERY * self._measuring_s:
            self._measure()

    def _measure(self) -> None:
        began = self.clock()
        for estimate in self.estimates:
            self.runner.settle(estimate)
        self.figures = tuple(region_figures(self.estimates, region) for region in self.regions)
        self._measured_at = self.clock()
        self._measuring_s = self._measured_at - began

    def _worst(self) -> float:
        """The largest mean voxel uncertainty of a deciding region that receives a dose; 0 if none does."""
        return max((f.of_voxels for f in self.figures[: self.deciding] if f.mean > 0), default=0.0)

    def _variances(self) -> tuple[float, float]:
        """Of electrons and photons, relative to the dose squared, over the regions that decide."""
        deciding = self.figures[: self.deciding]
        return sum(f.electrons for f in deciding), sum(f.photons for f in deciding)

    def _part(self) -> float:
        """How much of the way to the nearest limit is done, 0 ... 1."""
        parts = [0.0]
        if self.limits.decays is not None:
            parts.append(sum(e.decays for e in self.estimates) / (self.limits.decays * len(self.estimates)))
        if self.limits.time_s is not None:
            parts.append(sum(e.seconds for e in self.estimates) / self.limits.time_s)
        if self.limits.mean_uncertainty is not None and self._worst() > 0:
            parts.append((self.limits.mean_uncertainty / self._worst()) ** 2)
        return min(max(parts), 1.0)

    def _save_now_and_then(self) -> None:
        if self.clock() - self._saved_at >= CHECKPOINT_EVERY_S:
            for estimate in self.estimates:
                self.runner.settle(estimate)
            self.save()
            self._saved_at = self.clock()


def on_density_grid(activity: Volume, density: Volume) -> Volume:
    """The activity on the density's grid. raises: InputRejected for values that cannot be, or where some lies
    outside the grid."""
    require_computable(activity, density)
    offset = lattice_offset(density.grid, activity.grid)
    lattice = density.grid.boxed((-offset[0], -offset[1], -offset[2]), activity.grid.shape)
    inside = recut(Volume(activity.array, lattice, activity.unit), density.grid)
    outside = np.count_nonzero(activity.array) - np.count_nonzero(inside.array)
    if outside:
        raise InputRejected(
            f"{outside} voxels with activity lie outside the density grid",
            "Extend the density to where the activity is, or crop the activity",
        )
    return inside


def require_masks(masks: Mapping[str, NDArray[np.bool_]], density: Volume) -> None:
    """raises: InputRejected for a region that is not on the density's grid, or is no mask."""
    for name, mask in masks.items():
        if mask.dtype != np.bool_:
            raise InputRejected(f"region {name!r} is no mask but {mask.dtype}", "Give True where it is")
        if mask.shape != density.grid.shape:
            raise InputRejected(
                f"region {name!r} has {mask.shape} (z, y, x) voxels, the density {density.grid.shape}",
                "Resample the region onto the density's grid",
            )


def _begin(checkpoint: Path | None, inputs: str, voxels: int, source: Emission) -> tuple[Estimate, ...]:
    if checkpoint is not None and checkpoint.exists():
        return checkpoints.load(checkpoint, inputs)
    kinds = 2 if float(np.sum(source.photon_yield)) > 0 else 1
    return tuple(empty_estimate(voxels) for _ in range(kinds))


def _runner(
    device: str, transport: Transport, seed: int, threads: int | None
) -> tuple[Runner, tuple[str, ...]]:
    if device == "cpu":
        return ThreadRunner(transport, seed, threads), ()
    from pipeline.montecarlo.cuda import cuda_runner  # numba-cuda is optional

    runner, notes = cuda_runner(transport, seed, device)
    if runner is None:
        return ThreadRunner(transport, seed, threads), notes
    return runner, notes


def _inputs_hash(
    activity: Volume,
    density: Volume,
    source: Emission,
    masks: Mapping[str, NDArray[np.bool_]],
    limits: Limits,
    seed: int,
) -> str:
    facts = f"{density.grid.shape} {density.grid.spacing_mm} {seed} {limits.decays} {sorted(masks)}"
    arrays = [activity.array, density.array, *(masks[name] for name in sorted(masks))]
    return checkpoints.inputs_hash(
        [PACKAGE_STAMP, facts, load_physics().sha256, source_hash(source), *arrays]
    )


def _result(
    run: _Run,
    reason: StopReason,
    density: Volume,
    gram: NDArray[np.float32],
    bq: float,
    unnamed: int,
    notes: tuple[str, ...],
) -> Simulation:
    """unnamed: so many of the first regions nobody asked for."""
    # mGy/h of 1 keV per decay in 1 g.
    scale = bq * HOUR_S * JOULE_PER_KEV * GRAM_PER_KG * MGY_PER_GY
    dose, error = _maps(run.estimates, density.array, gram, scale)
    if any(len(estimate.sizes) < 2 for estimate in run.estimates):
        notes = (*notes, "fewer than two batches of each kind have run: the uncertainty is not known")
    asked = list(zip(run.regions, run.figures, strict=True))[unnamed:]
    missed = [region.name for region, figures in asked if _never_reached(region, figures)]
    if missed:
        notes = (*notes, f"no history reached {', '.join(missed)}: the dose there is not known to be zero")
    decays = [estimate.decays for estimate in run.estimates] + [0]
    return Simulation(
        dose_rate=Volume(dose, density.grid, "mGy/h"),
        uncertainty=Volume(error, density.grid, "mGy/h"),
        regions=tuple(
            RegionUncertainty(region.name, figures.mean * scale, figures.of_mean, figures.of_voxels)
            for region, figures in asked
        ),
        electron_decays=decays[0],
        photon_decays=decays[1],
        emitted_kev=sum(estimate.emitted_kev for estimate in run.estimates),
        deposited_kev=sum(float(estimate.total.sum()) for estimate in run.estimates),
        escaped_kev=sum(estimate.escaped_kev for estimate in run.estimates),
        stopped_by=reason,
        device=run.runner.device,
        seconds=run.seconds,
        notes=notes,
    )


def _never_reached(region: Region, figures: RegionFigures) -> bool:
    """Such a region ends no run, and has no uncertainty."""
    return region.voxels.size > 0 and figures.mean == 0.0


def _maps(
    estimates: tuple[Estimate, ...], density: NDArray[np.float32], gram: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Dose rate and its standard deviation, mGy/h (z, y, x); slice by slice, for the sake of memory."""
    dose, error = np.zeros_like(gram), np.zeros_like(gram)
    slice_size = gram[0].size
    for z in range(gram.shape[0]):
        voxels = slice(z * slice_size, (z + 1) * slice_size)
        tissue = density[z] >= AIR_BELOW_G_PER_CM3
        mean = np.sum([estimate.mean(voxels) for estimate in estimates], axis=0).reshape(tissue.shape)
        variance = np.sum([estimate.variance(voxels) for estimate in estimates], axis=0).reshape(tissue.shape)
        dose[z][tissue] = mean[tissue] * scale / gram[z][tissue]
        error[z][tissue] = np.sqrt(variance[tissue]) * scale / gram[z][tissue]
    return dose, error


def _never() -> bool:
    return False


def _silent(_what: str, _part: float) -> None:
    """Nobody asked for progress."""
