"""A region of interest before it has a mask, whichever object it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dataset import described
from pipeline.errors import InputRejected
from pipeline.volume import Grid

Mask = NDArray[np.bool_]

BEYOND_CT = "it reaches beyond the CT; only the part inside is counted"


@dataclass(frozen=True, slots=True)
class Region:
    """name, number: as its object gives them. mask: makes (z, y, x) on the CT's grid; raises UnusableRegion.

    beyond_ct: whether a part of it lies outside the CT.
    """

    name: str
    number: int
    mask: Callable[[], Mask]
    beyond_ct: Callable[[], bool]


class UnusableRegion(Exception):
    """Why one region has no mask; the others may."""


def require_frame(frame: str, ct: Grid, dataset: Dataset) -> None:
    """raises: InputRejected unless the regions lie in the CT's frame of reference."""
    if frame != ct.frame_of_reference_uid:
        raise InputRejected(
            f"{described(dataset)} lies in the frame of reference {frame or 'none'}, "
            f"the CT in {ct.frame_of_reference_uid or 'none'}",
            "Draw the ROIs on the CT of this study, or discard them",
        )
