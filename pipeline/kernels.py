"""Dose-voxel kernels of any voxel size, integrated from radial point kernels.

A source spread evenly over one voxel and a target voxel of the same size at the offset d: the
displacement p from a source point to a target point has the density

    w(p − d) = Π_i max(0, 1 − |p_i − d_i| / s_i),        s = voxel spacing

so the energy that a decay leaves in the target is the mean of w over the energy that it deposits
around itself::

    E(d) = ∫ ρ(|p|) w(p − d) d³p,        ρ(r) = (dC/dr) / (4 π r²)
    S(d) = E(d) / (1.04 g/cm³ · voxel volume)

C(r), the energy deposited within r, is tabulated (`data/point_kernels/README.md`). It is interpolated
monotonically, so that every shell keeps exactly the energy that its table gives it.

Three ranges of |d|, each with the cheapest rule that is accurate there:

* near, to 6 voxels and beyond every electron: w is also the weight with which trilinear ("cloud in
  cell") deposition shares a point among voxels. Every shell is spread over directions and
  deposited: no energy is lost.
* middle, to 48 voxels: two Gauss points per axis for the triangle weight, at d ± s/√6 (exact for
  cubic ρ; the first error term for ρ ~ r⁻² is 0.19 (s/r)⁴, 1.5e-4 at 6 voxels).
* far: ρ at the centre (½ (s/r)², 2e-4 at 48 voxels).

Beyond `REACH_MM` the tables end, and the kernel is zero.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.decay import Nuclide

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

SOFT_TISSUE_G_PER_CM3 = 1.04
REACH_MM = 500.0

# 1 keV = 1.602176634e-16 J; J/g -> Gy, Gy -> mGy, decay -> MBq s.
MGY_G_PER_MBQ_S_KEV = 1.602176634e-16 * 1e3 * 1e3 * 1e6

# The most energetic beta particle, 2.28 MeV of Y-90, stops within 11 mm; beyond, ρ is smooth.
ELECTRON_RANGE_MM = 12.0
NEAR_VOXELS = 6.0
MIDDLE_VOXELS = 48.0

# Spacing of the quadrature points of the near part, in voxels, along the radius and on the sphere;
# and in mm along the radius where electrons stop. With a third of each (voxels of 1-5 mm) the source
# voxel moves by less than 0.02 %, all others by 0.1 % (root mean square; at most 1 %).
RADIAL_STEP = 1 / 16
ANGULAR_STEP = 1 / 6
ELECTRON_STEP_MM = 0.025

# Shells of the photon part are merged to this relative width: their counting noise is 1-3 % each,
# while ρ changes slowly there.
PHOTON_SHELL_WIDTH = 0.06

# Step of the table that ρ is looked up in outside the near part.
DENSITY_STEP_MM = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class RadialKernel:
    """Energy around a point source in soft tissue of 1.04 g/cm³.

    energy_within: C(r): radius in mm -> keV per decay deposited within it; rises monotonically.
    sha256: of the table's file.
    """

    energy_within: PchipInterpolator
    sha256: str

    def density(self, r_mm: Float64) -> Float64:
        """ρ(r), keV per decay and mm³, for r > 0; zero beyond the reach."""
        inside = np.clip(r_mm, 0.0, REACH_MM)
        rho = self.energy_within(inside, 1) / (4 * np.pi * inside**2)
        return np.where(r_mm <= REACH_MM, rho, 0.0)


@cache
def radial_kernel(of: Nuclide) -> RadialKernel:
    """The tabulated point kernel of a nuclide."""
    text = files("pipeline").joinpath("data", "point_kernels", f"{of.name}_soft_tissue.csv").read_bytes()
    rows = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    r_outer_cm, _shell, within_kev, _sigma = np.array([row.split(",") for row in rows[1:]], float).T
    radius_mm = np.concatenate([[0.0], r_outer_cm * 10.0])
    within_kev = np.concatenate([[0.0], within_kev])
    kept = _merged_shells(radius_mm)
    return RadialKernel(
        PchipInterpolator(radius_mm[kept], within_kev[kept]), hashlib.sha256(text).hexdigest()
    )


def voxel_kernel(of: Nuclide, spacing_mm: Spacing, shape: Shape) -> Float32:
    """The S values of one octant; the others are its mirror images.

    spacing_mm: (z, y, x). shape: (z, y, x) number of offsets 0, 1, 2, ... per axis.
    returns: `shape`, mGy/(MBq s) in soft tissue of 1.04 g/cm³; [0, 0, 0] is the source voxel.
    """
    volume_mm3 = float(np.prod(spacing_mm))
    octant = _far(of, spacing_mm, shape)
    _set_within(octant, _middle(of, spacing_mm), spacing_mm, middle_radius_mm(spacing_mm))
    _set_within(octant, _near(of, spacing_mm), spacing_mm, near_radius_mm(spacing_mm))
    octant *= np.float32(MGY_G_PER_MBQ_S_KEV / (SOFT_TISSUE_G_PER_CM3 * volume_mm3 / 1000.0))
    return octant


def octant_total(octant: Float32) -> float:
    """Sum over the whole kernel: every octant voxel counts once per sign of its non-zero offsets."""
    total = octant.astype(np.float64)
    for axis in range(3):
        first = np.take(total, [0], axis)
        total = 2 * total.sum(axis, keepdims=True) - first
    return float(total.item())


def kernel_sha256(of: Nuclide, spacing_mm: Spacing) -> str:
    """Which kernel it was: SHA-256 over the table's hash and the spacing (z, y, x), mm."""
    text = f"{radial_kernel(of).sha256} {of.name} " + " ".join(f"{s:.9g}" for s in spacing_mm)
    return hashlib.sha256(text.encode()).hexdigest()


