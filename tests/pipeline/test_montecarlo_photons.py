"""Photon transport against XCOM, Klein-Nishina, form factors, and what must be conserved."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.montecarlo.bank import BANK_DEPTH, ELECTRON, PHOTON, new_bank
from pipeline.montecarlo.compiled import ELECTRON_REST_KEV, F, compiled_making_arrays
from pipeline.montecarlo.data import PhysicsData, load_physics
from pipeline.montecarlo.energy import interpolate, place_on_grid
from pipeline.montecarlo.geometry import ACCOUNT_SIZE, ESCAPED, Geometry, voxel_geometry
from pipeline.montecarlo.materials import AIR, CORTICAL_BONE, LUNG, MATERIALS, SOFT_TISSUE, WATER
from pipeline.montecarlo.photon_tables import PhotonTables, mean_binding_kev, photon_tables
from pipeline.montecarlo.photons import compton, fly, photon, rayleigh, sauter
from pipeline.montecarlo.random_numbers import first_draw, stream_key

KEY = stream_key(20, 1)
ENERGIES = (30.0, 113.0, 208.0, 364.0)
HC_KEV_ANGSTROM = 12.39842
MIDDLE = F(0.5)


@pytest.fixture(scope="module")
def physics() -> PhysicsData:
    return load_physics()


@compiled_making_arrays
def crossing(
    geometry: Geometry, tables: PhotonTables, energy: np.float32, histories: int, key: np.uint64
) -> int:
    """Photons of a pencil beam along x that cross the grid without any interaction."""
    crossed = 0
    for history in range(histories):
        inside, _, _, _, _, _, _, _ = fly(
            geometry, tables, place_on_grid(energy), geometry.nz // 2, geometry.ny // 2, 0,
            MIDDLE, MIDDLE, F(0.0), F(1.0), F(0.0), F(0.0), first_draw(history), key,
        )  # fmt: skip
        crossed += not inside
    return crossed


@compiled_making_arrays
def scattered(
    tables: PhotonTables, material: int, energy: np.float32, coherent: bool, histories: int, key: np.uint64
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and energies after one scattering each."""
    cosines = np.empty(histories, np.float32)
    energies = np.full(histories, energy, np.float32)
    for history in range(histories):
        if coherent:
            cosines[history], _ = rayleigh(tables, material, energy, first_draw(history), key)
        else:
            cosines[history], energies[history], _ = compton(
                tables, material, energy, first_draw(history), key
            )
    return cosines, energies


@compiled_making_arrays
def followed(
    geometry: Geometry,
    tables: PhotonTables,
    tally: NDArray[np.float64],
    account: NDArray[np.float64],
    bank: NDArray[np.float32],
    energy: np.float32,
    held: int,
    history: int,
    key: np.uint64,
) -> int:
    """Follow a photon from the grid's middle along (1, 2, 2)/3; the bank's count, from ``held`` on."""
    count, _ = photon(
        geometry, tables, tally, account, bank, held, geometry.nz // 2, geometry.ny // 2, geometry.nx // 2,
        MIDDLE, MIDDLE, MIDDLE, F(1 / 3), F(2 / 3), F(2 / 3), energy, first_draw(history), key,
    )  # fmt: skip
    return count


@compiled_making_arrays
def photoelectrons(kinetic: np.float32, histories: int, key: np.uint64) -> NDArray[np.float32]:
    """Cosines of photoelectrons."""
    cosines = np.empty(histories, np.float32)
    for history in range(histories):
        cosines[history], _ = sauter(kinetic, first_draw(history), key)
    return cosines


def slabs(materials: list[int], densities: list[float], thickness: int = 4) -> Geometry:
    """Slabs across x, each `thickness` voxels of 5 mm thick; 3 voxels along y and z."""
    shape = (3, 3, thickness * len(materials))
    material = np.broadcast_to(np.repeat(np.array(materials, np.uint8), thickness), shape)
    density = np.broadcast_to(np.repeat(np.array(densities, np.float32), thickness), shape)
    return voxel_geometry(material, density, (0.5, 0.5, 0.5))


