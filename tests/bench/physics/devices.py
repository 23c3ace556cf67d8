"""One set of physics functions on two devices: processor against graphics card."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from tests.bench.physics.report import Effort, Section, per_cent
from tests.bench.physics.runs import deposits, reference_source
from tests.bench.physics.torso import by_organ
from tests.reference import torso

DECAYS = (2e6, 5e6)


def section(effort: Effort) -> Section:
    page = Section("Processor and graphics card")
    if not has_gpu():
        page.say(
            "No graphics card here. The CUDA code runs in numba's simulator in the tests "
            "(`tests/pipeline/test_montecarlo_cuda.py`); on a machine with a card, this section compares "
            "the two in every organ of the torso. No kernel has run on a card yet."
        )
        _say_how_it_compiles(page)
        return page
    label = torso.labels()
    spacing = (10 * torso.VOXEL_CM,) * 3
    electrons, photons = (effort.decays(n) for n in DECAYS)
    runs = {
        device: deposits(
            torso.density(label), torso.activity(label, "kidneys"), spacing, reference_source("Lu-177"),
            (electrons, photons), device=device, seed=seed,
        )
        for device, seed in (("cpu", 1), ("cuda", 2))
    }  # fmt: skip
    kev = {name: by_organ(label, run.total) for name, run in runs.items()}
    sigma = {name: np.sqrt(by_organ(label, run.sigma**2)) for name, run in runs.items()}
    error = np.hypot(sigma["cpu"], sigma["cuda"])
    page.say(
        "Lu-177 in the kidneys of the torso, different seeds: keV per decay by organ, and their difference."
    )
    page.table(
        ("organ", "cpu", "cuda", "difference", "in σ"),
        [
            (name, f"{kev['cpu'][i]:.5g}", f"{kev['cuda'][i]:.5g}", per_cent(kev["cuda"][i] / kev["cpu"][i]),
             f"{(kev['cuda'][i] - kev['cpu'][i]) / error[i]:+.1f}")
            for i, name in enumerate(torso.NAMES)
            if kev["cpu"][i] > 0
        ],
    )  # fmt: skip
    page.table(
        ("", "electrons, decays/s", "photons, decays/s"),
        [
            (name, f"{electrons / run.seconds[0]:.3g}", f"{photons / run.seconds[1]:.3g}")
            for name, run in runs.items()
        ],
    )
    return page


def _say_how_it_compiles(page: Section) -> None:
    """What the assembler says for each architecture, where numba-cuda and an assembler are installed."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.cuda_compile"], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        page.say("Nor is there a compiler: extra gpu-cu12.")
        return
    page.say("Compiled and assembled (`python -m tests.bench.cuda_compile`):")
    heads, *rows = (re.split(r"\s{2,}", line.strip()) for line in run.stdout.strip().splitlines())
    page.table(tuple(heads), [tuple(row) for row in rows])


def has_gpu() -> bool:
    if find_spec("numba_cuda") is None:
        return False
    return bool(import_module("numba.cuda").is_available())
