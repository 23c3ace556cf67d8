"""Print the validation figures of the DVK engine as Markdown: `docs/physics-dvk.md`.

python -m tests.bench.physics_table --machine "2-core x86-64" > docs/physics-dvk.md
"""

from __future__ import annotations

import argparse
import datetime
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from pipeline.convolve import Offset, convolve_cpu, fft_shape, kernel_spectrum
from pipeline.decay import NUCLIDES, nuclide
from pipeline.kernels import (
    MGY_G_PER_MBQ_S_KEV,
    REACH_MM,
    SOFT_TISSUE_G_PER_CM3,
    Shape,
    Spacing,
    octant_total,
    radial_kernel,
    reach_voxels,
    voxel_kernel,
)
from tests.reference import physics

CT_SPACING: Spacing = (3.0, 0.9766, 0.9766)
BODY: Shape = (130, 260, 380)
FIELD: Shape = (130, 512, 512)
REPEATS = 5

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what it was measured on")
    machine = parser.parse_args().machine
    print("# The DVK engine against reference numbers\n")
    print(f"Made by `python -m tests.bench.physics_table`, {datetime.date.today()}, on {machine}.")
    print("No parameter of the product is fitted to any of these numbers.\n")
    for title, text, table in (
        ("Voxel S values, 3 mm", VOXELS, voxel_table),
        ("Source voxels, MIRD Pamphlet 17", MIRD17, mird17_table),
        ("Uniform spheres of water", SPHERES, sphere_table),
        ("Energy of the whole kernel", ENERGY, energy_table),
        ("FFT against direct summation", FFT, fft_table),
        ("Time of one convolution on the CPU", TIME, time_table),
    ):
        print(f"## {title}\n\n{text}\n")
        table()
        print()
    print(LIMITS)


VOXELS = """PENELOPE Monte Carlo of a uniform 3 mm source voxel in soft tissue (1.04 g/cm³), every tabulated
offset with a standard deviation below 3 %. "Others": largest distance in standard deviations of the
simulation, and the mean difference."""
MIRD17 = "S of the source voxel, mGy/(MBq s); MIRD 17 rests on EGS4 with older decay data."
SPHERES = """Energy absorbed in the sphere per decay in it, keV. PENELOPE in water of 1.00 g/cm³; ours for a
sphere smaller by 1.04 in soft tissue of 1.04 g/cm³. "Shells": from the radial kernel. "Voxels": voxel
kernel and FFT, 20 voxels per radius."""
ENERGY = "Sum over the kernel to 50 cm against the radial table, for three voxel sizes."
FFT = """Random activity in boxes of 16 x 20 x 24 voxels that overlap in part; largest difference, relative
to the largest dose rate."""
TIME = f"""Lu-177, voxels of {" x ".join(f"{s:g}" for s in CT_SPACING)} mm; a field of 130 x 512 x 512
voxels and in it a body of 130 x 260 x 380. {REPEATS} runs on a machine that other work shared. Kernel and
spectrum are computed once per process and box."""
LIMITS = """## What the figures do not say

- The kernel is that of homogeneous soft tissue; 1.04/ρ scales the dose to the voxel's mass, but
  electrons and photons do not see the density between source and target. In lung, at bone and at the
  surface of the body only Monte Carlo tells by how much that errs.
- Beyond 50 cm the kernel is zero, as the tables end there.
- Dose inside a voxel is an average; for Lu-177 nearly all electrons stop in the voxel they start in, so
  the map is as blurred as the activity map is."""


def voxel_table() -> None:
    rows = []
    for of in NUCLIDES:
        kernel = voxel_kernel(of, (3.0, 3.0, 3.0), (4, 4, 4))
        values = [row for row in physics.voxel_values() if row.of is of]
        by_offset = {row.offset: row for row in values}
        relative = {at: float(kernel[at]) / row.s_value - 1 for at, row in by_offset.items()}
        others = [row for row in values if row.offset not in ((0, 0, 0), (0, 0, 1))]
        sigmas = [(float(kernel[row.offset]) - row.s_value) / row.sigma for row in others]
        mean = np.mean([relative[row.offset] for row in others])
        self_, face = (
            f"{relative[at]:+.2%} ± {by_offset[at].sigma / by_offset[at].s_value:.2%}"
            for at in ((0, 0, 0), (0, 0, 1))
        )
        rows.append((of.name, self_, face, f"{len(others)}", f"{np.abs(sigmas).max():.1f} σ", f"{mean:+.1%}"))
    _print_table(("", "self", "face", "others", "largest", "mean"), rows)


