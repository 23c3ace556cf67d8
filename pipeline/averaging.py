"""The mean of a linearly interpolated volume over each voxel of another lattice, exactly.

With the hat functions φ_i that linear interpolation stands on, and a target voxel [a, b] in source
index coordinates::

    mean = Σ_i W_i · value_i,    W_i = 1/(b − a) · ∫_a^b φ_i(u) du

On lattices with parallel axes the weights factor into one small matrix per axis. Because
Σ_k (b_k − a_k) W_ki is the whole of φ_i, no activity and no mass is gained or lost inside the common
volume, whether the target is finer or coarser; sampling at voxel centres (ordinary interpolation) loses
several per cent of a point source when the spacings are 4.8 and 3 mm. Beyond the outermost centres the
interpolant stays constant up to the edge of the box, as in SimpleITK.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.volume import Grid, Volume

# Lattices count as parallel while a voxel strays less than this part of a source voxel over the field.
_STRAY_VOXELS = 1e-3
Weights = NDArray[np.float32]


def parallel(source: Grid, target: Grid) -> bool:
    """Whether the axes of both lattices run parallel, in any order and sense."""
    steps = _steps(source, target)
    astray = np.where(_leading(steps), 0.0, np.abs(steps)) * np.array(target.shape)
    one_to_one = np.array_equal(np.sort(_pairing(steps)), (0, 1, 2))
    return bool(one_to_one and astray.max() < _STRAY_VOXELS)


def averaged(volume: Volume, onto: Grid, outside: float = 0.0) -> Volume:
    """The volume's mean over every voxel of `onto`; the lattices must be `parallel`.

    outside: the value beyond the volume's box; a voxel that is partly outside gets a blend.
    """
    steps = _steps(volume.grid, onto)
    source_axis = _pairing(steps)
    first = volume.grid.indices(onto.origin_mm)
    # Rests of a tilt below the tolerance are centred, so that they cancel over the field.
    rest = np.where(_leading(steps), 0.0, steps) @ ((np.array(onto.shape) - 1) / 2.0)
    weights = []
    for axis, of in enumerate(source_axis):
        centres = first[of] + rest[of] + steps[of, axis] * np.arange(onto.shape[axis])
        weights.append(overlap_weights(centres, abs(float(steps[of, axis])), volume.grid.shape[of]))
    array = _apply(np.transpose(volume.array, source_axis), weights)
    if outside != 0.0:
        z, y, x = (w.sum(axis=1) for w in weights)
        array += np.float32(outside) * (1.0 - z[:, None, None] * y[:, None] * x)
    return Volume(array, onto, volume.unit)


def overlap_weights(centres: NDArray[np.float64], width: float, n: int) -> Weights:
    """(targets, n): the weights W of the module docstring along one axis.

    centres, width: of the target voxels in source index coordinates; n: number of source voxels.
    """
    low = np.clip(centres - width / 2, -0.5, n - 0.5)[:, None]
    high = np.clip(centres + width / 2, -0.5, n - 0.5)[:, None]
    nodes = np.arange(-1, n + 1)  # one more at each end: the edge value repeated
    weights = (_hat_integral(high - nodes) - _hat_integral(low - nodes)) / width
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return np.ascontiguousarray(weights[:, 1:-1], dtype=np.float32)


def _hat_integral(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """∫_{−∞}^u of the hat function of half-width 1."""
    v = np.clip(u, -1.0, 1.0)
    return np.asarray(np.where(v < 0, 0.5 * (1 + v) ** 2, 1 - 0.5 * (1 - v) ** 2))


def _apply(array: NDArray[np.float32], weights: list[Weights]) -> NDArray[np.float32]:
    """One matrix product per axis, the axis that shrinks most first."""
    for axis in sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
        if axis == 0:
            array = np.tensordot(weights[0], array, axes=1)
        elif axis == 1:
            array = np.matmul(weights[1], array)
        else:
            array = np.matmul(array, weights[2].T)
    return np.ascontiguousarray(array, dtype=np.float32)


def _steps(source: Grid, target: Grid) -> NDArray[np.float64]:
    """(3, 3): [source axis, target axis], source voxels per target voxel."""
    return np.asarray(np.linalg.solve(source.affine[:3, :3], target.affine[:3, :3]))


def _leading(steps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The entry of each target axis that names its source axis."""
    return np.asarray(np.arange(3)[:, None] == _pairing(steps))


def _pairing(steps: NDArray[np.float64]) -> NDArray[np.int_]:
    """For each target axis, the source axis that runs along it."""
    cosines = steps / np.linalg.norm(steps, axis=0)
    return np.asarray(np.argmax(np.abs(cosines), axis=0))
