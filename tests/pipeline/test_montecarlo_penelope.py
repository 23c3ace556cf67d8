"""Monte Carlo against PENELOPE with the statistics of seconds; docs/physics.md has longer runs."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from tests.bench.penelope.spectrum import histogram, mean_kev
from tests.bench.physics import slabs as slab_section
from tests.bench.physics.runs import deposits, reference_source
from tests.bench.physics_validation import SECTIONS
from tests.reference.slabs import SLABS, Slabs

REFERENCES = slab_section.read_references()
TRIED = [slabs for slabs in SLABS if slabs.nuclide == "Lu-177" and slabs.name in REFERENCES]


@pytest.mark.parametrize("slabs", TRIED, ids=lambda slabs: slabs.name)
def test_slabs_absorb_what_they_absorb_in_penelope(slabs: Slabs) -> None:
    density, activity, spacing = slab_section.maps(slabs)
    reference, sigma = REFERENCES[slabs.name]

    run = deposits(density, activity, spacing, reference_source("Lu-177"), (2e5, 1e5))

    kev = run.total.sum(axis=(1, 2))
    both = np.hypot(np.sqrt((run.sigma**2).sum(axis=(1, 2))), sigma)
    first, end = slabs.source_layers
    inside = slice(first, end)
    assert kev[inside].sum() == pytest.approx(reference[inside].sum(), rel=0.005)
    # Layers differ by what chance allows, and 1 % that it need not.
    counted = slab_section.counted(slabs, reference)
    assert np.all(np.abs(kev - reference)[counted] < (4 * both + 0.01 * reference)[counted])


def test_histogram_of_a_spectrum_keeps_its_energy() -> None:
    beta = np.linspace(0.0, 500.0, 1025)
    edges, content = histogram(np.array([0.2, 100.0]), np.array([2.0, 0.5]), beta, 0.9)

    assert content.sum() == pytest.approx(2.0 + 0.5 + 0.9)
    assert mean_kev(edges, content) == pytest.approx(0.4 + 50.0 + 0.9 * 250.0, rel=1e-4)
    assert np.all(np.diff(edges) > 0)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_of_the_page_can_be_made(name: str) -> None:
    assert callable(import_module(f"tests.bench.physics.{name}").section)
