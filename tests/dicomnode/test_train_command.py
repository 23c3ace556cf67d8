"""`dicomnode train`: what its options become, and what a mistake in them gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dicomnode.__main__ import app
from dicomnode.errors import NodeError
from pipeline.errors import PipelineError
from pipeline.learning import recipe as recipes
from pipeline.learning.recipe import Recipe, Work


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes in place of their hours of work."""
    found: list[Recipe] = []

    def run(work: Work, _stages: object) -> None:
        found.append(work.recipe)

    monkeypatch.setattr(recipes, "run", run)
    return found


def train(tmp_path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["train", str(tmp_path / "out"), "--device", "cpu", *options])


def test_settings_are_what_their_types_want(asked: list[Recipe], tmp_path: Path) -> None:
    settings = ("noise_weight=10", "voi_bounds=0.5,4", "flips=false", "batch=1", "precision=fp32")
    result = train(tmp_path, "--steps", "30", *(word for one in settings for word in ("--setting", one)))
    assert result.exit_code == 0, result.output
    (recipe,) = asked
    loop = recipe.loop
    assert (loop.noise_weight, loop.voi_bounds, loop.flips) == (10.0, (0.5, 4.0), False)
    assert (loop.batch, loop.precision, loop.steps) == (1, "fp32", 30)
    # What nobody asked for stays as the recipe has it.
    assert (loop.in_plane, loop.crop) == (Recipe().loop.in_plane, Recipe().loop.crop)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("noise_weight", "--setting noise_weight has no value"),
        ("noise_weight=much", "--setting noise_weight=much: .*number"),
        ("voi_bounds=1", "--setting voi_bounds=1: .*"),
        ("precision=fp8", "--setting precision=fp8: .*'fp32'"),
        ("noise=1", "'noise' is no setting of the training"),
        ("steps=5", "'steps' is no setting of the training"),
    ],
)
def test_a_mistaken_setting_is_named_before_anything_is_made(
    asked: list[Recipe], tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises((NodeError, PipelineError), match=said):
        raise train(tmp_path, "--setting", setting).exception or AssertionError("nothing was wrong")
    assert not asked
    assert not (tmp_path / "out").exists()


def test_patients_are_an_interval(asked: list[Recipe], tmp_path: Path) -> None:
    assert train(tmp_path, "--patients", "8:10").exit_code == 0
    assert [one.chosen for one in asked] == [(8, 10)]
    with pytest.raises(NodeError, match="--patients 10:8 is no interval"):
        raise train(tmp_path, "--patients", "10:8").exception or AssertionError("nothing was wrong")