def reach_voxels(spacing_mm: Spacing) -> Shape:
    """(z, y, x): the largest offset at which the kernel is not zero."""
    z, y, x = (int(np.ceil(REACH_MM / s)) + 1 for s in spacing_mm)
    return z, y, x


def near_radius_mm(spacing_mm: Spacing) -> float:
    """Up to here the kernel is deposited shell by shell."""
    return max(ELECTRON_RANGE_MM + max(spacing_mm), NEAR_VOXELS * max(spacing_mm))


def middle_radius_mm(spacing_mm: Spacing) -> float:
    """Up to here the kernel is integrated with eight points per voxel."""
    return max(near_radius_mm(spacing_mm), MIDDLE_VOXELS * max(spacing_mm))


def _merged_shells(radius_mm: Float64) -> list[int]:
    kept = [0]
    for index, radius in enumerate(radius_mm):
        photons_only = radius > ELECTRON_RANGE_MM
        if index and (not photons_only or radius >= radius_mm[kept[-1]] * (1 + PHOTON_SHELL_WIDTH)):
            kept.append(index)
    if kept[-1] != len(radius_mm) - 1:
        kept[-1] = len(radius_mm) - 1
    return kept


def _set_within(octant: Float32, part: Float64, spacing_mm: Spacing, radius_mm: float) -> None:
    """Put `part` (a corner of the octant) where the offset is within `radius_mm`."""
    z, y, x = np.minimum(octant.shape, part.shape)
    inside = _squared_mm2(spacing_mm, (z, y, x)) <= radius_mm**2
    corner = octant[:z, :y, :x]
    corner[inside] = part[:z, :y, :x][inside]


def _squared_mm2(spacing_mm: Spacing, shape: Shape, shift: Spacing = (0.0, 0.0, 0.0)) -> Float64:
    """|d + shift|² of every offset of a corner of the octant."""
    z, y, x = (((np.arange(n) * s + t) ** 2) for n, s, t in zip(shape, spacing_mm, shift, strict=True))
    squared: Float64 = z[:, None, None] + y[:, None] + x
    return squared


def _corner(spacing_mm: Spacing, radius_mm: float) -> Shape:
    """The shape of the smallest corner that holds every offset within `radius_mm`."""
    z, y, x = (int(radius_mm / s) + 1 for s in spacing_mm)
    return z, y, x


# --- near -------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _near(of: Nuclide, spacing_mm: Spacing) -> Float64:
    """keV per decay, by deposition. returns: a corner of the octant, right within `near_radius_mm`."""
    spacing = np.asarray(spacing_mm)
    # A deposit touches the two voxels beside it: go one voxel further than what is used.
    reach = near_radius_mm(spacing_mm) + float(np.linalg.norm(spacing))
    z, y, x = _corner(spacing_mm, reach)
    corner = np.zeros((z + 2, y + 2, x + 2))
    for radius, energy in zip(*_shells(of, reach, float(spacing.min())), strict=True):
        directions, weights = _octant_directions(_angular_points(radius, float(spacing.min())))
        _deposit(corner, directions * (radius / spacing), weights * (energy / 8))
    # A voxel on a mirror plane receives from both sides of it.
    corner[0] *= 2
    corner[:, 0] *= 2
    corner[:, :, 0] *= 2
    return corner


