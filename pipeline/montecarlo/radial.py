"""Point sources and spheres in one medium, tallied in shells: radial kernels, and what spheres absorb of
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.montecarlo.batches import Estimate, empty_estimate
from pipeline.montecarlo.geometry import tally_size
from pipeline.montecarlo.sampling import Emission
from pipeline.montecarlo.schedule import Limits, next_batch
from pipeline.montecarlo.setup import shell_transport
from pipeline.montecarlo.threads import Runner, ThreadRunner

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RadialRun:
    """Energy that a decay leaves in each shell, keV, and its standard deviation.

    electron_kev, photon_kev: [shells], of the decay's electrons (with their bremsstrahlung) and of its
        photons.
    beyond_kev: outside the last shell, escaped included.
    """

    electron_kev: Float64
    electron_sigma: Float64
    photon_kev: Float64
    photon_sigma: Float64
    beyond_kev: float

    @property
    def kev(self) -> Float64:
        """All of it."""
        return self.electron_kev + self.photon_kev

    @property
    def sigma(self) -> Float64:
        """Standard deviation of `kev`."""
        return np.hypot(self.electron_sigma, self.photon_sigma)


def radial_kernel_run(
    source: Emission,
    material: str,
    density: float,
    shell_edges_cm: Float64,
    decays: float,
    seed: int = 1,
    *,
    source_radius_cm: float = 0.0,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RadialRun:
    """Energy per decay in shells about a point, or about the centre of a uniform sphere, in an endless
    medium.

    density: g/cm³. shell_edges_cm: rising radii; the first shell begins at its first edge, and what lies
        within that is counted with it. decays: of electrons, and as many of photons.
    raises: InputRejected for edges that do not rise, a density that is not positive, or a cancelled run.
    """
    edges = require_edges(shell_edges_cm)
    if not (math.isfinite(density) and density > 0):
        raise InputRejected(f"a medium of {density} g/cm3 cannot hold a kernel", "Give a density above zero")
    transport = shell_transport(source, material, density, edges, source_radius_cm)
    runner = ThreadRunner(transport, seed, threads)
    kinds = 2 if float(np.sum(source.photon_yield)) > 0 else 1
    estimates = tuple(empty_estimate(tally_size(transport.geometry)) for _ in range(kinds))
    _run(runner, estimates, Limits(decays=decays), progress or (lambda _what, _part: None), cancelled)
    return _result(estimates)


def require_edges(edges_cm: Float64) -> Float64:
    """The edges. raises: InputRejected unless there are two that rise from 0 or above."""
    edges = np.asarray(edges_cm, np.float64)
    if (
        edges.ndim != 1
        or edges.size < 2
        or not np.all(np.diff(edges) > 0)
        or not (0 <= edges[0] < edges[-1] < math.inf)
    ):
        raise InputRejected(
            f"shell edges of shape {edges.shape} do not rise from zero", "Give rising radii in cm"
        )
    return edges


def _run(
    runner: Runner,
    estimates: tuple[Estimate, ...],
    limits: Limits,
    progress: Callable[[str, float], None],
    cancelled: Callable[[], bool],
) -> None:
    photons = estimates[1] if len(estimates) > 1 else None
    while (batch := next_batch(limits, estimates[0], photons, (0.0, 0.0))) is not None:
        estimate = estimates[batch.photons]
        if not runner.run(batch.photons, estimate.decays, batch.size, cancelled):
            raise InputRejected("the kernel run was cancelled", "Run it again")
        runner.take_in(estimate, batch.size, ())
        done = sum(e.decays for e in estimates)
        progress("Monte Carlo", done / (float(limits.decays or 1.0) * len(estimates)))


def _result(estimates: tuple[Estimate, ...]) -> RadialRun:
    shells = slice(0, -1)
    means = [estimate.mean(shells) for estimate in estimates]
    sigmas = [np.sqrt(estimate.variance(shells)) for estimate in estimates]
    if len(estimates) == 1:
        means.append(np.zeros_like(means[0]))
        sigmas.append(np.zeros_like(means[0]))
    beyond = sum(
        (float(estimate.total[-1]) + estimate.escaped_kev) / max(estimate.decays, 1) for estimate in estimates
    )
    return RadialRun(means[0], sigmas[0], means[1], sigmas[1], beyond)
