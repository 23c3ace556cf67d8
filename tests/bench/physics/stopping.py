"""Electrons: stopping powers and ranges against ESTAR."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.materials import MATERIALS, index_of
from tests.bench.physics.report import Effort, Section, per_cent
from tests.reference import physics

RANGES_AT_MEV = (0.01, 0.1, 0.5, 1.0)


def section(effort: Effort) -> Section:
    page = Section("Electrons: stopping powers and ranges, ESTAR")
    data = load_physics()
    energy = data.energy_kev / 1000
    rows = []
    for mev, stopping, csda in water_points():
        ours = np.exp(
            np.interp(np.log(mev), np.log(energy), np.log(data.collision_stopping[index_of("water")]))
        )
        range_ = np.exp(np.interp(np.log(mev), np.log(energy), np.log(data.csda_range[index_of("water")])))
        rows.append(
            (f"{mev:g} MeV", f"{stopping:g}", f"{ours:.4g}", per_cent(ours / stopping), f"{csda:g}",
             f"{range_:.4g}", per_cent(range_ / csda))
        )  # fmt: skip
    page.say(
        "Liquid water: collision stopping power, MeV cm²/g, and CSDA range, g/cm², of the transport's tables."
    )
    page.table(("", "S/ρ ESTAR", "ours", "", "CSDA ESTAR", "ours", ""), rows)
    page.say("All media: the CSDA range, g/cm², at four energies.")
    page.table(
        ("medium", "I, eV", *(f"{mev:g} MeV" for mev in RANGES_AT_MEV)),
        [
            (m.name, f"{m.mean_excitation_ev:.1f}",
             *(f"{np.interp(mev, energy, data.csda_range[index_of(m.name)]):.4g}" for mev in RANGES_AT_MEV))
            for m in MATERIALS
        ],
    )  # fmt: skip
    page.figure("stopping.png", "Collision and radiative stopping powers of the media", _drawing())
    return page


def water_points() -> list[tuple[float, float, float]]:
    """(MeV, MeV cm2/g, g/cm2) of `electrons_water.csv`."""
    path = Path(physics.FOLDER) / "electrons_water.csv"
    with path.open() as file:
        lines = [line for line in file if not line.startswith("#")]
    return [(float(e), float(s), float(r)) for e, s, r in list(csv.reader(lines))[1:]]


def _drawing() -> Figure:
    data = load_physics()
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    for name in ("air", "lung", "adipose", "soft_tissue", "cortical_bone"):
        row = index_of(name)
        (line,) = axes.loglog(
            data.energy_kev, data.collision_stopping[row], lw=1, label=name.replace("_", " ")
        )
        axes.loglog(data.energy_kev, data.radiative_stopping[row], lw=1, ls="--", color=line.get_color())
    points = np.array(water_points())
    axes.plot(1000 * points[:, 0], points[:, 1], "k+", label="ESTAR, water")
    axes.set(xlabel="keV", ylabel="MeV cm²/g", title="collision (full) and radiative (dashed)")
    axes.legend(fontsize=7)
    return figure
