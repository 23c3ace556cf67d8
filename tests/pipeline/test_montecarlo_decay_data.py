"""Decay data: energies per decay, distributions, and what a nuclide without data gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.montecarlo.decay_data import load_source, nuclides, parse_source, read_source

# ICRP Publication 107: electrons and photons, keV per decay.
ICRP107 = {"Lu-177": (147.92, 35.10), "Y-90": (933.11, 0.001), "I-131": (191.85, 382.76)}
HALF_LIFE_H = {"Lu-177": 159.53, "Y-90": 64.10, "I-131": 192.50}


@pytest.mark.parametrize("name", ICRP107)
def test_energy_per_decay_is_that_of_icrp_107(name: str) -> None:
    source = load_source(name, "ICRP107")
    electrons, photons = ICRP107[name]
    assert source.mean_electron_kev == pytest.approx(electrons, rel=5e-4)
    assert source.mean_photon_kev == pytest.approx(photons, rel=1e-4, abs=5e-4)
    assert source.half_life_s / 3600 == pytest.approx(HALF_LIFE_H[name], rel=1e-3)


def test_lu_177_is_that_of_ddep() -> None:
    source = load_source("Lu-177")
    assert source.evaluation == "DDEP"
    lines = dict(zip(source.photon_kev.tolist(), source.photon_yield.tolist(), strict=True))
    assert lines[112.95] == pytest.approx(0.0620)
    assert lines[208.366] == pytest.approx(0.1038)
    assert source.mean_photon_kev == pytest.approx(30.015 + 3.45, abs=0.1)  # gamma rays, and X rays
    assert source.mean_electron_kev == pytest.approx(148.2, abs=0.3)
    assert source.beta_yield == pytest.approx(1.0, abs=1e-4)
    # Q = 498.3 keV less the antineutrinos: the beta branches take their part, levels the rest (47.7 keV).
    beyond_beta = source.electron_kev @ source.electron_yield + source.mean_photon_kev
    assert beyond_beta == pytest.approx(0.1164 * 321.316 + 0.00012 * 249.674 + 0.091 * 112.95, rel=0.01)


@pytest.mark.parametrize("name", nuclides())
def test_every_source_is_sound(name: str) -> None:
    source = load_source(name)
    assert source.nuclide == name
    assert source.half_life_s > 0
    assert (np.diff(source.beta_cdf_kev) >= 0).all()
    assert source.beta_cdf_kev[0] >= 0
    mean_beta = np.trapezoid(source.beta_cdf_kev, dx=1 / (len(source.beta_cdf_kev) - 1))
    discrete = source.electron_kev @ source.electron_yield
    assert source.beta_yield * mean_beta + discrete == pytest.approx(source.mean_electron_kev, rel=1e-9)
    for kev, per_decay in (
        (source.electron_kev, source.electron_yield),
        (source.photon_kev, source.photon_yield),
    ):
        assert kev.shape == per_decay.shape
        assert (kev > 0).all()
        assert (kev < 3000.0).all()
        assert (per_decay > 0).all()
        assert (kev < 1.0).sum() <= 1  # one line stands for all that no table reaches


def test_a_computed_spectrum_agrees_with_the_tabulated_one() -> None:
    computed, tabulated = load_source("Lu-177").beta_cdf_kev, load_source("Lu-177", "ICRP107").beta_cdf_kev
    quantiles = slice(100, 2000, 100)
    # The two evaluations differ by 0.5 keV in Q and by 0.007 in the ground-state branch.
    assert np.allclose(computed[quantiles], tabulated[quantiles], rtol=0.015)


@pytest.mark.parametrize("spelling", ["177Lu", "lu177", "Lu 177", "LU-177"])
def test_usual_spellings_mean_the_same(spelling: str) -> None:
    assert load_source(spelling).nuclide == "Lu-177"


def test_a_metastable_nuclide_is_found_either_way() -> None:
    assert load_source("99mTc").nuclide == load_source("Tc-99m").nuclide == "Tc-99m"


def test_a_nuclide_without_data_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(InputRejected, match="Lu-176") as refused:
        load_source("Lu-176")
    assert "Did you mean Lu-177" in refused.value.remedy
    with pytest.raises(InputRejected) as refused:
        load_source("unobtainium")
    assert "There are" in refused.value.remedy


def test_an_evaluation_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputRejected, match="ENSDF"):
        load_source("Y-90", "ENSDF")


def test_a_nuclide_is_added_by_data_alone(tmp_path: Path) -> None:
    path = tmp_path / "Xx-1.csv"
    path.write_text(
        "# nuclide: Xx-1\n# evaluation: own\n# half_life_s: 60\nkind,energy_kev,value\n"
        "beta_spectrum,0,0.01\nbeta_spectrum,50,0.01\nbeta_spectrum,100,0.01\nauger,0.5,2\ngamma,300,0.5\n"
    )
    source = read_source(path)
    assert source.beta_yield == pytest.approx(1.0)
    assert source.mean_electron_kev == pytest.approx(51.0, rel=1e-6)
    assert source.mean_photon_kev == pytest.approx(150.0)
    path.write_text("nonsense")
    with pytest.raises(InputRejected, match=r"Xx-1\.csv"):
        read_source(path)


def test_nothing_but_lines_is_a_source_too() -> None:
    source = parse_source(
        "# nuclide: A-1\n# evaluation: e\n# half_life_s: 1\nkind,energy_kev,value\ngamma,100,1\n"
    )
    assert source.beta_yield == 0
    assert source.mean_electron_kev == 0
    assert len(source.electron_kev) == 0
