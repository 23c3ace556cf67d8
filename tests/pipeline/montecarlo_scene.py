"""A small body of several media with a source, for runs on every device."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from pipeline.montecarlo.setup import voxel_transport
from pipeline.montecarlo.threads import Transport
from pipeline.volume import Grid, Volume

# About what Lu-177 emits; both kinds in number, so that few histories show everything.
EMISSION = SimpleNamespace(
    beta_cdf_kev=498.0 * np.linspace(0.0, 1.0, 257) ** 1.7,
    beta_yield=1.0,
    electron_kev=np.array([6.3, 101.7]),
    electron_yield=np.array([0.09, 0.055]),
    photon_kev=np.array([208.4, 112.9, 55.8]),
    photon_yield=np.array([0.5, 0.3, 0.2]),
)


def small_transport(shape: tuple[int, int, int] = (6, 7, 8)) -> Transport:
    """Tissue with lung, bone and air in it, voxels of 3 x 2 x 2 mm, a source in a part of it."""
    density = np.full(shape, 1.04, np.float32)
    density[:, :, -2:] = 0.26
    density[:2, 2:4] = 1.6
    density[-1] = 0.0012
    activity = np.zeros(shape, np.float32)
    activity[1:4, 1:5, 2:6] = 1.0
    grid = Grid(shape, (0.0, 0.0, 0.0), (3.0, 2.0, 2.0))
    return voxel_transport(Volume(activity, grid, "Bq/mL"), Volume(density, grid, "g/cm3"), EMISSION)
