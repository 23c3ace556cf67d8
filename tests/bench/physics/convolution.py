"""The convolution: FFT against direct summation, and its time."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from pipeline.convolve import Offset, convolve_cpu, fft_shape, kernel_spectrum
from pipeline.decay import NUCLIDES, nuclide
from pipeline.kernels import Shape, Spacing, reach_voxels, voxel_kernel
from tests.bench.physics.report import Effort, Section

CT_SPACING: Spacing = (3.0, 0.9766, 0.9766)
BODY: Shape = (130, 260, 380)
FIELD: Shape = (130, 512, 512)
REPEATS = 5

Result = TypeVar("Result")


def section(effort: Effort) -> Section:
    page = Section("The convolution")
    page.say(
        "FFT against direct summation: random activity in boxes of 16 x 20 x 24 voxels that overlap in "
        "part; largest difference, relative to the largest dose rate."
    )
    page.table(("", "largest difference"), _fft_rows())
    page.say(
        f"Time on the CPU: Lu-177, voxels of {' x '.join(f'{s:g}' for s in CT_SPACING)} mm; a field of "
        f"130 x 512 x 512 voxels and in it a body of 130 x 260 x 380. {REPEATS} runs. Kernel and spectrum "
        "are computed once per process and box."
    )
    rows = _time_rows(1 if effort.quick else REPEATS)
    page.table(
        ("sources to result", "FFT", "kernel and spectrum", "fastest", "median", "processor time"), rows
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    page.say(f"Peak memory of the process: {peak:.1f} GB.")
    return page


def _fft_rows() -> list[tuple[str, ...]]:
    shape: Shape = (16, 20, 24)
    offset: Offset = (5, -4, 7)
    source = np.random.default_rng(1).random(shape, dtype=np.float32)
    rows: list[tuple[str, ...]] = []
    for of in NUCLIDES:
        period = fft_shape(shape, shape, offset, reach_voxels(CT_SPACING))
        result = convolve_cpu(source, kernel_spectrum(of, CT_SPACING, period), shape, offset)
        octant = voxel_kernel(of, CT_SPACING, (32, 32, 32)).astype(float)
        direct = np.zeros(shape)
        for place in np.ndindex(*shape):
            away = [np.abs(np.arange(n) + o - s) for n, o, s in zip(shape, offset, place, strict=True)]
            direct += float(source[place]) * octant[np.ix_(*away)]
        rows.append((of.name, f"{np.abs(result - direct).max() / direct.max():.1e}"))
    return rows


def _time_rows(repeats: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
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
        runs = [_timed(convolution)[1:] for _ in range(repeats)]
        wall, processor = np.median(runs, axis=0)
        fastest = min(run[0] for run in runs)
        shape = " x ".join(str(n) for n in period)
        rows.append(
            (title, shape, f"{prepared:.2f} s", f"{fastest:.2f} s", f"{wall:.2f} s", f"{processor:.2f} s")
        )
    return rows


def _timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor
