"""The pictures: written, small, and the colours that their bars promise."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.learning import evaluation, figures
from pipeline.learning.figures import Scene
from pipeline.learning.results import CNN
from pipeline.vois import judged_vois
from tests.pipeline.learning import synthetic

LARGEST = 300_000


def scene() -> Scene:
    example = synthetic.example(1)
    assert example.mc_on_spect is not None
    return Scene(
        "patient 1",
        example.grid,
        example.truth,
        example.spect,
        example.density,
        {"DVK": example.dvk, "MC": example.mc_on_spect, "CNN": synthetic.nearly_true(0.5, example)},
        judged_vois(example.vois),
    )


def pixels(path: Path) -> np.ndarray:
    assert 5_000 < path.stat().st_size < LARGEST
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("draw", [figures.slices, figures.profiles, figures.histograms])
@pytest.mark.parametrize("vois", [True, False])
def test_a_patient_is_drawn_with_and_without_vois(draw, vois: bool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shown = scene() if vois else replace(scene(), vois={"something": synthetic.example(1).vois["liver"]})
    draw(shown, tmp_path / "new" / "picture.png")
    assert pixels(tmp_path / "new" / "picture.png").std() > 5


def test_each_method_has_its_column_and_equal_maps_look_equal(tmp_path: Path) -> None:
    same = scene()
    same = replace(same, estimates={"DVK": same.truth, "CNN": same.truth})
    figures.slices(same, tmp_path / "slices.png")
    picture = pixels(tmp_path / "slices.png")
    # Columns of maps lie between white gaps; below the titles, the maps of the last two are the same picture.
    rows = picture[picture.shape[0] // 8 : picture.shape[0] // 3]
    column = np.flatnonzero(~(rows == 255).all(axis=(0, 2)))
    blocks = [b for b in np.split(column, np.flatnonzero(np.diff(column) > 1) + 1) if len(b) > 100]
    assert len(blocks) == 4
    width = min(len(blocks[2]), len(blocks[3])) - 4
    left, right = (rows[:, b[2] : b[2] + width].astype(int) for b in blocks[2:])
    assert np.mean(np.abs(left - right)) < 3


def test_the_errors_of_an_evaluation_are_drawn(tmp_path: Path) -> None:
    methods = evaluation.classical_methods() | {CNN: lambda e: synthetic.nearly_true(0.5, e)}
    figures.errors(evaluation.evaluate([synthetic.example(1)], methods), tmp_path / "errors.png")
    assert pixels(tmp_path / "errors.png").std() > 5


def test_a_training_is_drawn_from_its_log(tmp_path: Path) -> None:
    log = [{"step": k, "elapsed_s": k / 2, "loss": 9.0 / k, "learning_rate": 1e-3} for k in range(1, 40)]
    log += [{"step": 20, "validation": 2.0, "dvk": 5.0}, {"step": 40, "validation": 1.0, "dvk": 5.0}]
    figures.loss_curve(iter(log), tmp_path / "loss.png", "dblurdosenet")
    assert pixels(tmp_path / "loss.png").std() > 5
    figures.loss_curve(log[:3], tmp_path / "begun.png")


def test_matplotlib_is_loaded_only_for_a_picture() -> None:
    code = "import sys, pipeline.learning.figures; print('matplotlib' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
