"""Small examples without transport or tomography: what the evaluation is tested on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.learning.example import Example, Realisation
from pipeline.volume import Grid

SHAPE = (28, 40, 48)
SPACING_MM = (6.0, 7.0, 7.0)
CENTRES_MM: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float], float]] = {
    # centre (z, y, x) mm from the middle, half axes mm, mGy/h
    "liver": ((25, -15, -70), (45, 60, 55), 20.0),
    "spleen": ((25, 30, 85), (35, 32, 24), 60.0),
    "left kidney": ((-30, 35, 55), (35, 20, 18), 80.0),
    "right kidney": ((-35, 35, -60), (35, 20, 18), 75.0),
    "L2": ((-20, 60, 0), (14, 16, 18), 4.0),
    "L3": ((-52, 60, 0), (14, 16, 18), 5.0),
    "lesion 1": ((35, -25, -80), (16, 16, 16), 240.0),
    "lesion 2": ((-40, -40, 10), (11, 12, 12), 150.0),
}
BLUR_MM = 11.0


def grid() -> Grid:
    """Centred on the origin, LPS."""
    z, y, x = (-(n - 1) / 2 * s for n, s in zip(SHAPE, SPACING_MM, strict=True))
    return Grid(SHAPE, (x, y, z), SPACING_MM)


def example(seed: int = 1, patient_id: str = "", again: int = 0, noise: float = 0.03) -> Example:
    """A patient of ellipsoids. DVK is the blurred truth with noise; MC on the SPECT the same, less noisy.

    again: so many more realisations of the noise. noise: relative, of DVK's voxels.
    """
    rng = np.random.default_rng(seed)
    density = np.where(_ellipsoid((0, 0, 0), (500, 120, 155)), 1.0, 0.0).astype(np.float32)
    truth, masks = (density * 1.0).astype(np.float32), {}
    for name, (centre, axes, rate) in CENTRES_MM.items():
        where = tuple(c + rng.uniform(-4, 4) for c in centre)
        mask = _ellipsoid(where, axes)
        texture = np.exp(0.2 * gaussian_filter(rng.standard_normal(SHAPE), 1.5) / 0.1)
        truth[mask] = (rate * rng.uniform(0.7, 1.3) * texture)[mask]
        masks = {known: voxels & ~mask for known, voxels in masks.items()}
        masks[name] = mask
    blurred = gaussian_filter(truth, [BLUR_MM / s for s in SPACING_MM]) * (density > 0)
    images = [_noisy(blurred, noise, rng) for _ in range(again + 1)]
    spects = [image * np.float32(4e4) for image in images]
    totals = [float(s.sum()) * grid().voxel_volume_ml / 1e6 for s in spects]
    return Example(
        patient_id=patient_id or f"patient {seed}",
        family="ellipsoids",
        texture="smooth",
        seed=seed,
        grid=grid(),
        spect=spects[0],
        density=density,
        dvk=images[0],
        truth=truth,
        vois=masks,
        total_mbq=totals[0],
        mc_on_spect=_noisy(blurred * np.float32(0.99), noise / 2, rng),
        realisations=tuple(
            Realisation(s, d, t) for s, d, t in zip(spects[1:], images[1:], totals[1:], strict=True)
        ),
        meta={"label_uncertainty": {name: {"of_mean": 0.001, "of_voxels": 0.005} for name in masks}},
    )


def nearly_true(part: float, of: Example) -> NDArray[np.float32]:
    """Between DVK (0) and the truth (1)."""
    return (of.dvk + part * (of.truth - of.dvk)).astype(np.float32)


def _ellipsoid(centre: tuple[float, ...], axes: tuple[float, ...]) -> NDArray[np.bool_]:
    coordinates = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)), indexing="ij"
    )
    return np.asarray(sum(((q - c) / a) ** 2 for q, c, a in zip(coordinates, centre, axes, strict=True)) <= 1)


def _noisy(map_: NDArray[np.float32], part: float, rng: np.random.Generator) -> NDArray[np.float32]:
    noise = gaussian_filter(rng.standard_normal(SHAPE), 0.6)
    return np.maximum(map_ * (1 + part * noise / noise.std()), 0).astype(np.float32)
