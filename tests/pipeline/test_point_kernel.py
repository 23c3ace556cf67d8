"""Point kernels from the node's own Monte Carlo: shells, provenance, and what ends a run.

The transport is replaced by one that knows its answer; what it computes is the matter of its own tests.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.montecarlo.decay_data import DecaySource, load_source
from pipeline.montecarlo.materials import MATERIALS
from pipeline.montecarlo.point_kernel import (
    PILOT_DECAYS,
    density_of,
    electron_reach_cm,
    medium_named,
    point_kernel,
    shell_edges_cm,
    table,
)
from pipeline.montecarlo.radial import RadialRun
from pipeline.radial_kernel import parse

LUTETIUM = load_source("Lu-177")


class Known:
    """Electrons leave all within 1 mm, photons 0.6 keV a cm; 1000 decays know a shell to 30 %."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, float, int]] = []

    def __call__(
        self, source: DecaySource, medium: str, density: float, edges: NDArray[Any], decays: float, seed: int,
        **_: Any,
    ) -> RadialRun:  # fmt: skip
        self.asked.append((medium, density, decays, seed))
        electrons = np.diff(np.minimum(edges, 0.1)) * source.mean_electron_kev / 0.1
        photons = np.diff(edges) * 0.6
        spread = 0.3 * np.sqrt(1000 / decays)
        return RadialRun(electrons, 0.0 * electrons, photons, spread * (electrons + photons), 4.0)


def test_shells_are_thin_where_electrons_stop_and_reach_fifty_centimetres() -> None:
    soft = medium_named("soft_tissue")
    reach = electron_reach_cm(LUTETIUM, soft, 1.04)
    assert reach == pytest.approx(0.17, abs=0.02), "498 keV in tissue: ESTAR's 0.18 g/cm2"
    edges = shell_edges_cm(reach)
    steps = np.diff(edges)
    assert (edges[0], edges[-1]) == (0.0, 50.0)
    assert steps[2:200] == pytest.approx(1.05 * reach / 200)
    assert steps.min() > 0
    assert steps[edges[:-1] > 1.05 * reach].min() > 0.004, "no sliver between thin shells and thick"
    assert set(np.round(steps[-100:-1], 6)) == {0.5, 0.05}


def test_the_table_is_one_that_kernels_are_made_from() -> None:
    kernel = point_kernel(LUTETIUM, decays=1000, run=Known())
    text = table(kernel, "dicomnode 9.9", date(2026, 1, 2))
    read = parse(text.encode(), "Lu-177")
    total = LUTETIUM.mean_electron_kev + 0.6 * 50
    assert float(read.energy_within(500.0)) == pytest.approx(total, rel=1e-4)
    assert read.electron_kev == pytest.approx(LUTETIUM.mean_electron_kev, rel=1e-3)
    assert read.reach_mm == 500.0
    head = [line for line in text.splitlines() if line.startswith("#")]
    for words in (
        "Lu-177",
        "soft tissue",
        "1.04 g/cm3",
        "dicomnode 9.9",
        "DDEP",
        "1000 decays",
        "seed 1",
        "2026-01-02",
    ):
        assert words in " ".join(head)
    assert kernel.physics_sha256 in head[1]


def test_electrons_end_at_their_range() -> None:
    """What their bremsstrahlung leaves farther out is the photons'."""
    kernel = point_kernel(LUTETIUM, decays=1000, run=Known())
    reach = 1.05 * electron_reach_cm(LUTETIUM, kernel.medium, 1.04)
    assert not kernel.electron_kev[kernel.edges_cm[1:] > reach * 1.001].any()
    assert kernel.electron_kev.sum() == pytest.approx(LUTETIUM.mean_electron_kev)


def test_an_uncertainty_is_reached_with_as_many_decays_as_a_pilot_shows() -> None:
    run = Known()
    kernel = point_kernel(LUTETIUM, uncertainty=0.01, seed=5, run=run)
    assert [asked[2] for asked in run.asked] == [PILOT_DECAYS, pytest.approx(900_000, rel=1e-3)]
    assert kernel.uncertainty == pytest.approx(0.01, rel=1e-3)
    assert {asked[3] for asked in run.asked} == {5}
    enough = Known()
    assert point_kernel(LUTETIUM, uncertainty=0.2, run=enough).decays == PILOT_DECAYS
    assert len(enough.asked) == 1


@pytest.mark.parametrize(
    ("medium", "density", "expected"),
    [
        ("soft_tissue", None, ("soft_tissue", 1.04)),
        ("icru", None, ("icru_soft_tissue", 1.04)),
        ("Cortical bone", None, ("cortical_bone", 1.92)),
        ("lung", 0.26, ("lung", 0.26)),
    ],
)
def test_a_medium_has_its_own_density_or_the_one_that_is_named(
    medium: str, density: float | None, expected: tuple[str, float]
) -> None:
    run = Known()
    point_kernel(LUTETIUM, medium, density, decays=10, run=run)
    assert run.asked[0][:2] == expected


@pytest.mark.parametrize("name", ["Y-90", "I-131", "Tc-99m", "I-125", "F-18"])
@pytest.mark.parametrize("material", MATERIALS[1:], ids=lambda m: m.name)
def test_every_nuclide_has_shells_in_every_medium(name: str, material: Any) -> None:
    reach = electron_reach_cm(load_source(name), material, density_of(material, None))
    assert np.all(np.diff(shell_edges_cm(reach)) > 0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"medium": "lungs", "decays": 5}, "no medium 'lungs'. Did you mean lung"),
        ({"medium": "bone", "decays": 5}, "no medium 'bone'.*There are .*cortical_bone"),
        ({"density_g_per_cm3": 0.0, "decays": 5}, "density of 0 cannot be"),
        ({"decays": -4.0}, "decays of -4 cannot be"),
        ({"uncertainty": float("nan")}, "uncertainty of nan cannot be"),
        ({"uncertainty": 1e-9}, "takes .* decays. Ask for a larger one"),
        ({}, "what ends the run is not clear"),
        ({"decays": 5.0, "uncertainty": 0.1}, "what ends the run is not clear"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputRejected, match=reason):
        point_kernel(LUTETIUM, run=Known(), **given)
