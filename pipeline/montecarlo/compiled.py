"""One source for the processor and the graphics card: how transport functions are compiled.

Transport functions are written once and decorated with `compiled`. Kernels of numba-cuda call the same
functions and compile them for the card. Without the just-in-time compiler (NUMBA_DISABLE_JIT=1, the CUDA
simulator) they run as plain Python. What differs between the targets is the addition to a tally: see `add`.

Inside such functions every number is float32 (energies keV, lengths cm, densities g/cm³) or int32, tallies
are float64. A bare Python number would lift an expression to float64: constants are therefore written as
``F(0.5)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from pipeline.constants import ELECTRON_REST_KEV

Function = TypeVar("Function", bound=Callable[..., Any])

F = np.float32

ZERO = F(0.0)
HALF = F(0.5)
ONE = F(1.0)
TWO = F(2.0)
TWO_PI = F(2.0 * np.pi)
REST = F(ELECTRON_REST_KEV)


def _package_stamp() -> str:
    """SHA-256 of the package's modules, and of the constants that compiled code takes from outside."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in (*sorted(package.glob("*.py")), package.parent / "constants.py"):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


PACKAGE_STAMP = _package_stamp()
"""Of the code of the transport: compiled code and states of runs hold for it alone."""

# Without "nnan" and "ninf" the compiler may not assume that values are finite, and without "reassoc" it keeps
# the order of sums: CPU and GPU then differ by the rounding of elementary functions alone.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "arcp", "nsz"},
}


_njit: Any = numba.njit


def compiled(function: Function) -> Function:
    """Compile at the first call, keep the machine code on disk, and let other threads run meanwhile.

    The function must not make arrays: references are not counted. Counting them took three quarters of the
    time of a history, since every look at a table in a NamedTuple counts. `compiled_making_arrays` does.
    """
    dispatcher: Function = _with_package_stamp(_njit(_nrt=False, **_OPTIONS)(function))
    return dispatcher


def compiled_making_arrays(function: Function) -> Function:
    """`compiled`, for functions that make arrays; not for what a history calls."""
    dispatcher: Function = _with_package_stamp(_njit(**_OPTIONS)(function))
    return dispatcher


def _with_package_stamp(function: Any) -> Any:
    """Let the machine code on disk hold for the sources of the whole package, and of the function's own file.

    numba asks for the latter alone, and would run what a changed callee was before.
    """
    file: Any = getattr(getattr(function, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        inside = Path(function.py_func.__code__.co_filename).parent == Path(__file__).parent
        file._source_stamp = PACKAGE_STAMP if inside else (PACKAGE_STAMP, file._source_stamp)
    return function


def add(tally: NDArray[np.float64], index: int, value: np.float32) -> None:
    """tally[index] += value; indivisible on the graphics card, where many threads share a tally."""
    tally[index] += value


@overload(add, target="cpu")
def _add_on_cpu(tally: Any, index: Any, value: Any) -> Callable[..., None]:
    def implementation(tally: Any, index: Any, value: Any) -> None:
        tally[index] += value

    return implementation


@overload(add, target="cuda")
def _add_on_cuda(tally: Any, index: Any, value: Any) -> Callable[..., None]:
    cuda: Any = import_module("numba.cuda")  # only when a kernel is compiled: the card is optional

    def implementation(tally: Any, index: Any, value: Any) -> None:
        cuda.atomic.add(tally, index, np.float64(value))

    return implementation
