"""Dose-voxel kernels of any voxel size, integrated from radial point kernels.

A source spread evenly over one voxel and a target voxel of the same size at the offset d: the
displacement p from a source point to a target point has the density

    w(p − d) = Π_i max(0, 1 − |p_i − d_i| / s_i),        s = voxel spacing

so the energy that a decay leaves in the target is the mean of w over the energy that it deposits
around itself::

    E(d) = ∫ ρ(|p|) w(p − d) d³p = ∫ dC(r) W_d(r),        ρ(r) = (dC/dr) / (4 π r²)
    S(d) = E(d) / (1.04 g/cm³ · voxel volume)

C(r), the energy deposited within r, comes from `radial_kernel`; W_d(r), the mean of w over the sphere of
radius r, from `pair_distance`. Four ranges of |d|, each with the cheapest rule that is accurate there:

* where electrons reach, and to 4 voxels: the integral over dC(r). W is interpolated by cubics, each of
  which is integrated over dC exactly: however sharply C rises, no energy is lost.
* near, to 8 voxels, where ρ is smooth: three Gauss points per axis for the triangle weight, at 0 and
  d ± s √0.4.
* middle, to 48 voxels: two points, at d ± s/√6 (the first error term for ρ ~ r⁻² is 0.19 (s/r)⁴).
* far: ρ at the centre (½ (s/r)², 2e-4 at 48 voxels).

Beyond the end of the table the kernel is zero. All but the far part is one array per nuclide and voxel
size, which `kernel_cache` keeps.
"""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.constants import JOULE_PER_KEV
from pipeline.cores import available_cores
from pipeline.decay import Nuclide
from pipeline.kernel_cache import NOT_KEPT, KernelCache
from pipeline.radial_kernel import REACH_MM, SOFT_TISSUE_G_PER_CM3, radial_kernel

__all__ = [
    "MGY_G_PER_MBQ_S_KEV", "REACH_MM", "SOFT_TISSUE_G_PER_CM3", "Shape", "Spacing", "electron_kernel",
    "kernel_sha256", "octant_total", "radial_kernel", "reach_voxels", "voxel_kernel",
]  # fmt: skip

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

# keV -> J; J/g -> Gy, Gy -> mGy, decay -> MBq s.
MGY_G_PER_MBQ_S_KEV = JOULE_PER_KEV * 1e3 * 1e3 * 1e6

# Part of what a kept kernel is found by: raise it whenever the numbers change.
METHOD = "pair distance 1"

EXACT_VOXELS = 4.0
NEAR_VOXELS = 8.0
MIDDLE_VOXELS = 48.0

# Radii per shortest side at which W is known, for the cubics between them.
RADII_PER_VOXEL = 24

# Gauss's rules for the triangle weight on (−1, 1): its moments are ⟨t²⟩ = 1/6 and ⟨t⁴⟩ = 1/15.
TWO_POINTS = ((-np.sqrt(1 / 6), 0.5), (np.sqrt(1 / 6), 0.5))
THREE_POINTS = ((-np.sqrt(0.4), 5 / 24), (0.0, 7 / 12), (np.sqrt(0.4), 5 / 24))
Rule = tuple[tuple[float, float], ...]

# Step of the table that ρ is looked up in beyond the exact part, and of the far part's, in shortest sides.
DENSITY_STEP_MM = 0.05
FAR_STEPS_PER_VOXEL = 200


def voxel_kernel(of: Nuclide, spacing_mm: Spacing, shape: Shape, kept: KernelCache = NOT_KEPT) -> Float32:
    """The S values of one octant; the others are its mirror images.

    spacing_mm: (z, y, x). shape: (z, y, x) number of offsets 0, 1, 2, ... per axis.
    returns: `shape`, mGy/(MBq s) in soft tissue of 1.04 g/cm³; [0, 0, 0] is the source voxel.
    """
    octant = _far(of, spacing_mm, shape)
    _set_within(octant, _corner(of, spacing_mm, kept), spacing_mm, middle_radius_mm(of, spacing_mm))
    octant *= np.float32(s_value_per_kev(spacing_mm))
    return octant


def electron_kernel(of: Nuclide, spacing_mm: Spacing, kept: KernelCache = NOT_KEPT) -> Float32:
    """The electrons' part of the octant, as far as it goes. returns: (z, y, x) keV per decay."""
    return _electron_corner(of, spacing_mm, kept)


def s_value_per_kev(spacing_mm: Spacing) -> float:
    """mGy/(MBq s) in a voxel of soft tissue for each keV that a decay leaves there."""
    return float(MGY_G_PER_MBQ_S_KEV / (SOFT_TISSUE_G_PER_CM3 * np.prod(spacing_mm) / 1000.0))


def octant_total(octant: Float32) -> float:
    """Sum over the whole kernel: every octant voxel counts once per sign of its non-zero offsets."""
    total = octant.astype(np.float64)
    for axis in range(3):
        first = np.take(total, [0], axis)
        total = 2 * total.sum(axis, keepdims=True) - first
    return float(total.item())


