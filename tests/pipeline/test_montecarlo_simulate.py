"""A whole run: limits, uncertainty, stopping and going on, and what it refuses."""

import dataclasses
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.montecarlo import schedule, threads
from pipeline.montecarlo import simulate as simulation
from pipeline.montecarlo.decay_data import DecaySource, load_source
from pipeline.montecarlo.radial import radial_kernel_run
from pipeline.montecarlo.simulate import Limits, Simulation, StopReason, simulate
from pipeline.volume import Grid, Volume

GRID = Grid((6, 7, 8), (0.0, 0.0, 0.0), (4.0, 3.0, 3.0))


@pytest.fixture(scope="module")
def source() -> DecaySource:
    return load_source("Lu-177")


def activity(value: float = 1e6) -> Volume:
    array = np.zeros(GRID.shape, np.float32)
    array[2:4, 2:5, 2:6] = value
    return Volume(array, GRID, "Bq/mL")


def density(value: float = 1.06) -> Volume:
    array = np.full(GRID.shape, value, np.float32)
    array[:, :, 0] = 0.0012
    return Volume(array, GRID, "g/cm3")


REGIONS = {"organ": activity().array > 0, "rest": activity().array == 0}


def run(source: DecaySource, **changes: object) -> Simulation:
    arguments: dict[str, object] = {"regions": REGIONS, "limits": Limits(decays=4000), **changes}
    return simulate(activity(), density(), source, **arguments)  # type: ignore[arg-type]


def test_the_energy_that_was_emitted_is_deposited_or_has_escaped(source: DecaySource) -> None:
    result = run(source)
    assert result.deposited_kev + result.escaped_kev == pytest.approx(result.emitted_kev, rel=1e-6)
    assert (result.electron_decays, result.photon_decays) == (4000, 4000)
    assert result.stopped_by is StopReason.DECAYS


def test_a_large_source_receives_the_energy_of_its_electrons(source: DecaySource) -> None:
    array = np.full(GRID.shape, 1e6, np.float32)
    result = simulate(
        Volume(array, GRID, "Bq/mL"),
        density(),
        source,
        regions={"deep": inside()},
        limits=Limits(decays=40_000),
    )
    equilibrium = 1e6 / 1.06e-3 * 3600 * source.mean_electron_kev * 1.602176634e-16 * 1e3
    (deep,) = result.regions
    assert equilibrium < deep.mean_mgy_per_h < 1.02 * equilibrium  # photons add a little
    assert (result.dose_rate.array[:, :, 0] == 0).all()  # air


def inside() -> np.ndarray:
    mask = np.zeros(GRID.shape, bool)
    mask[1:-1, 1:-1, 2:-1] = True
    return mask


def test_the_number_of_threads_changes_nothing_but_rounding(source: DecaySource) -> None:
    one, three = run(source, threads=1), run(source, threads=3)
    np.testing.assert_allclose(one.dose_rate.array, three.dose_rate.array, rtol=1e-6)
    np.testing.assert_allclose(one.uncertainty.array, three.uncertainty.array, rtol=1e-3, atol=1e-7)


def test_another_seed_gives_another_result_within_the_reported_uncertainty(source: DecaySource) -> None:
    """The spread over seeds is what a single run reports, of a voxel and of a region."""
    runs = [run(source, seed=seed) for seed in range(16)]
    voxel = np.array([r.dose_rate.array[2, 3, 3] for r in runs])
    reported = np.sqrt(np.mean([r.uncertainty.array[2, 3, 3] ** 2 for r in runs]))
    assert voxel.std(ddof=1) == pytest.approx(reported, rel=0.6)  # 3 sigma of a spread of 16
    means = np.array([r.regions[0].mean_mgy_per_h for r in runs])
    of_means = np.sqrt(np.mean([r.regions[0].uncertainty_of_mean ** 2 for r in runs])) * means.mean()
    assert means.std(ddof=1) == pytest.approx(of_means, rel=0.6)


def test_it_stops_when_every_region_is_certain_enough(
    source: DecaySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SHORTEST_BATCH_S", 0.01)
    limits, organ = Limits(mean_uncertainty=0.2), {"organ": REGIONS["organ"]}
    result = run(source, limits=limits, regions=organ)
    assert result.stopped_by is StopReason.UNCERTAINTY
    assert result.regions[0].mean_voxel_uncertainty <= 0.2


def test_a_region_that_is_only_reported_decides_nothing(source: DecaySource) -> None:
    """A corner voxel far from certain, beside a region that soon is."""
    corner = np.zeros(GRID.shape, bool)
    corner[0, 0, 1] = True
    result = run(
        source,
        regions={"deep": inside()},
        reported={"corner": corner},
        limits=Limits(mean_uncertainty=0.1, time_s=60.0),
    )
    assert result.stopped_by is StopReason.UNCERTAINTY
    deep, reported = result.regions
    assert (deep.name, reported.name) == ("deep", "corner")
    assert deep.mean_voxel_uncertainty <= 0.1
    assert np.isfinite(reported.uncertainty_of_mean)


def test_it_stops_when_the_time_is_over(source: DecaySource) -> None:
    ticks = count()
    result = run(source, limits=Limits(time_s=30.0), clock=lambda: float(next(ticks)))
    assert result.stopped_by is StopReason.TIME


def test_a_cancelled_run_keeps_what_it_has_and_goes_on_where_it_stopped(
    source: DecaySource, tmp_path: Path
) -> None:
    asked = count()
    path = tmp_path / "run.npz"
    partial = run(source, checkpoint=path, cancelled=lambda: next(asked) > 600)
    assert partial.stopped_by is StopReason.CANCELLED
    assert 0 < partial.electron_decays < 4000
    assert partial.uncertainty.array.max() > 0
    resumed, whole = run(source, checkpoint=path), run(source)
    assert not path.exists()
    np.testing.assert_allclose(resumed.dose_rate.array, whole.dose_rate.array, rtol=1e-6)
    np.testing.assert_allclose(resumed.uncertainty.array, whole.uncertainty.array, rtol=1e-3, atol=1e-7)
    assert resumed.regions[0].mean_mgy_per_h == pytest.approx(whole.regions[0].mean_mgy_per_h, rel=1e-9)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(source: DecaySource, tmp_path: Path) -> None:
    asked = count()
    path = tmp_path / "run.npz"
    run(source, checkpoint=path, cancelled=lambda: next(asked) > 100)
    with pytest.raises(InputRejected, match="another run"):
        run(source, checkpoint=path, seed=2)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputRejected, match="cannot be read"):
        run(source, checkpoint=path)


