"""What every figure is drawn on: its style, its colours, and the sheet of slices.

matplotlib and PIL are imported when the first figure is made. Grids are axial; lengths on paper are inches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.volume import Grid

Array = NDArray[Any]

INK, PALE, RULE = "#1c2430", "#667080", "#e3e6ea"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
DOSE_COLOURS, SPECT_COLOURS = "inferno", "cividis"
SCALE_PERCENTILE, SCALE_POWER = 99.8, 0.5
DOTS_PER_INCH = 130
KIDNEY_OUTLINE = "#7fd6ff"


@dataclass(slots=True, eq=False)
class Canvas:
    """What a figure is begun on; `figure` is the one that will be written, the last that was made."""

    figure: Any = None

    def sized(
        self, width: float, height: float, layout: Literal["constrained"] | None = "constrained"
    ) -> Any:
        """A new, white figure."""
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), facecolor="white", layout=layout)
        return self.figure


@contextmanager
def figure_of(path: Path, images: bool = False) -> Iterator[Canvas]:
    """Makes a figure in the style of all of them and writes it with 256 colours: a third of the size.

    images: whether it shows maps, whose colours are then those that are kept.
    """
    import matplotlib as mpl
    from PIL import Image

    with mpl.rc_context(STYLE):
        canvas = Canvas()
        yield canvas
        raw = BytesIO()
        canvas.figure.savefig(raw, format="png", dpi=DOTS_PER_INCH)
    raw.seek(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(raw) as picture:
        whole = picture.convert("RGB")
        palette = Image.new("P", (1, 1))
        palette.putpalette(_map_palette(mpl))
        of_maps = palette if images else None
        # Dithering would double the size of flat areas.
        paletted = whole.quantize(256, palette=of_maps, dither=Image.Dither.NONE)
        paletted.save(path, format="PNG", optimize=True)


def _map_palette(mpl: Any) -> list[int]:
    """256 colours: both colour maps, closer where a square-root scale shows most, greys, and outlines."""
    counts = ((DOSE_COLOURS, 140), (SPECT_COLOURS, 80))
    colours = [
        color for name, n in counts for color in mpl.colormaps[name](np.linspace(0, 1, n) ** 1.3)[:, :3]
    ]
    greys = [np.full(3, level) for level in np.linspace(0, 1, 24)]
    outlines = [
        np.asarray(mpl.colors.to_rgb(c)) * f for c in (KIDNEY_OUTLINE, INK) for f in (0.4, 0.6, 0.8, 1)
    ]
    table = np.rint(255 * np.stack([*colours, *greys, *outlines])[:256]).astype(int)
    return [int(v) for v in table.ravel()]


@dataclass(frozen=True, slots=True, eq=False)
class SliceSheet:
    """Where the planes lie: rows coronal, axial, sagittal; one scale of lengths for all.

    body: the box (z, y, x) that is shown. extents: of it, mm. per_mm: inches. width, height: inches.
    """

    figure: Any
    grid: Grid
    body: tuple[slice, slice, slice]
    extents: tuple[float, float, float]
    per_mm: float
    width: float
    height: float
    columns: int

    LEFT = 0.55
    GAP = 0.07
    TOP = 0.72
    BOTTOM = 0.78

    @classmethod
    def of(cls, canvas: Canvas, grid: Grid, body: tuple[slice, slice, slice], columns: int) -> SliceSheet:
        z, y, x = ((part.stop - part.start) * s for part, s in zip(body, grid.spacing_mm, strict=True))
        column = 10.4 / max(columns, 4) - cls.GAP
        per_mm = column / max(x, y)
        width = cls.LEFT + columns * (column + cls.GAP) + 0.1
        height = cls.TOP + (2 * z + y) * per_mm + 2 * cls.GAP + cls.BOTTOM
        figure = canvas.sized(width, height, layout=None)
        return cls(figure, grid, body, (z, y, x), per_mm, width, height, columns)

    @property
    def column(self) -> float:
        """Width of a column, inches."""
        return max(self.extents[1:]) * self.per_mm

    def axes(self, row: int, column: int) -> Any:
        """New axes; a sagittal plane, which is narrower, stands in the middle of its column."""
        z, y, x = (extent * self.per_mm for extent in self.extents)
        heights, wide = (z, y, z), (x, x, y)[row]
        top = self.TOP + sum(heights[:row]) + row * self.GAP
        left = self.LEFT + column * (self.column + self.GAP) + (self.column - wide) / 2
        axes = self._add(left, self.height - top - heights[row], wide, heights[row])
        axes.set_facecolor("black")
        return axes

    def frame(self, axes: Any, normal: int, at: int, first: bool) -> None:
        """Limits at the body; the plane's name and the patient's sides in the first column."""
        first_row, first_column = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[normal]
        axes.set_xlim(*self._edges(first_column))
        low, high = self._edges(first_row)
        # y grows to the back: the front is up, as an axial plane is looked at.
        axes.set_ylim(*((high, low) if normal == 0 else (low, high)))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        if not first:
            return
        position = first_mm(self.grid)[normal] + at * self.grid.spacing_mm[normal]
        name = {0: "axial, z", 1: "coronal, y", 2: "sagittal, x"}[normal]
        axes.annotate(
            f"{name} = {signed(position)} mm",
            (0, 0.5),
            xytext=(-9, 0),
            textcoords="offset points",
            xycoords="axes fraction",
            rotation=90,
            ha="right",
            va="center",
            fontsize=9,
        )
        letters = {0: ("R", "L", "A", "P"), 1: ("R", "L", "H", "F"), 2: ("A", "P", "H", "F")}[normal]
        places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))
        for letter, (x, y) in zip(letters, places, strict=True):
            how: dict[str, Any] = {"color": "#d5dbe3", "fontsize": 7.5, "ha": "center", "va": "center"}
            axes.text(x, y, letter, transform=axes.transAxes, **how)

    def bars(self, norms: Mapping[str, Any], columns: Sequence[str]) -> None:
        """A colour bar below the SPECT, one below all estimates."""
        at = columns.index("SPECT")
        self._bar(norms["SPECT"], SPECT_COLOURS, at, at, "SPECT, kBq/mL")
        self._bar(norms["dose rate"], DOSE_COLOURS, at + 1, len(columns) - 1, "dose rate, mGy/h")

    def _bar(self, norm: Any, colours: str, first: int, last: int, label: str) -> None:
        from matplotlib.cm import ScalarMappable

        left = self.LEFT + first * (self.column + self.GAP)
        width = (last - first + 1) * (self.column + self.GAP) - self.GAP
        axes = self._add(left + 0.04 * width, self.BOTTOM - 0.27, 0.92 * width, 0.13)
        bar = self.figure.colorbar(
            ScalarMappable(norm, colours), cax=axes, orientation="horizontal", extend="max", extendfrac=0.03
        )
        bar.outline.set_visible(False)
        ticks = _ticks(norm, most=max(int(width / 0.55), 3))
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=8.5, length=2.5)
        bar.set_label(label, fontsize=9, labelpad=2)

    def _edges(self, axis: int) -> tuple[float, float]:
        part, spacing = self.body[axis], self.grid.spacing_mm[axis]
        first = first_mm(self.grid)[axis]
        return first + (part.start - 0.5) * spacing, first + (part.stop - 0.5) * spacing

    def _add(self, left: float, bottom: float, width: float, height: float) -> Any:
        w, h = self.width, self.height
        return self.figure.add_axes((left / w, bottom / h, width / w, height / h))


def plain(axes: Any) -> None:
    """Axes of a curve: a pale grid, and no frame above and at the right."""
    axes.grid(visible=True, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def power_norm(values: Array) -> Any:
    """A square-root colour scale from 0 to a high percentile: one hot voxel must not make all else dark."""
    from matplotlib.colors import PowerNorm

    positive = values[values > 0]
    top = float(np.percentile(positive, SCALE_PERCENTILE)) if positive.size else 1.0
    return PowerNorm(SCALE_POWER, 0.0, top, clip=True)


def _ticks(norm: Any, most: int) -> list[float]:
    """Round levels with room between them on a square-root scale."""
    top = float(norm.vmax)
    decades = range(int(np.floor(np.log10(top))) - 2, int(np.floor(np.log10(top))) + 1)
    levels = [0.0, *(m * 10.0**d for d in decades for m in (1, 2, 5))]
    kept: list[float] = []
    for level in levels:
        if level <= top and (not kept or float(norm(level)) - float(norm(kept[-1])) > 0.8 / most):
            kept.append(level)
    return kept


def first_mm(grid: Grid) -> tuple[float, float, float]:
    """Position of voxel [0, 0, 0] along (z, y, x)."""
    x, y, z = grid.origin_mm
    return z, y, x


def centres(grid: Grid, axis: int) -> NDArray[np.float64]:
    """(n,): patient coordinate of the voxels along an array axis, mm."""
    steps = np.arange(grid.shape[axis], dtype=np.float64)
    return np.asarray(first_mm(grid)[axis] + steps * grid.spacing_mm[axis])


def extent(grid: Grid, normal: int) -> tuple[float, float, float, float]:
    """Outer edges of a plane's voxels, for an image with its origin below: left, right, low, high, mm."""
    row, column = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[normal]
    edges = [
        first_mm(grid)[axis] + (n - 0.5) * grid.spacing_mm[axis]
        for axis in (column, row)
        for n in (0, grid.shape[axis])
    ]
    return edges[0], edges[1], edges[2], edges[3]


def signed(value: float) -> str:
    """A whole number with a true minus."""
    return f"{value:.0f}".replace("-", "−")
