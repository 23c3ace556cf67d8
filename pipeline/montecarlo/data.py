"""The physics tables that are shipped with the product, read and checked.

`pipeline/data/montecarlo/README.md` says where every number comes from; `python -m
pipeline.montecarlo.build` makes the files anew. Nothing here computes physics.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from pipeline.constants import AVOGADRO
from pipeline.errors import EngineFailed
from pipeline.montecarlo import energy
from pipeline.montecarlo.materials import ATOMIC_WEIGHT, MATERIALS, Material

Float64 = NDArray[np.float64]
FOLDER = "data/montecarlo"
MANIFEST = "sha256.txt"

# Columns of media/NAME.csv after the energy; cm2/g, MeV cm2/g, g/cm2.
MEDIUM_COLUMNS = (
    "photoelectric", "incoherent", "coherent", "pair", "collision_stopping", "radiative_stopping",
    "density_effect", "csda_range", "elastic_transport", "elastic_second_transport",
)  # fmt: skip
# Columns of media/NAME_scattering.csv.
SCATTERING_COLUMNS = ("momentum_x", "incoherent_function", "form_factor_squared")


@dataclass(frozen=True, slots=True)
class PhysicsData:
    """Fundamental data of M media on the common grid of N energies (`energy.grid_kev`).

    photoelectric, incoherent, coherent, pair: [M, N] photon cross sections, cm2/g.
    momentum_x: [K] sin(θ/2)/λ, 1/Å, equidistant in its logarithm.
    incoherent_function: [M, K] S(x) per electron, 0 to 1.
    form_factor_squared: [M, K] Σ w F²(x)/A over the elements, mol/g.
    collision_stopping, radiative_stopping: [M, N] electrons, MeV cm2/g; density_effect: [M, N] δ.
    csda_range: [M, N] g/cm2.
    elastic_transport, elastic_second_transport: [M, N] G₁ = ∫ (1 − P₁) dσ and G₂ of elastic scattering by
        the atoms (the nuclei with their screening; no inelastic part), cm2/g.
    electrons_per_gram: [M].
    sha256: of all the files, in the order of their names.
    """

    materials: tuple[Material, ...]
    energy_kev: Float64
    photoelectric: Float64
    incoherent: Float64
    coherent: Float64
    pair: Float64
    momentum_x: Float64
    incoherent_function: Float64
    form_factor_squared: Float64
    collision_stopping: Float64
    radiative_stopping: Float64
    density_effect: Float64
    csda_range: Float64
    elastic_transport: Float64
    elastic_second_transport: Float64
    electrons_per_gram: Float64
    sha256: str


@cache
def load_physics() -> PhysicsData:
    """All tables, of every medium of `materials.MATERIALS`, in its order.

    raises: EngineFailed when a file is missing, damaged or of another grid.
    """
    grid = energy.grid_kev()
    media = np.stack([_read(f"media/{material.name}.csv") for material in MATERIALS])
    scattering = np.stack([_read(f"media/{material.name}_scattering.csv") for material in MATERIALS])
    if media.shape[1:] != (energy.N, 1 + len(MEDIUM_COLUMNS)) or not np.allclose(
        media[:, :, 0], grid, rtol=1e-6
    ):
        raise EngineFailed("the physics tables are of another energy grid", "Install the node again")
    columns = {name: np.ascontiguousarray(media[:, :, 1 + i]) for i, name in enumerate(MEDIUM_COLUMNS)}
    return PhysicsData(
        materials=MATERIALS,
        energy_kev=grid,
        momentum_x=scattering[0, :, 0],
        incoherent_function=np.ascontiguousarray(scattering[:, :, 1]),
        form_factor_squared=np.ascontiguousarray(scattering[:, :, 2]),
        electrons_per_gram=np.array([_electrons_per_gram(material) for material in MATERIALS]),
        sha256=_sha256_of_all(),
        **columns,
    )


def shipped(name: str) -> bytes:
    """The bytes of a shipped file, checked against the manifest.

    raises: EngineFailed when it is missing or is not what was built.
    """
    expected = manifest().get(name)
    try:
        content = (files("pipeline") / FOLDER / name).read_bytes()
    except OSError:
        expected, content = None, b""
    if expected is None or hashlib.sha256(content).hexdigest() != expected:
        raise EngineFailed(f"the physics table {name} is missing or damaged", "Install the node again")
    return content


@cache
def manifest() -> dict[str, str]:
    """SHA-256 of every shipped file by its name, as the build wrote them."""
    text = (files("pipeline") / FOLDER / MANIFEST).read_text(encoding="ascii")
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def _read(name: str) -> Float64:
    lines = [line for line in shipped(name).decode("utf-8").splitlines() if not line.startswith("#")]
    return np.array([line.split(",") for line in lines[1:]], dtype=np.float64)


def _electrons_per_gram(material: Material) -> float:
    return AVOGADRO * sum(w * z / ATOMIC_WEIGHT[z] for z, w in material.composition.items())


def _sha256_of_all() -> str:
    return hashlib.sha256("".join(digest for _, digest in sorted(manifest().items())).encode()).hexdigest()
