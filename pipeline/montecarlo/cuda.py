"""Batches on a CUDA card: `threads.Runner` with everything that a batch touches in the card's memory.

Geometry, tables and source go to the card once. A batch is run in launches of a fraction of a second, between
which a run can be stopped. The card draws the same random numbers for a history as the processor (they are
counted, not chained); elementary functions differ in their last digits, so that a history may end otherwise
while the result agrees within its uncertainty.

numba-cuda is optional: nothing here imports it before a card is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineFailed, InputRejected
from pipeline.montecarlo.bank import BANK_DEPTH, BANK_ROW
from pipeline.montecarlo.batches import Estimate, Region
from pipeline.montecarlo.geometry import ACCOUNT_SIZE, tally_size
from pipeline.montecarlo.random_numbers import stream_key
from pipeline.montecarlo.threads import ELECTRON_STREAM, PHOTON_STREAM, Transport

Float64 = NDArray[np.float64]

# Blocks per multiprocessor: more than are resident, so that none waits for the longest history of another.
BLOCKS_PER_MULTIPROCESSOR = 32
# What the context, the code and the fragments of the allocator take beside the arrays.
RESERVE_BYTES = 256 << 20
# Threads that a multiprocessor holds at most: the driver sets local memory aside for all of them.
RESIDENT_THREADS = 2048
BANK_BYTES = BANK_DEPTH * BANK_ROW * 4

FIRST_LAUNCH = 1 << 16
SHORT_LAUNCH_S = 0.1
LONG_LAUNCH_S = 0.3


# What numba-cuda and the libraries under it raise when the driver fails.
DRIVER_ERRORS = (
    ("numba.cuda.cudadrv.error", "CudaDriverError"),
    ("numba.cuda.cudadrv.error", "CudaRuntimeError"),
    ("numba.cuda.cudadrv.error", "CudaSupportError"),
    ("numba.cuda.cudadrv.error", "NvvmError"),
    ("cuda.core._utils.cuda_utils", "CUDAError"),
)


class TooLittleMemory(EngineFailed):
    """The card cannot hold the run; the processor can."""


def cuda_runner(
    transport: Transport, seed: int, device: str = "cuda"
) -> tuple[CudaRunner | None, tuple[str, ...]]:
    """(what runs batches on the card, notes); None without a card or its memory: the notes say why.

    device: ``cuda``, ``cuda:N`` or ``auto``, which says nothing where there is no card.
    raises: InputRejected for another name, EngineFailed when the driver fails.
    """
    number = device_number(device)
    reason = why_unavailable(number)
    if reason is not None:
        return None, () if device == "auto" else (f"{reason}: computed on the processor",)
    try:
        return CudaRunner(transport, seed, number), ()
    except TooLittleMemory as error:
        return None, (f"{error.reason}: computed on the processor",)


def device_number(device: str) -> int:
    """Number of the card that ``cuda``, ``cuda:N`` or ``auto`` means. raises: InputRejected for another."""
    name, _, number = device.partition(":")
    if device in ("auto", "cuda") or (name == "cuda" and number.isdecimal()):
        return int(number or 0)
    raise InputRejected(f"there is no device {device!r}", "Choose cpu, cuda, cuda:N or auto")


def why_unavailable(number: int = 0) -> str | None:
    """Why card `number` cannot be used; None when it can."""
    try:
        cuda: Any = import_module("numba.cuda")
    except ImportError:
        return "numba-cuda is not installed"
    if not cuda.is_available():
        return "there is no CUDA device"
    if number >= len(cuda.gpus):
        return f"there is no CUDA device {number}"
    return None


def required_bytes(transport: Transport, multiprocessors: int = 0) -> int:
    """Memory of the card that a run takes, bytes: inputs, tally, sums of both kinds of history."""
    sums = 2 * (8 + 4) + 8
    banks = multiprocessors * RESIDENT_THREADS * BANK_BYTES
    return (
        sum(_bytes(part) for part in transport)
        + sums * tally_size(transport.geometry)
        + banks
        + RESERVE_BYTES
    )


class CudaRunner:
    """`threads.Runner` on one card: tally and sums of the estimates stay there until `settle`."""

    def __init__(
        self,
        transport: Transport,
        seed: int,
        number: int = 0,
        *,
        blocks: int | None = None,
        threads_per_block: int | None = None,
    ) -> None:
        """raises: TooLittleMemory, EngineFailed."""
        with driver_faults():
            cuda: Any = import_module("numba.cuda")
            self._kernels: Any = import_module("pipeline.montecarlo.cuda_kernels")
            self._cuda = cuda
            cuda.select_device(number)
            card = cuda.get_current_device()
            multiprocessors = int(getattr(card, "MULTIPROCESSOR_COUNT", 1))
            require_memory(
                required_bytes(transport, multiprocessors), cuda.current_context().get_memory_info().free
            )
            self.device = f"cuda:{number}" if number else "cuda"
            self._threads = threads_per_block or self._kernels.THREADS_PER_BLOCK
            self._blocks = blocks or multiprocessors * BLOCKS_PER_MULTIPROCESSOR
            self._transport = tuple(self._uploaded(part) for part in transport)
            self._shells = transport.geometry.shells.size
            self._tally = self._zeros(tally_size(transport.geometry), np.float64)
            self._account = self._zeros(ACCOUNT_SIZE, np.float64)
            self._sums: dict[int, tuple[Any, Any]] = {}
            self._regions: dict[int, tuple[Region, Any, Any]] = {}
            self._keys = stream_key(seed, ELECTRON_STREAM), stream_key(seed, PHOTON_STREAM)
            self._launch_size = [FIRST_LAUNCH, FIRST_LAUNCH]
            # Compiles, so that the first batch takes no longer than those that follow.
            for photons in (False, True):
                self._launch(photons, 0, 0, 0, 1)

    def run(self, photons: bool, first: int, size: int, stop: Callable[[], bool]) -> bool:
        """See `threads.Runner.run`."""
        begin = 0
        with driver_faults():
            while begin < size:
                if stop():
                    self._empty(self._tally)
                    self._empty(self._account)
                    return False
                end = min(begin + self._launch_size[photons], size)
                started = time.perf_counter()
                self._launch(photons, first, begin, end, size)
                self._adapt(photons, end - begin, time.perf_counter() - started)
                begin = end
        return True

    def take_in(self, estimate: Estimate, size: int, regions: tuple[Region, ...]) -> None:
        """What `Estimate.add` does, on the card: add the batch of `size` decays that ran, empty the tally.

        Region means, batch sizes and account of the estimate are up to date then, its arrays after `settle`.
        """
        with driver_faults():
            total, spread = self._sums_of(estimate)
            for region in regions:
                mean = self._region_sum(region) / (size * max(region.voxels.size, 1))
                estimate.regions.setdefault(region.name, []).append(mean)
            self._kernels.fold[self._blocks, self._threads](
                self._tally, total, spread, float(size), float(estimate.decays)
            )
            estimate.sizes.append(size)
            estimate.account += self._account.copy_to_host()
            self._empty(self._account)

    def settle(self, estimate: Estimate) -> None:
        """Bring the arrays of an estimate up to date with what the card has taken in."""
        if id(estimate) in self._sums:
            with driver_faults():
                total, spread = self._sums[id(estimate)]
                total.copy_to_host(estimate.total)
                spread.copy_to_host(estimate.spread)

    def close(self) -> None:
        """See `threads.Runner.close`: the context keeps no more of the run."""
        self._sums.clear()
        self._regions.clear()

    def _launch(self, photons: bool, first: int, begin: int, end: int, size: int) -> None:
        """Histories `begin` ... `end` − 1 of a batch of `size`; returns when they have ended."""
        kernel = self._kernels.photons if photons else self._kernels.electrons
        kernel[self._blocks, self._threads](
            *self._transport, self._tally, self._account, self._shells,
            first, begin, end, size, self._keys[photons],
        )  # fmt: skip
        self._cuda.synchronize()

    def _sums_of(self, estimate: Estimate) -> tuple[Any, Any]:
        if id(estimate) not in self._sums:
            # A resumed run goes on from what the estimate holds.
            self._sums[id(estimate)] = self._uploaded(estimate.total), self._uploaded(estimate.spread)
        return self._sums[id(estimate)]

    def _region_sum(self, region: Region) -> float:
        if id(region) not in self._regions:
            self._regions[id(region)] = region, self._uploaded(region.voxels), self._uploaded(region.per_gram)
        _, voxels, per_gram = self._regions[id(region)]
        result = self._zeros(1, np.float64)
        self._kernels.region_sum[self._blocks, self._threads](self._tally, voxels, per_gram, result)
        return float(result.copy_to_host()[0])

    def _adapt(self, photons: bool, histories: int, seconds: float) -> None:
        if seconds < SHORT_LAUNCH_S and histories == self._launch_size[photons]:
            self._launch_size[photons] *= 2
        elif seconds > LONG_LAUNCH_S:
            self._launch_size[photons] = max(self._launch_size[photons] // 2, self._threads)

    def _uploaded(self, value: Any) -> Any:
        """The value with every array in it on the card."""
        if isinstance(value, np.ndarray):
            # An array without elements has no address there and cannot be an argument: one is sent instead.
            return self._cuda.to_device(
                np.ascontiguousarray(value) if value.size else np.zeros(1, value.dtype)
            )
        if isinstance(value, tuple):
            return type(value)(*(self._uploaded(part) for part in value))
        return value

    def _zeros(self, size: int, dtype: type) -> Any:
        return self._cuda.to_device(np.zeros(size, dtype))

    def _empty(self, array: Any) -> None:
        array.copy_to_device(np.zeros(array.shape, array.dtype))


def require_memory(wanted: int, free: float) -> None:
    """raises: TooLittleMemory."""
    if wanted > free:
        raise TooLittleMemory(
            f"the GPU has {free / 2**20:.0f} MiB free, the Monte Carlo takes {wanted / 2**20:.0f}",
            "Free memory of the GPU, set a coarser grid, or compute on the processor",
        )


@contextmanager
def driver_faults() -> Iterator[None]:
    """Turn what the driver raises into EngineFailed, and a failed allocation into TooLittleMemory."""
    try:
        yield
    except driver_errors() as fault:
        if "OUT_OF_MEMORY" in str(fault):
            raise TooLittleMemory(
                f"the GPU's memory did not suffice ({fault})",
                "Compute on the processor, or set a coarser grid",
            ) from fault
        raise EngineFailed(
            f"the GPU failed ({fault})", "Try again; if it stays, choose the device cpu and check nvidia-smi"
        ) from fault


def driver_errors() -> tuple[type[Exception], ...]:
    """Those of `DRIVER_ERRORS` that the installed versions have; the simulator has few."""
    kinds = []
    for module, name in DRIVER_ERRORS:
        try:
            kinds.append(getattr(import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return tuple(kinds)


def _bytes(value: Any) -> int:
    """Of all arrays in a tree of tuples."""
    if isinstance(value, tuple):
        return sum(_bytes(part) for part in value)
    return int(value.nbytes) if isinstance(value, np.ndarray) else 0
