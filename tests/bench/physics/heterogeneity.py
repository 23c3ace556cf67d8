"""Density in DVK: its ways by the names that the page gives them, at borders of media and in a lumbar
spine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decay import nuclide
from pipeline.density import hu_to_density
from pipeline.dose_rate import DoseRequest
from pipeline.dvk import dvk_dose_rate
from pipeline.lattice import crop_box
from pipeline.montecarlo.schedule import Limits
from pipeline.montecarlo.simulate import Simulation, simulate
from pipeline.simulate.patient import abdominal_ct_grid, virtual_patient
from pipeline.volume import Grid, Volume
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import source_of

Floats = NDArray[np.float64]
Spacing = tuple[float, float, float]

METHODS: dict[str, dict[str, Any]] = {
    "1.04/ρ": {"heterogeneity": "density_scaling"},
    "local": {"heterogeneity": "local_transport"},
}

ISOTROPIC: Spacing = (3.0, 3.0, 3.0)
OF_A_CT: Spacing = (3.0, 500 / 512, 500 / 512)
MEDIA = {"lung": 0.26, "bone": 1.92, "air": 0.0012}
SOFT_G_PER_CM3 = 1.04
BLOCK_MM = 120.0
DECAYS = {"Lu-177": 2e7, "Y-90": 6e6}

SEED = 7
SPINE_MARGIN_MM = 15.0
SPINE_DECAYS = {"Lu-177": 2e7, "Y-90": 6e6}

BORDERS = """Two half blocks, 120 mm in all: the medium beside soft tissue (1.04 g/cm³), with
activity in soft tissue, in the medium, or the same Bq/mL in both. Differences of DVK from Monte
Carlo in the two rows of voxels before the border, in the medium (−2, −1), and the two behind it, in
soft tissue (+1, +2), averaged over the middle of the block; σ: the standard deviation of Monte
Carlo there, the largest of the four. Where Monte Carlo has less than 1 % of its largest value, the
difference is not given."""

SPINE = """The spine L2-L5 of a virtual patient and 15 mm around it, density from the CT with its
noise, activity as in the patient: the differences of DVK's mean dose rate, and the root mean square
difference of voxels over the mean, with Monte Carlo's own noise in it (σ)."""


@dataclass(frozen=True)
class Border:
    """medium: beside soft tissue. where: "soft", "medium" or "both" hold the activity."""

    nuclide: str
    medium: str
    where: str
    spacing: Spacing


def section(effort: Effort) -> Section:
    page = Section("Density in DVK: borders of media and the lumbar spine")
    page.say(BORDERS)
    head = ("nuclide", "medium", "activity in", "voxel, mm", "DVK", "−2", "−1", "+1", "+2", "σ")
    page.table(head, [row for border in _borders(effort) for row in _border_rows(border, effort)])
    page.say(SPINE)
    spacings = (ISOTROPIC,) if effort.quick else (ISOTROPIC, OF_A_CT)
    rows = [row for of in SPINE_DECAYS for spacing in spacings for row in _spine_rows(of, spacing, effort)]
    page.table(("nuclide", "voxel, mm", "tissue", "mGy/h", "σ of voxels", *_doubled(METHODS)), rows)
    return page


def _borders(effort: Effort) -> list[Border]:
    return [
        Border(of, medium, where, spacing)
        for of in DECAYS
        for medium in MEDIA
        for where in (("soft",) if medium == "air" else ("soft", "medium", "both"))
        for spacing in ((ISOTROPIC,) if effort.quick else (ISOTROPIC, OF_A_CT))
    ]


def _border_rows(border: Border, effort: Effort) -> list[tuple[str, ...]]:
    activity, density = block(border)
    run = simulate(
        activity, density, source_of(border.nuclide),
        limits=Limits(decays=effort.decays(DECAYS[border.nuclide])), device=effort.device,
    )  # fmt: skip
    truth = _profile(run.dose_rate.array)
    middle = density.grid.shape[2] // 2
    rows = slice(middle - 2, middle + 2)
    counted = _middle(run.uncertainty.array)[:, :, rows]
    sigma = np.sqrt((counted**2).mean(axis=(0, 1)) / counted[:, :, 0].size)
    seen = (truth[rows] > 0.01 * truth.max()) & (density.array[0, 0, rows] >= 0.1)
    noise = f"{100 * (sigma[seen] / truth[rows][seen]).max():.1f} %"
    voxel = " x ".join(f"{s:.3g}" for s in border.spacing)
    found = []
    for name, volume in _maps(activity, density, border.nuclide).items():
        ours = _profile(volume.array)[rows]
        each = (
            per_cent(o / t, 1) if good else "–" for o, t, good in zip(ours, truth[rows], seen, strict=True)
        )
        found.append((border.nuclide, border.medium, border.where, voxel, name, *each, noise))
    return found


