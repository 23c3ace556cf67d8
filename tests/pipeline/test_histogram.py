"""Statistics of regions, checked on values that can be counted by hand."""

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.histogram import dose_rate_volume_histogram, roi_statistics
from pipeline.volume import Grid, Volume

GRID = Grid((3, 5, 10), (0.0, 0.0, 0.0), (4.0, 2.0, 2.5))  # 0.02 mL a voxel


def volume(array: np.ndarray, unit: str, grid: Grid = GRID) -> Volume:
    return Volume(array.astype(np.float32), grid, unit)


def a_map(values: np.ndarray) -> tuple[np.ndarray, Volume]:
    """A region of as many voxels as there are values, with those dose rates; elsewhere 999 mGy/h."""
    mask = np.zeros(GRID.shape, bool)
    mask.flat[17 : 17 + values.size] = True
    array = np.full(GRID.shape, 999.0)
    array[mask] = values
    return mask, volume(array, "mGy/h")


def test_the_figures_of_a_region_follow_their_definitions() -> None:
    values = np.random.default_rng(4).permutation(101).astype(float)
    mask, rates = a_map(values)
    density = np.where(mask, 1.5, 7.0)
    found = roi_statistics(
        "kidney", mask, rates, volume(density, "g/cm3"), volume(np.where(mask, 2e6, 9e9), "Bq/mL")
    )
    assert (found.name, found.voxels) == ("kidney", 101)
    assert found.volume_ml == pytest.approx(101 * 0.02)
    assert found.mass_g == pytest.approx(101 * 0.02 * 1.5)
    assert found.activity_mbq == pytest.approx(101 * 0.02 * 2)
    assert (found.mean, found.maximum, found.minimum) == (50.0, 100.0, 0.0)
    assert found.sd == pytest.approx(np.sqrt((101**2 - 1) / 12))
    assert (found.dr10, found.dr30, found.dr70, found.dr90) == (90.0, 70.0, 30.0, 10.0)


def test_a_region_of_one_voxel_has_its_value_everywhere_and_no_spread() -> None:
    mask, rates = a_map(np.array([3.5]))
    found = roi_statistics("point", mask, rates, volume(np.ones(GRID.shape), "g/cm3"), rates)
    assert {found.mean, found.maximum, found.minimum, found.dr10, found.dr90} == {3.5}
    assert found.sd == 0.0


def test_sums_of_large_regions_are_not_rounded_to_single_precision() -> None:
    grid = Grid((30, 300, 300), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    uniform = volume(np.full(grid.shape, 0.1), "mGy/h", grid)
    found = roi_statistics("body", np.ones(grid.shape, bool), uniform, uniform, uniform)
    assert found.mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert found.mass_g == pytest.approx(float(np.float32(0.1)) * 2700, rel=1e-12)
    assert found.sd < 1e-12


def test_the_histogram_falls_from_the_whole_region_to_its_hottest_voxel() -> None:
    mask, rates = a_map(np.arange(1, 51))
    found = dose_rate_volume_histogram("liver", mask, rates, levels=51)
    np.testing.assert_allclose(found.dose_rate, np.arange(51))
    np.testing.assert_allclose(found.volume_fraction[1:], (50 - np.arange(50)) / 50)
    assert found.volume_fraction[0] == 1.0


def test_the_histogram_passes_through_the_dr_values() -> None:
    mask, rates = a_map(np.random.default_rng(2).gamma(2.0, 10.0, 100))
    figures = roi_statistics("lesion", mask, rates, rates, rates)
    curve = dose_rate_volume_histogram("lesion", mask, rates, levels=2000)
    at = np.interp([figures.dr90, figures.dr30], curve.dose_rate, curve.volume_fraction)
    np.testing.assert_allclose(at, [0.9, 0.3], atol=0.011)


def test_a_region_without_dose_has_a_flat_histogram_and_zeros() -> None:
    mask, rates = a_map(np.zeros(5))
    assert roi_statistics("air", mask, rates, rates, rates).maximum == 0.0
    assert (dose_rate_volume_histogram("air", mask, rates).volume_fraction == 1.0).all()


def test_an_empty_region_is_rejected_by_its_name() -> None:
    _, rates = a_map(np.ones(1))
    with pytest.raises(InputRejected, match="region 'spleen' holds no voxel"):
        roi_statistics("spleen", np.zeros(GRID.shape, bool), rates, rates, rates)


def test_a_mask_or_a_map_of_another_grid_is_a_mistake_of_the_caller() -> None:
    mask, rates = a_map(np.ones(3))
    elsewhere = volume(rates.array, "g/cm3", Grid(GRID.shape, (5.0, 0.0, 0.0), GRID.spacing_mm))
    with pytest.raises(ValueError, match="different grids"):
        roi_statistics("liver", mask, rates, elsewhere, rates)
    with pytest.raises(ValueError, match="not bool"):
        dose_rate_volume_histogram("liver", mask[:2], rates)
    with pytest.raises(ValueError, match="not bool"):
        dose_rate_volume_histogram("liver", mask.astype(np.uint8), rates)  # type: ignore[arg-type]
