"""CT numbers to density, and calibration curves that are none."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.density import SCHNEIDER_2000, checked_curve, hu_to_density
from pipeline.errors import InputRejected
from pipeline.volume import Grid, Volume


def densities(hu: Sequence[float], curve: Sequence[Sequence[float]] = SCHNEIDER_2000) -> np.ndarray:
    array = np.array(hu, np.float32)[None, None]
    grid = Grid((1, 1, len(hu)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    result = hu_to_density(Volume(array, grid, "HU"), curve)
    assert (result.unit, result.array.dtype, result.grid) == ("g/cm3", np.float32, grid)
    return result.array[0, 0]


def test_the_points_of_a_curve_are_met_and_joined_by_straight_lines() -> None:
    curve = [[-1000, 0.0], [0, 1.0], [1000, 1.6]]
    found = densities([-1000, -500, 0, 250, 1000], curve)
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 1.15, 1.6], rtol=1e-6)


def test_beyond_its_ends_the_curve_stays_level() -> None:
    found = densities([-2048, -1024, 3071, 20000])
    np.testing.assert_allclose(found, [0.00121, 0.00121, 2.793, 2.793], rtol=1e-6)


def test_the_default_curve_follows_schneider_2000() -> None:
    """Air, adipose tissue, water and soft tissue, and bone by 1.017 + 0.592e-3 HU (their equation 21)."""
    assert densities([-1000])[0] == pytest.approx(0.00121)
    assert densities([-98])[0] == pytest.approx(0.93)
    assert densities([0])[0] == pytest.approx(1.018, rel=0.002)
    bone = np.array([200.0, 800.0, 1600.0])
    np.testing.assert_allclose(densities(bone.tolist()), 1.017 + 0.592e-3 * bone, rtol=1e-3)


def test_the_default_curve_never_falls() -> None:
    assert (np.diff(densities(list(range(-1100, 3200)))) >= 0).all()


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        ([], "two or more pairs"),
        ([[0, 1.0]], "two or more pairs"),
        ([[0, 1.0], [100]], "two or more pairs"),
        ([[0, 1.0], [0, 1.1]], r"do not ascend from \[0, 1.0\] to \[0, 1.1\]"),
        ([[-1000, 0.0], [50, 1.0], [20, 1.1]], r"do not ascend from \[50, 1.0\] to \[20, 1.1\]"),
        ([[-1000, -0.1], [50, 1.0]], r"point \[-1000, -0.1\] is not a density"),
        ([[-1000, float("nan")], [50, 1.0]], "is not a density"),
        ([[float("-inf"), 0.0], [50, 1.0]], "is not a density"),
    ],
)
def test_a_curve_that_is_none_is_rejected_with_the_points_at_fault(
    curve: list[list[float]], reason: str
) -> None:
    with pytest.raises(InputRejected, match=reason) as rejected:
        checked_curve(curve)
    assert "ascending HU" in rejected.value.remedy


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_ct_numbers_that_are_none_are_rejected(value: float) -> None:
    with pytest.raises(InputRejected, match="1 voxels whose CT number is not finite"):
        densities([0.0, value, 3.0])