def mird17_table() -> None:
    rows = []
    for of, side, s_value in physics.mird17_points():
        ours = float(voxel_kernel(of, (side, side, side), (1, 1, 1))[0, 0, 0])
        rows.append((of.name, f"{side:g} mm", f"{s_value:g}", f"{ours:.4g}", f"{ours / s_value - 1:+.1%}"))
    _print_table(("", "voxel", "MIRD 17", "ours", "difference"), rows)


def sphere_table() -> None:
    rows = []
    for sphere in physics.spheres():
        radius = sphere.tissue_radius_mm
        shells = physics.sphere_from_shells(sphere.of, radius) / sphere.kev_per_decay - 1
        voxels = physics.sphere_from_voxels(sphere.of, radius, radius / 20) / sphere.kev_per_decay - 1
        rows.append(
            (
                sphere.of.name,
                f"{sphere.mass_g:g} g",
                f"{sphere.kev_per_decay:g}",
                f"{shells:+.2%}",
                f"{voxels:+.2%}",
            )
        )
    _print_table(("", "mass", "PENELOPE", "shells", "voxels"), rows)


def energy_table() -> None:
    sizes: tuple[Spacing, ...] = ((3.0, 3.0, 3.0), (5.0, 2.0, 2.0), (4.8, 4.8, 4.8))
    rows = []
    for of in NUCLIDES:
        table = float(radial_kernel(of).energy_within(REACH_MM))
        found = [f"{_kernel_kev(of.name, spacing) / table - 1:+.4%}" for spacing in sizes]
        rows.append((of.name, f"{table:.2f}", *found))
    _print_table(("", "table, keV", *("{:g} x {:g} x {:g} mm".format(*s) for s in sizes)), rows)


def _kernel_kev(name: str, spacing: Spacing) -> float:
    z, y, x = (n + 1 for n in reach_voxels(spacing))
    grams = SOFT_TISSUE_G_PER_CM3 * float(np.prod(spacing)) / 1000
    return octant_total(voxel_kernel(nuclide(name), spacing, (z, y, x))) * grams / MGY_G_PER_MBQ_S_KEV


def fft_table() -> None:
    shape: Shape = (16, 20, 24)
    offset: Offset = (5, -4, 7)
    source = np.random.default_rng(1).random(shape, dtype=np.float32)
    rows = []
    for of in NUCLIDES:
        period = fft_shape(shape, shape, offset, reach_voxels(CT_SPACING))
        result = convolve_cpu(source, kernel_spectrum(of, CT_SPACING, period), shape, offset)
        octant = voxel_kernel(of, CT_SPACING, (32, 32, 32)).astype(float)
        direct = np.zeros(shape)
        for place in np.ndindex(*shape):
            away = [np.abs(np.arange(n) + o - s) for n, o, s in zip(shape, offset, place, strict=True)]
            direct += float(source[place]) * octant[np.ix_(*away)]
        rows.append((of.name, f"{np.abs(result - direct).max() / direct.max():.1e}"))
    _print_table(("", "largest difference"), rows)


def time_table() -> None:
    rows = []
    for title, source, output in (
        ("body to body", BODY, BODY),
        ("field to body", FIELD, BODY),
        ("field to field", FIELD, FIELD),
    ):
        z, y, x = ((a - b) // 2 for a, b in zip(source, output, strict=True))
        period = fft_shape(source, output, (z, y, x), reach_voxels(CT_SPACING))
        activity = np.random.default_rng(1).random(source, dtype=np.float32)
        spectrum, prepared, _ = _timed(partial(kernel_spectrum, nuclide("Lu-177"), CT_SPACING, period))
        convolution = partial(convolve_cpu, activity, spectrum, output, (z, y, x))
        runs = [_timed(convolution)[1:] for _ in range(REPEATS)]
        wall, processor = np.median(runs, axis=0)
        fastest = min(run[0] for run in runs)
        shape = " x ".join(str(n) for n in period)
        rows.append(
            (title, shape, f"{prepared:.2f} s", f"{fastest:.2f} s", f"{wall:.2f} s", f"{processor:.2f} s")
        )
    _print_table(
        ("sources to result", "FFT", "kernel and spectrum", "fastest", "median", "processor time"), rows
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\nPeak memory of the process: {peak:.1f} GB.")


def _timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
