"""Radial kernels of the product's own Monte Carlo against those of PENELOPE, and the energy of voxel
kernels."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from pipeline.decay import NUCLIDES, Nuclide, nuclide
from pipeline.kernels import (
    REACH_MM,
    Spacing,
    octant_total,
    radial_kernel,
    reach_voxels,
    s_value_per_kev,
    voxel_kernel,
)
from pipeline.montecarlo.decay_data import load_source
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import shells_kev

DECAYS = 2e6
# Shells, mm. No thinner: what is followed ever further ends within the first one all the same.
EDGES_MM = np.concatenate([np.arange(0.05, 2, 0.05), np.arange(2, 14, 0.25), np.geomspace(14, 300, 20)])
SIZES: tuple[Spacing, ...] = ((3.0, 3.0, 3.0), (5.0, 2.0, 2.0), (4.8, 4.8, 4.8))
# Energy within these radii, mm: inside the reach of electrons, at its end, of photons.
RADII_MM = {"Lu-177": (0.1, 0.5, 1.0, 2.0, 20.0, 100.0), "I-131": (0.1, 0.5, 1.0, 2.0, 20.0, 100.0),
            "Y-90": (0.5, 2.0, 4.0, 6.0, 10.0, 12.0)}  # fmt: skip


def section(effort: Effort) -> Section:
    page = Section("Radial kernels and the energy of voxel kernels")
    page.say(
        "Energy within a radius of a point source in soft tissue (four-component, 1.04 g/cm³): the product's "
        "Monte Carlo against PENELOPE's tables, which the kernels of DVK are made from."
    )
    figure = Figure(figsize=(9, 2.8))
    for of, axes in zip(NUCLIDES, figure.subplots(1, len(NUCLIDES)), strict=True):
        edges = np.unique(np.concatenate([EDGES_MM, RADII_MM[of.name]]).round(4))
        energy = np.cumsum(shells_kev(of.name, edges, effort.decays(DECAYS)))
        table = radial_kernel(of).energy_within(edges)
        rows = [(f"{r:g} mm", f"{t:.2f}", per_cent(e / t)) for r, t, e in _at(of, edges, table, energy)]
        page.say(of.name)
        page.table(("within", "PENELOPE, keV", "Monte Carlo"), rows)
        axes.semilogx(edges, energy / table - 1, lw=1)
        axes.set(title=of.name, xlabel="mm", ylim=(-0.03, 0.03))
    figure.tight_layout()
    page.figure("kernels.png", "Energy within a radius, Monte Carlo over PENELOPE less one", figure)
    page.say(
        "What the two sides emit, keV per decay: a difference of decay data shows in everything above. "
        "PENELOPE's kernels took DDEP by its own program (PENNUC); within the range they hold some "
        "tenths of a keV of photons too."
    )
    page.table(
        ("", "evaluation", "electrons", "photons", "PENELOPE within the range", "to 50 cm"), _emission_rows()
    )
    page.say("Sum over the voxel kernel to 50 cm against the radial table, for three voxel sizes.")
    page.table(("", "table, keV", *("{:g} x {:g} x {:g} mm".format(*s) for s in SIZES)), _energy_rows())
    return page


def _at(
    of: Nuclide, edges: np.ndarray, table: np.ndarray, energy: np.ndarray
) -> list[tuple[float, float, float]]:
    places = np.searchsorted(edges, RADII_MM[of.name])
    return [(float(edges[i]), float(table[i]), float(energy[i])) for i in places]


def _emission_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for of in NUCLIDES:
        source, kernel = load_source(of.name), radial_kernel(of)
        within = (float(kernel.energy_within(r)) for r in (kernel.electron_range_mm, REACH_MM))
        emitted = (source.mean_electron_kev, source.mean_photon_kev)
        rows.append((of.name, source.evaluation, *(f"{kev:.2f}" for kev in (*emitted, *within))))
    return rows


def _energy_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for of in NUCLIDES:
        table = float(radial_kernel(of).energy_within(REACH_MM))
        found = [per_cent(kernel_kev(of.name, spacing) / table, 4) for spacing in SIZES]
        rows.append((of.name, f"{table:.2f}", *found))
    return rows


def kernel_kev(name: str, spacing: Spacing) -> float:
    """keV per decay in all voxels of the kernel."""
    z, y, x = (n + 1 for n in reach_voxels(spacing))
    return octant_total(voxel_kernel(nuclide(name), spacing, (z, y, x))) / s_value_per_kev(spacing)
