"""The published scaling of what DblurDoseNet is given and returns.

Li et al., Med Phys 49 (2022) 1216; the authors feed, at voxels of 0.0976562 x 0.0976562 x 0.3 cm3,

    SPECT      x / Σx · 0.024 / (0.0976562² · 0.3) · 1e8
    density    mg/cm3
    dose rate  mGy/s per MBq in the field of view · 1e8

The first is the fraction of the activity per millilitre times 0.024e8, whatever the voxels are, and in that
form it holds at other voxel sizes. Σx is the activity of the whole field of view, also where only a box of
it is given to the network. DVK's map, the truth and the network's output share the third.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelRejected

Float32 = NDArray[np.float32]

SPECT_SCALE = 0.024e8  # of the activity fraction per mL
DOSE_SCALE = 1e8  # of mGy/s per MBq in the field of view
MG_PER_G = 1000.0
HOUR_S = 3600.0
BQ_PER_MBQ = 1e6
AIR_BELOW_MG_PER_CM3 = 100.0  # at or below: the output is 0

# mGy/h of a map of one MBq -> the network's unit.
DOSE_PER_MGY_PER_H = DOSE_SCALE / HOUR_S


def spect_input(concentration: NDArray[np.floating], total_mbq: float) -> Float32:
    """The SPECT as the network is given it.

    concentration: Bq/mL; any shape. total_mbq: activity in the whole field of view of the SPECT.
    returns: fraction of the activity per mL, times 0.024e8.

    raises: ModelRejected without activity.
    """
    _require_activity(total_mbq)
    scaled: Float32 = np.multiply(concentration, SPECT_SCALE / (total_mbq * BQ_PER_MBQ), dtype=np.float32)
    return scaled


def density_input(density: NDArray[np.floating]) -> Float32:
    """g/cm3 -> mg/cm3; any shape."""
    scaled: Float32 = np.multiply(density, MG_PER_G, dtype=np.float32)
    return scaled


def dose_target(mgy_per_h: NDArray[np.floating], total_mbq: float) -> Float32:
    """A dose-rate map in the network's unit: mGy/s per MBq in the field of view, times 1e8.

    mgy_per_h: (z, y, x). total_mbq: activity in the field of view of the SPECT that is the input.

    raises: ModelRejected without activity.
    """
    _require_activity(total_mbq)
    scaled: Float32 = np.multiply(mgy_per_h, DOSE_PER_MGY_PER_H / total_mbq, dtype=np.float32)
    return scaled


def residual_to_mgy_per_h(residual: NDArray[np.floating], total_mbq: float) -> Float32:
    """What the network adds to DVK's map: its own unit -> mGy/h; the inverse of `dose_target`."""
    scaled: Float32 = np.multiply(residual, total_mbq / DOSE_PER_MGY_PER_H, dtype=np.float32)
    return scaled


def _require_activity(total_mbq: float) -> None:
    if not 0 < total_mbq < np.inf:
        raise ModelRejected(
            f"{total_mbq:g} MBq in the field of view",
            "The network's input and output are per activity: give a SPECT that holds some",
        )
