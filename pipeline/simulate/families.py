"""Families of anatomy: each draws its organs by shapes of its own, so that one can be kept for tests.

========== ============================================================== =========
trunk      implicit surfaces of a reference patient, scaled and bent      training
harmonic   star-shaped surfaces, spherical and cylindrical harmonics      training
stylised   quadrics, tori and planes                                      tests
========== ============================================================== =========

``trunk-crowded`` and ``harmonic-crowded`` are the two of training with twice to four times as many lesions
(`lesions.CROWDED`). The lesions of ``stylised`` follow a law of their own (`lobed_lesions`). What all share
is what tissues hold (`makeup.VariedMakeup`).

A new family is a function ``(rng, texture) -> Anatomy`` and a row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from pipeline.errors import InputRejected
from pipeline.simulate.anatomy import Anatomy
from pipeline.simulate.harmonic import harmonic
from pipeline.simulate.lesions import CROWDED
from pipeline.simulate.stylised import stylised
from pipeline.simulate.trunk import trunk
from pipeline.simulate.uptake import Texture

Family = Callable[[np.random.Generator, Texture], Anatomy]

FAMILIES: dict[str, Family] = {
    "trunk": trunk,
    "harmonic": harmonic,
    "trunk-crowded": partial(trunk, law=CROWDED),
    "harmonic-crowded": partial(harmonic, law=CROWDED),
    "stylised": stylised,
}


def family_named(name: str) -> Family:
    """Raises InputRejected for a name that `FAMILIES` does not hold."""
    if name not in FAMILIES:
        raise InputRejected(
            f"no family of anatomy is called {name!r}", f"Choose one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
