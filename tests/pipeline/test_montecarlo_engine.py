"""Engine `mc` around the transport: what box is simulated, what comes back, and what it says of itself.

The transport is replaced by one that leaves the electrons of a decay where it happened, but in the last test.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.constants import AIR_G_PER_CM3
from pipeline.decay import nuclide
from pipeline.dose_rate import DoseRequest, MonteCarloSettings
from pipeline.dvk import dvk_dose_rate
from pipeline.errors import EngineFailed, InputRejected
from pipeline.montecarlo.engine import mc_dose_rate, scene
from pipeline.montecarlo.simulate import RegionUncertainty, Simulation, StopReason
from pipeline.volume import Grid, Volume

LUTETIUM = nuclide("Lu-177")
GRID = Grid((8, 10, 12), (-20.0, 15.0, 100.0), (3.0, 2.0, 2.5), frame_of_reference_uid="1.2.3")
ELECTRONS_KEV = 147.0
MGY_PER_H = 1.602176634e-16 * 1e3 * 1e3 * 3600  # of 1 keV/s in 1 g


def volume(array: Any, unit: str, grid: Grid = GRID) -> Volume:
    return Volume(np.asarray(array, np.float32), grid, unit)


def patient(grid: Grid = GRID) -> Volume:
    """Tissue with two voxels of air round it in y and x, its density rising from slice to slice."""
    density = np.full(grid.shape, 0.0012)
    density[:, 2:-2, 2:-2] = 1.0 + 0.01 * np.arange(grid.shape[0])[:, None, None]
    return volume(density, "g/cm3", grid)


def source(index: tuple[int, int, int] = (4, 5, 6), grid: Grid = GRID) -> Volume:
    array = np.zeros(grid.shape)
    array[index] = 1e6
    return volume(array, "Bq/mL", grid)


def cube(grid: Grid = GRID) -> NDArray[np.bool_]:
    mask = np.zeros(grid.shape, bool)
    mask[3:6, 4:7, 5:8] = True
    return mask


def local(stopped_by: StopReason = StopReason.UNCERTAINTY, **changes: Any) -> Any:
    """Leaves electrons where they are; every voxel is known to 4 %, a region's mean to 1 %."""

    def simulate(activity: Volume, density: Volume, source: Any, *, regions: Any, **given: Any) -> Simulation:
        simulate.given = {"source": source, **given}  # type: ignore[attr-defined]
        kev_per_s_and_ml = activity.array * np.float32(ELECTRONS_KEV)
        rate = density.with_array(
            np.asarray(kev_per_s_and_ml * np.float32(MGY_PER_H) / density.array, np.float32), "mGy/h"
        )
        given["progress"]("Monte Carlo", 1.0)
        found = tuple(
            RegionUncertainty(
                name,
                float(rate.array[mask].mean()),
                *((0.01, 0.04) if rate.array[mask].any() else (np.inf, np.inf)),
            )
            for name, mask in regions.items()
        )
        simulation = Simulation(
            rate, rate.with_array(rate.array * np.float32(0.04)), found,
            electron_decays=1000, photon_decays=500, emitted_kev=1.0, deposited_kev=1.0, escaped_kev=0.0,
            stopped_by=stopped_by, device="cpu", seconds=1.0, notes=("computed slowly",),
        )  # fmt: skip
        return dataclasses.replace(simulation, **changes)

    return simulate


# ── what is simulated ────────────────────────────────────────────────────────────────────────────


def test_air_without_activity_is_cut_away() -> None:
    """The box holds tissue and activity, every voxel where it was."""
    seen = scene(DoseRequest(source((4, 5, 1)), patient(), LUTETIUM, regions={"cube": cube()}))
    assert seen.density.grid.shape == (8, 6, 9)
    assert seen.activity.array[4, 3, 0] == 1e6
    assert seen.density.grid.positions((0, 0, 0)) == pytest.approx(GRID.positions((0, 2, 1)))
    assert seen.regions["cube"].sum() == cube().sum()
    assert seen.regions["cube"][3, 2, 4]
    assert seen.notes == ()