def _shells(of: Nuclide, reach_mm: float, step_mm: float) -> tuple[Float64, Float64]:
    """Thin shells from 0 to the reach. returns: radius of the mean energy (mm), energy (keV)."""
    within = radial_kernel(of).energy_within
    fine, coarse = min(ELECTRON_STEP_MM, step_mm * RADIAL_STEP), step_mm * RADIAL_STEP
    electrons = np.arange(0.0, ELECTRON_RANGE_MM, fine)
    edges = np.concatenate([electrons, np.arange(ELECTRON_RANGE_MM, reach_mm + coarse, coarse)])
    c = within(edges)
    energy = np.diff(c)
    # ∫ r dC = [r C] − ∫ C dr: with the mean radius, w linear in r is integrated exactly.
    moment = np.diff(edges * c) - np.diff(within.antiderivative()(edges))
    return moment / energy, energy


def _angular_points(radius_mm: float, step_mm: float) -> int:
    wanted = radius_mm * np.pi / 2 / (step_mm * ANGULAR_STEP)
    return 8 * max(1, int(np.ceil(wanted / 8)))


@lru_cache(maxsize=64)
def _octant_directions(n: int) -> tuple[Float64, Float64]:
    """Product rule over the positive octant: (n², 3) unit vectors (z, y, x) and weights of sum 1.

    Gauss-Legendre in cos θ and in φ: exact for the polynomials of low degree that w is near the source.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n)
    cosine, phi = (nodes + 1) / 2, (nodes + 1) * np.pi / 4
    sine = np.sqrt(1 - cosine**2)
    z = np.broadcast_to(cosine[:, None], (n, n))
    vectors = np.stack([z, sine[:, None] * np.sin(phi), sine[:, None] * np.cos(phi)], axis=-1)
    return vectors.reshape(-1, 3), np.outer(weights / 2, weights / 2).ravel()


def _deposit(corner: Float64, points: Float64, energy: Float64) -> None:
    """Share the energy of each point (in voxels) among the eight voxels around it."""
    base = np.floor(points).astype(np.intp)
    upper = points - base
    share = (1 - upper, upper)
    _nz, ny, nx = corner.shape
    first = (base[:, 0] * ny + base[:, 1]) * nx + base[:, 2]
    flat = corner.reshape(-1)
    for dz, dy, dx in itertools.product((0, 1), repeat=3):
        part = energy * share[dz][:, 0] * share[dy][:, 1] * share[dx][:, 2]
        target = first + ((dz * ny + dy) * nx + dx)
        flat += np.bincount(target, part, minlength=flat.size)


# --- middle and far ---------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _middle(of: Nuclide, spacing_mm: Spacing) -> Float64:
    """keV per decay, by eight points per voxel. returns: a corner of the octant."""
    shape = _corner(spacing_mm, middle_radius_mm(spacing_mm))
    total = np.zeros(shape)
    for signs in itertools.product((-1, 1), repeat=3):
        z, y, x = (sign * s / np.sqrt(6) for sign, s in zip(signs, spacing_mm, strict=True))
        total += _density(of, _squared_mm2(spacing_mm, shape, (z, y, x)))
    return total * (np.prod(spacing_mm) / 8)


def _far(of: Nuclide, spacing_mm: Spacing, shape: Shape) -> Float32:
    """keV per decay, by one point per voxel. returns: `shape`; not right near the source."""
    octant = np.empty(shape, np.float32)
    plane = _squared_mm2(spacing_mm, (1, *shape[1:]))[0]
    volume_mm3 = np.prod(spacing_mm)
    for z, slab in enumerate(octant):
        slab[:] = _density(of, plane + (z * spacing_mm[0]) ** 2) * volume_mm3
    return octant


def _density(of: Nuclide, squared_mm2: Float64) -> Float64:
    """ρ at |d|², keV per decay and mm³; zero beyond the reach."""
    radius, rho = _density_table(of)
    return np.interp(np.sqrt(squared_mm2), radius, rho, right=0.0)


@cache
def _density_table(of: Nuclide) -> tuple[Float64, Float64]:
    """ρ on a grid that is fine against its changes beyond the electrons' range."""
    radius: Float64 = np.arange(1, round(REACH_MM / DENSITY_STEP_MM) + 1) * np.float64(DENSITY_STEP_MM)
    return radius, radial_kernel(of).density(radius)
