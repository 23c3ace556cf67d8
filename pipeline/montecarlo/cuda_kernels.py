"""Kernels of the graphics card: histories, by the very functions that the processor compiles, and sums.

Imported by `cuda` alone, and only when a card is to be used: numba-cuda is optional.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import cuda as numba_cuda
from numpy.typing import NDArray

from pipeline.montecarlo.bank import BANK_DEPTH, BANK_ROW
from pipeline.montecarlo.electron_tables import ElectronTables
from pipeline.montecarlo.geometry import ACCOUNT_SIZE, Geometry
from pipeline.montecarlo.histories import history
from pipeline.montecarlo.photon_tables import PhotonTables
from pipeline.montecarlo.sampling import Source

THREADS_PER_BLOCK = 128

cuda: Any = numba_cuda  # it publishes no types
# With the card's approximate logarithms, sines and divisions: their errors, 2 units in the last place of
# float32 or 5e-7 absolute, are far below those of interpolation.
_jit = cuda.jit(fastmath=True)


def _histories(of_photons: bool) -> Any:
    """The kernel that runs histories `begin` ... `end` − 1 of a batch of `strata` from number `first` on.

    shells: how many elements of `geometry.shells` count: an empty array has no address on the card, and
    cannot be an argument.
    """

    def kernel(
        geometry: Geometry,
        electron_tables: ElectronTables,
        photon_tables: PhotonTables,
        source: Source,
        tally: NDArray[np.float64],
        account: NDArray[np.float64],
        shells: int,
        first: int,
        begin: int,
        end: int,
        strata: int,
        key: np.uint64,
    ) -> None:
        voxels = Geometry(
            geometry.nz, geometry.ny, geometry.nx, geometry.dz, geometry.dy, geometry.dx,
            geometry.material, geometry.density, geometry.shells[:shells],
        )  # fmt: skip
        bank = cuda.local.array((BANK_DEPTH, BANK_ROW), numba.float32)
        # A row a thread, so that the account of the run is touched once a thread. Shared memory, because
        # histories add to it atomically, which local memory does not allow.
        accounts = cuda.shared.array((THREADS_PER_BLOCK, ACCOUNT_SIZE), numba.float64)
        own = accounts[cuda.threadIdx.x]
        for place in range(ACCOUNT_SIZE):
            own[place] = 0.0
        for stratum in range(begin + cuda.grid(1), end, cuda.gridsize(1)):
            history(
                of_photons, voxels, electron_tables, photon_tables, source, tally, own,
                bank, first + stratum, stratum, strata, key,
            )  # fmt: skip
        for place in range(ACCOUNT_SIZE):
            cuda.atomic.add(account, place, own[place])

    return kernel


electrons = _jit(_histories(of_photons=False))
photons = _jit(_histories(of_photons=True))


@_jit  # type: ignore[untyped-decorator]
def region_sum(
    tally: NDArray[np.float64],
    voxels: NDArray[np.int64],
    per_gram: NDArray[np.float64],
    result: NDArray[np.float64],
) -> None:
    """Adds to result[0] the keV/g of a region's voxels."""
    total = 0.0
    for i in range(cuda.grid(1), voxels.shape[0], cuda.gridsize(1)):
        total += tally[voxels[i]] * per_gram[i]
    cuda.atomic.add(result, 0, total)


@cuda.jit  # type: ignore[untyped-decorator]
def fold(
    tally: NDArray[np.float64],
    total: NDArray[np.float64],
    spread: NDArray[np.float32],
    size: float,
    before: float,
) -> None:
    """Add a batch of `size` decays to the sums of `before` by the rule of `batches`; empty the tally."""
    for voxel in range(cuda.grid(1), tally.shape[0], cuda.gridsize(1)):
        energy = tally[voxel]
        tally[voxel] = 0.0
        old = total[voxel] / max(before, 1.0)
        total[voxel] += energy
        spread[voxel] += np.float32(size * (before / (before + size)) * (energy / size - old) ** 2)
