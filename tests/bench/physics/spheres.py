"""Uniform spheres of water: kernels and Monte Carlo against PENELOPE."""

from __future__ import annotations

from pipeline.montecarlo.sampling import Emission
from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import lines_of_reference, source_of, sphere_kev
from tests.reference import physics

DECAYS = 4e6

TEXT = """Energy absorbed in the sphere per decay in it, keV. PENELOPE in water of 1.00 g/cm³. The kernels:
for a sphere smaller by 1.04 in soft tissue of 1.04 g/cm³; "shells" from the radial kernel,
"voxels" by voxel kernel and FFT with 20 voxels a radius. Monte Carlo: the same sphere in water
without bounds, with its standard deviation; then with the conversion lines that the reference lists, where
those are known."""


def section(effort: Effort) -> Section:
    page = Section("Uniform spheres of water")
    rows = []
    for sphere in physics.spheres():
        radius = sphere.tissue_radius_mm
        shells = physics.sphere_from_shells(sphere.of, radius) / sphere.kev_per_decay
        voxels = physics.sphere_from_voxels(sphere.of, radius, radius / 20) / sphere.kev_per_decay
        listed = lines_of_reference(sphere.of.name)
        rows.append(
            (
                sphere.of.name, f"{sphere.mass_g:g} g", f"{sphere.kev_per_decay:g}", per_cent(shells),
                per_cent(voxels), _monte_carlo(sphere, source_of(sphere.of.name), effort),
                "" if listed is None else _monte_carlo(sphere, listed, effort),
            )
        )  # fmt: skip
    page.say(TEXT)
    page.table(("", "mass", "PENELOPE", "shells", "voxels", "Monte Carlo", "with its lines"), rows)
    return page


def _monte_carlo(sphere: physics.Sphere, source: Emission, effort: Effort) -> str:
    kev, sigma = sphere_kev(source, sphere.water_radius_mm, effort.decays(DECAYS))
    return f"{per_cent(kev / sphere.kev_per_decay)} ± {100 * sigma / sphere.kev_per_decay:.2f} %"
