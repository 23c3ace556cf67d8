"""`dicomnode make-kernel`: what a person gives, reads and gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dicomnode.__main__ import app
from dicomnode.errors import ConfigurationError
from pipeline.errors import InputRejected
from pipeline.montecarlo import radial
from pipeline.montecarlo.decay_data import load_source
from pipeline.radial_kernel import parse


def told(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, ["make-kernel", *arguments])


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the transport: every shell gets what its volume is worth, known to 2 %."""

    def run(
        source: Any, _medium: str, _density: float, edges: Any, *_: Any, **given: Any
    ) -> radial.RadialRun:
        given["progress"]("Monte Carlo", 0.5)
        share = np.diff(edges) / edges[-1]
        electrons, photons = share * source.mean_electron_kev, share * source.mean_photon_kev
        return radial.RadialRun(electrons, 0.02 * electrons, photons, 0.02 * photons, 0.0)

    monkeypatch.setattr(radial, "radial_kernel_run", run)


@pytest.mark.usefixtures("local")
def test_a_kernel_is_written_where_it_was_wanted_and_summed_up(tmp_path: Path) -> None:
    to = tmp_path / "mine.csv"
    done = told("177Lu", "--decays", "1e6", "--medium", "icru", "--seed", "4", "--out", str(to))
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "Lu-177 (decay data: DDEP) in icru soft tissue of 1.04 g/cm3" in words
    assert "keV per decay within 50 cm" in words
    assert "1e+06 decays" in words
    assert str(to) in words
    lutetium = load_source("Lu-177")
    total = lutetium.mean_electron_kev + lutetium.mean_photon_kev
    assert float(parse(to.read_bytes(), "Lu-177").energy_within(500.0)) == pytest.approx(total, rel=1e-3)
    assert "seed 4" in to.read_text()


@pytest.mark.usefixtures("local")
def test_the_file_is_named_after_nuclide_and_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told("Y90", "--uncertainty", "0.05").exit_code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["Y-90_soft_tissue.csv"]


@pytest.mark.usefixtures("local")
def test_a_nuclide_may_come_with_its_own_decay_data(tmp_path: Path) -> None:
    mine = tmp_path / "mono.csv"
    mine.write_text(
        "# nuclide: X-1\n# evaluation: mine\n# half_life_s: 60\nkind,energy_kev,value\nconversion,100.0,1.0\n"
    )
    to = tmp_path / "x.csv"
    assert told("X-1", "--decay-data", str(mine), "--decays", "5", "--out", str(to)).exit_code == 0
    assert "decay data of mine" in to.read_text()


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (["Lu-178"], InputRejected, "no decay data for the nuclide 'Lu-178'. Did you mean Lu-177"),
        (["Lu-177", "--medium", "lungs"], InputRejected, "no medium 'lungs'. Did you mean lung"),
        (
            ["Lu-177", "--out", "/none/k.csv"],
            ConfigurationError,
            "/none/k.csv cannot be written: No such file",
        ),
        (
            ["Lu-177", "--decays", "5", "--uncertainty", "0.1"],
            InputRejected,
            "what ends the run is not clear",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    arguments: list[str],
    kind: type[Exception],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = told(*arguments)
    assert isinstance(done.exception, kind)
    assert text in str(done.exception)
    assert list(tmp_path.iterdir()) == []
