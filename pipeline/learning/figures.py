"""Pictures of an evaluation: slices, profiles, histograms, errors, and the course of a training.

Every function writes one PNG of a few hundred kilobytes at most and needs matplotlib, which is imported
when the first of them is called. Maps are (z, y, x), mGy/h, on one axial grid; distances are patient
coordinates in mm. The patient's right is on the viewer's left; in coronal and sagittal planes the head is up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dose_rate import AIR_BELOW_G_PER_CM3
from pipeline.lattice import crop_box
from pipeline.learning.figures_sheet import (
    DOSE_COLOURS,
    INK,
    KIDNEY_OUTLINE,
    PALE,
    SPECT_COLOURS,
    SliceSheet,
    centres,
    extent,
    figure_of,
    plain,
    power_norm,
)
from pipeline.learning.results import Evaluation, Metric
from pipeline.vois import VoiClass, vois_of_kind
from pipeline.volume import Grid

Array = NDArray[Any]
Mask = NDArray[np.bool_]

TRUTH = "truth"
COLOURS = {TRUTH: INK, "DVK": "#e07b39", "MC": "#7a5cc4", "CNN": "#0f9d8a"}
OTHER_COLOURS = ("#2f80ed", "#d1495b", "#8d99ae", "#7cb518")
MARGIN_MM = 8.0
BQ_PER_KBQ = 1000.0


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What the pictures of one patient show.

    title: of the patient. grid: of everything here. truth: mGy/h. spect: Bq/mL. density: g/cm³.
    estimates: name of a method -> mGy/h, in the order of the columns. vois: name -> mask.
    """

    title: str
    grid: Grid
    truth: Array
    spect: Array
    density: Array
    estimates: Mapping[str, Array]
    vois: Mapping[str, Mask] = field(default_factory=dict)

    @property
    def maps(self) -> dict[str, Array]:
        """The truth and every estimate."""
        return {TRUTH: self.truth, **self.estimates}


def slices(scene: Scene, path: Path) -> None:
    """Truth, SPECT and every estimate side by side: a coronal, an axial and a sagittal plane.

    All dose-rate maps share one square-root colour scale; the SPECT has its own. One scale of lengths.
    """
    body = _body_box(scene)
    columns = [(TRUTH, scene.truth), ("SPECT", scene.spect), *scene.estimates.items()]
    with figure_of(path, images=True) as canvas:
        norms = {
            "SPECT": power_norm(scene.spect[body] / BQ_PER_KBQ),
            "dose rate": power_norm(scene.truth[body]),
        }
        sheet = SliceSheet.of(canvas, scene.grid, body, len(columns))
        for row, normal in enumerate((1, 0, 2)):
            at = _telling_slice(scene, normal)
            for column, (name, array) in enumerate(columns):
                spect = name == "SPECT"
                axes = sheet.axes(row, column)
                axes.imshow(
                    np.take(array, at, axis=normal) / (BQ_PER_KBQ if spect else 1.0),
                    cmap=SPECT_COLOURS if spect else DOSE_COLOURS,
                    norm=norms["SPECT" if spect else "dose rate"],
                    extent=extent(scene.grid, normal),
                    origin="lower",
                    interpolation="bilinear",
                )
                _outlines(axes, scene, normal, at)
                sheet.frame(axes, normal, at, first=column == 0)
                if row == 0:
                    axes.set_title(name, pad=6, weight="bold")
        sheet.bars(norms, columns=[name for name, _ in columns])
        sheet.figure.text(0.012, 1 - 0.2 / sheet.height, scene.title, size=12, weight="bold", va="center")


def profiles(scene: Scene, path: Path) -> None:
    """Dose rate along lines through the largest lesion and a kidney: across the patient, and along z.

    The line along z crosses every slice: where the slices of an estimate did not join, it would have steps.
    """
    targets = _profiled(scene)
    with figure_of(path) as canvas:
        figure = canvas.sized(4.9 * len(targets) + 0.6, 6.2)
        grid_of_axes = figure.subplots(2, len(targets), squeeze=False)
        for column, name in enumerate(targets):
            centre = _middle_of(scene.vois[name])
            for row, axis in enumerate((2, 0)):
                _profile(grid_of_axes[row][column], scene, name, centre, axis)
        grid_of_axes[0][-1].legend(loc="upper right", fontsize=8.5)
        figure.suptitle(f"{scene.title}: dose-rate profiles", x=0.012, ha="left", weight="bold", size=12)


