"""Registers and spills of the Monte Carlo's CUDA kernels: ``python -m tests.bench.cuda_compile [70 75 ...]``.

Needs numba-cuda and the ptxas of nvidia-cuda-nvcc, but no card.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from pipeline.montecarlo.geometry import ACCOUNT_SIZE, tally_size
from tests.pipeline.montecarlo_scene import small_transport

ARCHITECTURES = (70, 75, 80, 86, 90)
KERNELS = ("electrons", "photons")


@dataclass(frozen=True, slots=True)
class Figures:
    """What the assembler says of a kernel."""

    registers: int
    stack_bytes: int
    spilled_bytes: int
    double_instructions: int


@cache
def ptx(kernel: str, capability: tuple[int, int]) -> str:
    """The kernel as PTX for a compute capability.

    Functions that a kernel calls are compiled for the card that is there: a stand-in takes its place. numba
    keeps them for the first capability asked for; they serve every later one.
    """
    cuda: Any = import_module("numba.cuda")
    kernels: Any = import_module("pipeline.montecarlo.cuda_kernels")
    transport = small_transport()
    arguments = (
        *transport, np.zeros(tally_size(transport.geometry)), np.zeros(ACCOUNT_SIZE),
        0, 0, 0, 0, 0, np.uint64(1),
    )  # fmt: skip
    types: Any = import_module("numba.core.types")
    signature = types.void(*(import_module("numba").typeof(argument) for argument in arguments))
    card = SimpleNamespace(compute_capability=capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=card):
        code, _ = cuda.compile_ptx(getattr(kernels, kernel).py_func, signature, cc=capability, fastmath=True)
    return str(code)


def assembled(code: str, capability: tuple[int, int], folder: Path) -> Figures | None:
    """Assemble PTX; None without a ptxas that knows its version. raises: CalledProcessError for bad code."""
    found = find_spec("nvidia.cuda_nvcc")
    if found is None or not found.submodule_search_locations:
        return None
    ptxas = Path(next(iter(found.submodule_search_locations))) / "bin" / "ptxas"
    if not ptxas.exists():
        return None
    source = folder / "kernel.ptx"
    source.write_text(code, encoding="ascii")
    architecture = f"-arch=sm_{capability[0]}{capability[1]}"
    done = subprocess.run(
        [ptxas, "-v", architecture, source, "-o", folder / "kernel.cubin"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    told = done.stderr
    if "Unsupported .version" in told:  # where both CUDA 12 and 13 are installed, ptxas may be the older one
        return None
    done.check_returncode()

    def number(pattern: str) -> int:
        return sum(int(value) for value in re.findall(pattern, told))

    return Figures(
        registers=number(r"Used (\d+) registers"),
        stack_bytes=number(r"(\d+) bytes stack frame"),
        spilled_bytes=number(r"(\d+) bytes spill stores"),
        double_instructions=len(re.findall(r"\b(?:add|mul|fma|div|sqrt)\.(?:r[nzmp]\.)?f64", code)),
    )


def main(architectures: list[str]) -> None:
    """Print one line for every architecture and kernel, each architecture in a process of its own."""
    if len(architectures) != 1:
        print("arch   kernel     registers  stack  spilled  float64 instructions")
        for number in architectures or [str(a) for a in ARCHITECTURES]:
            subprocess.run([sys.executable, "-m", "tests.bench.cuda_compile", number], check=True)
        return
    capability = int(architectures[0][:-1]), int(architectures[0][-1])
    with TemporaryDirectory() as folder:
        for kernel in KERNELS:
            figures = assembled(ptx(kernel, capability), capability, Path(folder))
            assert figures is not None, "no ptxas: pip install nvidia-cuda-nvcc-cu12"
            print(
                f"sm_{architectures[0]}  {kernel:10} {figures.registers:9} {figures.stack_bytes:6} "
                f"{figures.spilled_bytes:8} {figures.double_instructions:6}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
