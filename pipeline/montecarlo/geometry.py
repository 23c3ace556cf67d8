"""The voxels that particles cross, where energy is deposited, and directions in space.

A position is a voxel (iz, iy, ix) and the place within it (fz, fy, fx), 0 ... 1: float32 then resolves 1e-7
of a voxel anywhere in the image. Directions (u, v, w) point along x, y, z. Outside the grid is vacuum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.montecarlo.compiled import ONE, TWO, TWO_PI, ZERO, F, add, compiled
from pipeline.montecarlo.random_numbers import uniform

# Places of the account, float64[ACCOUNT_SIZE], keV: what a tally of voxels does not hold.
ESCAPED = 0
EMITTED = 1
ACCOUNT_SIZE = 2

_POLE = F(1e-4)


class Geometry(NamedTuple):
    """Voxels, or shells around the grid's centre when `shells` is not empty.

    nz, ny, nx: voxels. dz, dy, dx: sides, cm, float32.
    material: uint8[nz·ny·nx], rows of the transport tables. density: float32[nz·ny·nx], g/cm³.
    shells: float32[n + 1], squares of the shells' rising radii, cm²; empty for a tally of voxels. A tally of
        shells holds n + 1 values, the last one what lies outside them all.
    """

    nz: int
    ny: int
    nx: int
    dz: np.float32
    dy: np.float32
    dx: np.float32
    material: NDArray[np.uint8]
    density: NDArray[np.float32]
    shells: NDArray[np.float32]


def voxel_geometry(
    material: NDArray[np.uint8], density: NDArray[np.float32], spacing_cm: tuple[float, float, float]
) -> Geometry:
    """Geometry of (z, y, x) maps; spacing (z, y, x). raises: InputRejected for a voxel without size."""
    if not all(math.isfinite(side) and side > 0 for side in spacing_cm):
        raise InputRejected(
            f"a voxel of {' x '.join(f'{side * 10:g}' for side in spacing_cm)} mm (z, y, x) has no volume",
            "Check PixelSpacing and the slice positions of the series",
        )
    nz, ny, nx = material.shape
    dz, dy, dx = (F(side) for side in spacing_cm)
    flat = np.ascontiguousarray(material, np.uint8).reshape(-1)
    return Geometry(
        nz,
        ny,
        nx,
        dz,
        dy,
        dx,
        flat,
        np.ascontiguousarray(density, np.float32).reshape(-1),
        np.zeros(0, np.float32),
    )


def shell_geometry(material: int, density_g_per_cm3: float, edges_cm: NDArray[np.float64]) -> Geometry:
    """One homogeneous voxel around shells of rising radii; what leaves it has left for good.

    The voxel reaches twice as far as the last shell: particles still come back from there.
    """
    side = F(4.0 * float(edges_cm[-1]))
    return Geometry(
        *(1, 1, 1, side, side, side),
        np.full(1, material, np.uint8),
        np.full(1, density_g_per_cm3, np.float32),
        np.square(edges_cm).astype(np.float32),
    )


def tally_size(geometry: Geometry) -> int:
    """How many values a tally of the geometry holds."""
    if geometry.shells.size:
        return int(geometry.shells.size)
    return geometry.nz * geometry.ny * geometry.nx


@compiled
def voxel_index(geometry: Geometry, iz: int, iy: int, ix: int) -> int:
    """Flat index of a voxel."""
    return (iz * geometry.ny + iy) * geometry.nx + ix


@compiled
def shell_index(geometry: Geometry, fz: np.float32, fy: np.float32, fx: np.float32) -> int:
    """Which shell holds a place of the one voxel; the last index when none does. What is nearer than the
    first edge belongs to the first shell.
    """
    z = (fz - F(0.5)) * geometry.dz
    y = (fy - F(0.5)) * geometry.dy
    x = (fx - F(0.5)) * geometry.dx
    squared = z * z + y * y + x * x
    low = 0
    high = geometry.shells.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if geometry.shells[middle + 1] > squared:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def deposit(
    geometry: Geometry,
    tally: NDArray[np.float64],
    iz: int,
    iy: int,
    ix: int,
    fz: np.float32,
    fy: np.float32,
    fx: np.float32,
    energy: np.float32,
) -> None:
    """Leave energy (keV) at a place: in its voxel or in its shell."""
    if geometry.shells.shape[0] == 0:
        add(tally, voxel_index(geometry, iz, iy, ix), energy)
    else:
        add(tally, shell_index(geometry, fz, fy, fx), energy)


@compiled
def rotate(
    u: np.float32, v: np.float32, w: np.float32, cosine: np.float32, azimuth: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """The direction turned by a polar angle (its cosine) and an azimuth (radians), of length 1."""
    sine = F(math.sqrt(max(ZERO, ONE - cosine * cosine)))
    a = sine * F(math.cos(azimuth))
    b = sine * F(math.sin(azimuth))
    across = F(math.sqrt(max(ZERO, ONE - w * w)))
    if across < _POLE:
        # Along the z axis any two directions across it will do.
        s, t, q = a, b if w > ZERO else -b, cosine * w
    else:
        s = u * cosine + (u * w * a - v * b) / across
        t = v * cosine + (v * w * a + u * b) / across
        q = w * cosine - across * a
    length = ONE / F(math.sqrt(s * s + t * t + q * q))
    return s * length, t * length, q * length


@compiled
def isotropic(counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.float32, np.float32, np.uint64]:
    """A direction, all equally likely; the next counter."""
    r, counter = uniform(counter, key)
    q, counter = uniform(counter, key)
    w = TWO * r - ONE
    across = F(math.sqrt(max(ZERO, ONE - w * w)))
    return across * F(math.cos(TWO_PI * q)), across * F(math.sin(TWO_PI * q)), w, counter