def histograms(scene: Scene, path: Path, most: int = 6) -> None:
    """Cumulative dose-rate volume histograms of up to `most` VOIs, truth and every estimate."""
    names = _telling_vois(scene, most)
    rows = -(-len(names) // 3)
    with figure_of(path) as canvas:
        figure = canvas.sized(10.4, 2.9 * rows + 0.4)
        panels = list(figure.subplots(rows, 3, squeeze=False).ravel())
        for axes, name in zip(panels, names, strict=False):
            _histogram(axes, scene, name)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        panels[0].legend(loc="lower left", fontsize=8.5)
        panels[0].set_ylabel("volume at or above it, %")
        title = f"{scene.title}: dose-rate volume histograms"
        figure.suptitle(title, x=0.012, ha="left", weight="bold", size=12)


def errors(evaluation: Evaluation, path: Path) -> None:
    """Mean error and NRMSE of every VOI, by class and method: a dot for each VOI, a bar at their mean."""
    values = {
        "Mean dose-rate error": _by_class(evaluation, "mean_error"),
        "NRMSE": _by_class(evaluation, "nrmse"),
    }
    with figure_of(path) as canvas:
        figure = canvas.sized(10.4, 3.3 * len(values) + 0.4)
        panels = figure.subplots(len(values), 1, squeeze=False).ravel()
        for axes, (metric, classes) in zip(panels, values.items(), strict=True):
            _strips(axes, metric, classes)
        panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=6, fontsize=8.5)


def loss_curve(log: Iterable[Mapping[str, float]], path: Path, title: str = "Training") -> None:
    """Loss against the step: training (smoothed), validation, and what DVK alone loses there.

    log: as `models.training.read_log` gives it: records with `step`, and `loss` or `validation` and `dvk`.
    """
    records = list(log)
    with figure_of(path) as canvas:
        figure = canvas.sized(7.6, 4.0)
        axes = figure.subplots()
        steps, losses = _series(records, "loss")
        if losses.size:
            axes.plot(steps, losses, color="#b9c0ca", linewidth=0.8, label="training")
            axes.plot(steps, _smoothed(losses), color=PALE, linewidth=1.8, label="training, smoothed")
        steps, losses = _series(records, "validation")
        axes.plot(
            steps, losses, "o-", color=COLOURS["CNN"], markersize=3.5, linewidth=1.8, label="validation"
        )
        levels = _series(records, "dvk")[1]
        if levels.size:
            dashes = (0, (4, 3))
            axes.axhline(levels[-1], color=COLOURS["DVK"], linestyle=dashes, label="DVK alone, validation")
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        plain(axes)
        axes.legend(loc="upper right", bbox_to_anchor=(1.0, 0.9))
        axes.set_title(title, loc="left", weight="bold")


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def colour_of(method: str, methods: Sequence[str]) -> str:
    """The colour of a method; those without one of their own share a palette in their order."""
    if method in COLOURS:
        return COLOURS[method]
    others = [name for name in methods if name not in COLOURS]
    return OTHER_COLOURS[others.index(method) % len(OTHER_COLOURS)]


def _by_class(evaluation: Evaluation, metric: Metric) -> dict[str, dict[str, list[float]]]:
    """VOI class -> method -> relative errors."""
    return {
        str(kind): {
            method: [
                float(getattr(voi.by_method[method], metric))
                for voi in evaluation.vois(kind)
                if method in voi.by_method
            ]
            for method in evaluation.methods
        }
        for kind in evaluation.kinds
    }


def _telling_slice(scene: Scene, normal: int) -> int:
    """The slice that shows the most: each lesion's and kidney's share of its largest section, summed."""
    others = tuple(axis for axis in range(3) if axis != normal)
    kinds = (VoiClass.LESION, VoiClass.LEFT_KIDNEY, VoiClass.RIGHT_KIDNEY)
    areas = [mask.sum(axis=others) for kind in kinds for mask in vois_of_kind(scene.vois, kind).values()]
    if not areas:
        return int(np.argmax(scene.truth.max(axis=others)))
    return int(np.argmax(sum(area / max(int(area.max()), 1) for area in areas)))


def _telling_vois(scene: Scene, most: int) -> list[str]:
    """The largest lesions, then organs."""
    lesions = _largest_first(vois_of_kind(scene.vois, VoiClass.LESION))
    organs = [name for kind in VoiClass for name in vois_of_kind(scene.vois, kind) if name not in lesions]
    kept = lesions[: max(most - len(organs), most // 2)]
    return [*kept, *organs][:most] or list(scene.vois)[:most]


def _profiled(scene: Scene) -> list[str]:
    """The largest lesion and the larger kidney; without them the first VOI that there is."""
    kidneys = {
        name: mask
        for kind in (VoiClass.LEFT_KIDNEY, VoiClass.RIGHT_KIDNEY)
        for name, mask in vois_of_kind(scene.vois, kind).items()
    }
    groups = (vois_of_kind(scene.vois, VoiClass.LESION), kidneys)
    found = [_largest_first(group)[0] for group in groups if group]
    return found or list(scene.vois)[:1]


def _largest_first(masks: Mapping[str, Mask]) -> list[str]:
    return sorted(masks, key=lambda name: int(np.count_nonzero(masks[name])), reverse=True)


def _middle_of(mask: Mask) -> tuple[int, int, int]:
    """The voxel of the mask that is nearest to its centre of mass: of a bean or a shell too, one inside."""
    voxels = np.argwhere(mask)
    nearest = np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))
    z, y, x = (int(v) for v in voxels[nearest])
    return z, y, x


