"""DVK against Monte Carlo in a whole virtual patient, organ by organ."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.decay import nuclide
from pipeline.density import hu_to_density
from pipeline.dose_rate import DoseRequest
from pipeline.dvk import dvk_dose_rate
from pipeline.montecarlo.schedule import Limits
from pipeline.montecarlo.simulate import Simulation, simulate
from pipeline.simulate.patient import VirtualPatient, virtual_patient
from pipeline.volume import Grid, Volume
from tests.bench.physics.heterogeneity import METHODS
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import source_of

SEED = 7
NUCLIDE = "Lu-177"
DECAYS = 5e7
SIDE_MM = 4.0
EXTENT_MM = (390.0, 400.0, 460.0)

TEXT = """A virtual patient from thorax to pelvis with {nuclide} ({voxels} voxels of {side:g} mm), density
from the CT with its noise. Mean dose rate in each region, mGy/h, by Monte Carlo with one standard
deviation of the mean, and the difference of DVK; then the normalised root mean square difference
over the region's voxels, from which nothing is subtracted for the Monte Carlo's own noise (its
mean over the voxels stands beside it)."""


def section(effort: Effort) -> Section:
    page = Section("DVK and Monte Carlo in a virtual patient")
    patient = virtual_patient(_grid(effort), SEED)
    density = hu_to_density(patient.hu)
    masks = {name: patient.mask(name) for name in patient.regions if patient.mask(name).sum() >= 20}
    run = simulate(
        patient.activity, density, source_of(NUCLIDE), regions=masks,
        limits=Limits(decays=effort.decays(DECAYS)), device=effort.device,
    )  # fmt: skip
    maps = {
        name: dvk_dose_rate(DoseRequest(patient.activity, density, nuclide(NUCLIDE), **how)).volume
        for name, how in METHODS.items()
    }
    grid = density.grid
    page.say(
        TEXT.format(
            nuclide=NUCLIDE,
            voxels=" x ".join(map(str, grid.shape)),
            side=SIDE_MM * (2 if effort.quick else 1),
        )
    )
    page.table(
        ("region", "density", "Monte Carlo", *(f"DVK {n}, mean" for n in maps),
         *(f"DVK {n}, NRMS" for n in maps), "MC noise"),
        _rows(run, masks, density, maps),
    )  # fmt: skip
    page.say(
        f"Monte Carlo: electrons of {run.electron_decays:.3g} decays and photons of {run.photon_decays:.3g} "
        f"in {run.seconds:.0f} s on {run.device}; deposited + escaped over emitted less one: "
        f"{(run.deposited_kev + run.escaped_kev) / run.emitted_kev - 1:.1e}."
    )
    page.figure(
        "patient.png", "Dose rate by Monte Carlo and DVK's difference, coronal", _drawing(patient, run, maps)
    )
    return page


def _grid(effort: Effort) -> Grid:
    side = SIDE_MM * (2 if effort.quick else 1)
    z, y, x = (round(extent / side) for extent in EXTENT_MM)
    first = [-side * (n - 1) / 2 for n in (x, y, z)]
    return Grid((z, y, x), (first[0], first[1] + 25, first[2]), (side, side, side))


def _rows(
    run: Simulation, masks: dict[str, NDArray[np.bool_]], density: Volume, maps: dict[str, Volume]
) -> list[tuple[str, ...]]:
    rows = []
    for region in run.regions:
        inside = masks[region.name] & (density.array >= 0.1)
        truth = run.dose_rate.array[inside].astype(float)
        if truth.size == 0 or truth.mean() == 0:
            continue
        means, spreads = [], []
        for volume in maps.values():
            ours = volume.array[inside].astype(float)
            means.append(per_cent(ours.mean() / truth.mean(), 1))
            spreads.append(f"{100 * np.sqrt(((ours - truth) ** 2).mean() / (truth**2).mean()):.1f} %")
        rows.append(
            (
                region.name, f"{density.array[inside].mean():.2f}",
                f"{truth.mean():.3g} ± {100 * region.uncertainty_of_mean:.2f} %", *means, *spreads,
                f"{100 * region.mean_voxel_uncertainty:.1f} %",
            )
        )  # fmt: skip
    return rows


def _drawing(patient: VirtualPatient, run: Simulation, maps: dict[str, Volume]) -> Figure:
    kidneys = (
        np.argwhere(patient.mask("left kidney")) if "left kidney" in patient.regions else np.zeros((0, 3))
    )
    row = int(kidneys[:, 1].mean()) if kidneys.size else run.dose_rate.array.shape[1] // 2
    truth = run.dose_rate.array[::-1, row, :]
    figure = Figure(figsize=(9, 3))
    all_axes = figure.subplots(1, 1 + len(maps))
    shown = all_axes[0].imshow(np.log10(np.maximum(truth, truth.max() * 1e-4)), cmap="inferno")
    all_axes[0].set_title("Monte Carlo, log₁₀ mGy/h", fontsize=8)
    figure.colorbar(shown, ax=all_axes[0], shrink=0.8)
    for axes, (name, volume) in zip(all_axes[1:], maps.items(), strict=True):
        ratio = np.divide(
            volume.array[::-1, row, :], truth, out=np.ones_like(truth), where=truth > truth.max() * 1e-4
        )
        shown = axes.imshow(100 * (ratio - 1), cmap="RdBu_r", vmin=-30, vmax=30)
        axes.set_title(f"DVK, {name}: difference, %", fontsize=8)
        figure.colorbar(shown, ax=axes, shrink=0.8)
    for axes in all_axes:
        axes.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure
