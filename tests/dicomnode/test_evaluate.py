"""`dicomnode evaluate` on small examples and with weights of a network that has learnt nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dicomnode.commands.evaluate import evaluate_weights, network_methods
from dicomnode.errors import ConfigurationError
from models import weights
from models.dblurdosenet import build
from pipeline.errors import InputRejected
from pipeline.learning import example, results
from pipeline.network import load_weights
from tests.pipeline.learning import synthetic

TODAY = date(2026, 11, 23)


@pytest.fixture
def named(tmp_path: Path) -> str:
    """Weights whose last layer gives nothing: DVK itself."""
    torch.manual_seed(1)
    network = build("dblurdosenet", 8)
    with torch.no_grad():
        for parameter in network.UNet.outc.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    manifest = weights.Manifest(
        name="nothing-learnt",
        architecture="dblurdosenet",
        middle=8,
        nuclide="Lu-177",
        voxel_mm=synthetic.SPACING_MM,
        camera={"resolution_fwhm_mm": (5.0, 20.0)},
        training={},
        metrics={},
        ood={},
        version="1",
        date="2026-11-23",
        software="test",
        sha256="",
    )
    weights.save(tmp_path / "nothing-learnt", network.eval(), manifest)
    return str(tmp_path / "nothing-learnt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    example.save(synthetic.example(1), tmp_path / "data" / "patient-1.npz")
    return tmp_path / "data"


def test_the_account_is_written_with_its_pictures(named: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    page = evaluate_weights([named], data, out, Console(quiet=True), pictures=1, today=TODAY)
    text = page.read_text(encoding="utf-8")
    assert "2026-11-23" in text
    links = [line[4:-1] for line in text.splitlines() if line.startswith("![]")]
    assert [Path(link).stem.rpartition("-")[2] for link in links] == [
        "errors",
        "slices",
        "profiles",
        "histograms",
    ]
    assert all((out / link).is_file() for link in links)
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "evaluation.md", "figures"]
    # What adds nothing is DVK, to the rounding of the way onto the network's lattice and back.
    for voi in results.load(out / "evaluation.json").vois():
        assert voi.by_method["CNN"].energy_over_dvk == pytest.approx(1.0, abs=1e-5)
    assert "| dose rate without activity | zero everywhere | zero, by the scaling | reached |" in text


def test_nothing_is_left_of_an_evaluation_that_fails(named: str, data: Path, tmp_path: Path) -> None:
    (data / "patient-2.npz").write_bytes(b"cut short")
    with pytest.raises(InputRejected, match=r"patient-2\.npz cannot be read"):
        evaluate_weights([named], data, tmp_path / "out", Console(quiet=True), pictures=0, today=TODAY)
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_that_are_missing_are_named_before_anything_else(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="nowhere"):
        evaluate_weights(["nowhere"], data, tmp_path / "out", Console(quiet=True), today=TODAY)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(named: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        evaluate_weights([named], data, tmp_path / "file" / "out", Console(quiet=True), today=TODAY)


def test_weights_of_one_name_are_all_judged(named: str) -> None:
    """Versions of the same weights: none may take another's place in the tables."""
    found = [load_weights(named) for _ in range(4)]
    assert list(network_methods(found, "cpu")) == [
        "CNN", "CNN nothing-learnt", "CNN nothing-learnt (2)", "CNN nothing-learnt (3)",
    ]  # fmt: skip


def test_a_patient_of_another_nuclide_is_not_judged_by(named: str, tmp_path: Path) -> None:
    other = replace(synthetic.example(1), meta={"nuclide": "Y-90"})
    example.save(other, tmp_path / "data" / "patient-1.npz")
    with pytest.raises(InputRejected, match="is of Y-90, and the weights are for Lu-177"):
        evaluate_weights(
            [named], tmp_path / "data", tmp_path / "out", Console(quiet=True), pictures=0, today=TODAY
        )
