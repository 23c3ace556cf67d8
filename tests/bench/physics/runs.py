"""Monte Carlo runs of the product, electrons and photons apart, as energy per decay in voxels."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import SOFT_TISSUE_G_PER_CM3
from pipeline.montecarlo.batches import Estimate, empty_estimate
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.decay_data import load_source
from pipeline.montecarlo.radial import radial_kernel_run
from pipeline.montecarlo.sampling import Emission
from pipeline.montecarlo.setup import voxel_transport
from pipeline.montecarlo.threads import Runner, ThreadRunner, Transport
from pipeline.volume import Grid, Volume

Floats = NDArray[np.float64]
REFERENCE = Path(__file__).parents[2] / "reference"
INPUTS = REFERENCE / "penelope" / "inputs.json"
BATCHES = 25
# Binding energy of lutetium's N shell and those outside it, at most (N1: 0.51 keV).
OUTER_SHELLS_KEV = 0.52
SHELLS = 40


@dataclass(frozen=True)
class Deposits:
    """keV per decay in the voxels, (z, y, x), by electrons and by photons, and their standard deviations.

    batches: (2, BATCHES, z, y, x) the same of every batch, when they were asked for. seconds: of
    electrons and of photons."""

    electrons: Floats
    electron_sigma: Floats
    photons: Floats
    photon_sigma: Floats
    escaped_kev: float
    emitted_kev: float
    seconds: tuple[float, float]

    @property
    def total(self) -> Floats:
        return self.electrons + self.photons

    @property
    def sigma(self) -> Floats:
        return np.hypot(self.electron_sigma, self.photon_sigma)


def never() -> bool:
    return False


@dataclass(frozen=True)
class ReferenceSource:
    """The spectrum that PENELOPE ran with."""

    beta_cdf_kev: Floats
    beta_yield: float
    electron_kev: Floats
    electron_yield: Floats
    photon_kev: Floats
    photon_yield: Floats


@cache
def reference_source(nuclide: str) -> ReferenceSource:
    """From `tests/reference/penelope/inputs.json`."""
    found = json.loads(INPUTS.read_text())["sources"][nuclide]
    beta_yield = float(found["beta_yield"])
    names = ("electron_kev", "electron_yield", "photon_kev", "photon_yield")
    return ReferenceSource(
        np.array(found["beta_cdf_kev"]), beta_yield, *(np.array(found[name]) for name in names)
    )


@cache
def source_of(nuclide: str) -> Emission:
    """The product's own."""
    return load_source(nuclide)


@cache
def lines_of_reference(nuclide: str) -> Emission | None:
    """The product's source with the conversion lines that the reference lists, where those are known.

    It lists Lu-177's lines of the K, L and M shells (tests/reference/decay_lu177_ddep.csv); those of
    the outer shells lie at the energies of the gammas.
    """
    if nuclide != "Lu-177":
        return None
    table = (REFERENCE / "decay_lu177_ddep.csv").read_text(encoding="ascii")
    rows = [line.split(",") for line in table.splitlines() if not line.startswith("#")]
    gammas = np.array([float(energy) for kind, energy, _ in rows if kind == "gamma"])
    source = load_source(nuclide)
    outer = np.abs(source.electron_kev[:, None] - gammas).min(axis=1) < OUTER_SHELLS_KEV
    return replace(
        source, electron_kev=source.electron_kev[~outer], electron_yield=source.electron_yield[~outer]
    )


def volumes(
    density: NDArray[np.floating], activity: NDArray[np.floating], spacing_mm: tuple[float, float, float]
) -> tuple[Volume, Volume]:
    """(activity, density) of (z, y, x) arrays on one grid."""
    z, y, x = density.shape
    grid = Grid((z, y, x), (0.0, 0.0, 0.0), spacing_mm)
    return (
        Volume(np.asarray(activity, np.float32), grid, "Bq/mL"),
        Volume(np.asarray(density, np.float32), grid, "g/cm3"),
    )


def deposits(
    density: NDArray[np.floating],
    activity: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    source: Emission,
    decays: tuple[float, float],
    *,
    medium: str | None = None,
    device: str = "cpu",
    seed: int = 1,
) -> Deposits:
    """Run `decays` (electrons, photons) of an activity (any unit) in a density, g/cm3; (z, y, x) both.

    medium: the only one that there is; by default the density decides.
    """
    activity_map, density_map = volumes(density, activity, spacing_mm)
    transport = voxel_transport(activity_map, density_map, source, medium)
    runner = runner_on(device, transport, seed)
    estimates = [empty_estimate(density.size) for _ in decays]
    for photons, (estimate, wanted) in enumerate(zip(estimates, decays, strict=True)):
        if wanted > 0 and (not photons or source.photon_yield.sum() > 0):
            _run(runner, estimate, bool(photons), wanted)
    electrons, photons_ = estimates
    everything = slice(None)
    shape = density.shape
    return Deposits(
        electrons.mean(everything).reshape(shape),
        np.sqrt(electrons.variance(everything)).reshape(shape),
        photons_.mean(everything).reshape(shape),
        np.sqrt(photons_.variance(everything)).reshape(shape),
        sum(e.escaped_kev / max(e.decays, 1) for e in estimates),
        sum(e.emitted_kev / max(e.decays, 1) for e in estimates),
        (electrons.seconds, photons_.seconds),
    )


def runner_on(device: str, transport: Transport, seed: int) -> Runner:
    """What runs the batches. raises: RuntimeError where the device is not there."""
    if device == "cpu":
        return ThreadRunner(transport, seed)
    from pipeline.montecarlo.cuda import cuda_runner

    runner, notes = cuda_runner(transport, seed, device)
    if runner is None:
        raise RuntimeError("; ".join(notes))
    return runner


def _run(runner: Runner, estimate: Estimate, photons: bool, decays: float) -> None:
    size = max(1, round(decays / BATCHES))
    for _ in range(BATCHES):
        started = time.monotonic()
        runner.run(photons, estimate.decays, size, never)
        runner.take_in(estimate, size, ())
        estimate.seconds += time.monotonic() - started
    runner.settle(estimate)


def warm_up() -> None:
    """Compile, or load what was compiled: it is no part of what is timed."""
    load_physics()
    density = np.full((3, 3, 3), 1.0)
    activity = np.zeros((3, 3, 3))
    activity[1, 1, 1] = 1.0
    deposits(density, activity, (3.0, 3.0, 3.0), reference_source("Lu-177"), (100, 100))


def sphere_kev(
    source: Emission, radius_mm: float, decays: float, medium: str = "water"
) -> tuple[float, float]:
    """Energy, keV per decay, absorbed in a sphere that holds the activity, in a medium of 1 g/cm³ without
    bounds.

    returns: value and standard deviation (an upper bound: as if all shells erred together).
    """
    # Thin shells: their thickness also decides which electrons are not worth following.
    edges = np.linspace(0.0, radius_mm / 10, SHELLS + 1)
    run = radial_kernel_run(source, medium, 1.0, edges, decays, source_radius_cm=radius_mm / 10)
    return float(run.kev.sum()), float(run.sigma.sum())


def shells_kev(nuclide: str, edges_mm: Floats, decays: float, medium: str = "icru_soft_tissue") -> Floats:
    """keV per decay between the radii about a point source, the first shell from 0; 1.04 g/cm³.

    edges_mm: rising, above 0. returns: as many values.
    """
    edges = np.concatenate([[0.0], edges_mm]) / 10
    return radial_kernel_run(source_of(nuclide), medium, SOFT_TISSUE_G_PER_CM3, edges, decays).kev