def test_a_spect_longer_than_the_ct_goes_on_in_the_tissue_of_its_end_slices() -> None:
    """Otherwise its electrons would fly in from afar, and no photon would scatter back."""
    longer = GRID.boxed((-3, 0, 0), (13, 10, 12))
    activity = np.zeros(longer.shape)
    activity[0, 5, 6] = activity[12, 5, 6] = activity[6, 5, 6] = 1e6
    seen = scene(DoseRequest(volume(activity, "Bq/mL", longer), patient(), LUTETIUM))
    assert seen.density.grid.shape[0] == 13
    assert seen.density.array[:3, 2, 2] == pytest.approx([1.0] * 3)
    assert seen.density.array[3:11, 2, 2] == pytest.approx(patient().array[:, 4, 4])
    assert seen.density.array[11:, 2, 2] == pytest.approx([1.07] * 2)
    assert seen.notes == (
        "the SPECT reaches 5 slices beyond the CT: its end slice was taken to go on unchanged",
    )


def test_what_is_known_beyond_the_results_grid_is_used() -> None:
    """A result on the body's box alone: the CT goes on, and what it shows there is no guess."""
    whole = patient()
    body = whole.boxed((slice(2, 6), slice(2, 8), slice(2, 10)))
    seen = scene(DoseRequest(source((1, 5, 0)), body, LUTETIUM, surroundings=whole))
    assert seen.density.grid.positions((0, 0, 0)) == pytest.approx(GRID.positions((1, 2, 0)))
    np.testing.assert_array_equal(seen.density.array, whole.array[1:6, 2:8, 0:10])
    assert seen.notes == ()


def test_activity_beside_the_ct_is_in_air() -> None:
    wider = GRID.boxed((0, 0, -4), (8, 10, 20))
    activity = np.zeros(wider.shape)
    activity[4, 5, 0], activity[4, 5, 10] = 1e6, 3e6
    seen = scene(DoseRequest(volume(activity, "Bq/mL", wider), patient(), LUTETIUM))
    assert (seen.density.array[:, :, :4] == np.float32(AIR_G_PER_CM3)).all()
    assert seen.notes == (
        "25.0% of the activity lies beside the CT, where the Monte Carlo takes it to be in air",
    )


def test_a_lattice_off_by_a_rounding_is_the_same_lattice() -> None:
    shifted = dataclasses.replace(GRID, origin_mm=(-20.0 + 0.02, 15.0, 100.0))
    seen = scene(DoseRequest(source((4, 5, 6), shifted), patient(), LUTETIUM))
    assert seen.activity.array.sum() == 1e6


def test_grids_of_two_lattices_are_rejected() -> None:
    shifted = dataclasses.replace(GRID, origin_mm=(-19.0, 15.0, 100.0))
    with pytest.raises(InputRejected, match="do not share a lattice"):
        mc_dose_rate(DoseRequest(source(grid=shifted), patient(), LUTETIUM), simulate=local())


# ── what comes back ──────────────────────────────────────────────────────────────────────────────


def test_the_map_lies_on_the_results_grid_with_its_uncertainty() -> None:
    whole = patient()
    body = whole.boxed((slice(2, 7), slice(2, 8), slice(2, 10)))
    told: list[tuple[str, float]] = []
    request = DoseRequest(source(), body, LUTETIUM, regions={}, surroundings=whole)
    result = mc_dose_rate(request, lambda *at: told.append(at), simulate=local())
    assert result.volume.grid == result.uncertainty.grid == body.grid  # type: ignore[union-attr]
    expected = ELECTRONS_KEV * MGY_PER_H * 1e6 / 1.04
    assert result.volume.array[2, 3, 4] == pytest.approx(expected, rel=1e-5)
    assert result.uncertainty is not None
    assert result.uncertainty.array[2, 3, 4] == pytest.approx(0.04 * expected, rel=1e-5)
    assert np.count_nonzero(result.volume.array) == 1
    assert (result.engine, result.device, result.volume.unit) == ("mc", "cpu", "mGy/h")
    assert result.notes == ("computed slowly",)
    assert told == [("transport", 1.0), ("dose rate", 1.0)]