def block(material: int = WATER, density: float = 1.0, side_cm: float = 1e4) -> Geometry:
    return voxel_geometry(
        np.full((1, 1, 1), material, np.uint8), np.full((1, 1, 1), density, np.float32), (side_cm,) * 3
    )


def tables_of(physics: PhysicsData, geometry: Geometry, cutoff_kev: float = 5.0) -> PhotonTables:
    return photon_tables(physics, geometry, cutoff_kev=cutoff_kev, electron_cutoff_kev=5.0)


def log_log(physics: PhysicsData, values: NDArray[np.float64], energy: float) -> float:
    return float(np.exp(np.interp(np.log(energy), np.log(physics.energy_kev), np.log(values))))


def attenuation(physics: PhysicsData, material: int, energy: float) -> float:
    """μ/ρ of the shipped data, cm²/g."""
    total = physics.photoelectric + physics.incoherent + physics.coherent + physics.pair
    return log_log(physics, total[material], energy)


def binomial(histories: int, probability: float) -> float:
    return math.sqrt(histories * probability * (1 - probability))


# NIST, X-Ray Mass Attenuation Coefficients (NISTIR 5632), liquid water: mu/rho, cm2/g.
@pytest.mark.parametrize(
    ("energy", "mu_over_rho"), [(30, 0.3756), (100, 0.1707), (300, 0.1186), (1000, 0.07072)]
)
def test_a_slab_of_water_attenuates_as_xcom_says(
    physics: PhysicsData, energy: float, mu_over_rho: float
) -> None:
    geometry = slabs([WATER, WATER], [1.0, 1.0])
    expected = math.exp(-mu_over_rho * 4.0)
    crossed = crossing(geometry, tables_of(physics, geometry), F(energy), 200_000, KEY)
    assert abs(crossed - 200_000 * expected) < 3 * binomial(200_000, expected)


@pytest.mark.parametrize("energy", ENERGIES)
def test_slabs_of_many_media_attenuate_by_the_product_of_their_exponentials(
    physics: PhysicsData, energy: float
) -> None:
    materials, densities = [AIR, SOFT_TISSUE, CORTICAL_BONE, LUNG], [0.0012, 1.06, 1.9, 0.26]
    geometry = slabs(materials, densities)
    depth = sum(
        attenuation(physics, material, energy) * density * 2.0
        for material, density in zip(materials, densities, strict=True)
    )
    crossed = crossing(geometry, tables_of(physics, geometry), F(energy), 200_000, KEY)
    assert abs(crossed - 200_000 * math.exp(-depth)) < 3 * binomial(200_000, math.exp(-depth))


def test_the_majorant_bounds_every_voxel_between_the_tabulated_energies_too(physics: PhysicsData) -> None:
    rng = np.random.default_rng(3)
    material = rng.integers(0, len(MATERIALS), 500).astype(np.uint8).reshape(5, 10, 10)
    density = rng.uniform(0.0, 2.5, 500).astype(np.float32).reshape(5, 10, 10)
    tables = tables_of(physics, voxel_geometry(material, density, (0.1, 0.1, 0.1)))
    for energy in np.exp(rng.uniform(math.log(1.0), math.log(3000.0), 300)):
        place = place_on_grid(F(energy))
        bound = interpolate(tables.majorant, place)
        per_gram = np.array([interpolate(row, place) for row in tables.attenuation], np.float32)
        assert np.all(per_gram[material] * density < bound)


def test_a_grid_of_nothing_is_left_at_once(physics: PhysicsData) -> None:
    geometry = slabs([AIR], [0.0])
    assert crossing(geometry, tables_of(physics, geometry), F(100.0), 1000, KEY) == 1000


