"""Reconstruction: the likelihood, what is kept, what is recovered, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.simulate.camera import SpectCamera, medium_energy_lu177
from pipeline.simulate.osem import osem, spread_subsets
from pipeline.simulate.projector import Projector
from tests.pipeline.simulate.spect_phantoms import WATER_PER_MM, cylinder, sphere

PIXEL = 4.7952
Float32 = NDArray[np.float32]


def small_camera(**settings: Any) -> SpectCamera:
    given: dict[str, Any] = {"bins": 48, "slices": 15, "views": 32, "penetration_fraction": 0.0}
    return replace(medium_energy_lu177(), **(given | settings))


@pytest.fixture(scope="module")
def warm() -> tuple[Projector, Float32, Float32]:
    """(projector, activity, mean projections) of a warm cylinder of water with a hot sphere."""
    shape = (15, 48, 48)
    body = cylinder(shape, PIXEL, (80.0, 80.0), 30.0)
    projector = Projector(body * np.float32(WATER_PER_MM), PIXEL, small_camera(), threads=2)
    activity = body + 4 * sphere(shape, PIXEL, (0.0, 10.0, -20.0), 18.5)
    return projector, activity, projector.forward(activity)


def log_likelihood(measured: Float32, expected: Float32) -> float:
    positive = expected > 0
    terms = measured[positive].astype(np.float64) * np.log(expected[positive])
    return float(terms.sum() - expected.sum(dtype=np.float64))


def test_every_iteration_makes_the_counts_likelier_and_keeps_their_sum(
    warm: tuple[Projector, Float32, Float32],
) -> None:
    projector, _, mean = warm
    counts = np.random.default_rng(5).poisson(mean * 20).astype(np.float32)
    likelihoods = []
    for iterations in (1, 2, 4, 8):
        image = osem(counts, None, projector, iterations, subsets=1)
        assert image.min() >= 0
        expected = projector.forward(image)
        assert expected.sum() == pytest.approx(counts.sum(), rel=1e-3)
        likelihoods.append(log_likelihood(counts, expected))
    assert np.all(np.diff(likelihoods) > 0)


def test_subsets_do_what_as_many_updates_of_all_views_do(warm: tuple[Projector, Float32, Float32]) -> None:
    projector, _, mean = warm
    whole, parts = osem(mean, None, projector, 8, 1), osem(mean, None, projector, 2, 4)
    assert np.sqrt(np.mean((whole - parts) ** 2) / np.mean(whole**2)) < 0.03


def test_a_uniform_cylinder_is_quantified() -> None:
    body = cylinder((15, 48, 48), PIXEL, (90.0, 90.0), 1000.0)
    projector = Projector(body * np.float32(WATER_PER_MM), PIXEL, small_camera(), threads=2)
    image = osem(projector.forward(body), None, projector)
    assert image.dtype == np.float32
    assert image.sum() == pytest.approx(body.sum(), rel=0.01)
    inside = cylinder(body.shape, PIXEL, (60.0, 60.0), 20.0) > 0.99
    assert image[inside].mean() == pytest.approx(1.0, abs=0.02)
    assert not image[:, ~projector.support].any()


def test_scatter_that_is_known_does_not_bias(warm: tuple[Projector, Float32, Float32]) -> None:
    projector, _, mean = warm
    scatter = np.full_like(mean, 0.3 * float(mean.mean()))
    without, corrected = osem(mean, None, projector, 8), osem(mean + scatter, scatter, projector, 8)
    assert corrected.sum() == pytest.approx(without.sum(), rel=0.01)
    inside = cylinder(projector.shape, PIXEL, (70.0, 70.0), 20.0) > 0.99
    # Counts that are not the image's flatten the ratios: as many updates come less far.
    assert corrected[inside].mean() == pytest.approx(without[inside].mean(), rel=0.03)
    uncorrected = osem(mean + scatter, None, projector, 8)
    assert uncorrected.sum() > 1.1 * without.sum()


def test_a_point_is_found_where_it_is() -> None:
    camera = small_camera()
    air = np.zeros((15, 48, 48), np.float32)
    projector = Projector(air, PIXEL, camera, threads=2)
    source = air.copy()
    source[6, 30, 17] = 1000.0
    image = osem(projector.forward(source), None, projector, 8, 4)
    assert np.unravel_index(image.argmax(), image.shape) == (6, 30, 17)
    assert image.sum() == pytest.approx(1000.0, rel=0.03)
    # Of a Gaussian as wide as the response at the axis 0.17 lie within these 27 voxels.
    assert image[5:8, 29:32, 16:19].sum() > 0.6 * image.sum()


def test_the_published_recovery_of_a_sphere_of_26_5_ml() -> None:
    """A sphere of 26.5 mL in a warm background after 64 updates: 0.80 (Tran-Gia and Lassmann 2019).

    The truth is on voxels of half the size, and some counts come through the septa. How recovery goes with
    orbit, contrast and updates, `tests/bench/spect_validation` tells.
    """
    camera = replace(medium_energy_lu177(), bins=48, slices=31, views=64)
    centre, radius, ratio = (2.0, 55.0, 1.0), 18.5, 9.0
    images = []
    for parts in (2, 1):
        shape, side = (31 * parts, 48 * parts, 48 * parts), PIXEL / parts
        images.append((cylinder(shape, side, (100.0, 100.0), 60.0), sphere(shape, side, centre, radius)))
    (fine_body, fine_sphere), (body, hot) = images
    activity = (fine_body * (1 - fine_sphere) + ratio * fine_sphere) / 8
    counts = Projector(fine_body * np.float32(WATER_PER_MM), PIXEL / 2, camera, threads=2).forward(activity)
    projector = Projector(body * np.float32(WATER_PER_MM), PIXEL, camera, penetration=False, threads=2)
    image = osem(counts, None, projector)
    recovery = float((image * hot).sum() / hot.sum()) / ratio
    assert recovery == pytest.approx(0.80, abs=0.05)


def test_slices_that_no_view_sees_stay_empty() -> None:
    camera = small_camera(slices=5)
    air = np.zeros((41, 48, 48), np.float32)
    projector = Projector(air, PIXEL, camera, threads=1)
    image = osem(np.ones((32, 5, 48), np.float32), None, projector, 1)
    assert np.all(np.isfinite(image))
    assert not image[:5].any()
    assert image[20].any()


def test_no_counts_give_no_activity(warm: tuple[Projector, Float32, Float32]) -> None:
    projector, _, mean = warm
    assert not osem(np.zeros_like(mean), None, projector, 1).any()


def test_progress_goes_from_nothing_to_all(warm: tuple[Projector, Float32, Float32]) -> None:
    projector, _, mean = warm
    told: list[float] = []
    osem(mean, None, projector, 2, 4, told.append)
    np.testing.assert_allclose(told, np.arange(1, 9) / 8)


def test_subsets_hold_every_view_once_and_follow_each_other_far_apart() -> None:
    groups = spread_subsets(128, 8)
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(128))
    assert [int(group[0]) for group in groups] == [0, 4, 2, 6, 1, 5, 3, 7]
    assert {group.size for group in groups} == {16}


@pytest.mark.parametrize("subsets", [0, 129])
def test_impossible_subsets_are_refused(subsets: int) -> None:
    with pytest.raises(InputRejected, match="subsets"):
        spread_subsets(128, subsets)


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_counts_that_are_none_are_refused(warm: tuple[Projector, Float32, Float32], value: float) -> None:
    projector, _, mean = warm
    counts = mean.copy()
    counts[0, 0, 0] = value
    with pytest.raises(InputRejected, match="projections are negative"):
        osem(counts, None, projector)
    with pytest.raises(InputRejected, match="additive counts are negative"):
        osem(mean, counts, projector)
    with pytest.raises(InputRejected, match="projections have shape"):
        osem(mean[1:], None, projector)
