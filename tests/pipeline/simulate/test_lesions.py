"""Lesions over many patients: how many, how large, how hot, and where there is room."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipeline.simulate.lesions import CROWDED, UNEVEN, LesionLaw, LesionShape, Site, scattered
from pipeline.simulate.lobed_lesions import LOBED
from pipeline.simulate.shapes import Points, ellipsoid

SPACING_MM = 3.0
AXIS = SPACING_MM * (np.arange(70, dtype=np.float32) - 35)
P = Points(AXIS[None, None, :], AXIS[None, :, None], AXIS[:, None, None])
ORGAN = ellipsoid(P, (-10.0, 0.0, 0.0), (75.0, 85.0, 80.0))
BODY = ellipsoid(P, (0.0, 0.0, 0.0), (100.0, 95.0, 100.0))
BACKGROUND = 0.1e6


LAWS = pytest.mark.parametrize("law", [pytest.param(UNEVEN, id="uneven"), pytest.param(LOBED, id="lobed")])
ALL = pytest.mark.parametrize(
    "law",
    [
        pytest.param(law, id=name)
        for name, law in (("uneven", UNEVEN), ("crowded", CROWDED), ("lobed", LOBED))
    ],
)


def grown(seed: int, law: LesionLaw) -> list[LesionShape]:
    sites = [Site("liver", ORGAN, BACKGROUND), Site("node", BODY + 20, BACKGROUND, share=0.3, buried=0.4)]
    return scattered(P, sites, BODY, np.random.default_rng(seed), 1.0, SPACING_MM, law)


@cache
def many(law: LesionLaw) -> tuple[tuple[LesionShape, ...], ...]:
    return tuple(tuple(grown(seed, law)) for seed in range(24))


@LAWS
def test_most_patients_have_four_to_twelve(law: LesionLaw) -> None:
    counts = np.array([len(shapes) for shapes in many(law)])
    assert counts.max() <= 15
    assert np.mean((counts >= 4) & (counts <= 12)) > 0.7


def test_a_crowd_is_more_lesions_of_the_same_law() -> None:
    crowds, others = many(CROWDED), many(UNEVEN)
    assert np.mean([len(shapes) for shapes in crowds]) > 2 * np.mean([len(shapes) for shapes in others])
    assert max(len(shapes) for shapes in crowds) <= 30
    # In a fuller liver the largest find no room, and shrink until they do.
    middles = [
        np.median([s.lesion.diameter_mm for shapes in law for s in shapes]) for law in (crowds, others)
    ]
    assert 0.8 * middles[1] < middles[0] < 1.1 * middles[1]
    contrasts = [np.median([s.lesion.contrast for shapes in law for s in shapes]) for law in (crowds, others)]
    assert contrasts[0] == pytest.approx(contrasts[1], rel=0.15)


@ALL
def test_sizes_and_contrasts_span_what_is_asked(law: LesionLaw) -> None:
    lesions = [s.lesion for shapes in many(law) for s in shapes]
    diameters = np.array([s.diameter_mm for s in lesions])
    contrasts = np.array([s.contrast for s in lesions])
    assert diameters.min() >= 6
    assert diameters.max() <= 70
    assert contrasts.min() >= 1.5
    assert contrasts.max() <= 12
    assert np.mean([s.volume_ml > 2 for s in lesions]) >= 0.5
    assert max(s.volume_ml for s in lesions) > 40
    assert all(s.uptake == pytest.approx(s.contrast * BACKGROUND) for s in lesions)


@ALL
def test_half_of_the_large_ones_are_necrotic_and_their_cores_lie_inside(law: LesionLaw) -> None:
    large = [s for shapes in many(law) for s in shapes if s.lesion.diameter_mm >= 25]
    assert 0.3 < np.mean([s.lesion.necrotic for s in large]) < 0.7
    for shape in (s for shapes in many(law) for s in shapes):
        assert shape.lesion.necrotic == (shape.core is not None)
        if shape.core is not None:
            assert not np.any((shape.core < 0) & (shape.surface >= 0))
            assert shape.core_uptake <= 0.2 * shape.lesion.uptake


@ALL
def test_volumes_are_those_of_the_surfaces(law: LesionLaw) -> None:
    for shape in many(law)[0]:
        if shape.lesion.volume_ml > 5:
            counted = float((shape.surface < 0).sum()) * SPACING_MM**3 / 1000
            assert counted == pytest.approx(shape.lesion.volume_ml, rel=0.1)


@LAWS
def test_lesions_are_no_balls(law: LesionLaw) -> None:
    """At equal volume the surface of a lump is larger than a ball's: its distances from the centre spread."""
    for shape in many(law)[0]:
        if shape.lesion.volume_ml > 5:
            edge = np.argwhere(np.abs(shape.surface) < 1.5)
            r = np.linalg.norm(edge - np.argwhere(shape.surface < 0).mean(axis=0), axis=1)
            assert r.std() / r.mean() > 0.05


@ALL
def test_lesions_lie_in_the_body_and_hardly_touch(law: LesionLaw) -> None:
    for shapes in many(law):
        taken = np.zeros(BODY.shape, dtype=int)
        for shape in shapes:
            assert not np.any((shape.surface < 0) & (BODY >= 0))
            taken += shape.surface < 0
        assert (taken > 1).sum() <= 0.05 * (taken > 0).sum()


def test_an_organ_too_small_for_any_lesion_has_none() -> None:
    nowhere = Site("liver", np.full_like(ORGAN, 5.0), BACKGROUND)
    assert scattered(P, [nowhere], BODY, np.random.default_rng(0), 1.0, SPACING_MM, UNEVEN) == []


def test_the_held_out_law_draws_other_lesions() -> None:
    """Half of them have the CT number of other tissue, and their cold parts lie off to one side."""
    spreads = []
    for law in (UNEVEN, LOBED):
        shapes = [s for shapes in many(law) for s in shapes]
        offsets = []
        for shape in shapes:
            if shape.core is None or (shape.core < 0).sum() <= 8:
                continue
            core, whole = (np.argwhere(f < 0).mean(axis=0) for f in (shape.core, shape.surface))
            radius = np.cbrt((shape.surface < 0).sum() * 0.75 / np.pi)
            offsets.append(np.linalg.norm(core - whole) / radius)
        spreads.append((np.std([s.hu for s in shapes]), np.mean(offsets)))
    assert spreads[1][0] > 1.5 * spreads[0][0]
    assert spreads[1][1] > 1.5 * spreads[0][1]