def test_a_checkpoint_of_another_version_of_the_transport_is_refused(
    source: DecaySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    run(source, checkpoint=path, cancelled=lambda: True)
    monkeypatch.setattr(simulation, "PACKAGE_STAMP", "another")
    with pytest.raises(InputRejected, match="another run or version"):
        run(source, checkpoint=path)


def test_a_run_that_is_cancelled_at_once_says_that_nothing_is_known(source: DecaySource) -> None:
    result = run(source, cancelled=lambda: True)
    assert result.stopped_by is StopReason.CANCELLED
    assert result.dose_rate.array.max() == 0
    assert "fewer than two batches" in result.notes[0]


def test_progress_rises_to_one(source: DecaySource) -> None:
    parts: list[float] = []
    run(source, progress=lambda _what, part: parts.append(part))
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_densities_and_activities_that_cannot_be_are_refused(source: DecaySource, value: float) -> None:
    limits = Limits(decays=100)
    with pytest.raises(InputRejected, match="activity"):
        simulate(activity(value), density(), source, limits=limits)
    with pytest.raises(InputRejected, match="density"):
        simulate(activity(), density(value), source, limits=limits)


def test_no_activity_activity_outside_and_foreign_regions_are_refused(source: DecaySource) -> None:
    limits = Limits(decays=100)
    with pytest.raises(InputRejected, match="empty"):
        simulate(activity(0.0), density(), source, limits=limits)
    moved = dataclasses.replace(GRID, origin_mm=(12.0, 0.0, 0.0))
    with pytest.raises(InputRejected, match="outside the density grid"):
        simulate(Volume(activity().array, moved, "Bq/mL"), density(), source, limits=limits)
    with pytest.raises(InputRejected, match="organ"):
        simulate(activity(), density(), source, limits=limits, regions={"organ": np.ones((1, 2, 3), bool)})


def test_labels_are_no_mask(source: DecaySource) -> None:
    with pytest.raises(InputRejected, match="'organ' is no mask but uint8"):
        run(source, regions={"organ": np.full(GRID.shape, 2, np.uint8)})


def test_many_cores_do_not_take_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 64)
    assert threads.sensible_threads(512 * 512 * 130) == 8
    assert threads.sensible_threads(1000) == 64
    assert threads.sensible_threads(10**10) == 1


def test_a_region_that_no_history_reached_is_named() -> None:
    grid = Grid((1, 1, 200), (0.0, 0.0, 0.0), (5.0, 5.0, 5.0))
    array, far = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, bool)
    array[..., 0], far[..., -1] = 1e6, True
    body = Volume(np.full(grid.shape, 1.04, np.float32), grid, "g/cm3")
    masks = {"near": array > 0, "far": far, "nothing": np.zeros(grid.shape, bool)}
    result = simulate(
        Volume(array, grid, "Bq/mL"), body, load_source("Y-90"), regions=masks, limits=Limits(decays=200)
    )
    assert result.notes == ("no history reached far: the dose there is not known to be zero",)


def test_energies_beyond_the_physics_tables_are_refused(source: DecaySource) -> None:
    """They would be followed with the cross sections of 3 MeV."""
    for changed in ({"photon_kev": source.photon_kev + 3e3}, {"beta_cdf_kev": 10 * source.beta_cdf_kev}):
        beyond = dataclasses.replace(source, **changed)
        with pytest.raises(InputRejected, match="tables end at 3000 keV"):
            run(beyond)
        with pytest.raises(InputRejected, match="tables end at 3000 keV"):
            radial_kernel_run(beyond, "water", 1.0, np.array([0.0, 0.1]), 100)


def test_a_voxel_without_size_is_refused() -> None:
    with pytest.raises(InputRejected, match="not positive"):
        Grid((2, 2, 2), (0.0, 0.0, 0.0), (3.0, 0.0, 3.0))


@pytest.mark.parametrize("limits", [{}, {"decays": 0.0}, {"time_s": -1.0}, {"mean_uncertainty": np.nan}])
def test_limits_that_end_no_run_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputRejected):
        Limits(**limits)


def test_a_radial_run_finds_the_energy_of_the_decay_again(source: DecaySource) -> None:
    result = radial_kernel_run(source, "water", 1.0, np.array([0.0, 0.01, 0.1, 0.3, 30.0]), 4000)
    emitted = source.mean_electron_kev + source.mean_photon_kev
    assert result.kev.sum() + result.beyond_kev == pytest.approx(emitted, rel=0.03)
    assert result.electron_kev[:3].sum() == pytest.approx(source.mean_electron_kev, rel=0.03)
    with pytest.raises(InputRejected, match="rise"):
        radial_kernel_run(source, "water", 1.0, np.array([0.1, 0.1]), 100)
    with pytest.raises(InputRejected, match="above zero"):
        radial_kernel_run(source, "water", 0.0, np.array([0.0, 0.1]), 100)
