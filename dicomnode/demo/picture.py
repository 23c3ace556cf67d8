"""Coronal and axial CT with the dose rate over it, and the dose-rate volume histogram, as one PNG.

Distances are patient coordinates in mm, to scale. The patient's right is on the viewer's left; in the
coronal plane the head is up, in the axial plane the front. Grids must be axial, as those of the
demonstration are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from pipeline.histogram import dose_rate_volume_histogram
from pipeline.rois import Roi
from pipeline.volume import Grid, Volume

# Regions that hold nearly everything: neither outlined nor in the histogram.
WHOLE = ("Body", "Field of view")
# CT numbers from black to white: soft tissue.
WINDOW_HU = (-160.0, 240.0)
# Part of the colour scale at which the dose rate begins to show, and at which it is fully shown.
SEEN_FROM, SEEN_FULLY, OPACITY = 0.10, 0.35, 0.85
SCALE_PERCENTILE, SCALE_POWER = 99.9, 0.5
MARGIN_MM = 12.0
COLOURS = "inferno"
ORGAN_COLOURS = ("#159f8c", "#7cb518", "#2f80ed", "#56ccf2", "#8d99ae")
INK, PALE = "#1c2430", "#667080"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
DOTS_PER_INCH = 160
SHEET_WIDTH, HISTOGRAM_HEIGHT = 13.0, 3.3  # inches
LEVELS = (0, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of a volume. normal: 0 axial, 1 coronal (array axis). at_mm: where, in the patient."""

    normal: int
    at_mm: float

    def of(self, array: NDArray[Any], grid: Grid) -> NDArray[Any]:
        """(rows, columns): (y, x) or (z, x)."""
        return np.asarray(np.take(array, self.index(grid), axis=self.normal))

    def index(self, grid: Grid) -> int:
        """The nearest slice of a grid."""
        first = _first_mm(grid)[self.normal]
        nearest = round((self.at_mm - first) / grid.spacing_mm[self.normal])
        return int(np.clip(nearest, 0, grid.shape[self.normal] - 1))

    def extent(self, grid: Grid) -> tuple[float, float, float, float]:
        """Outer edges of the voxels: left, right, first row, last row, mm."""
        first, rows = _first_mm(grid), 1 - self.normal
        edges = [
            first[axis] + (n - 0.5) * grid.spacing_mm[axis]
            for axis in (2, rows)
            for n in (0, grid.shape[axis])
        ]
        return edges[0], edges[1], edges[2], edges[3]


def draw(ct: Volume, dose_rate: Volume, regions: Sequence[Roi], dose: Dataset, path: Path) -> None:
    """Write the picture.

    ct: HU. dose_rate: mGy/h. regions: on the grid of `dose_rate`. dose: header of the RTDOSE, for
    the text.
    """
    drawn = [region for region in regions if region.name not in WHOLE]
    styles = region_styles([region.name for region in drawn])
    scale = colour_scale(dose_rate, regions)
    coronal, axial = telling_plane(dose_rate, drawn, 1), telling_plane(dose_rate, drawn, 0)
    with mpl.rc_context(STYLE):
        sheet = Sheet.of(dose_rate.grid)
        for box, plane, other in ((sheet.coronal, coronal, axial), (sheet.axial, axial, coronal)):
            axes = sheet.axes(box)
            _overlay(axes, plane, ct, dose_rate, scale)
            _outline(axes, plane, drawn, dose_rate.grid, styles)
            _frame(axes, plane, dose_rate.grid)
            axes.axhline(other.at_mm, color="white", linewidth=0.7, linestyle=(0, (4, 4)), alpha=0.5)
        _colour_bar(sheet, scale, dose_rate)
        _histogram(sheet.axes(sheet.histogram), drawn, dose_rate, styles)
        _title(sheet, dose)
        sheet.figure.savefig(path, dpi=DOTS_PER_INCH)


def colour_scale(dose_rate: Volume, regions: Sequence[Roi]) -> Normalize:
    """From 0 to a high percentile of the body: one hot voxel must not make all else dark."""
    body = next((region for region in regions if region.name == "Body"), None)
    rates = dose_rate.array.ravel() if body is None else body.values(dose_rate.array)
    return PowerNorm(SCALE_POWER, 0.0, float(np.percentile(rates, SCALE_PERCENTILE)) or 1.0, clip=True)


