"""DVK dose rates: invariants, the density rule, the union of two fields, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.decay import nuclide
from pipeline.dose_rate import DoseRate, DoseRequest, lattice_offset, percent
from pipeline.dvk import dvk_dose_rate
from pipeline.engines import ENGINES, engine
from pipeline.errors import InputRejected
from pipeline.kernels import kernel_sha256, radial_kernel, voxel_kernel
from pipeline.montecarlo.engine import mc_dose_rate
from pipeline.network import cnn_dose_rate
from pipeline.volume import Grid, Volume

LUTETIUM, IODINE = nuclide("Lu-177"), nuclide("I-131")
GRID = Grid((12, 20, 16), (-20.0, 15.0, 100.0), (3.0, 2.0, 2.5), frame_of_reference_uid="1.2.3")


def volume(array: np.ndarray, unit: str, grid: Grid = GRID) -> Volume:
    return Volume(array.astype(np.float32), grid, unit)


def activity_at(index: tuple[int, int, int], mbq: float, grid: Grid = GRID) -> Volume:
    array = np.zeros(grid.shape)
    array[index] = mbq * 1e6 / grid.voxel_volume_ml
    return volume(array, "Bq/mL", grid)


def tissue(density: float = 1.04, grid: Grid = GRID) -> Volume:
    return volume(np.full(grid.shape, density), "g/cm3", grid)


def rate(activity: Volume, density: Volume) -> np.ndarray:
    return dvk_dose_rate(DoseRequest(activity, density, LUTETIUM)).volume.array


def random_activity(seed: int = 3) -> Volume:
    return volume(np.random.default_rng(seed).random(GRID.shape) * 1e6, "Bq/mL")


def test_a_megabecquerel_in_one_voxel_gives_the_kernel_times_an_hour() -> None:
    result = rate(activity_at((5, 9, 7), 1.0), tissue())
    kernel = 3600 * voxel_kernel(LUTETIUM, GRID.spacing_mm, (6, 10, 8))
    np.testing.assert_allclose(result[5::-1, 9::-1, 7::-1], kernel, rtol=0, atol=1e-5 * kernel[0, 0, 0])


def test_a_uniform_patient_gets_at_its_centre_all_that_a_decay_leaves() -> None:
    """1 MBq/g everywhere within the kernel's reach: the table's whole energy, over a gram."""
    grid = Grid((105, 105, 105), (0, 0, 0), (10.0, 10.0, 10.0))
    activity = volume(np.full(grid.shape, 1.04e6), "Bq/mL", grid)
    kev = float(radial_kernel(LUTETIUM).energy_within(500.0))
    expected = kev * 1.602176634e-16 / 1e-3 * 1e6 * 3600 * 1e3
    assert rate(activity, tissue(grid=grid))[52, 52, 52] == pytest.approx(expected, rel=1e-3)
    assert expected > 85.32, "the electrons alone give 85.32 mGy/h"


def test_double_activity_gives_double_dose_rate() -> None:
    activity = random_activity()
    once, twice = rate(activity, tissue()), rate(activity.with_array(activity.array * 2), tissue())
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_dose_rates_of_two_activities_add_up() -> None:
    one, two = random_activity(1), random_activity(2)
    both = rate(one.with_array(one.array + two.array), tissue())
    np.testing.assert_allclose(both, rate(one, tissue()) + rate(two, tissue()), rtol=1e-5)


def test_the_dose_rate_scales_with_the_inverse_of_the_local_density() -> None:
    density = np.random.default_rng(8).uniform(0.2, 1.9, GRID.shape)
    activity = random_activity()
    expected = rate(activity, tissue()) * 1.04 / density
    np.testing.assert_allclose(rate(activity, volume(density, "g/cm3")), expected, rtol=1e-5)


def test_air_gets_no_dose_and_its_activity_still_irradiates_tissue() -> None:
    density = np.full(GRID.shape, 1.04)
    density[:, :, :4] = 0.0999
    density[:, :, 4] = 0.1
    result = rate(activity_at((5, 9, 2), 1.0), volume(density, "g/cm3"))
    assert not result[:, :, :4].any()
    assert (result[:, :, 4:] > 0).all()


def test_activity_outside_the_ct_still_gives_its_photon_dose() -> None:
    """On the union of both fields, longer than the CT on every side by another number of voxels."""
    union = GRID.boxed((-7, -3, -4), (25, 30, 26))
    inside, outside = activity_at((7 + 4, 3 + 6, 4 + 5), 1.0, union), activity_at((1, 20, 10), 1.0, union)
    both = volume(inside.array + outside.array, "Bq/mL", union)
    alone = rate(activity_at((4, 6, 5), 1.0), tissue())
    np.testing.assert_allclose(rate(inside, tissue()), alone, rtol=0, atol=1e-5 * alone.max())

    whole = dvk_dose_rate(DoseRequest(both, tissue(grid=union), LUTETIUM)).volume.array
    seen = rate(both, tissue())
    np.testing.assert_allclose(seen, whole[7:19, 3:23, 4:20], rtol=0, atol=1e-5 * alone.max())
    assert (rate(outside, tissue()) > 0).all()


def test_energy_is_conserved_between_activity_and_dose() -> None:
    """Σ dose rate x mass = activity x energy per decay, for a source a metre wide around."""
    grid = Grid((101, 101, 101), (0, 0, 0), (10.0, 10.0, 10.0))
    result = dvk_dose_rate(
        DoseRequest(activity_at((50, 50, 50), 2.0, grid), tissue(grid=grid), IODINE)
    ).volume.array
    joule_per_h = float(result.sum(dtype=np.float64)) * 1e-3 * (1.04e-3 * grid.voxel_volume_ml)
    kev = joule_per_h / 1.602176634e-16 / (2e6 * 3600)
    assert kev == pytest.approx(float(radial_kernel(IODINE).energy_within(500.0)), rel=1e-3)


def test_no_dose_rate_is_negative_or_missing() -> None:
    activity = activity_at((0, 0, 0), 1000.0)
    result = rate(activity, tissue())
    assert np.isfinite(result).all()
    assert (result >= 0).all()


def test_the_result_tells_where_it_came_from() -> None:
    told: list[tuple[str, float]] = []
    result = dvk_dose_rate(
        DoseRequest(random_activity(), tissue(), LUTETIUM), progress=lambda *at: told.append(at)
    )
    assert isinstance(result, DoseRate)
    assert (result.engine, result.device, result.notes) == ("dvk", "cpu", ())
    assert (result.volume.unit, result.volume.grid) == ("mGy/h", GRID)
    assert result.kernel_sha256 == kernel_sha256(LUTETIUM, GRID.spacing_mm)
    parts = [part for _, part in told]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


def test_the_inputs_are_left_as_they_were() -> None:
    activity, density = random_activity(), tissue()
    before = activity.array.copy(), density.array.copy()
    rate(activity, density)
    np.testing.assert_array_equal(activity.array, before[0])
    np.testing.assert_array_equal(density.array, before[1])


def test_engines_are_found_by_name_and_an_unknown_one_names_the_known() -> None:
    assert engine("dvk") is ENGINES["dvk"] is dvk_dose_rate
    assert engine("mc") is mc_dose_rate
    assert engine("cnn") is cnn_dose_rate
    with pytest.raises(InputRejected, match=r"no dose engine 'gnn'.*may hold: dvk, mc, cnn"):
        engine("gnn")


@pytest.mark.parametrize(
    ("part", "text"), [(0.00512, "0.51 %"), (0.2, "20 %"), (0.0001, "0.01 %"), (1.5, "150 %")]
)
def test_an_uncertainty_is_told_in_two_digits(part: float, text: str) -> None:
    assert percent(part) == text


def spoiled(of: Volume, value: float) -> Volume:
    array = of.array.copy()
    array[3, 4, 5] = value
    return of.with_array(array)


@pytest.mark.parametrize(
    ("activity", "density", "reason"),
    [
        (spoiled(random_activity(), np.nan), tissue(), "activity map holds 1 voxels that are not finite"),
        (spoiled(random_activity(), np.inf), tissue(), "activity map holds 1 voxels that are not finite"),
        (
            spoiled(random_activity(), -5.0),
            tissue(),
            r"activity map is negative in 1 voxels \(lowest -5 Bq/mL",
        ),
        (random_activity(), spoiled(tissue(), np.nan), "density map holds 1 voxels that are not finite"),
        (random_activity(), spoiled(tissue(), -0.2), "density map is negative"),
        (random_activity(), tissue(0.05), "the CT shows no tissue"),
        (volume(np.zeros(GRID.shape), "Bq/mL"), tissue(), "the activity map is empty"),
    ],
)
def test_values_that_cannot_be_are_rejected(activity: Volume, density: Volume, reason: str) -> None:
    with pytest.raises(InputRejected, match=reason) as rejected:
        dvk_dose_rate(DoseRequest(activity, density, LUTETIUM))
    assert rejected.value.remedy


@pytest.mark.parametrize(
    "grid",
    [
        replace(GRID, origin_mm=(-20.3, 15.0, 100.0)),
        replace(GRID, spacing_mm=(3.0, 2.0, 2.6)),
        replace(GRID, direction=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))),
        replace(GRID, frame_of_reference_uid="1.2.4"),
    ],
    ids=["shifted", "other spacing", "other orientation", "other frame"],
)
def test_grids_that_do_not_share_a_lattice_are_rejected(grid: Grid) -> None:
    activity = activity_at((1, 1, 1), 1.0, grid)
    with pytest.raises(InputRejected, match=r"do not share a (lattice|Frame of Reference)"):
        dvk_dose_rate(DoseRequest(activity, tissue(), LUTETIUM))


def test_the_wrong_unit_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="Bq/mL, not MBq"):
        dvk_dose_rate(DoseRequest(volume(np.ones(GRID.shape), "MBq"), tissue(), LUTETIUM))


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 1, 2), (-4, 0, -9)])
def test_the_offset_between_two_cuts_of_a_tilted_lattice_is_found(start: tuple[int, int, int]) -> None:
    angle = np.deg2rad(3.0)
    tilted = replace(
        GRID,
        direction=(
            (0.0, -float(np.sin(angle)), float(np.cos(angle))),
            (0.0, float(np.cos(angle)), float(np.sin(angle))),
            (1.0, 0.0, 0.0),
        ),
    )
    assert lattice_offset(tilted.boxed(start, (30, 4, 7)), tilted) == start