def block(border: Border) -> tuple[Volume, Volume]:
    """(activity, density): the medium in the lower half of x, soft tissue in the upper."""
    z, y, x = (2 * round(BLOCK_MM / s / 2) for s in border.spacing)
    if border.spacing != ISOTROPIC:
        y //= 2  # wide enough, and half the voxels
    density, activity = np.full((z, y, x), SOFT_G_PER_CM3, np.float32), np.zeros((z, y, x), np.float32)
    density[:, :, : x // 2] = MEDIA[border.medium]
    if border.where != "soft":
        activity[:, :, : x // 2] = 1e6
    if border.where != "medium":
        activity[:, :, x // 2 :] = 1e6
    grid = Grid((z, y, x), (0.0, 0.0, 0.0), border.spacing)
    return Volume(activity, grid, "Bq/mL"), Volume(density, grid, "g/cm3")


def _middle(array: NDArray[np.floating]) -> Floats:
    z, y, _ = array.shape
    return array[z // 4 : z - z // 4, y // 4 : y - y // 4].astype(float)


def _profile(array: NDArray[np.floating]) -> Floats:
    return np.asarray(_middle(array).mean(axis=(0, 1)))


def _maps(activity: Volume, density: Volume, of: str) -> dict[str, Volume]:
    return {
        name: dvk_dose_rate(DoseRequest(activity, density, nuclide(of), **how)).volume
        for name, how in METHODS.items()
    }


def _doubled(names: dict[str, Any]) -> list[str]:
    return [f"DVK {name}, {what}" for name in names for what in ("mean", "rms")]


def _spine_rows(of: str, spacing: Spacing, effort: Effort) -> list[tuple[str, ...]]:
    whole = abdominal_ct_grid()
    if spacing == ISOTROPIC:
        whole = Grid((130, 167, 167), (-249.0, -224.0, -193.5), spacing)
    around = tuple(round(SPINE_MARGIN_MM / s) for s in spacing)
    box = crop_box(virtual_patient(whole, SEED).mask("L2-L5"), (around[0], around[1], around[2]))
    z, y, x = (part.stop - part.start for part in box)
    patient = virtual_patient(whole.boxed((box[0].start, box[1].start, box[2].start), (z, y, x)), SEED)
    density, activity = hu_to_density(patient.hu), patient.activity
    run = simulate(
        activity, density, source_of(of),
        limits=Limits(decays=effort.decays(SPINE_DECAYS[of])), device=effort.device,
    )  # fmt: skip
    maps = _maps(activity, density, of)
    spine, rho = patient.mask("L2-L5"), density.array
    tissues = {
        "L2-L5": spine,
        "its bone above 1.25 g/cm³": spine & (rho > 1.25),
        "its spongiosa, 1.1-1.25 g/cm³": spine & (rho > 1.1) & (rho <= 1.25),
        "soft tissue around": ~spine & (rho > 0.9) & (rho < 1.1),
    }
    voxel = " x ".join(f"{s:.3g}" for s in spacing)
    return [(of, voxel, name, *_in_region(run, mask, maps)) for name, mask in tissues.items()]


def _in_region(run: Simulation, mask: NDArray[np.bool_], maps: dict[str, Volume]) -> tuple[str, ...]:
    truth = run.dose_rate.array[mask].astype(float)
    noise = np.sqrt((run.uncertainty.array[mask].astype(float) ** 2).mean()) / truth.mean()
    found = [f"{truth.mean():.3g}", f"{100 * noise:.1f} %"]
    for volume in maps.values():
        ours = volume.array[mask].astype(float)
        found += [per_cent(ours.mean() / truth.mean(), 1)]
        found += [f"{100 * np.sqrt(((ours - truth) ** 2).mean()) / truth.mean():.1f} %"]
    return tuple(found)
