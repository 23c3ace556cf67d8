"""Histories per second against their number and the size of the grid."""

from __future__ import annotations

import resource

import numpy as np

from tests.bench.physics.report import Effort, Section
from tests.bench.physics.runs import deposits, reference_source, warm_up

# (z, y, x) voxels, spacing (z, y, x) mm: a field of 39 x 50 x 50 cm from coarse to that of a CT.
GRIDS = (
    ((65, 128, 128), (6.0, 3.9064, 3.9064)),
    ((130, 256, 256), (3.0, 1.9532, 1.9532)),
    ((130, 512, 512), (3.0, 0.9766, 0.9766)),
)
COUNTS = (1e5, 1e6, 1e7)


def section(effort: Effort) -> Section:
    page = Section("Histories per second")
    warm_up()
    page.say(
        "Millions of decays per second, electrons / photons, of Lu-177 in an elliptic body of soft tissue "
        "with lungs, all of the soft tissue active: all cores, 25 batches, tally and statistics included, "
        "compilation not."
    )
    counts = COUNTS[:-1] if effort.quick else COUNTS
    rows = []
    for shape, spacing in GRIDS[: 2 if effort.quick else 3]:
        found = [_speeds(shape, spacing, decays, effort.device) for decays in counts]
        rows.append((" x ".join(map(str, shape)), *found))
    page.table(("voxels (z, y, x)", *(f"{decays:.0e} decays" for decays in counts)), rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    page.say(f"Peak memory of the process: {peak:.1f} GB.")
    return page


def _speeds(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], decays: float, device: str
) -> str:
    density, activity = body(shape)
    run = deposits(density, activity, spacing, reference_source("Lu-177"), (decays, decays), device=device)
    return " / ".join(f"{decays / seconds / 1e6:.2f}" for seconds in run.seconds)


def body(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(density, activity) of an elliptic body with lungs in its upper half."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    inside = (y[:, None] / 0.5) ** 2 + (x / 0.75) ** 2 <= 1
    lungs = (z[:, None, None] > 0.2) & ((y[:, None] / 0.35) ** 2 + ((np.abs(x) - 0.35) / 0.25) ** 2 <= 1)
    density = np.where(inside, np.where(lungs, 0.26, 1.06), 0.0012).astype(np.float32)
    return density, (density > 1).astype(np.float32)
