"""Lesions: balls with uneven surfaces, some with a necrotic core.

`draw_lesions` gives the reference patient its eight; `scattered` gives any patient as many as the law of his
family draws, of 6 to 70 mm, at the sites of his anatomy. A lesion's uptake is its contrast times the uptake
of its site; the site of a lesion outside the liver names normal liver's uptake there, as the Krenning scale
grades lesions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline.simulate.fields import Field, sample, smooth_field
from pipeline.simulate.shapes import Points, cropped, ellipsoid, within
from pipeline.simulate.tissue import LESION_HU
from pipeline.volume import Grid, Triple

# Diameters in the liver, mm: from the size of a voxel of SPECT's resolution to a dominant metastasis.
_LIVER_DIAMETERS_MM = (54.0, 36.0, 28.0, 21.0, 15.0)
_NECROTIC_FROM_MM = 45.0


@dataclass(frozen=True)
class Lesion:
    """name: where it sits. diameter_mm: of the ball it was made from. uptake: Bq/mL of viable tumour.

    label: its code in the label image. necrotic: whether its core is cold. volume_ml: with its core.
    contrast: uptake over that of its site (module docstring); 0 where none was asked for.
    """

    name: str
    label: int
    diameter_mm: float
    uptake: float
    necrotic: bool
    volume_ml: float = 0.0
    contrast: float = 0.0


@dataclass(frozen=True)
class LesionShape:
    """A lesion and its surfaces on the whole lattice; `core` is None where it is not necrotic.

    hu: CT number of viable tumour. core_uptake: Bq/mL. texture: as `Tissue.texture`. edge_mm: as `Layer`'s.
    """

    lesion: Lesion
    surface: Field
    core: Field | None
    hu: float = LESION_HU
    core_uptake: float = 0.1e6
    texture: float = 0.2
    edge_mm: float | None = None


@dataclass(frozen=True)
class Site:
    """Where lesions grow.

    name: as in `Lesion`. organ: distance to its surface on the lattice, reference mm. background: the
    uptake that contrast refers to, Bq/mL. hu: mean CT number of a lesion there. share: of the patient's
    lesions. buried: the part of its radius that a lesion's centre lies below the organ's surface.
    """

    name: str
    organ: Field
    background: float
    hu: float = LESION_HU
    share: float = 1.0
    buried: float = 0.7


@dataclass(frozen=True)
class Growth:
    """Where a lesion grows: the diameter (reference mm) it was drawn with, and the lattice about its centre.

    points: coordinates there, reference mm. centre: among them. lattice_mm: between points, reference mm.
    scale: patient mm for a reference mm.
    """

    points: Points
    centre: Triple
    diameter: float
    lattice_mm: float
    scale: float


@dataclass(frozen=True)
class LesionLaw:
    """What the lesions of a family of patients are like.

    diameters: mm in the patient, largest first: it needs the room. grown: the lesion at a place, its surfaces
    on the place's points; label and volume are given to it afterwards.
    """

    diameters: Callable[[np.random.Generator], list[float]]
    grown: Callable[[Growth, Site, np.random.Generator], LesionShape]


def _ball(p: Points, centre: Triple, radius: float, rng: np.random.Generator, spacing_mm: float) -> Field:
    stretch = rng.uniform(0.88, 1.12, 3)
    rx, ry, rz = (radius * stretch / np.cbrt(stretch.prod())).tolist()
    ball = ellipsoid(p, centre, (rx, ry, rz))
    return ball + np.float32(0.16 * radius) * smooth_field(
        rng, ball.shape, spacing_mm, max(radius, 4 * spacing_mm)
    )


def _place(p: Points, organ: Field, room: Field, radius: float, rng: np.random.Generator) -> Triple:
    """A point of `organ` that leaves the lesion mostly inside it and clear of the others."""
    inside = np.flatnonzero((organ < -0.75 * radius) & (room > radius + 5))
    if not inside.size:
        inside = np.flatnonzero(organ < 0)
    z, y, x = np.unravel_index(int(rng.choice(inside)), organ.shape)
    return float(p.x[z, y, x]), float(p.y[z, y, x]), float(p.z[z, y, x])


def _shape(
    p: Points,
    name: str,
    index: int,
    centre: Triple,
    diameter: float,
    rng: np.random.Generator,
    spacing_mm: float,
) -> LesionShape:
    necrotic = diameter >= _NECROTIC_FROM_MM
    # 0.8 to 4.5 MBq/mL: 10 to 50 Gy a cycle.
    uptake = float(np.clip(rng.lognormal(np.log(2.0e6), 0.45), 0.8e6, 4.5e6))
    surface = _ball(p, centre, diameter / 2, rng, spacing_mm)
    core = _ball(p, centre, 0.22 * diameter, rng, spacing_mm) if necrotic else None
    return LesionShape(Lesion(name, 100 + index, diameter, uptake, necrotic), surface, core)


def draw_lesions(p: Points, liver: Field, rng: np.random.Generator, spacing_mm: float) -> list[LesionShape]:
    """Five in the liver, one mesenteric mass, one para-aortic node, one in a vertebra."""
    shapes: list[LesionShape] = []
    room = np.full(liver.shape, 99.0, dtype=np.float32)
    for diameter in _LIVER_DIAMETERS_MM:
        size = float(diameter * rng.uniform(0.9, 1.1))
        centre = _place(p, liver, room, size / 2, rng)
        shape = _shape(p, "liver", len(shapes), centre, size, rng, spacing_mm)
        room = np.minimum(room, shape.surface)
        shapes.append(shape)
    elsewhere: tuple[tuple[str, Triple, float], ...] = (
        ("mesentery", (-6, -34, -84), 30),
        ("node", (29, 8, -62), 19),
        ("vertebra", (-7, 34, -71), 20),
    )
    for name, centre, diameter in elsewhere:
        jitter = rng.uniform(-4, 4, 3)
        moved = (centre[0] + jitter[0], centre[1] + jitter[1], centre[2] + jitter[2])
        shapes.append(_shape(p, name, len(shapes), moved, diameter, rng, spacing_mm))
    return shapes


_MOST = 15
_CROWD = (14, 30)
DIAMETERS_MM = (6.0, 70.0)
CONTRASTS = (1.5, 12.0)
MAY_BE_NECROTIC_FROM_MM = 25.0
_GAP_MM = 3.0  # between two lesions
_SMALLEST_ML = 0.06  # half a ball of 6 mm: bumps have eaten the rest
_FINE = 3  # points along an edge of a lattice cell, where volumes are counted


def drawn_count(rng: np.random.Generator) -> int:
    """Between none and 15, eight on average."""
    return int(np.clip(np.rint(rng.normal(8, 2.8)), 0, _MOST))


def _diameters(rng: np.random.Generator) -> list[float]:
    return _sizes(rng, drawn_count(rng))


def _crowd_diameters(rng: np.random.Generator) -> list[float]:
    return _sizes(rng, int(rng.integers(*_CROWD, endpoint=True)))


def _sizes(rng: np.random.Generator, count: int) -> list[float]:
    """Log-normal about 24 mm (7 mL): three in four are above 2 mL."""
    drawn = np.exp(rng.normal(np.log(24), 0.5, count))
    return sorted(np.clip(drawn, *DIAMETERS_MM).tolist(), reverse=True)


def scattered(
    p: Points,
    sites: list[Site],
    body: Field,
    rng: np.random.Generator,
    scale: float,
    spacing_mm: float,
    law: LesionLaw,
) -> list[LesionShape]:
    """Lesions at random places of `sites`, clear of each other and inside `body`.

    p: coordinates on the lattice, reference mm. body: distance to the surface that holds every lesion.
    scale: patient mm for a reference mm. spacing_mm: of the lattice, patient mm.

    A lesion that finds no room becomes smaller until it does, and is left out below 6 mm.
    """
    shapes: list[LesionShape] = []
    room = np.full(body.shape, 99.0, dtype=np.float32)
    shares = np.array([site.share for site in sites]) / sum(site.share for site in sites)
    for diameter in law.diameters(rng):
        site = sites[int(rng.choice(len(sites), p=shares))]
        placed = _found(site, room, diameter / scale, rng)
        if placed is None or placed[1] * scale < DIAMETERS_MM[0]:
            continue
        shape = _at(p, site, *placed, (scale, spacing_mm), law, rng)
        inside = within(shape.surface, body)
        volume = _volume_ml(inside * np.float32(scale), spacing_mm)
        if volume < _SMALLEST_ML:
            continue
        room = np.minimum(room, inside)
        lesion = replace(shape.lesion, label=100 + len(shapes), volume_ml=volume)
        shapes.append(replace(shape, surface=inside, lesion=lesion))
    return shapes


def _volume_ml(distance: Field, spacing_mm: float) -> float:
    """Of the inside of a surface given on the lattice, counted on a finer one."""
    field = cropped(distance, spacing_mm).distance
    lattice = Grid((field.shape[0], field.shape[1], field.shape[2]), (0.0, 0.0, 0.0), (spacing_mm,) * 3)
    nz, ny, nx = (_FINE * (n - 1) + 1 for n in field.shape)
    fine = Grid((nz, ny, nx), (0.0, 0.0, 0.0), (spacing_mm / _FINE,) * 3)
    return float((sample(field, lattice, fine) < 0).sum()) * fine.voxel_volume_ml


def _found(
    site: Site, room: Field, diameter: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int], float] | None:
    """The lattice index of a lesion's centre and the diameter (reference mm) that fits there."""
    for _ in range(8):
        radius = diameter / 2
        candidates = np.flatnonzero((site.organ < -site.buried * radius) & (room > radius * 1.15 + _GAP_MM))
        if candidates.size:
            z, y, x = np.unravel_index(int(rng.choice(candidates)), room.shape)
            return (int(z), int(y), int(x)), diameter
        diameter *= 0.8
    return None


