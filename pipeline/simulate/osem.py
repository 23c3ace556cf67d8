"""Reconstruction by ordered subsets (H. M. Hudson and R. S. Larkin, IEEE Trans Med Imaging 13:601, 1994).

One update, with the views of one subset S::

    x ← x · A_S'(y / (A_S x + r)) / A_S' 1

A: the projector, with attenuation and response; y: measured counts; r: mean counts that do not come from
the image directly, scatter above all. r stays in the denominator and is never subtracted from y: the
statistics of y remain Poisson's and nothing becomes negative. With r = 0 every update makes Σ A_S x = Σ y.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputRejected
from pipeline.simulate.projector import Projector

Float32 = NDArray[np.float32]

ITERATIONS = 16
SUBSETS = 4

# A voxel that a subset does not see this well, in parts of the best seen one, stays as it is in that update.
_LEAST_SENSITIVITY = 1e-4
# Pixels where nothing is expected tell nothing: counts there (of the tail of the response, say) would divide
# by what rounding leaves. In parts of the mean count.
_LEAST_EXPECTED = 1e-6


def osem(
    projections: ArrayLike,
    additive: ArrayLike | None,
    projector: Projector,
    iterations: int = ITERATIONS,
    subsets: int = SUBSETS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Float32:
    """The counts that start in each voxel towards the camera, per view.

    projections: (views, slices, bins) measured counts, every view of the projector's camera.
    additive: of the same shape, mean counts that are not the image's: the estimate of scatter; none: none.
    projector: of the reconstruction's voxels, usually the camera's pixels. What lies outside its support, or
        is seen in no view, is 0.
    iterations, subsets: `iterations` x `subsets` updates; the start is 1 in all other voxels.
    progress: is given the part that is done, 0 to 1.
    returns: (z, y, x) not negative; `Projector.forward` of it approaches `projections` − `additive`.
    raises: InputRejected for projections that are negative, not finite or of another shape, and for more
        subsets than views.
    """
    measured = _checked(projections, "projections", projector)
    scatter = None if additive is None else _checked(additive, "additive counts", projector)
    groups = spread_subsets(projector.camera.views, subsets)
    sensitivities = [_inverse_sensitivity(projector, views) for views in groups]
    floor = np.float32(max(_LEAST_EXPECTED * float(measured.mean()), 1e-30))
    image: Float32 = np.any([inverse > 0 for inverse in sensitivities], axis=0).astype(np.float32)
    done, updates = 0, max(iterations, 0) * len(groups)
    for _ in range(iterations):
        for views, inverse in zip(groups, sensitivities, strict=True):
            expected = projector.forward(image, views)
            if scatter is not None:
                expected += scatter[views]
            ratio = np.where(expected > floor, measured[views] / np.maximum(expected, floor), np.float32(1.0))
            image *= np.where(inverse > 0, projector.backward(ratio, views) * inverse, np.float32(1.0))
            done += 1
            progress(done / updates)
    return image


def spread_subsets(views: int, subsets: int) -> list[NDArray[np.int64]]:
    """Every `subsets`-th view, in an order in which each subset looks between those before it.

    raises: InputRejected for fewer than one subset or more than views.
    """
    if not 1 <= subsets <= views:
        raise InputRejected(
            f"{views} views cannot be parted into {subsets} subsets", f"Choose 1 to {views} subsets"
        )
    bits = max(1, (subsets - 1).bit_length())
    order = sorted(range(subsets), key=lambda start: int(f"{start:0{bits}b}"[::-1], 2))
    return [np.arange(start, views, subsets) for start in order]


def _inverse_sensitivity(projector: Projector, views: NDArray[np.int64]) -> Float32:
    """(z, y, x) 1 / A_S' 1, and 0 where the subset sees next to nothing."""
    ones = np.ones((views.size, projector.camera.slices, projector.camera.bins), np.float32)
    seen = projector.backward(ones, views)
    enough = seen > _LEAST_SENSITIVITY * seen.max()
    inverse: Float32 = np.zeros_like(seen)
    np.divide(np.float32(1.0), seen, out=inverse, where=enough)
    return inverse


def _checked(counts: ArrayLike, name: str, projector: Projector) -> Float32:
    array = np.asarray(counts, dtype=np.float32)
    camera = projector.camera
    wanted = (camera.views, camera.slices, camera.bins)
    if array.shape != wanted:
        raise InputRejected(
            f"{name} have shape {array.shape}, the camera makes {wanted} (views, slices, bins)",
            "Give all views of the projector's camera",
        )
    if not np.all(np.isfinite(array)) or array.min() < 0:
        raise InputRejected(
            f"{name} are negative or not finite", "Give counts, and an estimate of at least 0"
        )
    return array