def _body_box(scene: Scene) -> tuple[slice, slice, slice]:
    inside = scene.density >= AIR_BELOW_G_PER_CM3
    if not inside.any():
        inside = np.ones(scene.grid.shape, bool)
    dz, dy, dx = (int(MARGIN_MM / spacing) for spacing in scene.grid.spacing_mm)
    return crop_box(inside, (dz, dy, dx))


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def _outlines(axes: Any, scene: Scene, normal: int, at: int) -> None:
    """Thin outlines of lesions and kidneys, the same in every column: what the eye compares."""
    first_row, first_column = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[normal]
    rows, columns = centres(scene.grid, first_row), centres(scene.grid, first_column)
    for kind in (VoiClass.LESION, VoiClass.LEFT_KIDNEY, VoiClass.RIGHT_KIDNEY):
        for mask in vois_of_kind(scene.vois, kind).values():
            section = np.take(mask, at, axis=normal)
            if section.any():
                colour = "white" if kind is VoiClass.LESION else KIDNEY_OUTLINE
                axes.contour(
                    columns, rows, section, levels=[0.5], colors=[colour], linewidths=0.45, alpha=0.7
                )


def _profile(axes: Any, scene: Scene, name: str, centre: tuple[int, int, int], axis: int) -> None:
    line: list[Any] = list(centre)
    line[axis] = slice(None)
    where = centres(scene.grid, axis)
    inside = np.flatnonzero(scene.vois[name][tuple(line)])
    for method, map_ in scene.maps.items():
        truth = method == TRUTH
        axes.plot(
            where,
            map_[tuple(line)],
            color=colour_of(method, list(scene.maps)),
            linewidth=2.4 if truth else 1.5,
            alpha=0.9,
            label=method,
            zorder=2 if truth else 3,
        )
    half = scene.grid.spacing_mm[axis] / 2
    axes.axvspan(where[inside[0]] - half, where[inside[-1]] + half, color="#f1f3f6", zorder=0)
    reach = max(45.0, 0.9 * (where[inside[-1]] - where[inside[0]]))
    axes.set_xlim(max(where[inside[0]] - reach, where[0]), min(where[inside[-1]] + reach, where[-1]))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{'zyx'[axis]}, mm")
    axes.set_ylabel("dose rate, mGy/h")
    across = {2: "across the patient", 0: "from foot to head"}[axis]
    axes.set_title(f"{name}, {across}", loc="left")
    plain(axes)


def _histogram(axes: Any, scene: Scene, name: str) -> None:
    mask = scene.vois[name]
    highest = 0.0
    for method, map_ in scene.maps.items():
        rates = np.sort(map_[mask].astype(np.float64))
        highest = max(highest, float(np.percentile(rates, 98.0)))
        share = 100.0 * (1.0 - np.arange(rates.size) / rates.size)
        keep = np.unique(np.linspace(0, rates.size - 1, 600).astype(int))
        axes.plot(
            np.concatenate([[0.0], rates[keep]]),
            np.concatenate([[100.0], share[keep]]),
            color=colour_of(method, list(scene.maps)),
            linewidth=2.4 if method == TRUTH else 1.5,
            label=method,
            zorder=2 if method == TRUTH else 3,
        )
    axes.set_xlim(0, 1.08 * highest)
    axes.set_ylim(0, 102)
    axes.set_xlabel("dose rate, mGy/h")
    volume = np.count_nonzero(mask) * scene.grid.voxel_volume_ml
    axes.set_title(f"{name}, {volume:.{0 if volume >= 10 else 1}f} mL", loc="left")
    plain(axes)


def _strips(axes: Any, metric: str, classes: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    methods = list(dict.fromkeys(method for of_class in classes.values() for method in of_class))
    width = 0.8 / max(len(methods), 1)
    rng = np.random.default_rng(1)  # only spreads the dots sideways
    for number, method in enumerate(methods):
        colour = colour_of(method, methods)
        for place, of_class in enumerate(classes.values()):
            per_cent = 100.0 * np.asarray(of_class.get(method, ()), dtype=np.float64)
            if not per_cent.size:
                continue
            x = place + (number - (len(methods) - 1) / 2) * width
            spread = x + rng.uniform(-0.28, 0.28, per_cent.size) * width
            axes.scatter(spread, per_cent, s=10, color=colour, alpha=0.45, linewidths=0)
            label = method if place == 0 else None
            mean = float(per_cent.mean())
            axes.plot(
                [x - 0.4 * width, x + 0.4 * width], [mean, mean], color=colour, linewidth=2.6, label=label
            )
    axes.set_xticks(range(len(classes)), list(classes))
    axes.set_xlim(-0.6, len(classes) - 0.4)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("%")
    axes.set_title(f"{metric}: every VOI and the mean", loc="left", weight="bold")
    plain(axes)
    axes.grid(visible=False, axis="x")


def _series(records: Sequence[Mapping[str, float]], key: str) -> tuple[Array, Array]:
    """(n,) steps and (n,) values of the records that have the key."""
    found = [(record["step"], record[key]) for record in records if key in record]
    pairs = np.asarray(found, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _smoothed(values: Array) -> Array:
    """The running median over a twentieth of the course: single crops differ by an order of magnitude."""
    half = max(values.size // 40, 1)
    return np.asarray([np.median(values[max(k - half, 0) : k + half + 1]) for k in range(values.size)])
