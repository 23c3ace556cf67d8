"""What a run needs before its first history: geometry, tables and source, made to fit each other."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.montecarlo.data import PhysicsData, load_physics
from pipeline.montecarlo.electron_tables import electron_tables
from pipeline.montecarlo.energy import E_MAX_KEV
from pipeline.montecarlo.geometry import Geometry, shell_geometry, voxel_geometry
from pipeline.montecarlo.materials import index_of, material_map
from pipeline.montecarlo.photon_tables import CUTOFF_KEV, photon_tables
from pipeline.montecarlo.sampling import Emission, Source, source_in_sphere, source_in_voxels
from pipeline.montecarlo.threads import Transport
from pipeline.volume import Volume

RESOLUTION_OF_VOXEL = 0.005
"""An electron ends where it is when its range is below this part of the smallest side of a voxel."""

RESOLUTION_OF_SHELL = 0.05
"""The same for the thinnest shell."""

LONGEST_RESOLUTION_G_PER_CM2 = 2.5e-4
"""And never longer than the range of 10 keV in water (ESTAR): a single thick shell is a sphere, whose leakage
is asked for.
"""

CONTAINED_BELOW_KEV = 200.0
"""Electrons below it end in their voxel when they cannot leave it. Radiation could: 0.1 % of the energy of
200 keV in water (radiation yield, ESTAR), of which most of it is absorbed within centimetres.
"""

SPARSE_G_PER_CM3 = 0.2
"""Lung, the thinnest tissue that takes up activity: range there decides which electron lines stay in their
place.
"""

WATER = "water"


def voxel_transport(
    activity: Volume, density: Volume, source: Emission, medium: str | None = None
) -> Transport:
    """Transport through the media that the densities mean, or through `medium` alone.

    activity, density: on the same grid.
    raises: InputRejected, see `require_tabulated`.
    """
    require_tabulated(source)
    physics = load_physics()
    z, y, x = (side / 10.0 for side in density.grid.spacing_mm)
    material = material_map(density.array)
    if medium is not None:
        material = np.full(density.grid.shape, index_of(medium), np.uint8)
    geometry = voxel_geometry(material, density.array, (z, y, x))
    resolution = RESOLUTION_OF_VOXEL * min(z, y, x)
    local = local_below_kev(physics, resolution)
    return _transport(
        physics, geometry, np.unique(material), resolution, CONTAINED_BELOW_KEV,
        source_in_voxels(activity.array, source, local, CUTOFF_KEV), local,
    )  # fmt: skip


def shell_transport(
    source: Emission,
    medium: str,
    density_g_per_cm3: float,
    edges_cm: NDArray[np.float64],
    source_radius_cm: float = 0.0,
) -> Transport:
    """Transport through one medium without bounds, tallied in shells about the source.

    raises: InputRejected, see `require_tabulated`.
    """
    require_tabulated(source)
    physics = load_physics()
    material = index_of(medium)
    geometry = shell_geometry(material, density_g_per_cm3, edges_cm)
    longest = LONGEST_RESOLUTION_G_PER_CM2 / density_g_per_cm3
    resolution = min(RESOLUTION_OF_SHELL * float(np.diff(edges_cm).min()), longest)
    local = local_below_kev(physics, resolution)
    return _transport(
        physics, geometry, np.array([material]), resolution, 0.0,
        source_in_sphere(source_radius_cm, source, local, CUTOFF_KEV), local,
    )  # fmt: skip


def require_tabulated(source: Emission) -> None:
    """raises: InputRejected for a source that emits energies beyond the tables."""
    kinds = source.beta_cdf_kev, source.electron_kev, source.photon_kev
    highest = max(float(np.max(energy, initial=0.0)) for energy in kinds)
    if highest > E_MAX_KEV:
        raise InputRejected(
            f"the nuclide emits {highest:.0f} keV, and the physics tables end at {E_MAX_KEV:.0f} keV",
            "Monte Carlo cannot follow it: choose the engine dvk",
        )


def local_below_kev(physics: PhysicsData, resolution_cm: float) -> float:
    """Energy whose range is the resolution in lung: weaker electrons need no history."""
    range_cm = physics.csda_range[index_of(WATER)] / SPARSE_G_PER_CM3
    return float(np.interp(resolution_cm, range_cm, physics.energy_kev))


def source_hash(source: Emission) -> str:
    """SHA-256 of what a source emits."""
    digest = hashlib.sha256(f"{source.beta_yield!r}".encode())
    lines = source.electron_kev, source.electron_yield, source.photon_kev, source.photon_yield
    for array in (source.beta_cdf_kev, *lines):
        digest.update(np.ascontiguousarray(array, np.float64).tobytes())
    return digest.hexdigest()


def _transport(
    physics: PhysicsData,
    geometry: Geometry,
    materials: NDArray[np.integer],
    resolution_cm: float,
    contained_below_kev: float,
    source: Source,
    local_below: float,
) -> Transport:
    return Transport(
        geometry,
        electron_tables(
            physics, materials, resolution_cm=resolution_cm, contained_below_kev=contained_below_kev
        ),
        photon_tables(physics, geometry, electron_cutoff_kev=local_below),
        source,
    )