def telling_plane(dose_rate: Volume, regions: Sequence[Roi], normal: int) -> Plane:
    """The plane that shows the most of the regions: the sum of each one's share of its largest section.

    Without regions, the plane with the highest dose rate.
    """
    grid = dose_rate.grid
    others = tuple(axis for axis in range(3) if axis != normal)
    score = np.zeros(grid.shape[normal])
    for region in regions:
        areas = np.count_nonzero(region.inside, axis=others)
        score[region.box[normal]] += areas / areas.max()
    if not regions:
        score = dose_rate.array.max(axis=others)
    return Plane(normal, float(_first_mm(grid)[normal] + np.argmax(score) * grid.spacing_mm[normal]))


def region_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each region is drawn: organs in cool colours, lesions from violet to yellow."""
    lesions = [name for name in names if is_lesion(name)]
    organs = [name for name in names if name not in lesions]
    warm = mpl.colormaps["plasma"](np.linspace(0.22, 0.92, max(len(lesions), 1)))
    styles: dict[str, dict[str, Any]] = {
        name: {"color": ORGAN_COLOURS[n % len(ORGAN_COLOURS)], "linewidth": 2.0}
        for n, name in enumerate(organs)
    }
    return styles | {n: {"color": c, "linewidth": 1.5} for n, c in zip(lesions, warm, strict=False)}


def is_lesion(name: str) -> bool:
    """Whether a region's name says so."""
    return name.lower().startswith("lesion")


# ── the panels ───────────────────────────────────────────────────────────────────────────────────

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """The figure and where its panels lie: (left, bottom, width, height), inches.

    Coronal and axial plane are of one scale; below the axial one, which is lower, its colour bar.
    """

    figure: Figure
    coronal: Box
    axial: Box
    scale: Box
    histogram: Box

    @classmethod
    def of(cls, grid: Grid) -> Sheet:
        """A sheet for images of this grid."""
        high, deep, wide = (n * spacing for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True))
        width = (SHEET_WIDTH - 0.9 - 1.0 - 0.35) / 2
        per_mm = width / (wide + 2 * MARGIN_MM)
        coronal, axial = high * per_mm, (deep + 2 * MARGIN_MM) * per_mm
        images = max(coronal, axial + 1.55)
        base = 0.65 + HISTOGRAM_HEIGHT + 1.0
        right = 0.9 + width + 1.0
        figure = Figure(figsize=(SHEET_WIDTH, base + images + 1.25), facecolor="white")
        FigureCanvasAgg(figure)
        return cls(
            figure,
            coronal=(0.9, base + images - coronal, width, coronal),
            axial=(right, base + images - axial, width, axial),
            scale=(right, base + images - axial - 0.92, width, 0.2),
            histogram=(0.9, 0.65, SHEET_WIDTH - 0.9 - 2.75, HISTOGRAM_HEIGHT),
        )

    def axes(self, box: Box) -> Axes:
        """New axes on a box."""
        wide, high = self.figure.get_size_inches()
        left, bottom, width, height = box
        return self.figure.add_axes((left / wide, bottom / high, width / wide, height / high))

    def text(self, below_top: float, text: str, **style: Any) -> None:
        """A line of text at the left, inches below the upper edge."""
        wide, high = self.figure.get_size_inches()
        self.figure.text(0.35 / wide, 1 - below_top / high, text, va="center", **style)


def _overlay(axes: Axes, plane: Plane, ct: Volume, dose_rate: Volume, scale: Normalize) -> None:
    axes.set_facecolor("black")
    axes.imshow(
        plane.of(ct.array, ct.grid),
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        extent=plane.extent(ct.grid),
        origin="lower",
        interpolation="bilinear",
    )
    rate = plane.of(dose_rate.array, dose_rate.grid)
    shown = (np.asarray(scale(rate)) - SEEN_FROM) / (SEEN_FULLY - SEEN_FROM)
    axes.imshow(
        rate,
        cmap=COLOURS,
        norm=scale,
        alpha=OPACITY * np.clip(shown, 0.0, 1.0),
        extent=plane.extent(dose_rate.grid),
        origin="lower",
        interpolation="bilinear",
    )


def _outline(
    axes: Axes, plane: Plane, regions: Sequence[Roi], grid: Grid, styles: dict[str, dict[str, Any]]
) -> None:
    """Thin outlines; a lesion's is white and bears its number."""
    across, along = _centres(grid, 2), _centres(grid, 1 - plane.normal)
    for region in regions:
        # Rounds off the corners of the voxels, by less than one.
        section = gaussian_filter(plane.of(region.mask, grid).astype(np.float32), 0.8)
        inside = np.argwhere(section > 0.5)
        if not inside.size:
            continue
        colour = "white" if is_lesion(region.name) else styles[region.name]["color"]
        axes.contour(across, along, section, levels=[0.5], colors=[colour], linewidths=0.9)
        if is_lesion(region.name):
            row, column = inside[inside[:, 1].argmax()]
            number = region.name.split()[1]
            axes.text(
                across[column] + 5, along[row], number, color="white", fontsize=9, va="center", clip_on=True
            )


