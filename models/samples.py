"""What is learnt from: a patient's maps in the network's units, and the crops that a batch is made of.

All random choices of step n come from a generator of (seed, n): the same batch for the same samples, seed and
step, whoever draws it and whenever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.dblurdosenet import REACH
from models.errors import ModelRejected
from models.scaling import AIR_BELOW_MG_PER_CM3

if TYPE_CHECKING:
    from models.training import Settings

Array = NDArray[np.floating[Any]]


MOST_VOIS = 256
"""Numbers of VOIs in a sample, and the one that stands for none."""


class Sample(NamedTuple):
    """What is learnt from one patient, all (z, y, x) in the units of `models.scaling`.

    centres: (n, 3) indices (z, y, x) that a crop may be centred on.
    chances: (n,) of choosing them where there is dose, summed up.
    vois: number of the VOI that each voxel belongs to, from 1; 0: to none.
    per_voxel: (MOST_VOIS,) the part of its VOI that a voxel is, by number; 0 for the first.
    again: SPECT and DVK of the same patient imaged once more, with other noise; None: there is one image.
    """

    name: str
    spect: Array
    density: Array
    dvk: Array
    truth: Array
    centres: NDArray[np.int32]
    chances: NDArray[np.float64]
    vois: NDArray[np.uint8]
    per_voxel: NDArray[np.float32]
    again: tuple[Array, Array] | None = None

    @property
    def gb(self) -> float:
        """Memory that it takes."""
        maps = (self.spect, self.density, self.dvk, self.truth, self.vois, *(self.again or ()))
        return sum(int(a.nbytes) for a in maps) / 1e9


class Batch(NamedTuple):
    """spect, density: (N, S + 10, H, W). dvk, truth, counts, vois: (N, S, H, W).

    counts: 1 where the loss looks. vois, per_voxel (N, MOST_VOIS): as a `Sample`'s.
    N: slabs. With a `noise_weight` there are two of each crop: the second half of the batch are the crops of
    the first, imaged again.
    """

    spect: Tensor
    density: Tensor
    dvk: Tensor
    truth: Tensor
    counts: Tensor
    vois: Tensor
    per_voxel: Tensor


def sample(
    name: str,
    spect: Array,
    density: Array,
    dvk: Array,
    truth: Array,
    vois: Sequence[NDArray[np.bool_]] = (),
    again: tuple[Array, Array] | None = None,
) -> Sample:
    """A patient's maps, checked, and kept in half precision where that holds them.

    name: of the file, for errors. All (z, y, x) in the units of `models.scaling`. vois: masks whose means are
    learnt too; where two overlap, a voxel belongs to the smaller one. again: SPECT and DVK with other noise.

    raises: ModelRejected for maps of different shapes, or with numbers that are not finite.
    """
    maps = {"spect": spect, "density": density, "dvk": dvk, "truth": truth}
    maps |= {} if again is None else {"second spect": again[0], "second dvk": again[1]}
    masks = {f"mask of VOI {number}": mask for number, mask in enumerate(vois, 1)}
    all_shapes = {key: array.shape for key, array in (maps | masks).items()}
    if len(set(all_shapes.values())) != 1 or spect.ndim != 3:
        shapes = ", ".join(f"{key} {shape}" for key, shape in all_shapes.items())
        raise ModelRejected(
            f"the maps of {name} differ in shape: {shapes}", "Make the example again, or remove it"
        )
    for key, array in maps.items():
        if not np.isfinite(array).all():
            raise ModelRejected(
                f"the {key} of {name} is no number in {int(np.count_nonzero(~np.isfinite(array)))} voxels",
                "Make the example again, or remove it",
            )
    tissue = density > AIR_BELOW_MG_PER_CM3
    if not tissue.any():
        raise ModelRejected(f"there is no tissue in {name}", "Its density must be in g/cm3")
    # Every second slice and every fourth voxel of it say well enough where the dose is.
    coarse = np.argwhere(tissue[::2, ::4, ::4]).astype(np.int32) * np.asarray((2, 4, 4), np.int32)
    if not coarse.size:
        coarse = np.argwhere(tissue).astype(np.int32)
    chance = np.sqrt(np.maximum(dvk[tuple(coarse.T)].astype(np.float64), 0)) + 1e-6
    chance = np.cumsum(chance / chance.sum())
    kept = [_compact(array) for array in (spect, density, dvk, truth)]
    second = None if again is None else (_compact(again[0]), _compact(again[1]))
    numbers, per_voxel = _numbered(spect.shape, vois)
    return Sample(name, kept[0], kept[1], kept[2], kept[3], coarse, chance, numbers, per_voxel, second)


def _numbered(
    shape: tuple[int, ...], vois: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`Sample.vois` and `Sample.per_voxel`. Of more masks than there are numbers the smallest are taken."""
    numbers = np.zeros(shape, np.uint8)
    kept = sorted(vois, key=np.count_nonzero, reverse=True)[-(MOST_VOIS - 1) :]
    for number, mask in enumerate(kept, 1):
        numbers[mask] = number
    voxels = np.bincount(numbers.ravel(), minlength=MOST_VOIS)
    voxels[0] = 0
    return numbers, np.divide(1, voxels, out=np.zeros(MOST_VOIS), where=voxels > 0).astype(np.float32)


