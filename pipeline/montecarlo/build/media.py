"""One CSV of transport data and one of scattering data for every medium."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.constants import AVOGADRO
from pipeline.montecarlo import energy
from pipeline.montecarlo.build import elastic, electrons, photons
from pipeline.montecarlo.data import MEDIUM_COLUMNS, SCATTERING_COLUMNS
from pipeline.montecarlo.materials import ATOMIC_WEIGHT, MATERIALS, Material

Transport = dict[int, tuple[electrons.Float64, electrons.Float64]]


def media_files(materials: Iterable[Material] = MATERIALS) -> Iterator[tuple[str, str]]:
    """(name, text) of every file; a few minutes, nearly all for the partial waves."""
    materials = tuple(materials)
    grid = energy.grid_kev()
    elements = sorted({z for material in materials for z in material.composition})
    transport = {z: elastic.transport_cross_sections(z, grid) for z in elements}
    for material in materials:
        yield f"media/{material.name}.csv", _transport_text(material, transport)
        yield f"media/{material.name}_scattering.csv", _scattering_text(material)


def transport_columns(material: Material, transport: Transport) -> dict[str, electrons.Float64]:
    """Every column of `MEDIUM_COLUMNS` on the grid."""
    grid = energy.grid_kev()
    columns = {**photons.cross_sections(material.composition, grid), **electrons.stopping(material, grid)}
    columns["csda_range"] = electrons.csda_range(
        grid, columns["collision_stopping"] + columns["radiative_stopping"]
    )
    for i, name in enumerate(("elastic_transport", "elastic_second_transport")):
        columns[name] = sum(
            (
                AVOGADRO * share / ATOMIC_WEIGHT[z] * transport[z][i]
                for z, share in material.composition.items()
            ),
            np.zeros_like(grid),
        )
    return columns


def _transport_text(material: Material, transport: Transport) -> str:
    columns = transport_columns(material, transport)
    rows = [energy.grid_kev(), *(columns[name] for name in MEDIUM_COLUMNS)]
    units = "keV; photons and elastic cm2/g; stopping MeV cm2/g; range g/cm2"
    return _csv(f"{material.name}; {units}", ("energy_kev", *MEDIUM_COLUMNS), rows)


def _scattering_text(material: Material) -> str:
    rows = [photons.MOMENTUM_X, *photons.scattering(material.composition)]
    return _csv(f"{material.name}; x in 1/A, S per electron, F2/A in mol/g", SCATTERING_COLUMNS, rows)


def _csv(title: str, header: Iterable[str], columns: list[electrons.Float64]) -> str:
    lines = [f"# {title}", ",".join(header)]
    lines += [",".join(f"{value:.6e}" for value in row) for row in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"
