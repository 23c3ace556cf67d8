"""Layers of soft tissue around lung, bone and air: Monte Carlo against PENELOPE."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.montecarlo.sampling import Emission
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import deposits, reference_source
from tests.reference.slabs import LAYER_MM, SLABS, WIDTH_MM, Slabs

Floats = NDArray[np.float64]
REFERENCE = Path(__file__).parents[2] / "reference" / "penelope" / "slabs.csv"
DECAYS = (4e6, 4e6)
ACROSS = 5  # voxels of 40 mm: what is compared is the sum over the width
# "Where at least 1 % of the energy lies."
PART_OF_ENERGY = 0.01

TEXT = """Soft tissue 30 mm | medium | soft tissue 30 mm, 200 x 200 mm wide, vacuum around: energy in layers
of 1 mm. Activity in the 12 mm of soft tissue before the first interface ("soft") or in the medium
itself. Media, densities and spectra (ICRP 107) are the same on both sides; how PENELOPE was run
stands in tests/bench/penelope/README.md. Layers with at least 1 % of the absorbed energy: the
largest and the mean difference of Monte Carlo, the mean standard deviation of a difference, and
the root mean square of difference over standard deviation. Behind: the part of the energy that
lies behind the interface (beside the source), and its difference."""


def section(effort: Effort) -> Section:
    page = Section("Slabs of lung, bone and air, PENELOPE")
    references = read_references()
    rows, panels = [], []
    for slabs in SLABS:
        if slabs.name not in references:
            continue
        reference, sigma = references[slabs.name]
        ours, our_sigma = monte_carlo(slabs, reference_source(slabs.nuclide), effort)
        panels.append((slabs, reference, ours))
        rows.append(_row(slabs, reference, ours, np.hypot(sigma, our_sigma), sigma))
    page.say(TEXT)
    page.table(
        (
            "medium",
            "activity in",
            "nuclide",
            "layers",
            "largest",
            "mean",
            "σ",
            "rms/σ",
            "behind",
            "difference",
        ),
        rows,
    )
    for name in ("Lu-177", "Y-90"):
        chosen = [panel for panel in panels if panel[0].nuclide == name]
        if chosen:
            page.figure(
                f"slabs-{name}.png", f"Energy in layers about the interfaces, {name}", _drawing(chosen)
            )
    return page


def read_references() -> dict[str, tuple[Floats, Floats]]:
    """(keV per decay, standard deviation) by layer, of each arrangement that PENELOPE ran."""
    if not REFERENCE.exists():
        return {}
    with REFERENCE.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    found = {}
    for slabs in SLABS:
        mine = [
            r
            for r in rows
            if (r["medium"], r["source"], r["nuclide"]) == (slabs.medium, slabs.source, slabs.nuclide)
        ]
        if mine:
            kev = np.array([float(r["electron_kev"]) + float(r["photon_kev"]) for r in mine])
            sigma = np.array([np.hypot(float(r["electron_sigma"]), float(r["photon_sigma"])) for r in mine])
            found[slabs.name] = kev, sigma
    return found


def maps(slabs: Slabs) -> tuple[Floats, Floats, tuple[float, float, float]]:
    """Density and activity (z, y, x), spacing (z, y, x) mm."""
    width = (1, ACROSS, ACROSS)
    density = np.tile(slabs.density()[:, None, None], width)
    activity = np.tile(slabs.activity()[:, None, None], width) / ACROSS**2
    return density, activity, (LAYER_MM, WIDTH_MM / ACROSS, WIDTH_MM / ACROSS)


def monte_carlo(slabs: Slabs, source: Emission, effort: Effort) -> tuple[Floats, Floats]:
    """keV per decay by layer, and standard deviation."""
    density, activity, spacing = maps(slabs)
    electrons, photons = (effort.decays(n) for n in DECAYS)
    run = deposits(density, activity, spacing, source, (electrons, photons), device=effort.device)
    return run.total.sum(axis=(1, 2)), np.sqrt((run.sigma**2).sum(axis=(1, 2)))


def counted(slabs: Slabs, kev: Floats) -> NDArray[np.bool_]:
    """Layers with at least 1 % of the energy."""
    return np.asarray((kev >= PART_OF_ENERGY * kev.sum()) & (slabs.density() >= 0.1))


def _row(slabs: Slabs, reference: Floats, ours: Floats, both: Floats, theirs: Floats) -> tuple[str, ...]:
    chosen = counted(slabs, reference)
    ratio = ours[chosen] / reference[chosen]
    score = (ours - reference)[chosen] / both[chosen]
    first, end = slabs.source_layers
    away = np.ones(slabs.layers, bool)
    away[first:end] = False
    if slabs.source == "soft":
        away[:first] = False
    error = float(np.sqrt((both[away] ** 2).sum()) / reference[away].sum())
    return (
        slabs.medium, slabs.source, slabs.nuclide, f"{chosen.sum()}",
        per_cent(ratio[np.argmax(np.abs(ratio - 1))]), per_cent(float(ratio.mean())),
        f"{100 * float((both[chosen] / reference[chosen]).mean()):.2f} %",
        f"{np.sqrt((score**2).mean()):.1f}", f"{100 * reference[away].sum() / reference.sum():.2f} %",
        f"{per_cent(ours[away].sum() / reference[away].sum())} ± {100 * error:.2f} %",
    )  # fmt: skip


def _drawing(panels: list[tuple[Slabs, Floats, Floats]]) -> Figure:
    figure = Figure(figsize=(9, 2.1 * len(panels)))
    rows = figure.subplots(len(panels), 2, squeeze=False, width_ratios=(3, 2))
    for (wide, close), (slabs, reference, ours) in zip(rows, panels, strict=True):
        depth = (np.arange(slabs.layers) + 0.5) * LAYER_MM - 30
        wide.semilogy(depth, reference, "k.", ms=3, label="PENELOPE")
        wide.semilogy(depth, ours, lw=1, label="Monte Carlo")
        chosen = counted(slabs, reference)
        close.plot(depth[chosen], 100 * (ours / reference - 1)[chosen], ".-", lw=0.7, ms=3)
        close.axhspan(-2, 2, color="0.92", zorder=0)
        close.set(ylim=(-5, 5), ylabel="%")
        for edge in (0, slabs.thickness_mm):
            wide.axvline(edge, color="0.8", lw=0.8, zorder=0)
        wide.set(ylabel="keV")
        wide.set_title(f"{slabs.medium}, activity in {slabs.source}", fontsize=8)
        close.set_title("Monte Carlo less PENELOPE, layers with 1 % of the energy", fontsize=7)
    rows[0, 0].legend(fontsize=7)
    for axes in rows[-1]:
        axes.set_xlabel("mm behind the first interface")
    figure.tight_layout()
    return figure
