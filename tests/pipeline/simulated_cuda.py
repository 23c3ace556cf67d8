"""Run by `test_montecarlo_cuda` in a process of its own: the CUDA driver in numba's simulator.

Writes to the file that is its argument what electrons and photons of a few decays leave.
"""

from __future__ import annotations

import sys

import numpy as np

from pipeline.montecarlo.batches import Region, empty_estimate
from pipeline.montecarlo.cuda import CudaRunner
from pipeline.montecarlo.geometry import tally_size
from tests.pipeline.montecarlo_scene import small_transport


def main(path: str, decays: int) -> None:
    transport = small_transport()
    voxels = tally_size(transport.geometry)
    runner = CudaRunner(transport, seed=7, blocks=2, threads_per_block=1)
    region = Region("some", np.arange(10, 60), np.linspace(1.0, 2.0, 50))
    result: dict[str, np.ndarray] = {}
    for photons, name in enumerate(("electrons", "photons")):
        one, two, stopped = (empty_estimate(voxels) for _ in range(3))
        assert runner.run(bool(photons), 5, decays, lambda: False)
        runner.take_in(one, decays, ())
        for size in (decays // 2, decays // 4):
            assert runner.run(bool(photons), two.decays, size, lambda: False)
            runner.take_in(two, size, (region,))
        assert not runner.run(bool(photons), 0, decays, lambda: True)
        runner.take_in(stopped, 1, ())
        for estimate in (one, two, stopped):
            runner.settle(estimate)
        result |= {
            f"{name}_tally": one.total,
            f"{name}_account": one.account,
            f"{name}_total": two.total,
            f"{name}_spread": two.spread,
            f"{name}_region": np.array(two.regions["some"]),
            f"{name}_summed": two.account,
            f"{name}_stopped": stopped.total,
        }
    np.savez(path, **result)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
