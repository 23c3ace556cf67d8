"""CT numbers to mass density: a piecewise linear calibration.

The default curve follows the mass densities of Schneider W, Bortfeld T, Schlegel W, Phys Med Biol
2000;45:459-478: 0.00121 g/cm³ at -1000 HU, 0.930 at -98, 1.030 at 14, and above bone's onset
1.017 + 0.592e-3 HU. Their separate branch for connective tissue (23 to 100 HU, up to 1.12 g/cm³) is
left out, so that contrast medium in blood and organs does not raise the density of soft tissue and
the curve has no step at 100 HU. A site's own scanner calibration replaces it by configuration.

Beyond its first and last point the curve stays level: padding of -2000 HU or less is air, and metal
gets the density of the last point, for a CT number there says nothing about its mass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.volume import Volume

MOST_DENSE_G_PER_CM3 = 23.0
"""Denser than any element: such a curve is in another unit (kg/m3), and doses would be 1000 times low."""

Curve = Sequence[Sequence[float]]

SCHNEIDER_2000: tuple[tuple[float, float], ...] = (
    (-1000.0, 0.00121),
    (-98.0, 0.930),
    (14.0, 1.030),
    (100.0, 1.076),
    (1600.0, 1.964),
    (3000.0, 2.793),
)


def hu_to_density(hu: Volume, curve: Curve = SCHNEIDER_2000) -> Volume:
    """hu: Volume of CT numbers, HU. curve: (HU, g/cm³) points, ascending. returns: g/cm3, same grid.

    raises: InputRejected for a curve that is none, or CT numbers that are not finite.
    """
    points, densities = checked_curve(curve)
    _require_finite(hu)
    array = np.empty(hu.grid.shape, np.float32)
    # A slice at a time, for np.interp works in float64.
    for slice_, ct_numbers in zip(array, hu.array, strict=True):
        slice_[:] = np.interp(ct_numbers, points, densities)
    return hu.with_array(array, "g/cm3")


def checked_curve(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve as two arrays, HU and g/cm³.

    raises: InputRejected naming the points at fault: fewer than two, CT numbers that do not ascend,
        a density that is negative, no number, or denser than any element.
    """
    remedy = "Give [density] curve as [[HU, g_per_cm3], ...] with ascending HU"
    if len(curve) < 2 or any(len(point) != 2 for point in curve):
        raise InputRejected(f"the density curve {list(curve)} is not a list of two or more pairs", remedy)
    hu, density = np.array(curve, dtype=np.float64).T
    for point, value in zip(curve, density, strict=True):
        if not np.all(np.isfinite(point)) or value < 0:
            raise InputRejected(f"the density curve's point {list(point)} is not a density", remedy)
        if value > MOST_DENSE_G_PER_CM3:
            raise InputRejected(f"the density curve's point {list(point)} is not in g/cm3", remedy)
    for before, after in itertools.pairwise(curve):
        if after[0] <= before[0]:
            raise InputRejected(
                f"the density curve's CT numbers do not ascend from {list(before)} to {list(after)}", remedy
            )
    return hu, density


def _require_finite(hu: Volume) -> None:
    if not np.isfinite(hu.array.sum(dtype=np.float64)):
        count = int(np.count_nonzero(~np.isfinite(hu.array)))
        raise InputRejected(
            f"the CT holds {count} voxels whose CT number is not finite",
            "Check RescaleSlope and RescaleIntercept of the CT series",
        )
