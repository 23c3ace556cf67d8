"""Photons: attenuation and energy absorption against XCOM."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.materials import index_of
from tests.bench.physics.report import Effort, Section, per_cent
from tests.reference import physics


def section(effort: Effort) -> Section:
    page = Section("Photons: attenuation, XCOM")
    rows = [
        (f"{kev:g} keV", f"{mu:g}", f"{_water(kev):.4g}", per_cent(_water(kev) / mu))
        for kev, mu, _ in water_points()
    ]
    page.say("Liquid water: total attenuation with coherent scattering, cm²/g, of the transport's tables.")
    page.table(("", "XCOM", "ours", ""), rows)
    page.figure("attenuation.png", "Attenuation of the media", _drawing())
    return page


def total(row: int) -> NDArray[np.float64]:
    """[N] cm2/g."""
    data = load_physics()
    parts = (data.photoelectric, data.incoherent, data.coherent, data.pair)
    return np.asarray(sum(part[row] for part in parts), np.float64)


def _water(kev: float) -> float:
    energy = load_physics().energy_kev
    return float(np.exp(np.interp(np.log(kev), np.log(energy), np.log(total(index_of("water"))))))


def water_points() -> list[tuple[float, float, float]]:
    """(keV, cm2/g total, cm2/g energy absorption) of `photons_water.csv`."""
    with (Path(physics.FOLDER) / "photons_water.csv").open() as file:
        lines = [line for line in file if not line.startswith("#")]
    return [(float(e), float(mu), float(en)) for e, mu, en in list(csv.reader(lines))[1:]]


def _drawing() -> Figure:
    data = load_physics()
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    for name in ("lung", "adipose", "soft_tissue", "spongiosa", "cortical_bone"):
        axes.loglog(data.energy_kev, total(index_of(name)), lw=1, label=name.replace("_", " "))
    points = np.array(water_points())
    axes.plot(points[:, 0], points[:, 1], "k+", label="XCOM, water")
    axes.set(xlabel="keV", ylabel="cm²/g", xlim=(5, 3000), ylim=(0.03, 100))
    axes.legend(fontsize=7)
    return figure
