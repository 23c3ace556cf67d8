"""Electrons: energy, ranges, deflections, hard events, and the dose that a voxel gives itself."""

import numpy as np
import pytest

from pipeline.montecarlo.bank import new_bank
from pipeline.montecarlo.batches import empty_estimate
from pipeline.montecarlo.compiled import compiled_making_arrays
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.decay_data import DecaySource, load_source
from pipeline.montecarlo.electron_tables import HARD_COLLISION_KEV, electron_tables, moller_above
from pipeline.montecarlo.electrons import deflection_cosine, electron
from pipeline.montecarlo.geometry import ACCOUNT_SIZE, EMITTED, ESCAPED, voxel_geometry
from pipeline.montecarlo.hard_events import moller_transfer
from pipeline.montecarlo.materials import index_of
from pipeline.montecarlo.radial import radial_kernel_run
from pipeline.montecarlo.random_numbers import stream_key
from pipeline.montecarlo.setup import voxel_transport
from pipeline.montecarlo.threads import ThreadRunner
from pipeline.volume import Grid, Volume

F = np.float32
KEY = stream_key(1, 0)
JOULE_PER_KEV = 1.602176634e-16


def electrons_of(kev: float) -> DecaySource:
    """A decay that emits one electron of that energy."""
    none = np.zeros(0)
    return DecaySource("X", "none", 1.0, none, 0.0, np.array([kev]), np.ones(1), none, none, kev, 0.0)


def test_the_farthest_electron_that_goes_straight_reaches_the_csda_range() -> None:
    physics, water = load_physics(), index_of("water")
    cells, side = 600, 5e-4
    geometry = voxel_geometry(
        np.full((1, 1, cells), water, np.uint8), np.ones((1, 1, cells), np.float32), (1.0, 1.0, side)
    )
    tables = electron_tables(physics, np.array([water]), resolution_cm=1e-5, contained_below_kev=0.0)
    total = (physics.collision_stopping + physics.radiative_stopping) * 1e3
    straight = tables._replace(
        soft_stopping=total.astype(np.float32),
        deflection=np.zeros_like(tables.deflection),
        second_deflection=np.zeros_like(tables.deflection),
        hard=np.zeros_like(tables.hard),
        hard_bound=np.zeros_like(tables.hard_bound),
    )
    tally, account = np.zeros(cells), np.zeros(ACCOUNT_SIZE)
    place, direction = (F(0.5), F(0.5), F(0.0)), (F(1.0), F(0.0), F(0.0))
    start = (0, 0, 0, *place, *direction, F(500.0))
    electron(geometry, straight, tally, account, new_bank(), 0, *start, np.uint64(1), KEY)
    reached = (np.flatnonzero(tally)[-1] + 1) * side
    expected = np.interp(500.0, physics.energy_kev, physics.csda_range[water])
    assert reached == pytest.approx(expected, rel=0.004)
    assert tally.sum() == pytest.approx(500.0, rel=1e-6)


@compiled_making_arrays
def cosines(k1, k2, count, key):  # type: ignore[no-untyped-def]
    result = np.empty(count, np.float32)
    counter = np.uint64(0)
    for i in range(count):
        result[i], counter = deflection_cosine(k1, k2, counter, key)
    return result


@pytest.mark.parametrize(("k1", "k2"), [(0.02, 0.055), (0.28, 0.7), (1.0, 2.5)])
def test_deflections_have_the_first_two_moments_of_multiple_scattering(k1: float, k2: float) -> None:
    drawn = cosines(F(k1), F(k2), 400_000, KEY).astype(np.float64)
    second = 1.5 * drawn**2 - 0.5
    assert np.mean(1 - drawn) == pytest.approx(1 - np.exp(-k1), abs=5 * drawn.std() / 632)
    assert np.mean(1 - second) == pytest.approx(1 - np.exp(-k2), abs=5 * second.std() / 632)


@compiled_making_arrays
def transfers(energy, count, key):  # type: ignore[no-untyped-def]
    result = np.empty(count, np.float32)
    counter = np.uint64(0)
    for i in range(count):
        result[i], counter = moller_transfer(energy, counter, key)
    return result