def kernel_sha256(of: Nuclide, spacing_mm: Spacing) -> str:
    """Which kernel it was: SHA-256 over the table's hash and the spacing (z, y, x), mm."""
    return hashlib.sha256(_description(of, spacing_mm, "voxels").encode()).hexdigest()


def _description(of: Nuclide, spacing_mm: Spacing, part: str) -> str:
    return f"{METHOD} {part} {radial_kernel(of).sha256} {of.name} " + " ".join(f"{s:.9g}" for s in spacing_mm)


def reach_voxels(spacing_mm: Spacing) -> Shape:
    """(z, y, x): the largest offset at which the kernel is not zero."""
    z, y, x = (int(np.ceil(REACH_MM / s)) + 1 for s in spacing_mm)
    return z, y, x


def middle_radius_mm(of: Nuclide, spacing_mm: Spacing) -> float:
    """Up to here the kernel is integrated, and beyond it taken at the voxel's centre."""
    electrons = radial_kernel(of).electron_range_mm + float(np.linalg.norm(spacing_mm))
    return max(electrons, MIDDLE_VOXELS * max(spacing_mm))


def _set_within(octant: Float32, part: Float32, spacing_mm: Spacing, radius_mm: float) -> None:
    """Put `part` (a corner of the octant) where the offset is within `radius_mm`."""
    z, y, x = np.minimum(octant.shape, part.shape)
    inside = _squared_mm2(spacing_mm, (z, y, x)) <= radius_mm**2
    np.copyto(octant[:z, :y, :x], part[:z, :y, :x], where=inside)


def _squared_mm2(spacing_mm: Spacing, shape: Shape, shift: Spacing = (0.0, 0.0, 0.0)) -> Float64:
    """|d + shift|² of every offset of a corner of the octant."""
    z, y, x = (((np.arange(n) * s + t) ** 2) for n, s, t in zip(shape, spacing_mm, shift, strict=True))
    squared: Float64 = z[:, None, None] + y[:, None] + x
    return squared


def _corner_shape(spacing_mm: Spacing, radius_mm: float) -> Shape:
    """The shape of the smallest corner that holds every offset within `radius_mm`."""
    z, y, x = (int(radius_mm / s) + 1 for s in spacing_mm)
    return z, y, x


@lru_cache(maxsize=8)
def _corner(of: Nuclide, spacing_mm: Spacing, kept: KernelCache) -> Float32:
    """keV per decay, right within `middle_radius_mm`. returns: a corner of the octant."""
    return kept.array(_description(of, spacing_mm, "corner"), lambda: _integrated(of, spacing_mm))


def _integrated(of: Nuclide, spacing_mm: Spacing) -> Float32:
    corner = _by_points(of, spacing_mm, middle_radius_mm(of, spacing_mm), TWO_POINTS)
    near = _by_points(of, spacing_mm, NEAR_VOXELS * max(spacing_mm), THREE_POINTS)
    _set_within(corner, near, spacing_mm, NEAR_VOXELS * max(spacing_mm))
    places = _exact_offsets(spacing_mm, radial_kernel(of).electron_range_mm)
    corner[tuple(places.T)] = _exact(radial_kernel(of).within, places, spacing_mm)
    return corner


@lru_cache(maxsize=8)
def _electron_corner(of: Nuclide, spacing_mm: Spacing, kept: KernelCache) -> Float32:
    return kept.array(
        _description(of, spacing_mm, "electrons"), lambda: _electrons_integrated(of, spacing_mm)
    )


def _electrons_integrated(of: Nuclide, spacing_mm: Spacing) -> Float32:
    kernel = radial_kernel(of)
    places = _exact_offsets(spacing_mm, kernel.electron_range_mm, voxels=0.0)
    corner = np.zeros(places.max(axis=0) + 1, np.float32)
    corner[tuple(places.T)] = _exact(kernel.electrons_within, places, spacing_mm)
    return corner


# --- where electrons reach --------------------------------------------------------------------


def _exact_offsets(spacing_mm: Spacing, range_mm: float, voxels: float = EXACT_VOXELS) -> NDArray[np.intp]:
    """(n, 3) offsets in voxels that electrons reach from the source voxel, or that lie within `voxels`."""
    spacing = np.asarray(spacing_mm)
    radius = max(range_mm + float(np.linalg.norm(spacing)), voxels * float(spacing.max()))
    places = np.indices(_corner_shape(spacing_mm, radius)).reshape(3, -1).T
    gap = np.linalg.norm(np.maximum(places - 1, 0) * spacing, axis=1)
    near = np.linalg.norm(places * spacing, axis=1) <= voxels * spacing.max()
    return np.asarray(places[(gap < range_mm) | near])