def _at(
    p: Points,
    site: Site,
    centre: tuple[int, int, int],
    diameter: float,
    sizes: tuple[float, float],
    law: LesionLaw,
    rng: np.random.Generator,
) -> LesionShape:
    """A lesion of `diameter` (reference mm) about a point of the lattice; sizes: (scale, spacing_mm)."""
    scale, spacing_mm = sizes
    lattice_mm = spacing_mm / scale
    reach = int(np.ceil((diameter * 0.75 + 12) / lattice_mm))
    box = tuple(slice(max(c - reach, 0), c + reach + 1) for c in centre)
    whole = site.organ.shape
    local = Points(*(np.broadcast_to(c, whole)[box] for c in p))
    middle = tuple(float(np.broadcast_to(c, whole)[centre]) for c in p)
    shape = law.grown(
        Growth(local, (middle[0], middle[1], middle[2]), diameter, lattice_mm, scale), site, rng
    )
    core = None if shape.core is None else _on_lattice(shape.core, box, whole)
    return replace(shape, surface=_on_lattice(shape.surface, box, whole), core=core)


def _grown(at: Growth, site: Site, rng: np.random.Generator) -> LesionShape:
    """An uneven ball; half of those above 25 mm have a cold core near the middle."""
    whole = uneven(at, at.centre, at.diameter / 2, rng)
    necrotic = at.diameter * at.scale >= MAY_BE_NECROTIC_FROM_MM and bool(rng.random() < 0.5)
    core = None
    if necrotic:
        x, y, z = (c + o for c, o in zip(at.centre, rng.normal(0, 0.05 * at.diameter, 3), strict=True))
        core = uneven(at, (x, y, z), at.diameter * float(rng.uniform(0.2, 0.33)), rng)
        core = within(core, whole + np.float32(0.1 * at.diameter))
    contrast = float(np.clip(np.exp(rng.normal(np.log(5.0), 0.55)), *CONTRASTS))
    return taken_up(at, site, whole, core, contrast, 6.0, rng)


