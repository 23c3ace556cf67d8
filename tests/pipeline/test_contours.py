"""Planes of contours against slices: a region's length along z has no bias, wherever its planes lie."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.contours import fill
from pipeline.volume import Grid

GRID = Grid((30, 20, 20), (0.0, 0.0, 0.0), (3.0, 2.0, 2.0))
SQUARE = np.array([[5.1, 5.1], [25.1, 5.1], [25.1, 25.1], [5.1, 25.1]])


@pytest.mark.parametrize(
    ("planes_mm", "length_mm"),
    [
        (np.arange(15.0, 45.0, 3.0), 30.0),
        (np.arange(16.5, 46.5, 3.0), 30.0),
        (np.arange(16.5, 46.5, 3.0) + np.tile([0.01, -0.01], 5), 30.0),
        (np.arange(15.0, 45.0, 6.0), 30.0),
        (np.arange(20.0, 65.0, 5.0), 45.0),
        (np.array([21.0]), 3.0),
        (np.array([22.5]), 3.0),
    ],
    ids=["on slices", "between slices", "between, rounded", "every second", "thicker", "one", "one between"],
)
def test_a_region_is_as_long_as_its_planes_say(planes_mm: NDArray[np.float64], length_mm: float) -> None:
    """n planes at a distance d are n · d long; one slice too many is 10 % of a region of 30 mm."""
    mask = fill([np.column_stack([SQUARE, np.full(4, z)]) for z in planes_mm], GRID)
    assert mask.any(axis=(1, 2)).sum() * 3.0 == pytest.approx(length_mm)
    assert mask.sum() == 100 * length_mm / 3.0