def klein_nishina_with_binding(
    physics: PhysicsData, material: int, energy: float, cosine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Density of cos θ, not normalised: Klein and Nishina 1929 times S(x)."""
    fraction = 1.0 / (1.0 + energy / ELECTRON_REST_KEV * (1.0 - cosine))
    x = energy / HC_KEV_ANGSTROM * np.sqrt((1.0 - cosine) / 2.0)
    s = np.interp(
        np.log(np.maximum(x, 1e-12)), np.log(physics.momentum_x), physics.incoherent_function[material]
    )
    return np.asarray(fraction**2 * (fraction + 1.0 / fraction - 1.0 + cosine**2) * s)


@pytest.mark.parametrize("material", [WATER, CORTICAL_BONE])
@pytest.mark.parametrize("energy", ENERGIES)
def test_compton_angles_follow_klein_nishina_times_the_scattering_function(
    physics: PhysicsData, energy: float, material: int
) -> None:
    cosines, energies = scattered(tables_of(physics, block()), material, F(energy), False, 200_000, KEY)
    np.testing.assert_allclose(
        energies, energy / (1 + energy / ELECTRON_REST_KEV * (1 - cosines.astype(float))), rtol=2e-6
    )
    cells = np.linspace(-1.0, 1.0, 41)
    fine = np.linspace(-1.0, 1.0, 40 * 100 + 1)
    density = klein_nishina_with_binding(physics, material, energy, 0.5 * (fine[1:] + fine[:-1]))
    expected = density.reshape(40, 100).sum(axis=1) / density.sum() * 200_000
    observed, _ = np.histogram(cosines, cells)
    chi_square = float(np.sum((observed - expected) ** 2 / expected))
    # 39 degrees of freedom: mean 39, standard deviation 8.8.
    assert chi_square < 39 + 4 * math.sqrt(2 * 39)


@pytest.mark.parametrize("material", [WATER, CORTICAL_BONE])
@pytest.mark.parametrize("energy", [10.0, 30.0, 113.0, 364.0])
def test_coherent_scattering_has_the_mean_cosine_of_the_form_factors(
    physics: PhysicsData, energy: float, material: int
) -> None:
    cosines, _ = scattered(tables_of(physics, block()), material, F(energy), True, 100_000, KEY)
    half_angle = np.linspace(1e-9, 1.0, 200_001)  # sin(θ/2)
    x = energy / HC_KEV_ANGSTROM * half_angle
    f_squared = np.interp(np.log(x), np.log(physics.momentum_x), physics.form_factor_squared[material])
    cosine = 1.0 - 2.0 * half_angle**2
    density = f_squared * (1.0 + cosine**2) * half_angle
    expected = float(np.average(cosine, weights=density))
    deviation = math.sqrt(float(np.average((cosine - expected) ** 2, weights=density)) / 100_000)
    assert abs(float(cosines.mean(dtype=float)) - expected) < 3.5 * deviation


@pytest.mark.parametrize("kinetic", [20.0, 50.0, 200.0])
def test_photoelectrons_have_the_mean_cosine_of_sauter(kinetic: float) -> None:
    gamma = 1.0 + kinetic / ELECTRON_REST_KEV
    beta = math.sqrt(1.0 - gamma**-2)
    cosine = np.linspace(-1.0, 1.0, 20_001)
    away = 1.0 - beta * cosine
    density = (1.0 - cosine**2) / away**4 * (1.0 + 0.5 * gamma * (gamma - 1.0) * (gamma - 2.0) * away)
    expected = float(np.average(cosine, weights=density))
    deviation = math.sqrt(float(np.average((cosine - expected) ** 2, weights=density)) / 100_000)
    observed = float(photoelectrons(F(kinetic), 100_000, KEY).mean(dtype=float))
    assert abs(observed - expected) < 3.5 * deviation


@pytest.mark.parametrize(("material", "energy"), [(WATER, 30.0), (CORTICAL_BONE, 60.0), (SOFT_TISSUE, 20.0)])
def test_photoelectric_and_incoherent_interactions_come_in_the_proportion_of_xcom(
    physics: PhysicsData, material: int, energy: float
) -> None:
    """The cut-off lies just below the energy: a photon ends with its first loss, and what an incoherent one
    scatters, and its weak recoil, stay."""
    geometry = block(material)
    tables = tables_of(physics, geometry, cutoff_kev=energy * (1 - 1e-6))
    tally, account, bank = np.zeros(1), np.zeros(ACCOUNT_SIZE), new_bank()
    absorbed = 0
    for history in range(20_000):
        count = followed(geometry, tables, tally, account, bank, F(energy), 0, history, KEY)
        absorbed += count == 1 and abs(bank[0, 10] - (energy - tables.binding[material])) < 1e-4
    photoelectric = log_log(physics, physics.photoelectric[material], energy)
    incoherent = log_log(physics, physics.incoherent[material], energy)
    expected = photoelectric / (photoelectric + incoherent)
    assert abs(absorbed - 20_000 * expected) < 3 * binomial(20_000, expected)
    assert account[ESCAPED] == 0.0


@pytest.mark.parametrize("energy", [6.0, 113.0, 662.0, 2900.0])
def test_energy_is_conserved(physics: PhysicsData, energy: float) -> None:
    materials, densities = [SOFT_TISSUE, CORTICAL_BONE, LUNG, SOFT_TISSUE], [1.06, 1.9, 0.26, 1.06]
    geometry = slabs(materials, densities)
    tables = tables_of(physics, geometry)
    tally, account, bank = np.zeros(geometry.material.size), np.zeros(ACCOUNT_SIZE), new_bank()
    banked = 0.0
    for history in range(3000):
        count = followed(geometry, tables, tally, account, bank, F(energy), 0, history, KEY)
        banked += float(bank[:count, 10].sum(dtype=float))
    assert tally.sum() + account[ESCAPED] + banked == pytest.approx(3000 * energy, rel=1e-6)
    assert tally.min() >= 0.0


def test_a_full_bank_leaves_the_electron_where_it_is(physics: PhysicsData) -> None:
    geometry = block(CORTICAL_BONE)
    tally, account, bank = np.zeros(1), np.zeros(ACCOUNT_SIZE), new_bank()
    tables = tables_of(physics, geometry)
    assert followed(geometry, tables, tally, account, bank, F(2900.0), BANK_DEPTH, 1, KEY) == BANK_DEPTH
    assert tally[0] == pytest.approx(2900.0, rel=1e-6)
    assert not bank.any()


def test_a_pair_leaves_two_photons_of_511_kev_back_to_back(physics: PhysicsData) -> None:
    geometry = block(CORTICAL_BONE)
    tables = tables_of(physics, geometry, cutoff_kev=2890.0)
    tally, account, bank = np.zeros(1), np.zeros(ACCOUNT_SIZE), new_bank()
    pairs = 0
    for history in range(2000):
        count = followed(geometry, tables, tally, account, bank, F(2900.0), 0, history, KEY)
        photons = bank[:count][bank[:count, 0] == PHOTON]
        if photons.size:
            pairs += 1
            electrons = bank[:count][bank[:count, 0] == ELECTRON]
            np.testing.assert_allclose(photons[:, 10], ELECTRON_REST_KEV, rtol=1e-6)
            np.testing.assert_array_equal(photons[0, 7:10], -photons[1, 7:10])
            assert electrons[:, 10].sum() <= 2900.0 - 2 * ELECTRON_REST_KEV + 1e-3
    share = np.interp(2900.0, physics.energy_kev, physics.pair[CORTICAL_BONE]) / attenuation(
        physics, CORTICAL_BONE, 2900.0
    )
    assert abs(pairs - 2000 * share) < 3.5 * binomial(2000, share)


def test_the_binding_energy_of_a_medium_lies_between_those_of_its_elements() -> None:
    by_name = {material.name: mean_binding_kev(material.composition) for material in MATERIALS}
    assert by_name["water"] == pytest.approx(0.5431, abs=0.001)  # oxygen's K edge
    assert 2.1 < by_name["cortical_bone"] < 4.04  # between phosphorus and calcium
