"""Radial point kernels from the node's own Monte Carlo, in the form that `pipeline.radial_kernel` reads.

A point source in one endless medium; the energy per decay is tallied in shells about it. Shells are thin
where the electrons stop, and grow where photons alone are left::

    0 ... R       200 shells; R: range of the most energetic electron, 5 % more; a fifth of the first apart
    R ... 5 cm    0.5 mm
    5 ... 50 cm   5 mm

The uncertainty of a kernel is the mean of its shells' relative uncertainties, weighted with their energy:
Σ σ / Σ E.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.dose_rate import Progress, percent, silent
from pipeline.errors import InputRejected
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.materials import MATERIALS, Material
from pipeline.radial_kernel import COLUMNS, ELECTRON_COLUMN, SOFT_TISSUE, SOFT_TISSUE_G_PER_CM3

if TYPE_CHECKING:
    from pipeline.montecarlo.decay_data import DecaySource
    from pipeline.montecarlo.radial import RadialRun

Float64 = NDArray[np.float64]
Cancelled = Callable[[], bool]

ALIASES = {"icru": "icru_soft_tissue"}
KERNEL_DENSITY_G_PER_CM3 = SOFT_TISSUE_G_PER_CM3
"""Of soft tissue, unless another is named: the density that voxel kernels are made for."""

ELECTRON_SHELLS = 200
BEYOND_RANGE = 1.05
MIDDLE_CM, REACH_CM = 5.0, 50.0
MIDDLE_STEP_CM, FAR_STEP_CM = 0.05, 0.5

PILOT_DECAYS = 50_000.0
MOST_DECAYS = 1e11


@dataclass(frozen=True, slots=True, eq=False)
class PointKernel:
    """Energy around a point source.

    edges_cm: (n + 1,) radii from 0. energy_kev, sigma_kev: (n,) per decay in each shell and one standard
    deviation. electron_kev: (n,) the part of the decay's electrons, within their range.
    decays: whose electrons, and whose photons, were followed.
    """

    nuclide: str
    evaluation: str
    medium: Material
    density_g_per_cm3: float
    edges_cm: Float64
    energy_kev: Float64
    sigma_kev: Float64
    electron_kev: Float64
    decays: float
    seed: int
    physics_sha256: str

    @property
    def uncertainty(self) -> float:
        """Σ σ / Σ E."""
        return float(self.sigma_kev.sum() / self.energy_kev.sum())


def point_kernel(
    source: DecaySource,
    medium: str = SOFT_TISSUE,
    density_g_per_cm3: float | None = None,
    *,
    decays: float | None = None,
    uncertainty: float | None = None,
    seed: int = 1,
    progress: Progress = silent,
    run: Callable[..., RadialRun] | None = None,
) -> PointKernel:
    """The point kernel of a nuclide.

    medium: as in `materials.MATERIALS`, or ``icru``. density_g_per_cm3: None for the medium's own, 1.04 of
        soft tissue. decays, uncertainty: exactly one, which ends the run. progress: called with (what, part).
    run: with the signature of `pipeline.montecarlo.radial.radial_kernel_run`, which is the default.
    raises: InputRejected for a medium that there is not, or a density, number or uncertainty that cannot be.
    """
    from pipeline.montecarlo.radial import radial_kernel_run  # compiled code, when it is needed

    material = medium_named(medium)
    density = density_of(material, density_g_per_cm3)
    reach = electron_reach_cm(source, material, density)
    edges = shell_edges_cm(reach)

    def followed(count: float, what: str) -> PointKernel:
        found = (run or radial_kernel_run)(
            source,
            material.name,
            density,
            edges,
            count,
            seed,
            progress=lambda _what, part: progress(what, part),
        )
        return PointKernel(
            source.nuclide, source.evaluation, material, density, edges, found.kev, found.sigma,
            np.where(edges[1:] <= reach * BEYOND_RANGE * (1 + 1e-9), found.electron_kev, 0.0),
            count, seed, load_physics().sha256,
        )  # fmt: skip

    if (decays is None) == (uncertainty is None):
        raise InputRejected(
            "what ends the run is not clear", "Give a number of decays or an uncertainty, one of them"
        )
    if decays is not None:
        return followed(_positive(decays, "decays"), "transport")
    aim = _positive(uncertainty or 0.0, "uncertainty")
    pilot = followed(PILOT_DECAYS, "pilot")
    needed = math.ceil(PILOT_DECAYS * (pilot.uncertainty / aim) ** 2)
    if needed > MOST_DECAYS:
        raise InputRejected(
            f"an uncertainty of {percent(aim)} takes {needed:.2g} decays", "Ask for a larger one"
        )
    return pilot if needed <= PILOT_DECAYS else followed(float(needed), "transport")


def table(kernel: PointKernel, made_by: str, made_on: date) -> str:
    """The kernel as a file of `pipeline/data/point_kernels`, its provenance in the first lines."""
    composition = ", ".join(f"Z {z}: {share:.2%}" for z, share in kernel.medium.composition.items())
    lines = [
        f"# Radial energy deposition around a point source of {kernel.nuclide} in unbounded "
        f"{kernel.medium.name.replace('_', ' ')} (by mass {composition}; {kernel.medium.source}), "
        f"{kernel.density_g_per_cm3:g} g/cm3, tallied to {kernel.edges_cm[-1]:g} cm.",
        f"# Monte Carlo of {made_by}, physics tables {kernel.physics_sha256}, decay data of "
        f"{kernel.evaluation}; electrons and photons of {kernel.decays:.10g} decays each, "
        f"seed {kernel.seed}; {made_on:%Y-%m-%d}.",
        f"# Mean uncertainty of a shell, weighted with its energy: {percent(kernel.uncertainty)} (k=1).",
        "# r_outer_cm: outer radius of the shell; energy_keV_per_decay: energy deposited within the shell; "
        "cumulative_keV; sigma_keV: one standard deviation of the shell; electron_keV: what electrons of the "
        "decay left in it.",
        ",".join((*COLUMNS, ELECTRON_COLUMN)),
    ]
    rows = (
        kernel.edges_cm[1:],
        kernel.energy_kev,
        np.cumsum(kernel.energy_kev),
        kernel.sigma_kev,
        kernel.electron_kev,
    )
    lines += [
        f"{outer:.7g},{energy:.6e},{within:.6f},{sigma:.2e},{electrons:.6e}"
        for outer, energy, within, sigma, electrons in zip(*rows, strict=True)
    ]
    return "\n".join(lines) + "\n"


def medium_named(name: str) -> Material:
    """The medium. raises: InputRejected, naming the nearest and all that there are."""
    wanted = name.lower().replace(" ", "_").replace("-", "_")
    wanted = ALIASES.get(wanted, wanted)
    known = {material.name: material for material in MATERIALS}
    if wanted in known:
        return known[wanted]
    nearest = difflib.get_close_matches(wanted, [*known, *ALIASES], n=1)
    meant = f"Did you mean {nearest[0]}? " if nearest else ""
    raise InputRejected(f"there is no medium {name!r}", f"{meant}There are {', '.join(known)}")


def density_of(material: Material, given: float | None) -> float:
    """The density that is given, 1.04 g/cm³ of soft tissue, or the medium's own."""
    if given is not None:
        return _positive(given, "density")
    return KERNEL_DENSITY_G_PER_CM3 if material.name == SOFT_TISSUE else material.density_g_per_cm3