def _frame(axes: Axes, plane: Plane, grid: Grid) -> None:
    """Limits, names of the axes, and the letters of the patient's sides."""
    left, right, first, last = plane.extent(grid)
    axes.set_xlim(left - MARGIN_MM, right + MARGIN_MM)
    axes.set_xlabel("x, mm")
    coronal = plane.normal == 1
    axes.set_ylim(*((first, last) if coronal else (last + MARGIN_MM, first - MARGIN_MM)))
    axes.set_ylabel("z, mm" if coronal else "y, mm")
    where = "Coronal, y" if coronal else "Axial, z"
    axes.set_title(f"{where} = {_signed(plane.at_mm)} mm", loc="left", fontsize=11.5)
    edge: dict[str, Any] = {"color": "white", "weight": "bold", "transform": axes.transAxes}
    axes.text(0.025, 0.5, "R", ha="center", va="center", **edge)
    axes.text(0.975, 0.5, "L", ha="center", va="center", **edge)
    axes.text(0.5, 0.98, "H" if coronal else "A", ha="center", va="top", **edge)
    axes.text(0.5, 0.02, "F" if coronal else "P", ha="center", va="bottom", **edge)


def _colour_bar(sheet: Sheet, scale: Normalize, dose_rate: Volume) -> None:
    axes = sheet.axes(sheet.scale)
    bar = sheet.figure.colorbar(
        ScalarMappable(scale, COLOURS), cax=axes, orientation="horizontal", extend="max", extendfrac=0.03
    )
    bar.outline.set_visible(False)
    top = float(scale.inverse(1.0))
    levels = legible(scale, [level for level in LEVELS if level < top])
    bar.set_ticks(levels, labels=[f"{level:g}" for level in levels])
    bar.minorticks_off()
    bar.set_label("dose rate, mGy/h")
    caption = (
        f"square-root scale to the body's {SCALE_PERCENTILE:g}th percentile ({top:.3g}); "
        f"maximum {dose_rate.array.max():.3g} mGy/h"
    )
    axes.text(0.5, -3.0, caption, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=PALE)


def legible(norm: Normalize, levels: Sequence[float]) -> list[float]:
    """Those of the levels that leave room for each other's numbers on a colour bar."""
    kept: list[float] = []
    for level in levels:
        if not kept or float(norm(level)) - float(norm(kept[-1])) > 0.055:
            kept.append(level)
    return kept


def _histogram(
    axes: Axes, regions: Sequence[Roi], dose_rate: Volume, styles: dict[str, dict[str, Any]]
) -> None:
    lowest = []
    for region in regions:
        curve = dose_rate_volume_histogram(region.name, region.mask, dose_rate, levels=2000)
        lowest.append(float(np.percentile(region.values(dose_rate.array), 1.0)))
        axes.plot(curve.dose_rate, 100 * curve.volume_fraction, label=region.name, **styles[region.name])
    axes.set_xscale("log")
    axes.set_xticks(LEVELS[1:], [f"{level:g}" for level in LEVELS[1:]])
    axes.minorticks_off()
    axes.set_xlim(max(0.8 * min(lowest, default=1.0), 0.1), 1.1 * float(dose_rate.array.max()))
    axes.set_ylim(0, 102)
    axes.set_xlabel("dose rate, mGy/h")
    axes.set_ylabel("volume at or above it, %")
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Dose-rate volume histogram", loc="left", fontsize=11.5)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, handlelength=1.6)


def _title(sheet: Sheet, dose: Dataset) -> None:
    what = str(dose.get("SeriesDescription", "")).partition(" (")[0]
    when = str(dose.get("DoseComment", "")).rpartition(" at ")[2]
    name = str(dose.get("PatientName", "")).replace("^", " ")
    sheet.text(0.45, f"{what}, {name}", fontsize=17, weight="bold")
    sheet.text(0.78, f"{dose.get('StudyDescription', '')}, dose rate at {when}", fontsize=11, color=PALE)


def _first_mm(grid: Grid) -> tuple[float, float, float]:
    """Position of voxel [0, 0, 0] along the array's axes (z, y, x) of an axial grid."""
    x, y, z = grid.origin_mm
    return z, y, x


def _centres(grid: Grid, axis: int) -> NDArray[np.float64]:
    steps = np.arange(grid.shape[axis], dtype=np.float64)
    return _first_mm(grid)[axis] + steps * grid.spacing_mm[axis]


def _signed(value: float) -> str:
    return f"{value:.0f}".replace("-", "−")
