"""The one energy grid of every transport table.

::

    E_i = E_MIN · exp(i · STEP),     STEP = ln(E_MAX / E_MIN) / (N − 1)

A particle computes its place on the grid once per step, `place = (ln E − ln E_MIN) / STEP`, and reads
every table at it by linear interpolation. Energies are keV.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import compiled

E_MIN_KEV = 1.0
E_MAX_KEV = 3000.0
N = 512

LN_E_MIN = math.log(E_MIN_KEV)
STEP = math.log(E_MAX_KEV / E_MIN_KEV) / (N - 1)

_LN_E_MIN = np.float32(LN_E_MIN)
_PER_STEP = np.float32(1.0 / STEP)
_LAST = np.float32(N - 1.001)


def grid_kev() -> NDArray[np.float64]:
    """The N energies, keV, ascending."""
    return np.asarray(E_MIN_KEV * np.exp(STEP * np.arange(N)))


@compiled
def place_on_grid(energy_kev: np.float32) -> np.float32:
    """Where `energy_kev` (above 0) lies on the grid: 0 to just below N − 1, held at both ends."""
    place = (np.float32(math.log(energy_kev)) - _LN_E_MIN) * _PER_STEP
    return min(max(place, np.float32(0.0)), _LAST)


@compiled
def interpolate(row: NDArray[np.float32], place: np.float32) -> np.float32:
    """The value of `row` ([N]) at `place` of `place_on_grid`."""
    low = int(place)
    above = place - np.float32(low)
    return row[low] + above * (row[low + 1] - row[low])  # type: ignore[no-any-return]
