"""Laws of texture: the mean of an organ is kept, its variation is the one asked for."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputRejected
from pipeline.simulate.uptake import TEXTURES, texture_named, three_scales

SHAPE = (60, 60, 60)
SPACING_MM = 3.0


def uptakes(name: str, deviation: float, fields: int = 6) -> np.ndarray:
    """(fields, z, y, x) exp(log) of one law."""
    law = three_scales if name == "three scales" else texture_named(name)
    generators = (np.random.default_rng([seed, 7]) for seed in range(fields))
    return np.stack([np.exp(law(rng, SHAPE, SPACING_MM, deviation)) for rng in generators])


@pytest.mark.parametrize("deviation", [0.1, 0.35])
@pytest.mark.parametrize("name", [*TEXTURES, "three scales"])
def test_the_mean_of_an_organ_is_kept(name: str, deviation: float) -> None:
    values = uptakes(name, deviation)
    # Long correlations leave few independent samples in 18 cm: a mean is known to a sixth of the deviation.
    assert float(values.mean()) == pytest.approx(1, abs=0.25 * deviation)
    assert values.min() > 0


@pytest.mark.parametrize("deviation", [0.1, 0.35])
@pytest.mark.parametrize("name", ["multiscale", "patchy", "gradient", "filaments", "three scales"])
def test_the_logarithm_varies_as_asked(name: str, deviation: float) -> None:
    logs = np.log(uptakes(name, deviation))
    assert float(logs.std()) == pytest.approx(deviation, rel=0.2)


def test_a_uniform_organ_is_uniform() -> None:
    assert np.all(uptakes("uniform", 0.4) == 1)


def test_mixed_is_sometimes_uniform_and_mostly_not() -> None:
    spread = uptakes("mixed", 0.2, 40)[:, ::6, ::6, ::6].reshape(40, -1).std(axis=1)
    assert 0 < (spread == 0).sum() < 12


def test_laws_differ_in_kind() -> None:
    """A gradient is correlated across the organ, filaments are skewed to the bright side."""
    gradient, filaments = np.log(uptakes("gradient", 0.3, 1))[0], np.log(uptakes("filaments", 0.3, 4))
    smooth = gradient.reshape(6, 10, 6, 10, 6, 10).mean(axis=(1, 3, 5))
    assert float(smooth.var() / gradient.var()) > 0.5
    z = (filaments - filaments.mean()) / filaments.std()
    assert float((z**3).mean()) > 0.3


def test_an_unknown_law_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputRejected, match="no law of texture is called 'stripes'") as failed:
        texture_named("stripes")
    assert "patchy" in failed.value.remedy