def test_it_says_what_the_numbers_rest_on() -> None:
    request = DoseRequest(source(), patient(), LUTETIUM, regions={"cube": cube()})
    result = mc_dose_rate(request, simulate=local())
    (region,) = result.regions
    assert (region.name, region.of_mean, region.of_voxels) == ("cube", 0.01, 0.04)
    for parameter in ("electron_decays=1000", "photon_decays=500", "seed=1", "stopped_by=uncertainty"):
        assert parameter in result.parameters
    assert "mean_uncertainty=4 %" in result.parameters
    assert "mean_uncertainty_limit=0.5 %" in result.parameters
    assert any(p.startswith("decay_data=") for p in result.parameters)
    iodine = mc_dose_rate(dataclasses.replace(request, nuclide=nuclide("I-131")), simulate=local())
    assert len({result.kernel_sha256, iodine.kernel_sha256}) == 2


def test_limits_seed_device_and_checkpoint_reach_the_transport(tmp_path: Path) -> None:
    settings = MonteCarloSettings(0.02, 77.0, 5, tmp_path / "left.checkpoint")
    transport = local()
    mc_dose_rate(DoseRequest(source(), patient(), LUTETIUM, "auto", montecarlo=settings), simulate=transport)
    limits = transport.given["limits"]
    assert (limits.decays, limits.time_s, limits.mean_uncertainty) == (None, 77.0, 0.02)
    assert (transport.given["seed"], transport.given["device"]) == (5, "auto")
    assert transport.given["checkpoint"] == tmp_path / "left.checkpoint"


def test_a_time_limit_is_told_with_the_regions_that_missed_the_aim() -> None:
    """The least certain first; one without dose is no miss, and one with too few batches is not known."""
    regions = (
        RegionUncertainty("Liver", 3.0, 0.001, 0.004),
        RegionUncertainty("Kidney", 3.0, 0.002, 0.0123),
        RegionUncertainty("Lesion", 3.0, np.inf, np.inf),
        RegionUncertainty("Table", 0.0, np.inf, np.inf),
    )
    request = DoseRequest(source(), patient(), LUTETIUM, regions={"Liver": cube()})
    result = mc_dose_rate(request, simulate=local(StopReason.TIME, regions=regions))
    assert result.notes[-1] == (
        "the time limit of 1200 s ended the Monte Carlo before the mean uncertainty of the voxels came "
        "down to 0.5 % everywhere: Lesion not known, Kidney 1.2 %"
    )
    assert [r.name for r in result.regions] == ["Liver", "Kidney"]


def test_a_time_limit_that_missed_nothing_is_no_news() -> None:
    regions = (RegionUncertainty("Liver", 3.0, 0.001, 0.005),)
    request = DoseRequest(source(), patient(), LUTETIUM, regions={"Liver": cube()})
    assert mc_dose_rate(request, simulate=local(StopReason.TIME, regions=regions)).notes == (
        "computed slowly",
    )


def test_a_stopped_run_gives_no_result() -> None:
    """It would be sent as if it were one."""
    request = DoseRequest(source(), patient(), LUTETIUM)
    with pytest.raises(EngineFailed, match="was stopped"):
        mc_dose_rate(request, simulate=local(StopReason.CANCELLED))


def test_a_run_that_ended_before_it_knew_anything_gives_no_result() -> None:
    """Its map would be zero, or noise that nobody can judge."""
    nothing = patient().with_array(np.zeros(GRID.shape, np.float32), "mGy/h")
    boxed = nothing.boxed((slice(0, 8), slice(2, 8), slice(2, 10)))
    request = DoseRequest(source(), patient(), LUTETIUM)
    with pytest.raises(EngineFailed, match=r"1200 s ended .* before it knew anything") as failed:
        mc_dose_rate(request, simulate=local(StopReason.TIME, uncertainty=boxed))
    assert "time_limit_s" in failed.value.remedy


