"""Uptake inside organs: a log-normal organ mean times a texture.

::

    concentration(r) = tissue.uptake · exp(patient) · exp(log(r)),   E[exp(log)] = 1

`Texture` is a law of log(r): a function from a generator and a box of the lattice to the logarithm of the
uptake. The laws of `TEXTURES` are:

========== ===========================================================================================
multiscale Σ_s σ_s g_s(r): three smooth Gaussian fields of lengths drawn from 5 to 40 mm
patchy     a few levels with soft borders, as segments of an organ differ; a little grain
gradient   a trend across the organ, and fine grain
uniform    none: what a fillable phantom holds
mixed      one of the four above, drawn for each organ
filaments  bright strands in a darker ground; kept out of training, for tests
========== ===========================================================================================

Patchy and filamentous textures are functions f(g) of a Gaussian field g. What such a function does to mean
and variance follows from an integral over the normal distribution, so that each law has the deviation that
is asked for whatever its shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.errors import InputRejected
from pipeline.simulate.fields import AnyField, Field, smooth_field

# (rng, shape (z, y, x), lattice spacing in mm, standard deviation of the logarithm) -> logarithm
Texture = Callable[[np.random.Generator, tuple[int, ...], float, float], Field]

_SCALES_MM = (9.0, 18.0, 36.0)
_FINEST_MM, _COARSEST_MM = 5.0, 40.0  # on a lattice of 3 mm, 5 mm is what interpolation leaves of noise
_NORMAL = np.linspace(-4.5, 4.5, 1801)  # where f(g) is integrated over the normal distribution


def three_scales(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float
) -> Field:
    """Lengths of 9, 18 and 36 mm with equal variance: the texture of the reference patient."""
    each = np.float32(deviation / np.sqrt(len(_SCALES_MM)))
    log = sum(each * smooth_field(rng, shape, spacing_mm, length) for length in _SCALES_MM)
    return np.asarray(log - deviation**2 / 2, dtype=np.float32)


def multiscale(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float
) -> Field:
    """Three lengths, log-uniform in 5 to 12, 12 to 22 and 22 to 40 mm, their variances drawn too."""
    edges = np.log([_FINEST_MM, 12.0, 22.0, _COARSEST_MM])
    lengths = np.exp(rng.uniform(edges[:-1], edges[1:]))
    shares = rng.dirichlet((2.0, 2.0, 2.0))
    log = np.full(shape, -(deviation**2) / 2, dtype=np.float32)
    for length, share in zip(lengths, shares, strict=True):
        log += np.float32(deviation * np.sqrt(share)) * smooth_field(rng, shape, spacing_mm, float(length))
    return log


def patchy(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float) -> Field:
    """Two to four levels of random height; a border between them is a few millimetres wide."""
    g = smooth_field(rng, shape, spacing_mm, float(rng.uniform(20, 45)))
    count = int(rng.integers(1, 4))
    borders = np.sort(rng.normal(0, 0.8, count))
    steps = rng.choice((-1.0, 1.0), count) * rng.uniform(0.6, 1.4, count)
    softness = float(rng.uniform(0.05, 0.25))

    def levels(values: AnyField) -> AnyField:
        return sum((s / (1 + np.exp((b - values) / softness)) for b, s in zip(borders, steps, strict=True)),
                   np.zeros_like(values))  # fmt: skip

    grain = 0.3 * deviation
    return _of_normal(g, levels, float(np.sqrt(deviation**2 - grain**2))) + _grain(
        rng, shape, spacing_mm, grain
    )


def gradient(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float) -> Field:
    """A bent plane across the box of the organ, and grain with a third of the variance."""
    direction = rng.normal(size=3)
    ramp = np.zeros(shape, dtype=np.float32)
    for axis, part in enumerate(direction / np.linalg.norm(direction)):
        along = np.linspace(-0.5, 0.5, shape[axis], dtype=np.float32) * np.float32(part * shape[axis])
        ramp += along.reshape([-1 if a == axis else 1 for a in range(3)])
    extent = max(float(ramp.std()), 1e-6)
    bend = smooth_field(rng, shape, spacing_mm, max(extent * spacing_mm * 4, 40.0))
    trend = ramp / np.float32(extent) + np.float32(0.4) * bend
    spread = max(float(trend.std()), 1e-6)
    trend = (trend - trend.mean()) * np.float32(deviation * np.sqrt(2 / 3) / spread)
    trend -= np.float32(np.log(np.exp(trend.astype(np.float64)).mean()))
    return np.asarray(trend + _grain(rng, shape, spacing_mm, deviation / np.sqrt(3)), dtype=np.float32)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float) -> Field:
    """The organ's mean everywhere, whatever `deviation` is."""
    return np.zeros(shape, dtype=np.float32)


def mixed(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float) -> Field:
    """Any of the other laws of training; one organ in twelve is uniform."""
    law = (multiscale, patchy, gradient, uniform)[int(rng.choice(4, p=(5 / 12, 3 / 12, 3 / 12, 1 / 12)))]
    return law(rng, shape, spacing_mm, deviation)


def filaments(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float) -> Field:
    """Strands along the zero set of two Gaussian fields, over a ground of grain."""
    widths = rng.uniform(0.25, 0.5, 2)
    part = deviation * np.sqrt(0.45)
    log = _grain(rng, shape, spacing_mm, deviation * float(np.sqrt(0.1)))
    for width in widths:
        g = smooth_field(rng, shape, spacing_mm, float(rng.uniform(14, 34)))

        def strand(values: AnyField, width: float = width) -> AnyField:
            return np.asarray(np.exp(-((values / width) ** 2)))

        log = log + _of_normal(g, strand, part)
    return np.asarray(log, dtype=np.float32)


TEXTURES: dict[str, Texture] = {
    "multiscale": multiscale,
    "patchy": patchy,
    "gradient": gradient,
    "uniform": uniform,
    "mixed": mixed,
    "filaments": filaments,
}


def texture_named(name: str) -> Texture:
    """Raises InputRejected for a name that `TEXTURES` does not hold."""
    if name not in TEXTURES:
        raise InputRejected(f"no law of texture is called {name!r}", f"Choose one of {', '.join(TEXTURES)}")
    return TEXTURES[name]


def _grain(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, deviation: float) -> Field:
    length = float(rng.uniform(_FINEST_MM, 9.0))
    field = np.float32(deviation) * smooth_field(rng, shape, spacing_mm, length)
    return np.asarray(field - np.float32(deviation**2 / 2), dtype=np.float32)


def _of_normal(g: Field, f: Callable[[AnyField], AnyField], deviation: float) -> Field:
    """f(g) scaled to `deviation` and moved so that its exponential has a mean of one."""
    weights = np.exp(-(_NORMAL**2) / 2)
    weights /= weights.sum()
    values = np.asarray(f(_NORMAL), dtype=np.float64)
    mean = float(weights @ values)
    spread = max(float(np.sqrt(weights @ (values - mean) ** 2)), 1e-6)
    scaled = deviation * (values - mean) / spread
    offset = float(np.log(weights @ np.exp(scaled)))
    # f costs an exponential a voxel; between the points of a fine table it is straight.
    return np.interp(g.ravel(), _NORMAL, scaled - offset).reshape(g.shape).astype(np.float32)
