"""The paper's metrics against figures reckoned by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pipeline.errors import InputRejected
from pipeline.learning import metrics

TRUTH = np.array([1.0, 2.0, 3.0, 4.0])
ESTIMATE = np.array([2.0, 2.0, 2.0, 2.0])


def test_mean_error_is_relative_to_the_true_mean_and_knows_no_sign() -> None:
    # mean 2 against 2.5
    assert metrics.mean_error(ESTIMATE, TRUTH) == pytest.approx(0.2)
    assert metrics.signed_mean_error(ESTIMATE, TRUTH) == pytest.approx(-0.2)
    assert metrics.mean_error(TRUTH + 0.5, TRUTH) == pytest.approx(0.2)


def test_nrmse_is_the_root_mean_square_error_over_the_root_mean_square() -> None:
    # errors 1, 0, -1, -2: mean square 6/4; truth 30/4
    assert metrics.nrmse(ESTIMATE, TRUTH) == pytest.approx(math.sqrt(6 / 30))
    assert metrics.nrmse(np.zeros(4), TRUTH) == pytest.approx(1.0)


def test_only_the_voi_counts() -> None:
    mask = np.array([True, True, False, False])
    assert metrics.mean_error(ESTIMATE, TRUTH, mask) == pytest.approx(0.5 / 1.5)
    assert metrics.nrmse(ESTIMATE, TRUTH, mask) == pytest.approx(math.sqrt(1 / 5))


def test_drx_is_the_least_of_the_hottest_part() -> None:
    # 0 ... 100: a tenth of the voxels lie at or above 90
    values = np.random.default_rng(1).permutation(np.arange(101.0))
    assert [metrics.dose_rate_at(values, x) for x in metrics.DOSE_RATE_LEVELS] == [90, 70, 30, 10]


def test_drx_error_is_of_the_percentile_and_undefined_where_that_is_zero() -> None:
    values = np.arange(101.0)
    assert metrics.dose_rate_at_error(values * 1.1, values, 10) == pytest.approx(0.1)
    # A half of air: 90 % of the VOI do not reach any dose rate above zero.
    cold = np.where(values > 50, values, 0.0)
    assert math.isnan(metrics.dose_rate_at_error(values, cold, 90))


def test_ensemble_noise_is_the_sample_deviation_over_the_mean() -> None:
    # voxel 1: 1, 2, 3 (variance 1); voxel 2: 4, 4, 4 (variance 0); mean of the mean map 3
    maps = [np.array([1.0, 4.0]), np.array([2.0, 4.0]), np.array([3.0, 4.0])]
    assert metrics.ensemble_noise(maps) == pytest.approx(math.sqrt(0.5) / 3.0)


def test_ensemble_noise_of_poisson_counts_is_one_over_the_root_of_their_mean() -> None:
    rng = np.random.default_rng(3)
    maps = [rng.poisson(100, 20_000).astype(float) for _ in range(3)]
    assert metrics.ensemble_noise(maps) == pytest.approx(0.1, rel=0.02)


def test_scale_changes_no_relative_metric() -> None:
    rng = np.random.default_rng(5)
    truth, estimate = rng.uniform(1, 2, (2, 4, 5, 6))
    for metric in (metrics.mean_error, metrics.nrmse):
        assert_allclose(metric(7 * estimate, 7 * truth), metric(estimate, truth), rtol=1e-12)


def test_paired_t_test_by_hand() -> None:
    # differences 1, 2, 3: mean 2, sd 1, t = 2 / (1/√3); p for two degrees of freedom = 1 − t/√(2 + t²)
    test = metrics.paired_t_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    assert (test.pairs, test.mean_difference) == (3, 2.0)
    assert test.t == pytest.approx(t)
    assert test.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [2.0]), ([1.0, 2.0], [0.5, 1.5])])
def test_too_few_pairs_or_no_spread_have_no_p(first: list[float], second: list[float]) -> None:
    assert math.isnan(metrics.paired_t_test(first, second).p)


def test_what_cannot_be_said_is_refused() -> None:
    empty = np.zeros(4, dtype=bool)
    with pytest.raises(InputRejected, match="holds no voxel"):
        metrics.mean_error(ESTIMATE, TRUTH, empty)
    with pytest.raises(InputRejected, match="relative to it"):
        metrics.mean_error(ESTIMATE, np.zeros(4))
    with pytest.raises(InputRejected, match="relative to it"):
        metrics.nrmse(ESTIMATE, np.zeros(4))
    with pytest.raises(InputRejected, match="two realisations"):
        metrics.ensemble_noise([ESTIMATE])
    with pytest.raises(ValueError, match="different shapes"):
        metrics.nrmse(ESTIMATE, np.zeros(5))
    with pytest.raises(ValueError, match="paired"):
        metrics.paired_t_test([1.0], [1.0, 2.0])