def test_a_checkpoint_that_is_refused_costs_time_and_no_person(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged, or of software that was changed since: the case must not be HELD for it."""
    checkpoint = tmp_path / "a.checkpoint"
    checkpoint.write_bytes(b"half a file")
    run = local()

    def refuse(*args: Any, **given: Any) -> Simulation:
        if given["checkpoint"].exists():
            raise InputRejected("the checkpoint cannot be read", "Remove it to begin anew")
        answer: Simulation = run(*args, **given)
        return answer

    settings = MonteCarloSettings(checkpoint=checkpoint)
    request = DoseRequest(source(), patient(), LUTETIUM, montecarlo=settings)
    assert mc_dose_rate(request, simulate=refuse).volume.array.any()
    assert "begins anew: the checkpoint cannot be read" in caplog.text
    assert not checkpoint.exists()


def test_a_run_whose_uncertainty_is_not_known_gives_no_result() -> None:
    """One batch of photons: the voxels' uncertainty would be that of the electrons alone."""
    unknown = (RegionUncertainty("cube", 12.0, np.inf, np.inf),)
    request = DoseRequest(source(), patient(), LUTETIUM, regions={"cube": cube()})
    with pytest.raises(EngineFailed, match="before it knew anything"):
        mc_dose_rate(request, simulate=local(StopReason.TIME, regions=unknown))


def test_too_little_memory_is_a_fault_of_the_machine() -> None:
    def simulate(*_: Any, **__: Any) -> Simulation:
        raise MemoryError

    with pytest.raises(EngineFailed, match="memory did not suffice") as failed:
        mc_dose_rate(DoseRequest(source(), patient(), LUTETIUM), simulate=simulate)
    assert "grid_spacing_mm" in failed.value.remedy


# ── with the real transport ──────────────────────────────────────────────────────────────────────


def test_the_real_transport_agrees_with_dvk_in_a_block_of_tissue() -> None:
    """Uniform activity in soft tissue: both engines rest on the same physics there.

    The middle of the block holds electron equilibrium; 3 % leave room for the kernel's other decay data.
    """
    grid = Grid((12, 12, 12), (0.0, 0.0, 0.0), (5.0, 5.0, 5.0), frame_of_reference_uid="1.2.3")
    activity = volume(np.full(grid.shape, 1e6), "Bq/mL", grid)
    tissue = volume(np.full(grid.shape, 1.04), "g/cm3", grid)
    middle = np.zeros(grid.shape, bool)
    middle[3:9, 3:9, 3:9] = True
    settings = MonteCarloSettings(mean_uncertainty=0.1, time_limit_s=200.0)
    request = DoseRequest(activity, tissue, LUTETIUM, regions={"middle": middle}, montecarlo=settings)
    result = mc_dose_rate(request)
    dvk = dvk_dose_rate(request)
    (region,) = result.regions
    assert region.of_mean < 0.01
    assert region.of_mean < region.of_voxels
    assert result.volume.array[middle].mean() == pytest.approx(dvk.volume.array[middle].mean(), rel=0.03)
    assert f"device={result.device}" in result.parameters


def test_what_is_only_reported_is_no_miss_and_no_measure() -> None:
    """The body's voxels are far from certain when the ROIs are certain enough."""
    found = (RegionUncertainty("cube", 3.0, 0.001, 0.02), RegionUncertainty("Body", 1.0, 0.0001, 0.4))
    request = DoseRequest(
        source(), patient(), LUTETIUM, regions={"cube": cube()}, reported={"Body": np.ones(GRID.shape, bool)}
    )
    result = mc_dose_rate(request, simulate=local(StopReason.TIME, regions=found))
    assert "mean_uncertainty=2 %" in result.parameters
    assert result.notes[-1].endswith("everywhere: cube 2 %")
    assert [region.name for region in result.regions] == ["cube", "Body"]
