"""Run by `test_projector` in a process of its own: the CUDA kernels in numba's simulator, at a tiny size.

Writes to the file that is its argument what a few views see, and what they leave.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from pipeline.simulate.camera import medium_energy_lu177
from pipeline.simulate.projector import Projector

SIDE = 19.2
VIEWS = np.array([5, 0, 3])


def projector(device: str) -> Projector:
    """Six views from different distances round 4 slices of 10 x 12 voxels."""
    camera = replace(medium_energy_lu177(), bins=8, slices=2, pixel_mm=SIDE, views=6)
    rng = np.random.default_rng(2)
    support = np.zeros((10, 12), bool)
    support[3:7, 3:8] = True
    mu = rng.uniform(0, 0.01, (4, 10, 12))
    return Projector(mu, SIDE, camera, np.linspace(90, 160, 6), support=support, threads=1, device=device)


def source(of: Projector) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(image, projections of `VIEWS`)."""
    rng = np.random.default_rng(3)
    image = rng.random(of.shape, dtype=np.float32) * of.support
    return image, rng.random((VIEWS.size, of.camera.slices, of.camera.bins), dtype=np.float32)


def kernels_as_ptx() -> dict[str, str]:
    """Every kernel, compiled for a card that need not be there."""
    numba: Any = import_module("numba")
    cuda: Any = import_module("numba.cuda")
    kernels: Any = import_module("pipeline.simulate.projector_cuda")
    planes, image = np.zeros((2, 4, 4), np.float32), np.zeros((4, 4, 4), np.float32)
    course = projector("cpu")._runner._course  # type: ignore[attr-defined]
    slab = (planes, image, image, course, VIEWS, 0)
    arguments = {
        "blur_pass": (planes, planes, course, VIEWS, 0, 0),
        "gather_slab": slab,
        "spread_slab": slab,
    }
    card = SimpleNamespace(compute_capability=(9, 0))
    result = {}
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=card):
        for name, given in arguments.items():
            signature = numba.core.types.void(*(numba.typeof(each) for each in given))
            code, _ = cuda.compile_ptx(getattr(kernels, name).py_func, signature, cc=(9, 0), fastmath=True)
            result[name] = str(code)
    return result


def main(path: str) -> None:
    """See the module."""
    card = projector("cuda")
    image, projections = source(card)
    np.savez(path, forward=card.forward(image, VIEWS), backward=card.backward(projections, VIEWS))


if __name__ == "__main__":
    main(sys.argv[1])
