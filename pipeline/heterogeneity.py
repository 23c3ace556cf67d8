"""Electrons in tissue of changing density: their energy, carried along straight rays.

DVK's division of a soft-tissue kernel by the local density (`pipeline/dvk.py`) lets an electron end
where it would end in soft tissue. Here its way is scaled instead: in a medium of density ρ the kernel
is that of soft tissue with all lengths divided by ρ/ρ₀ (O'Connor 1957, Phys Med Biol 1:352, exact for
one density everywhere), and where the density changes, the mean along the straight way from source to
target decides: the density-scaled path of superposition (Mohan 1986, Med Phys 13:64; its limits: Woo
and Cunningham 1990, Med Phys 17:187), carried along a fixed set of directions as collapsed cones are
(Ahnesjö 1989, Med Phys 16:577; for Y-90 Sánchez-García 2014, Phys Med Biol 59:4769)::

    the share of a decay's electron energy that is left beyond a way is R(t), t = ∫ ρ/ρ₀ dl
    R(t) = 1 − C_e(t) / C_e(∞),          C_e: electrons' radial kernel in soft tissue

Activity is uniform within its voxel. A ray starts everywhere on its chord L through the source voxel at
once, so that with T = ρ L/ρ₀ and G(t) = ∫₀ᵗ R, it keeps 1 − G(T)/T there, and beyond a further way t
there is left::

    [G(T + t) − G(t)] / T

Each voxel gets the difference between what enters and what leaves it: every ray's energy is conserved,
exactly. What leaves the grid is lost. Media differ in nothing but density: that bone stops electrons
less, per mass, and scatters them more is left out, and scattering across an interface is the kernel's
own, that of a homogeneous medium. docs/physics.md compares with Monte Carlo.

All source voxels have the same rays: with uniform activity and density, what each voxel gives and what
it gets are equal, whatever the number of rays. In soft tissue the rays' own kernel (`ray_kernel`) is
known; DVK adds the difference to the exact one, so that homogeneous soft tissue is exact as well.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import expn

from pipeline.cores import available_cores
from pipeline.decay import Nuclide
from pipeline.kernels import Float32, Float64, Shape, Spacing
from pipeline.radial_kernel import SOFT_TISSUE_G_PER_CM3, RadialKernel, radial_kernel

# Rays through each face, and their eight mirror images; sets of them that are tried.
BASE_RAYS = 4
CANDIDATES = 300
SHORTLIST = 30
DEPTHS = np.array([0.25, 1.0, 2.5])

# A ray ends where so much of the energy that it left its voxel with remains, and leaves it there.
LEFT = 0.01

# Rays are known as far as electrons reach in this density; what is thinner is air, whose dose is zero.
THINNEST_G_PER_CM3 = 0.1

# A voxel thinner than this (1 mm of air) is taken to be so thick: what a ray keeps there is a difference of
# values of G, whose rounding (5e-7 mm) is divided by it. Electrons lose next to nothing on either.
LEAST_OWN_MM = np.float32(1e-3)

TABLE_STEPS = 4096
TILE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """The ways from one source voxel, alike for all.

    chord: (n,) mm through the source voxel. steps: (n,) number of voxels after it.
    offset: (n, most, 3) voxels (z, y, x) from the source. length: (n, most) mm in each.
    """

    weight: Float32
    chord: Float32
    steps: NDArray[np.int32]
    offset: NDArray[np.int32]
    length: Float32


def electron_energy(of: Nuclide, activity: Float32, density: Float32, spacing_mm: Spacing) -> Float32:
    """Where the electrons of the activity leave their energy.

    activity: (z, y, x) decays per voxel, of any unit. density: (z, y, x) g/cm³, the same voxels.
    returns: (z, y, x) keV per that unit.
    """
    kernel, rays = radial_kernel(of), rays_of(of, spacing_mm)
    table, inverse_step = _mean_table(kernel)
    relative = density * np.float32(1 / SOFT_TISSUE_G_PER_CM3)
    source = np.ascontiguousarray(activity, np.float32)
    threads = min(available_cores(), MOST_THREADS)

    def some(first: int) -> Float32:
        energy = np.zeros_like(source)
        _carry(
            source, relative, rays.weight[first::threads], rays.chord[first::threads],
            rays.steps[first::threads], rays.offset[first::threads], rays.length[first::threads],
            table, inverse_step, np.float32(LEFT), energy,
        )  # fmt: skip
        return energy

    with ThreadPoolExecutor(threads) as pool:
        total = source.copy()
        for part in pool.map(some, range(threads)):
            total += part
    total *= np.float32(kernel.electron_kev)
    return total


# Each thread adds to a map of its own: this bounds the memory.
MOST_THREADS = 8


@lru_cache(maxsize=4)
def ray_kernel(of: Nuclide, spacing_mm: Spacing) -> Float32:
    """What one decay gives around itself in soft tissue along the rays.

    returns: (z, y, x) keV, one octant; [0, 0, 0] is the source voxel.
    """
    z, y, x = electron_reach(of, spacing_mm)
    activity = np.zeros((2 * z + 1, 2 * y + 1, 2 * x + 1), np.float32)
    activity[z, y, x] = 1.0
    density = np.full(activity.shape, SOFT_TISSUE_G_PER_CM3, np.float32)
    return electron_energy(of, activity, density, spacing_mm)[z:, y:, x:]


def electron_reach(of: Nuclide, spacing_mm: Spacing) -> Shape:
    """(z, y, x): the largest offset, in voxels, that electrons reach in soft tissue."""
    z, y, x = (int(np.ceil(radial_kernel(of).electron_range_mm / s)) + 1 for s in spacing_mm)
    return z, y, x


@lru_cache(maxsize=4)
def rays_of(of: Nuclide, spacing_mm: Spacing) -> Rays:
    """Rays that fill the voxel and the directions evenly, mirrored in the voxel's planes."""
    longest = radial_kernel(of).electron_range_mm * SOFT_TISSUE_G_PER_CM3 / THINNEST_G_PER_CM3
    spacing = np.array(spacing_mm)
    ways, weights = [], []
    for axis, numbers in enumerate(_representative(spacing)):
        area = float(np.prod(spacing) / spacing[axis])
        places, directions = _through_a_face(axis, numbers)
        for place, direction in zip(places, directions, strict=True):
            for mirror in np.ndindex(2, 2, 2):
                sign = 1.0 - 2.0 * np.array(mirror)
                ways.append(_way(direction * sign, 0.5 + (place - 0.5) * sign, axis, spacing, longest))
                weights.append(area / (4 * np.prod(spacing) * 4 * BASE_RAYS))
    chord = np.array([chord for chord, _, _ in ways])
    # Σ weight · chord is the mean chord over itself: with 1, a voxel of next to no density keeps nothing.
    chord /= chord @ weights
    most = max(len(lengths) for _, _, lengths in ways)
    offset, length = np.zeros((len(ways), most, 3), np.int32), np.zeros((len(ways), most), np.float32)
    for i, (_, offsets, lengths) in enumerate(ways):
        offset[i, : len(lengths)], length[i, : len(lengths)] = offsets, lengths
    steps = np.array([len(lengths) for _, _, lengths in ways], np.int32)
    return Rays(np.array(weights, np.float32), chord.astype(np.float32), steps, offset, length)