@pytest.mark.parametrize("energy", [60.0, 1000.0])
def test_hard_collisions_transfer_what_mollers_formula_says(energy: float) -> None:
    drawn = energy * transfers(F(energy), 200_000, KEY).astype(np.float64)
    number, loss = moller_above(np.array([energy]), HARD_COLLISION_KEV)
    assert drawn.min() >= HARD_COLLISION_KEV * (1 - 1e-5)
    assert drawn.max() <= energy / 2 * (1 + 1e-5)
    assert drawn.mean() == pytest.approx(loss[0] / number[0], abs=5 * drawn.std() / 447)


def test_energy_is_conserved_in_lung_bone_air_and_vacuum() -> None:
    density = np.full((6, 6, 6), 1.06, np.float32)
    density[:2], density[2], density[:, 0], density[:, :, 5] = 0.26, 1.92, 0.0012, 0.0
    transport = voxel_transport(*volumes(density, 2.0), load_source("Y-90"))
    runner = ThreadRunner(transport, 3, 2)
    assert runner.run(False, 0, 20_000, lambda: False)
    account = runner.accounts.sum(axis=0)
    assert account[ESCAPED] > 0.01 * account[EMITTED]
    assert runner.tallies.sum() + account[ESCAPED] == pytest.approx(account[EMITTED], rel=1e-6)


def test_longer_steps_change_nothing_that_can_be_seen() -> None:
    """Mean penetration of 200 keV electrons with steps of 5 and 15 %."""
    import pipeline.montecarlo.setup as setup

    edges = np.linspace(0.0, 0.05, 51)
    usual = radial_kernel_run(electrons_of(200.0), "water", 1.0, edges, 40_000, threads=2)
    depth = float(np.dot(usual.kev, (edges[1:] + edges[:-1]) / 2) / 200.0)
    error = float(np.sqrt(np.dot(usual.sigma**2, ((edges[1:] + edges[:-1]) / 2) ** 2)) / 200.0)
    physics, material = load_physics(), np.array([index_of("water")])
    resolution = setup.RESOLUTION_OF_SHELL * 0.001
    transport = setup.shell_transport(electrons_of(200.0), "water", 1.0, edges)
    tables = electron_tables(physics, material, resolution_cm=resolution, contained_below_kev=0.0, step=0.05)
    runner = ThreadRunner(transport._replace(electron_tables=tables), 2, 2)
    runner.run(False, 0, 40_000, lambda: False)
    short = runner.tallies.sum(axis=0)[:-1] / 40_000
    assert float(np.dot(short, (edges[1:] + edges[:-1]) / 2) / 200.0) == pytest.approx(depth, abs=6 * error)


@pytest.mark.parametrize(
    ("nuclide", "decays", "tolerance"), [("Lu-177", 60_000, 0.01), ("Y-90", 60_000, 0.01)]
)
def test_a_voxel_of_3_mm_gives_itself_the_dose_of_the_reference(
    nuclide: str, decays: int, tolerance: float
) -> None:
    """Voxel S value of PENELOPE, mGy/(MBq s); the tolerance is that of the decay data (DDEP, ICRP 107)."""
    reference = {"Lu-177": 0.747192, "Y-90": 1.57940}[nuclide]
    density = np.full((5, 5, 5), 1.04, np.float32)
    transport = voxel_transport(*volumes(density, 3.0), load_source(nuclide), medium="icru_soft_tissue")
    runner, estimate = ThreadRunner(transport, 1, 2), empty_estimate(density.size)
    for _ in range(10):
        runner.run(False, estimate.decays, decays // 10, lambda: False)
        estimate.add(runner.tallies, runner.accounts, decays // 10, ())
    per_kev = JOULE_PER_KEV * 1e9 / (1.04e-3 * 0.027)
    centre = slice(density.size // 2, density.size // 2 + 1)
    s, sigma = estimate.mean(centre)[0] * per_kev, np.sqrt(estimate.variance(centre)[0]) * per_kev
    assert s == pytest.approx(reference, abs=3 * sigma + tolerance * reference)


def volumes(density: np.ndarray, spacing_mm: float) -> tuple[Volume, Volume]:
    """Activity in the central voxel, and the density."""
    grid = Grid(density.shape, (0.0, 0.0, 0.0), (spacing_mm,) * 3)  # type: ignore[arg-type]
    activity = np.zeros(density.shape, np.float32)
    activity[tuple(n // 2 for n in density.shape)] = 1.0
    return Volume(activity, grid, "Bq/mL"), Volume(density, grid, "g/cm3")