def _compact(array: Array) -> Array:
    """Half precision where nothing overflows: its rounding is 1/2000, far below the labels' noise."""
    return np.ascontiguousarray(array, np.float16 if np.abs(array).max() < 3e4 else np.float32)


def draw(samples: Sequence[Sample], settings: Settings, step: int) -> Batch:
    """The batch of a step: the same for the same samples, seed and step. Negative steps serve validation.

    raises: ModelRejected for a sample of one image where the loss compares two.
    """
    rng = np.random.default_rng([settings.seed, abs(step), int(step < 0)])
    drawn = []
    crops = []
    for _ in range(settings.batch):
        drawn.append(samples[int(rng.integers(len(samples)))])
        crops.append(_crop(drawn[-1], settings, rng))
    images = len(crops[0])
    slabs = [crop[image] for image in range(images) for crop in crops]
    *maps, vois = (np.stack(arrays) for arrays in zip(*slabs, strict=True))
    spect, density, dvk, truth, counts = (torch.from_numpy(one.astype(np.float32)) for one in maps)
    jitter = np.exp(settings.activity_jitter * rng.standard_normal((settings.batch, 1, 1, 1)))
    factor = torch.from_numpy(np.tile(jitter.astype(np.float32), (images, 1, 1, 1)))
    per_voxel = torch.from_numpy(np.stack([one.per_voxel for one in drawn] * images))
    return Batch(
        spect * factor, density, dvk * factor, truth * factor, counts, torch.from_numpy(vois), per_voxel
    )


def _crop(of: Sample, settings: Settings, rng: np.random.Generator) -> list[list[NDArray[Any]]]:
    """One place in a patient, of each image that the loss wants of him.

    returns: for each image spect, density: (S + 10, H, W); dvk, truth, counts, vois: (S, H, W).
    """
    images = [(of.spect, of.dvk), *_again(of, settings)]
    shape = of.spect.shape
    size = (settings.slab, settings.crop, settings.crop)
    centre = _centre(of, settings, rng)
    room = [max(n - s, 0) for n, s in zip(shape, size, strict=True)]
    # Anywhere, so long as the chosen voxel counts: not always in the middle.
    edge = (0, settings.margin, settings.margin)
    start = [
        int(np.clip(c - rng.integers(e, max(s - e, e + 1)), 0, r))
        for c, e, s, r in zip(centre, edge, size, room, strict=True)
    ]
    planes = np.arange(start[0], start[0] + size[0])
    reach = np.clip(np.arange(start[0] - REACH, start[0] + size[0] + REACH), 0, shape[0] - 1)
    box = [slice(a, min(a + s, n)) for a, s, n in zip(start[1:], size[1:], shape[1:], strict=True)]
    density = _cut(of.density, reach, box, size)
    within = np.clip(planes, 0, shape[0] - 1)
    truth, vois = (_cut(array, within, box, size) for array in (of.truth, of.vois))
    counts = density[REACH:-REACH] > AIR_BELOW_MG_PER_CM3
    counts[planes >= shape[0]] = False
    for axis, a, s, n in zip((1, 2), start[1:], size[1:], shape[1:], strict=True):
        along = np.moveaxis(counts, axis, 0)
        if a > 0:
            along[: settings.margin] = False
        if a + s < n:
            along[-settings.margin or s :] = False
    flips = tuple(axis for axis in range(3) if settings.flips and rng.random() < 0.5)
    crops = []
    for spect, dvk in images:
        of_image = (_cut(spect, reach, box, size), density, _cut(dvk, within, box, size), truth, counts, vois)
        crops.append([np.flip(array, flips) for array in of_image])
    return crops


def _again(of: Sample, settings: Settings) -> list[tuple[Array, Array]]:
    """SPECT and DVK of the second image, where the loss compares two."""
    if not settings.noise_weight:
        return []
    if of.again is None:
        raise ModelRejected(
            f"{of.name} holds one image, and with a noise_weight the loss compares two",
            "Generate the example again, or set noise_weight = 0",
        )
    return [of.again]


def _centre(of: Sample, settings: Settings, rng: np.random.Generator) -> list[int]:
    place = int(rng.integers(len(of.centres)))
    if rng.random() < settings.hot:
        place = min(int(np.searchsorted(of.chances, rng.random())), len(of.centres) - 1)
    return [int(index) for index in of.centres[place]]


def _cut(
    array: NDArray[Any], planes: NDArray[np.intp], box: list[slice], size: tuple[int, int, int]
) -> NDArray[Any]:
    """Those planes, in that box; zeros, which is air, where the patient's box is smaller than the crop."""
    cut = array[:, box[0], box[1]][planes]
    lack = [(0, s - n) for s, n in zip(size[1:], cut.shape[1:], strict=True)]
    return np.pad(cut, ((0, 0), *lack)) if any(after for _, after in lack) else cut