def _exact(within: PchipInterpolator, places: NDArray[np.intp], spacing_mm: Spacing) -> Float64:
    """∫ dC(r) W_d(r), keV per decay, for every offset."""
    from pipeline.pair_distance import NODES, WEIGHTS, direction_means  # compiled code; most kernels are kept

    spacing = np.asarray(spacing_mm)
    step = float(spacing.min()) / RADII_PER_VOXEL
    # Offsets that differ by an exchange of equal sides are one: less work, and exact symmetry.
    canonical, back = np.unique(_exchanged(places, spacing_mm), axis=0, return_inverse=True)
    offsets = canonical * spacing
    rule = _rule(within, step, float(np.linalg.norm(offsets.max(axis=0) + spacing)))
    energy = np.empty(len(offsets))
    threads = available_cores()

    def part(first: int) -> None:
        share = np.empty(len(offsets[first::threads]))
        direction_means(
            spacing, np.ascontiguousarray(offsets[first::threads]), step, rule, NODES, WEIGHTS, share
        )
        energy[first::threads] = share

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
    return np.asarray(energy[back.ravel()])


def _exchanged(places: NDArray[np.intp], spacing_mm: Spacing) -> NDArray[np.intp]:
    """Offsets along axes of equal spacing, sorted."""
    places = places.copy()
    for side in set(spacing_mm):
        axes = [axis for axis in range(3) if spacing_mm[axis] == side]
        places[:, axes] = np.sort(places[:, axes], axis=1)
    return places


def _rule(within: PchipInterpolator, step: float, radius: float) -> Float64:
    """Weights q with ∫ dC(r) W(r) = Σ_j q_j W(j · step), for every W that is cubic between four radii.

    dC/dr is a parabola between two knots of C: three Gauss points integrate its product with a cubic.
    """
    count = int(radius / step) + 5
    ends = np.union1d(within.x, np.arange(count - 2) * step)
    ends = ends[ends <= min(within.x[-1], (count - 3) * step)]
    nodes, weights = np.polynomial.legendre.leggauss(3)
    half, middle = np.diff(ends)[:, None] / 2, (ends[1:] + ends[:-1])[:, None] / 2
    at = (middle + half * nodes).ravel()
    energy = (half * weights).ravel() * within(at, 1)
    first = np.clip((at / step).astype(np.intp) - 1, 0, count - 4)
    t = at / step - first
    rule = np.zeros(count)
    for j in range(4):
        others = [k for k in range(4) if k != j]
        lagrange = np.prod([(t - k) / (j - k) for k in others], axis=0)
        rule += np.bincount(first + j, energy * lagrange, minlength=count)
    return rule


# --- beyond -----------------------------------------------------------------------------------


def _by_points(of: Nuclide, spacing_mm: Spacing, radius_mm: float, rule: Rule) -> Float32:
    """keV per decay, by some points per voxel. returns: a corner of the octant, right within the radius."""
    total = np.zeros(_corner_shape(spacing_mm, radius_mm), np.float32)
    volume_mm3 = float(np.prod(spacing_mm))
    points = [tuple(zip(*three, strict=True)) for three in itertools.product(rule, repeat=3)]

    def layer(z: int) -> None:
        energy = np.zeros(total.shape[1:])
        for places, weights in points:
            shift = tuple(place * s for place, s in zip(places, spacing_mm, strict=True))
            above = (z * spacing_mm[0] + shift[0], shift[1], shift[2])
            squared = _squared_mm2(spacing_mm, (1, *total.shape[1:]), above)[0]
            energy += np.prod(weights) * _density(of, squared)
        total[z] = energy * volume_mm3

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(layer, range(len(total))))
    return total


def _density(of: Nuclide, squared_mm2: Float64) -> Float64:
    """ρ at |d|², keV per decay and mm³; zero beyond the reach."""
    radius, rho = _density_table(of)
    return np.interp(np.sqrt(squared_mm2), radius, rho, right=0.0)


@lru_cache(maxsize=4)
def _density_table(of: Nuclide) -> tuple[Float64, Float64]:
    """ρ on a grid that is fine against its changes beyond the electrons' range."""
    radius: Float64 = np.arange(1, round(REACH_MM / DENSITY_STEP_MM) + 1) * np.float64(DENSITY_STEP_MM)
    return radius, radial_kernel(of).density(radius)


def _far(of: Nuclide, spacing_mm: Spacing, shape: Shape) -> Float32:
    """keV per decay, by one point per voxel. returns: `shape`; not right near the source."""
    octant = np.empty(shape, np.float32)
    table, step = _far_table(of, spacing_mm)
    plane = _squared_mm2(spacing_mm, (1, *shape[1:]))[0].astype(np.float32)

    def layer(z: int) -> None:
        # Looked up and not interpolated: half a step is 5e-5 of the radius, where this part is used.
        steps = np.sqrt(plane + np.float32((z * spacing_mm[0]) ** 2))
        steps *= np.float32(1 / step)
        np.take(table, steps.astype(np.int32), out=octant[z], mode="clip")

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(layer, range(len(octant))))
    return octant


@lru_cache(maxsize=4)
def _far_table(of: Nuclide, spacing_mm: Spacing) -> tuple[Float32, float]:
    """Energy of a voxel, keV per decay, in the middle of every step of the radius; its last entry is zero."""
    step = min(spacing_mm) / FAR_STEPS_PER_VOXEL
    radius = np.minimum((np.arange(int(REACH_MM / step) + 1) + 0.5) * step, REACH_MM)
    table = np.zeros(radius.size + 1, np.float32)
    table[:-1] = radial_kernel(of).density(radius) * np.prod(spacing_mm)
    return table, step
