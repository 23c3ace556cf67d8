"""Counter-based random numbers: any draw of any history can be computed without those before it.

"Squares" (Widynski 2020, arXiv:2004.06278), four rounds, 32 bits::

    x = counter · key,  y = x,  z = y + key
    x = x² + y;  swap halves      (three times, with y, z, y)
    result = (x² + z) >> 32

The counter is (history << 20) + draw, the key is constant per seed and stream: CPU and GPU draw the same
numbers for a history, and a resumed run continues with the history that comes next.
"""

from __future__ import annotations

import numpy as np

from pipeline.montecarlo.compiled import HALF, F, compiled

DRAW_BITS = 20
_HALF_WORD = np.uint64(32)
_BELOW_24 = np.uint64(9)
_ONE = np.uint64(1)
_SHIFT = np.uint64(DRAW_BITS)
_UNIT = F(2.0**-23)
_WORD = (1 << 64) - 1


@compiled
def uniform(counter: np.uint64, key: np.uint64) -> tuple[np.float32, np.uint64]:
    """(a number in the open interval (0, 1), the counter of the next draw).

    23 bits and a half: the greatest is 1 − 2⁻²⁴, which float32 still holds apart from 1.
    """
    x = np.uint64(counter * key)
    y = x
    z = np.uint64(y + key)
    x = np.uint64(x * x + y)
    x = np.uint64((x >> _HALF_WORD) | (x << _HALF_WORD))
    x = np.uint64(x * x + z)
    x = np.uint64((x >> _HALF_WORD) | (x << _HALF_WORD))
    x = np.uint64(x * x + y)
    x = np.uint64((x >> _HALF_WORD) | (x << _HALF_WORD))
    bits = np.uint32((x * x + z) >> _HALF_WORD) >> np.uint32(_BELOW_24)
    return F((F(np.int32(bits)) + HALF) * _UNIT), np.uint64(counter + _ONE)


@compiled
def first_draw(history: int) -> np.uint64:
    """The counter with which a history begins: room for a million draws each, and 1.7e13 histories."""
    return np.uint64(np.uint64(history) << _SHIFT)


def stream_key(seed: int, stream: int) -> np.uint64:
    """The key of a stream of a seed: digits as the generator's author asks for (section 4 of the paper).

    Hexadecimal digits 1 ... f, all different within each half of the word, the last one odd.
    """
    state = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _WORD
    key = 0
    for half in range(2):
        digits = list(range(1, 16))
        for place in range(8):
            state, number = _split_mix(state)
            choices = [d for d in digits if d % 2] if (half, place) == (1, 7) else digits
            digit = choices[number % len(choices)]
            digits.remove(digit)
            key = (key << 4) | digit
    return np.uint64(key)


def _split_mix(state: int) -> tuple[int, int]:
    """SplitMix64 (Steele, Lea, Flood 2014): next state, number."""
    state = (state + 0x9E3779B97F4A7C15) & _WORD
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return state, z ^ (z >> 31)
