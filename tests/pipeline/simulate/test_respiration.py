"""Breathing averages images over its cycle and neither makes nor loses activity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.simulate.respiration import Breathing, averaged, breathing, shifted
from pipeline.volume import Grid, Volume

GRID = Grid((40, 6, 5), (0.0, 0.0, -58.5), (3.0, 4.0, 4.0))


def slab(first: int = 18, last: int = 22) -> Volume:
    array = np.zeros(GRID.shape, np.float32)
    array[first:last, 1:4, 1:4] = 1e6
    return Volume(array, GRID, "Bq/mL")


def height(volume: Volume) -> float:
    profile = volume.array.sum(axis=(1, 2), dtype=float)
    z = volume.grid.positions([(k, 0, 0) for k in range(GRID.shape[0])])[:, 2]
    return float(profile @ z / profile.sum())


def drawn(count: int = 400) -> list[Breathing]:
    return [breathing(np.random.default_rng(seed)) for seed in range(count)]


def test_breaths_have_the_amplitudes_of_patients() -> None:
    amplitudes = np.array([b.amplitude_mm for b in drawn()])
    assert amplitudes.min() > 0
    assert amplitudes.max() <= 20
    assert float(np.median(amplitudes)) == pytest.approx(6, abs=1)


def test_instants_lie_between_inhale_and_exhale_and_stay_longer_at_exhale() -> None:
    breaths = drawn()
    for breath in breaths:
        assert 6 <= len(breath.shifts_mm) <= 8
        assert np.ptp(breath.shifts_mm) <= breath.amplitude_mm * (1 + 1e-9)
        assert np.mean(breath.shifts_mm) == pytest.approx(0, abs=1e-9)  # the anatomy is the time average
    heads = [np.mean(np.array(b.shifts_mm) > 0) for b in breaths]
    assert np.mean(heads) > 0.55


def test_most_cts_match_the_average_and_some_do_not() -> None:
    shifts = np.array([b.ct_shift_mm for b in drawn()])
    assert 0.5 < np.mean(np.abs(shifts) < 1e-9) < 0.8
    assert shifts.max() > 3
    assert shifts.min() < -3


def test_averaging_keeps_activity_and_its_centre() -> None:
    for breath in drawn(10):
        seen = averaged(slab(), breath)
        assert seen.array.sum(dtype=float) == pytest.approx(slab().array.sum(dtype=float), rel=1e-6)
        assert height(seen) == pytest.approx(height(slab()), abs=1e-4)
        assert seen.array.max() <= 1e6 * (1 + 1e-6)


def test_a_shift_goes_towards_the_head_by_fractions_of_a_slice() -> None:
    assert height(shifted(slab(), 4.2)) - height(slab()) == pytest.approx(4.2, abs=1e-4)
    feet_last = replace(GRID, origin_mm=(0.0, 0.0, 58.5), direction=((0.0, 0.0, -1.0), *GRID.direction[1:]))
    turned = Volume(slab().array, feet_last, "Bq/mL")
    assert height(shifted(turned, 4.2)) - height(turned) == pytest.approx(4.2, abs=1e-4)


def test_without_amplitude_nothing_moves() -> None:
    assert np.allclose(averaged(slab(), Breathing(0.0, (0.0,) * 6, 0.0)).array, slab().array)


def test_what_does_not_breathe_stays() -> None:
    moving = np.zeros(GRID.shape, np.float32)
    moving[:, :, :3] = 1
    breath = Breathing(12.0, (-6.0, 6.0), 0.0)
    seen = averaged(slab(), breath, moving)
    assert np.array_equal(seen.array[:, :, 3:], slab().array[:, :, 3:])
    assert not np.array_equal(seen.array[:, :, :3], slab().array[:, :, :3])
    assert seen.array.sum(dtype=float) == pytest.approx(slab().array.sum(dtype=float), rel=1e-6)


def test_density_goes_on_beyond_the_last_slice() -> None:
    water = Volume(np.ones(GRID.shape, np.float32), GRID, "g/cm3")
    assert np.allclose(averaged(water, Breathing(15.0, (-9.0, 1.0, 4.0, 4.0), 0.0)).array, 1)


def test_oblique_slices_and_other_shapes_are_refused() -> None:
    c, s = float(np.cos(0.1)), float(np.sin(0.1))
    oblique = replace(GRID, direction=((0.0, -s, c), (0.0, c, s), (1.0, 0.0, 0.0)))
    with pytest.raises(InputRejected, match="along the patient"):
        shifted(Volume(slab().array, oblique, "Bq/mL"), 3.0)
    with pytest.raises(InputRejected, match="what breathes has the shape"):
        shifted(slab(), 3.0, np.ones((2, 2, 2), np.float32))