def _representative(spacing: Float64) -> list[Float64]:
    """For each face (BASE_RAYS, 4) numbers in (0, 1): of many even sets, those that act most like all lines.

    First, face by face, by what a voxel keeps of radiation that is attenuated exponentially, thinly to
    densely; then, of all combinations of the best, by what passes planes across each axis (all directions
    together being isotropic, a plane at the depth a passes E₂(a)).
    """
    # Here and not above: half a second, which every job would wait for, and few need it.
    from scipy.stats import qmc

    thickness = np.geomspace(0.25, 16.0, 7) / spacing.mean()
    best, passed = [], []
    for axis in range(3):

        def kept(numbers: Float64, axis: int = axis) -> Float64:
            chord = _chord(*_through_a_face(axis, numbers), spacing)
            return np.asarray(np.mean(1 - np.exp(-thickness * chord[:, None]), axis=0))

        every = kept(qmc.Sobol(4, seed=0).random(4096))
        sets = [qmc.Sobol(4, seed=seed).random(BASE_RAYS) for seed in range(CANDIDATES)]
        sets.sort(key=lambda numbers: float(np.abs(kept(numbers) / every - 1).max()))
        best.append(sets[:SHORTLIST])
        passed.append(np.array([_passed(axis, numbers, spacing) for numbers in best[-1]]))
    together = passed[0][:, None, None] + passed[1][:, None] + passed[2]
    share, through = together[..., :1], together[..., 1:] / together[..., :1]
    wrong = np.abs(through / np.tile(expn(2, DEPTHS), 3) - 1).max(axis=-1) + np.abs(share[..., 0] - 1)
    chosen = np.unravel_index(int(np.argmin(wrong)), wrong.shape)
    return [sets[int(k)] for sets, k in zip(best, chosen, strict=True)]


def _passed(axis: int, numbers: Float64, spacing: Float64) -> Float64:
    """Of the lines through a pair of faces: their share of a voxel, and what of it passes planes at `DEPTHS`
    across z, y and x."""
    place, direction = _through_a_face(axis, numbers)
    weight = _chord(place, direction, spacing) / (2 * spacing[axis] * len(numbers))
    through = np.exp(-DEPTHS / direction[:, :, None]) * weight[:, None, None]
    return np.concatenate([[weight.sum()], through.sum(axis=0).ravel()])


def _through_a_face(axis: int, numbers: Float64) -> tuple[Float64, Float64]:
    """Lines that fill a box evenly: spread over a face, and by the cosine law over an octant.

    numbers: (n, 4) in (0, 1). returns: (n, 3) places on the upper face, parts of a voxel; (n, 3) directions
    out of it.
    """
    first, second = (k for k in range(3) if k != axis)
    place, direction = np.ones((len(numbers), 3)), np.empty((len(numbers), 3))
    place[:, [first, second]] = numbers[:, :2]
    square, turn = numbers[:, 2], numbers[:, 3] * np.pi / 2
    direction[:, axis] = np.sqrt(square)
    direction[:, first] = np.sqrt(1 - square) * np.cos(turn)
    direction[:, second] = np.sqrt(1 - square) * np.sin(turn)
    return place, direction


