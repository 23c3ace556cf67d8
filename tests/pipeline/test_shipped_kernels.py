"""The point kernels of our own Monte Carlo that are shipped, beside PENELOPE's."""

from importlib.resources import files

import numpy as np
import pytest

from pipeline.decay import nuclide
from pipeline.montecarlo.data import load_physics
from pipeline.montecarlo.decay_data import load_source
from pipeline.radial_kernel import RadialKernel, parse, radial_kernel

NAMES = ("Lu-177", "Y-90", "I-131")


def text(name: str) -> bytes:
    return (files("pipeline") / "data/point_kernels/mc" / f"{name}_soft_tissue.csv").read_bytes()


def shipped(name: str) -> RadialKernel:
    return parse(text(name), name)


@pytest.mark.parametrize("name", NAMES)
def test_it_rests_on_the_data_that_are_shipped(name: str) -> None:
    head = text(name).decode().split("r_outer_cm,")[0]
    assert load_physics().sha256 in head
    assert f"decay data of {load_source(name).evaluation}" in head


@pytest.mark.parametrize("name", NAMES)
def test_the_electrons_of_a_decay_leave_all_their_energy_but_what_they_radiate(name: str) -> None:
    """Bremsstrahlung carries 2e-4 (Lu-177) to 6e-3 (Y-90) of it away, ESTAR's radiation yield."""
    left = shipped(name).electron_kev / load_source(name).mean_electron_kev
    assert 0.993 < left < 1.002


@pytest.mark.parametrize("name", NAMES)
def test_its_shape_is_that_of_penelope(name: str) -> None:
    """Energy within a radius, over that within the electrons' range: free of what differs in decay data."""
    ours, reference = shipped(name), radial_kernel(nuclide(name))
    range_mm = reference.electron_range_mm
    radii = np.array([0.2, 0.4, 0.6, 0.8]) * range_mm
    shape = ours.energy_within(radii) / ours.energy_within(range_mm)
    expected = reference.energy_within(radii) / reference.energy_within(range_mm)
    np.testing.assert_allclose(shape, expected, rtol=0.01)


@pytest.mark.parametrize("name", ["Lu-177", "I-131"])
def test_photons_reach_as_far_as_penelopes(name: str) -> None:
    ours, reference = shipped(name), radial_kernel(nuclide(name))
    far = [float(k.energy_within(300.0) - k.energy_within(50.0)) for k in (ours, reference)]
    assert far[0] == pytest.approx(far[1], rel=0.02)
