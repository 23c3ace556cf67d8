"""From what engines return to energy per decay."""

from __future__ import annotations

from pipeline.decay import HOUR_S

# 1 keV in 1 g is 1.602176634e-16 J / 1e-3 kg, in mGy.
MGY_G_PER_KEV = 1.602176634e-16 * 1e3 * 1e3


def mgy_h_per_kev() -> float:
    """mGy/h in 1 g for each keV that every decay leaves there, at 1 Bq."""
    return MGY_G_PER_KEV * HOUR_S