def _chord(place: Float64, direction: Float64, spacing: Float64) -> Float64:
    """mm through the voxel, backward from where the line leaves it. place, direction: (..., 3)."""
    speed = direction / spacing  # voxels per mm
    return np.asarray((np.where(speed > 0, place, 1 - place) / np.abs(speed)).min(axis=-1))


def _way(
    direction: Float64, place: Float64, axis: int, spacing: Float64, longest: float
) -> tuple[float, NDArray[np.int32], list[float]]:
    """A line that leaves the voxel at `place` (parts of it), through the face of `axis`.

    returns: its chord, mm; the voxels after it and the way in each, mm.
    """
    speed = direction / spacing  # voxels per mm
    each = np.abs(1 / speed)  # mm per voxel
    chord = float(_chord(place, direction, spacing))
    voxel = np.zeros(3, np.int32)
    voxel[axis] = int(np.sign(speed[axis]))
    at = np.where(speed > 0, 1 - place, place) * each
    at[axis] = each[axis]
    way, offsets, lengths = 0.0, [], []
    while way < longest:
        offsets.append(voxel.copy())
        nearest = int(np.argmin(at))
        lengths.append(float(at[nearest]) - way)
        way = float(at[nearest])
        voxel[nearest] += int(np.sign(speed[nearest]))
        at[nearest] += each[nearest]
    return chord, np.array(offsets, np.int32), lengths


def _mean_table(kernel: RadialKernel) -> tuple[Float32, np.float32]:
    """G between equal steps of t as straight lines a + b · step: (steps + 1, 2); steps per mm."""
    t = np.linspace(0.0, kernel.electron_range_mm, TABLE_STEPS + 1)
    within = kernel.electrons_within.antiderivative()
    g = t - (within(t) - within(0.0)) / kernel.electron_kev
    slope = np.append(np.diff(g), 0.0)
    lines = np.stack([g - slope * np.arange(g.size), slope], axis=1)
    return lines.astype(np.float32), np.float32(TABLE_STEPS / kernel.electron_range_mm)


@numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _carry(  # noqa: C901 - one nest of loops, which the compiler has to see whole
    source: Any, density: Any, weight: Any, chord: Any, steps: Any, offset: Any, length: Any,
    lines: Any, inverse_step: Any, least: Any, energy: Any,
) -> None:  # fmt: skip
    """energy += what every source leaves along every ray, in parts of all that a ray carries.

    source, density, energy: (z, y, x), density relative to soft tissue. Rows are taken in tiles of x, whose
    voxels advance together.
    """
    nz, ny, nx = source.shape
    last = np.float32(lines.shape[0] - 1)
    zero = np.float32(0.0)
    way, scaled = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    left, factor = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for z in range(nz):
        for y in range(ny):
            for start in range(0, nx, TILE):
                end = min(start + TILE, nx)
                strongest = zero
                for x in range(start, end):
                    strongest = max(strongest, source[z, y, x])
                if strongest <= zero:
                    continue
                for ray in range(chord.size):
                    strongest = zero
                    for x in range(start, end):
                        i = x - start
                        own = max(density[z, y, x] * chord[ray], LEAST_OWN_MM)
                        scaled[i], way[i] = own, zero
                        factor[i] = source[z, y, x] * weight[ray] * chord[ray] / own
                        left[i] = _value(lines, own * inverse_step, last)
                        energy[z, y, x] -= factor[i] * left[i]
                        strongest = max(strongest, factor[i] * left[i])
                    for step in range(steps[ray]):
                        at_z, at_y = z + offset[ray, step, 0], y + offset[ray, step, 1]
                        shift = offset[ray, step, 2]
                        low, high = max(start, -shift), min(end, nx - shift)
                        if at_z < 0 or at_z >= nz or at_y < 0 or at_y >= ny or low >= high:
                            break
                        here = length[ray, step]
                        most = zero
                        for x in range(low, high):
                            i = x - start
                            way[i] += density[at_z, at_y, x + shift] * here
                            beyond = _value(lines, (way[i] + scaled[i]) * inverse_step, last)
                            beyond -= _value(lines, way[i] * inverse_step, last)
                            energy[at_z, at_y, x + shift] += factor[i] * (left[i] - beyond)
                            left[i] = beyond
                            most = max(most, factor[i] * beyond)
                        if most < least * strongest or step == steps[ray] - 1:
                            for x in range(low, high):
                                energy[at_z, at_y, x + shift] += factor[x - start] * left[x - start]
                            break


@numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _value(lines: Any, place: Any, last: Any) -> Any:
    """The value at a place between the entries; constant beyond the last."""
    at = min(place, last)
    index = np.int32(at)
    return lines[index, 0] + at * lines[index, 1]
