"""The published scaling, and its generalisation to other voxels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import ModelRejected
from models.scaling import density_input, dose_target, residual_to_mgy_per_h, spect_input

PAPER_ML = 0.0976562**2 * 0.3


def mbq(concentration: NDArray[np.float32], voxel_ml: float) -> float:
    return float(concentration.sum(dtype=np.float64)) * voxel_ml / 1e6


def test_at_the_papers_voxels_it_is_the_papers_formula() -> None:
    x = np.random.default_rng(1).random((5, 6, 7)).astype(np.float32)
    published = x / x.sum(dtype=np.float64) * 0.024 / (0.0976562**2 * 0.3) * 1e8
    np.testing.assert_allclose(spect_input(x, mbq(x, PAPER_ML)), published, rtol=1e-6)


def test_it_knows_neither_the_activity_nor_the_size_of_the_voxels() -> None:
    """The same distribution, twice as fine and a thousand times as active, gives the same numbers."""
    x = np.random.default_rng(2).random((4, 4, 4)).astype(np.float32)
    fine = x.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    once = spect_input(x, mbq(x, 0.08))
    finer = spect_input(fine * 1e3, mbq(fine * 1e3, 0.01))
    np.testing.assert_allclose(finer, once.repeat(2, 0).repeat(2, 1).repeat(2, 2), rtol=1e-5)


def test_density_is_in_milligrams() -> None:
    assert density_input(np.array([1.04])).tolist() == pytest.approx([1040])


def test_a_dose_rate_goes_there_and_back() -> None:
    dose = np.array([0.0, 3.6, 180.0], np.float32)
    scaled = dose_target(dose, 100.0)
    assert scaled[1] == pytest.approx(3.6 / 3600 / 100 * 1e8)
    np.testing.assert_allclose(residual_to_mgy_per_h(scaled, 100.0), dose, rtol=1e-6)


@pytest.mark.parametrize("none", [0.0, -1.0, np.nan, np.inf])
def test_what_is_per_activity_needs_some(none: float) -> None:
    for scaled in (spect_input, dose_target):
        with pytest.raises(ModelRejected, match="MBq in the field of view"):
            scaled(np.ones(3), none)
