"""DVK at interfaces, the paper's 1.04/ρ and the product's other method, against the product's Monte
Carlo."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.decay import nuclide
from pipeline.dose_rate import DoseRequest
from pipeline.dvk import dvk_dose_rate
from tests.bench.physics.heterogeneity import METHODS
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import source_of, volumes
from tests.bench.physics.slabs import counted, maps, monte_carlo
from tests.bench.physics.units import mgy_h_per_kev
from tests.reference.slabs import LAYER_MM, SLABS, Slabs

Floats = NDArray[np.float64]

TEXT = """The slabs above with the product's decay data. Difference from Monte Carlo in three layers of 1
mm: the last one of soft tissue before the medium, the first and the third of the medium; then the
root mean square over the layers with at least 1 % of the energy. DVK gives no dose in air (below
0.1 g/cm³)."""


def section(effort: Effort) -> Section:
    page = Section("DVK at interfaces, Monte Carlo")
    rows, panels = [], []
    for slabs in SLABS:
        ours, _ = monte_carlo(slabs, source_of(slabs.nuclide), effort)
        convolved = {name: dvk(slabs, name) for name in METHODS}
        panels.append((slabs, ours, convolved))
        rows += [
            (slabs.medium, slabs.source, slabs.nuclide, *_row(slabs, ours, n, k))
            for n, k in convolved.items()
        ]
    page.say(TEXT)
    page.table(("medium", "activity in", "nuclide", "DVK", "before", "first", "third", "rms"), rows)
    for name in ("Lu-177", "Y-90"):
        chosen = [panel for panel in panels if panel[0].nuclide == name]
        page.figure(
            f"interfaces-{name}.png",
            f"Dose about the interfaces, DVK and Monte Carlo, {name}",
            _drawing(chosen),
        )
    return page


def dvk(slabs: Slabs, method: str) -> Floats:
    """keV per decay by layer of the convolution; nothing in air."""
    density, activity, spacing = maps(slabs)
    activity_map, density_map = volumes(density, activity * 1e6, spacing)
    request = DoseRequest(activity_map, density_map, nuclide(slabs.nuclide), **METHODS[method])
    rate = dvk_dose_rate(request).volume.array.astype(float)
    bq = float(activity_map.array.sum(dtype=np.float64)) * activity_map.grid.voxel_volume_ml
    mass = density * activity_map.grid.voxel_volume_ml
    return np.asarray((rate * mass).sum(axis=(1, 2)) / (bq * mgy_h_per_kev()))


def _row(slabs: Slabs, ours: Floats, method: str, kev: Floats) -> tuple[str, ...]:
    chosen = counted(slabs, ours)
    relative = kev[chosen] / ours[chosen] - 1
    first = slabs.layers // 2 - slabs.thickness_mm // 2
    near = (_ratio(kev[i], ours[i]) for i in (first - 1, first, first + 2))
    return method, *near, f"{100 * np.sqrt((relative**2).mean()):.1f} %"


def _ratio(kev: float, ours: float) -> str:
    return per_cent(kev / ours, 1) if kev > 0 and ours > 0 else "–"


def _drawing(panels: list[tuple[Slabs, Floats, dict[str, Floats]]]) -> Figure:
    figure = Figure(figsize=(9, 2.1 * len(panels)))
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (slabs, ours, convolved) in zip(all_axes, panels, strict=True):
        per_gram = slabs.density() * LAYER_MM / 10
        depth = (np.arange(slabs.layers) + 0.5) * LAYER_MM - 30
        axes.semilogy(depth, ours / per_gram, "k", lw=1, label="Monte Carlo")
        for (name, kev), style in zip(convolved.items(), ("--", ":"), strict=False):
            axes.semilogy(
                depth, np.where(kev > 0, kev, np.nan) / per_gram, style, lw=1.2, label=f"DVK, {name}"
            )
        for edge in (0, slabs.thickness_mm):
            axes.axvline(edge, color="0.8", lw=0.8, zorder=0)
        axes.set(ylabel="keV/(g/cm²)", xlim=(-20, slabs.thickness_mm + 20))
        axes.set_title(f"{slabs.medium}, activity in {slabs.source}", fontsize=8)
    all_axes[0].legend(fontsize=7, ncol=3)
    all_axes[-1].set_xlabel("mm behind the first interface")
    figure.tight_layout()
    return figure
