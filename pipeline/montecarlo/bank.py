"""The bank: particles that wait for their turn, so that no transport function calls itself.

A bank is float32[BANK_DEPTH, BANK_ROW], one per thread; on the graphics card it lies in the thread's local
memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.montecarlo.compiled import F, compiled

# Not bare integers: the compiler would make a function of its own for each of them.
PHOTON = np.int32(0)
ELECTRON = np.int32(1)

# A history's tree is walked depth first: the fullest bank seen for 3 MeV electrons in bone held 11.
BANK_DEPTH = 32
BANK_ROW = 11  # kind, iz, iy, ix, fz, fy, fx, u, v, w, energy


@compiled
def push(
    bank: NDArray[np.float32],
    count: int,
    kind: np.int32,
    iz: int,
    iy: int,
    ix: int,
    fz: np.float32,
    fy: np.float32,
    fx: np.float32,
    u: np.float32,
    v: np.float32,
    w: np.float32,
    energy: np.float32,
) -> int:
    """The count with the particle added. The caller asks `has_room` first and else deposits on the spot."""
    bank[count, 0] = F(kind)
    bank[count, 1] = F(iz)
    bank[count, 2] = F(iy)
    bank[count, 3] = F(ix)
    bank[count, 4] = fz
    bank[count, 5] = fy
    bank[count, 6] = fx
    bank[count, 7] = u
    bank[count, 8] = v
    bank[count, 9] = w
    bank[count, 10] = energy
    return count + 1


@compiled
def has_room(count: int) -> bool:
    """Whether one more particle may be pushed."""
    return count < BANK_DEPTH


def new_bank() -> NDArray[np.float32]:
    """An empty bank of the processor's."""
    return np.zeros((BANK_DEPTH, BANK_ROW), np.float32)
