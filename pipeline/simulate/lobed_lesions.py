"""The lesions of the held-out family: clusters of balls, cold on one side, of any density.

A network that is judged on the lesions it was trained on might have learnt their law. These share with
`lesions.UNEVEN` the ranges that a patient's lesions have (6 to 70 mm, contrast 1.5 to 12, a necrotic part in
half of those above 25 mm), and nothing of how they are drawn:

========== ===================================== =================================================
what       training (`UNEVEN`)                   here (`LOBED`)
========== ===================================== =================================================
size       log-normal about 24 mm                even in the logarithm, 12 to 64 mm
shape      one ellipsoid, its surface uneven     two to five overlapping balls, smooth
cold part  about the middle                      off to one side, so that a crescent takes up
contrast   log-normal about 5                    even in the logarithm
density    close to its site's                   often that of its surroundings
========== ===================================== =================================================
"""

from __future__ import annotations

import numpy as np

from pipeline.simulate.fields import Field
from pipeline.simulate.lesions import (
    CONTRASTS,
    MAY_BE_NECROTIC_FROM_MM,
    Growth,
    LesionLaw,
    LesionShape,
    Site,
    drawn_count,
    taken_up,
)
from pipeline.simulate.shapes import ellipsoid, within
from pipeline.volume import Triple

_DIAMETERS_MM = (12.0, 64.0)
_HU_DEVIATION = 14.0  # the training's is 6; a liver lesion differs from the liver by about as much


def _diameters(rng: np.random.Generator) -> list[float]:
    low, high = np.log(_DIAMETERS_MM)
    drawn = np.exp(rng.uniform(low, high, drawn_count(rng)))
    return sorted(drawn.tolist(), reverse=True)


def _grown(at: Growth, site: Site, rng: np.random.Generator) -> LesionShape:
    radius = at.diameter / 2
    whole = _cluster(at, radius, rng)
    core = None
    if at.diameter * at.scale >= MAY_BE_NECROTIC_FROM_MM and rng.random() < 0.5:
        aside = _moved(at.centre, radius * float(rng.uniform(0.25, 0.5)) * _direction(rng))
        core = ellipsoid(at.points, aside, (radius * float(rng.uniform(0.35, 0.55)),) * 3)
        core = within(core, whole + np.float32(0.1 * radius))
    contrast = float(np.exp(rng.uniform(*np.log(CONTRASTS))))
    return taken_up(at, site, whole, core, contrast, _HU_DEVIATION, rng)


def _cluster(at: Growth, radius: float, rng: np.random.Generator) -> Field:
    """One ball in the middle and others about it, all inside the radius."""
    first = radius * float(rng.uniform(0.7, 0.9))
    surface = ellipsoid(at.points, at.centre, (first,) * 3)
    for _ in range(int(rng.integers(1, 5))):
        size = radius * float(rng.uniform(0.45, 0.65))
        centre = _moved(at.centre, (radius - size) * _direction(rng))
        surface = np.minimum(surface, ellipsoid(at.points, centre, (size,) * 3))
    return np.asarray(surface, dtype=np.float32)


def _direction(rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    drawn = rng.normal(size=3)
    return np.asarray(drawn / np.linalg.norm(drawn), dtype=np.float64)


def _moved(centre: Triple, by: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Triple:
    x, y, z = (c + float(d) for c, d in zip(centre, by, strict=True))
    return x, y, z


LOBED = LesionLaw(_diameters, _grown)
"""The lesions of the family that networks are judged on."""
