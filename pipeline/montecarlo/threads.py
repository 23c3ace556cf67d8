"""Batches on the processor: plain threads, each with its own tally; the compiled histories release the
interpreter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cores import available_cores
from pipeline.montecarlo.bank import new_bank
from pipeline.montecarlo.batches import Estimate, Region
from pipeline.montecarlo.electron_tables import ElectronTables
from pipeline.montecarlo.geometry import ACCOUNT_SIZE, Geometry, tally_size
from pipeline.montecarlo.histories import run_histories
from pipeline.montecarlo.photon_tables import PhotonTables
from pipeline.montecarlo.random_numbers import stream_key
from pipeline.montecarlo.sampling import Source

Float64 = NDArray[np.float64]

ELECTRON_STREAM, PHOTON_STREAM = 0, 1

# Histories between two looks at `stop`: about 0.1 s of photons, the slower ones.
CHUNK = 10_000
CHUNKS_PER_THREAD = 8
MOST_TALLIES_GB = 2.2
"""Every thread has a tally of 8 bytes a voxel: eight of them at 512 x 512 x 130."""


class Transport(NamedTuple):
    """All that a history needs."""

    geometry: Geometry
    electron_tables: ElectronTables
    photon_tables: PhotonTables
    source: Source


class Runner(Protocol):
    """What runs batches: threads of the processor, or a graphics card. device: what it runs on."""

    device: str

    def run(self, photons: bool, first: int, size: int, stop: Callable[[], bool]) -> bool:
        """One batch of `size` decays' photons or electrons, beginning with history `first`.

        returns: False when `stop` said so and the batch is incomplete; nothing of it is left then.
        """
        ...

    def take_in(self, estimate: Estimate, size: int, regions: tuple[Region, ...]) -> None:
        """Add the batch that has just run to an estimate. Its arrays may wait until `settle`."""
        ...

    def settle(self, estimate: Estimate) -> None:
        """Bring the arrays of an estimate up to date."""
        ...

    def close(self) -> None:
        """No more batches: give back the memory that they took."""
        ...


class ThreadRunner:
    """`Runner` on `threads` threads of the processor.

    tallies: [threads, n] keV and accounts: [threads, ACCOUNT_SIZE] keV of the batch that runs.
    """

    def __init__(self, transport: Transport, seed: int, threads: int | None = None) -> None:
        self.device = "cpu"
        self.transport = transport
        self.threads = threads or sensible_threads(tally_size(transport.geometry))
        self.tallies = np.zeros((self.threads, tally_size(transport.geometry)))
        self.accounts = np.zeros((self.threads, ACCOUNT_SIZE))
        self._keys = stream_key(seed, ELECTRON_STREAM), stream_key(seed, PHOTON_STREAM)
        # No history at all, but compiled now: half a minute that belongs to no batch and to no time limit.
        self._follow(False, 0, 0, 0, 0, 1)

    def run(self, photons: bool, first: int, size: int, stop: Callable[[], bool]) -> bool:
        """See `Runner.run`."""
        chunk = max(1, min(CHUNK, size // (self.threads * CHUNKS_PER_THREAD)))
        begins = iter(range(0, size, chunk))
        taking, stopped = threading.Lock(), threading.Event()

        def work(thread: int) -> None:
            while not stopped.is_set():
                with taking:
                    begin = next(begins, None)
                    if begin is not None and stop():
                        stopped.set()
                if begin is None or stopped.is_set():
                    return
                self._follow(photons, thread, first, begin, min(begin + chunk, size), size)

        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for future in [pool.submit(work, thread) for thread in range(self.threads)]:
                    future.result()
            except BaseException:  # also Ctrl-C: leaving the pool would wait for the whole batch
                stopped.set()
                raise
        if stopped.is_set():
            self.tallies[:] = 0.0
            self.accounts[:] = 0.0
        return not stopped.is_set()

    def _follow(self, photons: bool, thread: int, first: int, begin: int, end: int, size: int) -> None:
        """Histories `begin` ... `end` − 1 of a batch, into the tally of a thread."""
        run_histories(
            photons, *self.transport, self.tallies[thread], self.accounts[thread], new_bank(),
            first, begin, end, size, self._keys[photons],
        )  # fmt: skip

    def take_in(self, estimate: Estimate, size: int, regions: tuple[Region, ...]) -> None:
        """See `Runner.take_in`."""
        estimate.add(self.tallies, self.accounts, size, regions)

    def settle(self, estimate: Estimate) -> None:
        """See `Runner.settle`: nothing waits."""

    def close(self) -> None:
        """See `Runner.close`."""
        self.tallies = np.zeros((self.threads, 0))


def sensible_threads(voxels: int) -> int:
    """All cores that may be used; fewer where their tallies would take more than `MOST_TALLIES_GB`."""
    return max(1, min(available_cores(), int(MOST_TALLIES_GB * 1e9 / (8 * voxels))))
