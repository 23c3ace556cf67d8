"""Is there more activity in the image than was given?

::

    fraction = found / (administered · 2^(−t / T½))

It catches MBq against Bq, wrong durations and double decay correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.decay import HOUR_S, Nuclide, decay_factor
from pipeline.errors import InputRejected

LIMIT = 1.10
"""Largest accepted fraction: calibration and partial volume leave some 10 %."""

MOST_ADMINISTERED_BQ = 1e11
"""More than any therapy with these nuclides gives; a number above it is in another unit."""


@dataclass(frozen=True, slots=True)
class Plausibility:
    """fraction: found / expected. expected_bq: the administered activity, decayed to the image's instant."""

    fraction: float
    found_bq: float
    expected_bq: float
    administered_bq: float
    hours: float

    def __str__(self) -> str:
        return (
            f"{self.found_bq / 1e6:.4g} MBq found, {self.fraction:.1%} of the "
            f"{self.expected_bq / 1e6:.4g} MBq left of {self.administered_bq / 1e6:.4g} MBq "
            f"after {self.hours:.1f} h"
        )


def plausibility(
    activity_found_bq: float, administered_bq: float, hours: float, nuclide: Nuclide, limit: float = LIMIT
) -> Plausibility:
    """The part of the administered activity that the image holds.

    activity_found_bq: in the whole field, at the image's instant. hours: from administration to it.
    raises: InputRejected when it is more than `limit`, when the image is earlier than the
        administration, or when the administered activity cannot be one.
    """
    if not (math.isfinite(administered_bq) and 0 < administered_bq <= MOST_ADMINISTERED_BQ):
        raise InputRejected(
            f"an administered activity of {administered_bq / 1e6:.4g} MBq is not possible",
            "Correct RadionuclideTotalDose (MBq in NM, Bq in PET) at the camera, or in the dose report",
        )
    if not hours >= 0:
        raise InputRejected(
            f"the image is {-hours:.2f} h earlier than the administration",
            "Correct the time of administration, the acquisition time or their time zones",
        )
    expected = administered_bq * decay_factor(nuclide, hours * HOUR_S)
    found = Plausibility(activity_found_bq / expected, activity_found_bq, expected, administered_bq, hours)
    if not found.fraction <= limit:
        raise InputRejected(
            f"more activity than was administered: {found}; {limit:.0%} is the limit",
            "Check the calibration's sensitivity and duration (per view or summed, per head or system), "
            "whether the image was decay-corrected already, the administered activity and its unit",
        )
    return found