def electron_reach_cm(source: DecaySource, material: Material, density: float) -> float:
    """CSDA range of the most energetic electron; of a nuclide without electrons, 1 mm."""
    highest = max(float(source.beta_cdf_kev.max(initial=0.0)), float(source.electron_kev.max(initial=0.0)))
    if highest <= 0:
        return 0.1
    physics = load_physics()
    ranges = physics.csda_range[MATERIALS.index(material)]
    return float(np.interp(highest, physics.energy_kev, ranges)) / density


def shell_edges_cm(reach_cm: float) -> Float64:
    """(n + 1,) radii from 0 to 50 cm; see the module."""
    near = reach_cm * BEYOND_RANGE
    electrons = np.linspace(0.0, near, ELECTRON_SHELLS + 1)
    middle = np.arange(MIDDLE_STEP_CM, MIDDLE_CM + MIDDLE_STEP_CM / 2, MIDDLE_STEP_CM)
    far = np.arange(MIDDLE_CM + FAR_STEP_CM, REACH_CM + FAR_STEP_CM / 2, FAR_STEP_CM)
    beyond = np.concatenate([middle, far])
    # No sliver between the last thin shell and the first of the others.
    beyond = beyond[beyond > near + MIDDLE_STEP_CM / 10]
    return np.concatenate([[0.0, electrons[1] / 5], electrons[1:], beyond])


def _positive(value: float, what: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputRejected(f"{what} of {value:g} cannot be", f"Give {what} above zero")
    return float(value)
