"""Uptake inside organs: a log-normal organ mean times a texture of several scales.

::

    concentration(r) = tissue.uptake · exp(patient) · exp(Σ_s σ_s g_s(r) - Σ_s σ_s²/2)

with g_s a smooth Gaussian field of length 9, 18 and 36 mm. `Texture` is the place for further laws: a
function from a generator and a lattice box to the logarithm of the uptake.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.simulate.fields import Field, smooth_field

# (rng, shape (z, y, x), lattice spacing in mm, standard deviation of the logarithm) -> logarithm
Texture = Callable[[np.random.Generator, tuple[int, ...], float, float], Field]

_SCALES_MM = (9.0, 18.0, 36.0)


def multiscale(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float
) -> Field:
    """Three scales of equal variance; the mean of its exponential is one."""
    each = np.float32(deviation / np.sqrt(len(_SCALES_MM)))
    log = sum(each * smooth_field(rng, shape, spacing_mm, length) for length in _SCALES_MM)
    return np.asarray(log - deviation**2 / 2, dtype=np.float32)