def taken_up(
    at: Growth,
    site: Site,
    whole: Field,
    core: Field | None,
    contrast: float,
    hu_deviation: float,
    rng: np.random.Generator,
) -> LesionShape:
    """A lesion of these surfaces with a contrast to its site. hu_deviation: of its mean CT number."""
    uptake = contrast * site.background
    return LesionShape(
        Lesion(site.name, 0, at.diameter * at.scale, uptake, core is not None, contrast=contrast),
        whole,
        core,
        hu=float(site.hu + rng.normal(0, hu_deviation)),
        core_uptake=uptake * float(rng.uniform(0.03, 0.2)),
        texture=float(np.exp(rng.uniform(np.log(0.05), np.log(0.4)))),
        edge_mm=float(rng.uniform(0, 3)),
    )


def uneven(at: Growth, centre: Triple, radius: float, rng: np.random.Generator) -> Field:
    """A lump: an ellipsoid of random axes, its surface moved by up to a fifth of its radius."""
    stretch = rng.uniform(0.78, 1.25, 3)
    rx, ry, rz = (radius * stretch / np.cbrt(stretch.prod())).tolist()
    length = max(radius * float(rng.uniform(0.6, 1.4)), 4 * at.lattice_mm)
    bumps = smooth_field(rng, at.points.x.shape, at.lattice_mm, length)
    depth = np.float32(radius * rng.uniform(0.05, 0.2))
    return np.asarray(ellipsoid(at.points, centre, (rx, ry, rz)) + depth * bumps, dtype=np.float32)


UNEVEN = LesionLaw(_diameters, _grown)
"""The lesions of the families that networks are trained on, none to 15 in a patient."""

CROWDED = LesionLaw(_crowd_diameters, _grown)
"""The same, 14 to 30 in a patient, less those that find no room: what a network learns of lesions is limited
by how many it has seen, and a lesion more in a patient costs nothing."""


def _on_lattice(distance: Field, box: tuple[slice, ...], shape: tuple[int, ...]) -> Field:
    whole = np.full(shape, 99.0, dtype=np.float32)
    whole[box] = distance
    return whole
