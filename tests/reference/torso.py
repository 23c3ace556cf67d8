"""A torso of simple analytic organs, voxelised: organ self- and cross-doses against PENELOPE.

Trunk, lungs, liver, kidneys and spleen are the quadrics of the adult phantom of MIRD Pamphlet 5, Revised
(Snyder 1978), with the trunk's skeleton reduced to a spine: spongiosa in a shell of cortical bone. A layer
of adipose tissue lies around the trunk. Centimetres; x to the patient's left, y to the back, z upwards from
the bottom of the trunk, as in the pamphlet.

Nothing but numpy is imported: PENELOPE runs the same array from an environment of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VOXEL_CM = 0.5
SHAPE = (100, 48, 88)  # z, y, x
BOTTOM_CM = 15.0
ADIPOSE_CM = 1.5

# Label, medium, density g/cm3 (ICRU 44; lungs inflated, spongiosa ICRU 46).
ORGANS: tuple[tuple[str, str, float], ...] = (
    ("outside", "air", 1.20479e-3),
    ("adipose", "adipose", 0.95),
    ("soft tissue", "soft_tissue", 1.06),
    ("lungs", "lung", 0.26),
    ("liver", "soft_tissue", 1.06),
    ("kidneys", "soft_tissue", 1.05),
    ("spleen", "soft_tissue", 1.06),
    ("spongiosa", "spongiosa", 1.18),
    ("cortical bone", "cortical_bone", 1.92),
)
NAMES = tuple(name for name, _, _ in ORGANS)
SOURCES = ("kidneys", "liver")


def centres() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """z (n, 1, 1), y (n, 1), x (n,) of the voxels' centres, cm."""
    first = (BOTTOM_CM, -VOXEL_CM * SHAPE[1] / 2, -VOXEL_CM * SHAPE[2] / 2)
    z, y, x = (
        f + VOXEL_CM * (np.arange(n, dtype=np.float64) + 0.5) for f, n in zip(first, SHAPE, strict=True)
    )
    return z[:, None, None], y[:, None], x


def labels() -> NDArray[np.uint8]:
    """(z, y, x) index into `ORGANS` of every voxel."""
    z, y, x = centres()
    label = np.zeros(SHAPE, np.uint8)

    def fill(name: str, inside: NDArray[np.bool_]) -> None:
        label[np.broadcast_to(inside, SHAPE)] = NAMES.index(name)

    fill("adipose", (x / (20 + ADIPOSE_CM)) ** 2 + (y / (10 + ADIPOSE_CM)) ** 2 <= 1)
    fill("soft tissue", (x / 20) ** 2 + (y / 10) ** 2 <= 1)
    for side in (-1, 1):
        lung = ((x - side * 8.5) / 5) ** 2 + (y / 7.5) ** 2 + ((z - 43.5) / 24) ** 2 <= 1
        fill("lungs", lung & (z >= 43.5))
        kidney = ((x - side * 6) / 4.5) ** 2 + ((y - 6) / 1.5) ** 2 + ((z - 32.5) / 5.5) ** 2 <= 1
        fill("kidneys", kidney & (np.abs(x) >= 3))
    liver = (x / 16.5) ** 2 + (y / 8) ** 2 <= 1
    fill("liver", liver & (x / 35 + y / 45 - z / 43 <= -1) & (z >= 27) & (z <= 43))
    fill("spleen", ((x - 11) / 3.5) ** 2 + ((y - 3) / 2) ** 2 + ((z - 37) / 6) ** 2 <= 1)
    fill("cortical bone", (x / 2) ** 2 + ((y - 5.5) / 2.5) ** 2 <= 1)
    fill("spongiosa", (x / 1.5) ** 2 + ((y - 5.5) / 2) ** 2 <= 1)
    return label


def density(label: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(z, y, x) g/cm3."""
    return np.array([g for _, _, g in ORGANS], np.float32)[label]


def activity(label: NDArray[np.uint8], source: str) -> NDArray[np.float64]:
    """(z, y, x) share of the decays in every voxel, sums to 1."""
    inside = label == NAMES.index(source)
    return np.asarray(inside / inside.sum(), np.float64)
