"""Organs of an ICRP-like torso: Monte Carlo against PENELOPE."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import deposits, reference_source
from tests.reference import torso

Floats = NDArray[np.float64]
REFERENCE = Path(__file__).parents[2] / "reference" / "penelope" / "torso.csv"
DECAYS = (1e6, 2e7)
NUCLIDE = "Lu-177"

TEXT = f"""A trunk of analytic organs (MIRD Pamphlet 5, Revised; `tests/reference/torso.py`) in voxels of {
    10 * torso.VOXEL_CM:g} mm, {" x ".join(str(n) for n in torso.SHAPE)} (z, y, x), vacuum around; {
    NUCLIDE
} in one
organ. Energy absorbed per decay, keV, by organ; ± one standard deviation. The differences are from
PENELOPE."""


def section(effort: Effort) -> Section:
    page = Section("Organs of a torso, PENELOPE")
    label = torso.labels()
    references = read_references()
    page.say(TEXT)
    for source in torso.SOURCES:
        if source not in references:
            continue
        kev, sigma = monte_carlo(label, source, effort)
        rows = []
        for index, organ in enumerate(torso.NAMES):
            reference, error = references[source][organ]
            if organ == "outside" or reference <= 0:
                continue
            rows.append(
                (
                    organ, f"{reference:.4g} ± {100 * error / reference:.2f} %",
                    f"{per_cent(kev[index] / reference)} ± "
                    f"{100 * np.hypot(sigma[index], error) / reference:.2f} %",
                )
            )  # fmt: skip
        page.say(f"Activity in the {source}:")
        page.table(("organ", "PENELOPE", "Monte Carlo"), rows)
    page.figure("torso.png", "Organs of the torso, three planes", _drawing(label))
    return page


def read_references() -> dict[str, dict[str, tuple[float, float]]]:
    """source -> organ -> (keV per decay, standard deviation)."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    if REFERENCE.exists():
        with REFERENCE.open() as file:
            for row in csv.DictReader(line for line in file if not line.startswith("#")):
                kev = float(row["electron_kev"]) + float(row["photon_kev"])
                sigma = float(np.hypot(float(row["electron_sigma"]), float(row["photon_sigma"])))
                found.setdefault(row["source"], {})[row["organ"]] = kev, sigma
    return found


def _spacing() -> tuple[float, float, float]:
    side = 10 * torso.VOXEL_CM
    return side, side, side


def monte_carlo(label: NDArray[np.uint8], source: str, effort: Effort) -> tuple[Floats, Floats]:
    """keV per decay by organ and standard deviation, in the order of `torso.ORGANS`."""
    electrons, photons = (effort.decays(n) for n in DECAYS)
    run = deposits(
        torso.density(label), torso.activity(label, source), _spacing(), reference_source(NUCLIDE),
        (electrons, photons), device=effort.device,
    )  # fmt: skip
    variance = by_organ(label, run.sigma**2)
    return by_organ(label, run.total), np.sqrt(variance)


def by_organ(label: NDArray[np.uint8], values: Floats) -> Floats:
    return np.bincount(label.ravel(), values.ravel(), len(torso.ORGANS)).astype(np.float64)


def _drawing(label: NDArray[np.uint8]) -> Figure:
    figure = Figure(figsize=(8, 3.2))
    planes = (label[35], label[::-1, 36, :], label[::-1, :, 56])
    all_axes = figure.subplots(1, 3, width_ratios=[plane.shape[1] for plane in planes])
    for axes, plane, title in zip(all_axes, planes, ("axial", "coronal", "sagittal"), strict=True):
        axes.imshow(plane, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
        axes.set(xticks=[], yticks=[], title=title)
    return figure
