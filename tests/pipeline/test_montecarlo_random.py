"""Counter-based random numbers: the published generator, the same for everyone who asks for the same draw."""

import numpy as np
import pytest

from pipeline.montecarlo.compiled import compiled_making_arrays
from pipeline.montecarlo.random_numbers import DRAW_BITS, first_draw, stream_key, uniform

WORD = (1 << 64) - 1


def squares32(counter: int, key: int) -> int:
    """Widynski 2020, figure 3, typed from the paper with whole numbers."""

    def turned(x: int) -> int:
        return (x >> 32) | ((x << 32) & WORD)

    x = y = counter * key & WORD
    z = (y + key) & WORD
    x = turned((x * x + y) & WORD)
    x = turned((x * x + z) & WORD)
    x = turned((x * x + y) & WORD)
    return ((x * x + z) & WORD) >> 32


@compiled_making_arrays
def draws(first, count, key):  # type: ignore[no-untyped-def]
    result = np.empty(count, np.float32)
    counter = np.uint64(first)
    for i in range(count):
        result[i], counter = uniform(counter, key)
    return result


def test_every_draw_is_the_published_generators_with_23_bits() -> None:
    key = stream_key(7, 0)
    first = int(first_draw(12345))
    assert first == 12345 << DRAW_BITS
    expected = [np.float32(((squares32(first + i, int(key)) >> 9) + 0.5) * 2.0**-23) for i in range(64)]
    np.testing.assert_array_equal(draws(np.uint64(first), 64, key), np.array(expected, np.float32))


def test_draws_lie_between_0_and_1_and_fill_the_interval_evenly() -> None:
    numbers = draws(np.uint64(0), 1_000_000, stream_key(1, 1))
    assert 0.0 < numbers.min() < 1e-5
    assert 1.0 - 1e-5 < numbers.max() < 1.0
    counts = np.histogram(numbers, 256, (0.0, 1.0))[0]
    chi_squared = float(np.sum((counts - numbers.size / 256) ** 2) / (numbers.size / 256))
    assert abs(chi_squared - 255) < 5 * np.sqrt(2 * 255)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5e-3


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_keys_are_odd_and_their_halves_repeat_no_digit(seed: int) -> None:
    digits = f"{int(stream_key(seed, 0)):016x}"
    assert "0" not in digits
    assert len(set(digits[:8])) == len(set(digits[8:])) == 8
    assert int(digits[-1], 16) % 2 == 1
    assert stream_key(seed, 0) != stream_key(seed, 1) != stream_key(seed + 1, 1)
