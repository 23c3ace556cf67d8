"""Family `trunk`: organs as implicit surfaces of a reference patient (`torso`, `abdomen`).

The reference is scaled to a body size and bent by a smooth random displacement, so that no two seeds give
the same shapes. `thorax_to_pelvis` is the patient of the demonstration, close to the reference; `trunk`
draws habitus, organ sizes and places, densities, uptake and lesions from wide ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.simulate import abdomen, torso
from pipeline.simulate.abdomen import OrganVolumes
from pipeline.simulate.anatomy import LATTICE, SPACING_MM, Anatomy, Drawing, back_of
from pipeline.simulate.fields import Field, axis_coordinates, smooth_field
from pipeline.simulate.lesions import UNEVEN, LesionLaw, Site, draw_lesions, scattered
from pipeline.simulate.limbs import arms
from pipeline.simulate.makeup import VariedMakeup
from pipeline.simulate.shapes import Points, cropped, ellipsoid, union, within, without
from pipeline.simulate.tissue import TISSUES, Label
from pipeline.simulate.torso import Wall
from pipeline.simulate.uptake import Texture, multiscale, three_scales
from pipeline.volume import Triple

_LEAN_FAT_MM = 13.0  # what the reference's outline holds; more lies outside it, less moves the skin in
_DEEPEST_MM = 134.0  # half-depth of the largest patient: the lattice ends at 147 mm
_LESIONS_WITHIN_MM = 165.0  # of the middle along z: a field of view of 390 mm holds them whole


@dataclass(frozen=True)
class Habitus:
    """A body. stretch: patient / reference along x, y, z. fat_mm: under the skin of the belly, reference mm.

    outward_mm: how much of the fat lies outside the reference's outline. sways: (standard deviation of one
    component, correlation length), mm, of the random displacement. arms: beside the body.
    """

    stretch: Triple
    fat_mm: float
    outward_mm: float
    sways: tuple[tuple[float, float], ...]
    arms: bool

    @property
    def scale(self) -> float:
        """Patient mm for a reference mm, on average."""
        return float(np.cbrt(np.prod(self.stretch)))

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Habitus:
        """Half-width 14 to 20 cm; the wider, the more of it is fat. The displacement is 3 to 12 mm."""
        half_width = float(rng.uniform(140, 198))
        fat = float(np.clip(0.35 * (half_width - 140) + rng.uniform(4, 22), 4, 42))
        outward = fat - _LEAN_FAT_MM
        across = float(np.clip((half_width - 1.3 * outward) / 165, 0.84, 1.12))
        depth = across * float(rng.uniform(0.9, 1.12))
        depth = float(np.clip(depth, 0.84, (_DEEPEST_MM - max(outward, 0)) / 110))
        bend = float(rng.uniform(3, 12)) / np.sqrt(3)
        return cls(
            (across, depth, float(rng.uniform(0.92, 1.08))),
            fat / float(np.sqrt(across * depth)),
            outward / float(np.sqrt(across * depth)),
            ((bend, 140.0), (0.2 * bend, 60.0)),
            arms=bool(rng.random() < 0.25) and half_width < 185,
        )


@dataclass(frozen=True)
class Poses:
    """Where this patient's organs lie; `rng` is None for the reference's own places."""

    rng: np.random.Generator | None = None

    def of(
        self, p: Points, centre: Triple, shift_mm: Triple, turn: float = 0.1, swell: float = 0.07
    ) -> Points:
        """Coordinates of an organ about `centre`, moved, turned (rad) and stretched at random.

        shift_mm, turn and swell are standard deviations; nothing goes beyond twice as far.
        """
        if self.rng is None:
            return p
        normal = np.clip(self.rng.normal(size=9), -2, 2)
        shift = np.asarray(centre) + normal[:3] * shift_mm
        axes = Rotation.from_rotvec(turn * normal[3:6]).as_matrix()
        q = p.turned((float(shift[0]), float(shift[1]), float(shift[2])), axes)
        stretch = np.exp(swell * normal[6:]).astype(np.float32)
        return Points(*(np.float32(c) + w / s for c, w, s in zip(centre, q, stretch, strict=True)))


def _warped(
    rng: np.random.Generator, stretch: Triple, sways: tuple[tuple[float, float], ...], centred: bool
) -> Points:
    """Reference coordinates (mm) of the lattice's points."""
    z, y, x = np.meshgrid(*(c.astype(np.float32) for c in axis_coordinates(LATTICE)), indexing="ij")
    moved = []
    for c, k in zip((x, y, z), stretch, strict=True):
        for deviation, length in sways:
            sway = np.float32(deviation) * smooth_field(rng, LATTICE.shape, SPACING_MM, length)
            c = c + (sway - sway.mean() if centred else sway)
        moved.append(c / np.float32(k))
    return Points(*moved)


def _draw_trunk(draw: Drawing, p: Points, wall: Wall) -> None:
    diaphragm = within(np.abs(wall.diaphragm) - 2.0, wall.cavity)
    draw.add(Label.SKIN, wall.skin)
    draw.add(Label.FAT, wall.skin + 2)
    draw.add(Label.MUSCLE, wall.muscle)
    draw.add(Label.FAT, wall.cavity)
    draw.add(Label.MUSCLE, within(diaphragm, np.asarray(25 - p.z, dtype=np.float32)))
    draw.add(Label.MUSCLE, within(torso.back_muscles(p), wall.muscle + 1))


def _draw_chest(draw: Drawing, p: Points, wall: Wall, poses: Poses, lung_hu: float) -> Field:
    """Returns the lungs' surface."""
    heart = torso.heart(poses.of(p, (22, -36, 152), (5, 4, 5)), wall)
    lung = torso.lungs(p, wall, heart)
    mottle = 22 * smooth_field(draw.rng, LATTICE.shape, SPACING_MM, 20.0)
    # Supine: the back of the lungs carries more blood and less air.
    hu = (lung_hu + mottle + 0.5 * p.y).astype(np.float32)
    draw.add(Label.LUNG, lung, hu[cropped(lung * np.float32(draw.scale)).box])
    draw.add(Label.LUNG_VESSEL, torso.lung_vessels(p, draw.rng, lung))
    draw.add(Label.HEART, heart)
    return lung


def _kidneys(
    p: Points, wall: Wall, target: OrganVolumes, poses: Poses, rng: np.random.Generator
) -> tuple[abdomen.Kidney, abdomen.Kidney]:
    right, left = (
        abdomen.kidney(
            poses.of(p, (side * 67.0, 40.0, -23.0), (5, 4, 12), turn=0.12, swell=0.1),
            side, volume, LATTICE.voxel_volume_ml, rng,
        )
        for side, volume in ((-1, target.right_kidney), (+1, target.left_kidney))
    )  # fmt: skip
    if poses.rng is None:
        return right, left
    return right.inside(wall.cavity + 2), left.inside(wall.cavity + 2)


def _draw_abdomen(
    draw: Drawing, p: Points, wall: Wall, target: OrganVolumes, poses: Poses
) -> tuple[Field, Field]:
    """Adds the organs back to front; returns the surfaces of the liver and of both kidneys."""
    rng = draw.rng
    voxel_ml = LATTICE.voxel_volume_ml
    right, left = _kidneys(p, wall, target, poses, rng)
    at_liver = poses.of(p, (-60, -10, 40), (5, 5, 8), turn=0.08)
    liver = abdomen.liver(at_liver, wall, right.whole, target.liver, voxel_ml)
    at_spleen = poses.of(p, (112, 34, 58), (4, 6, 9), turn=0.15, swell=0.1)
    spleen = abdomen.spleen(at_spleen, wall, left.whole, target.spleen, voxel_ml)
    noise = smooth_field(rng, LATTICE.shape, SPACING_MM, 30.0)
    at_stomach = poses.of(p, (50, -30, 40), (7, 6, 8), turn=0.15, swell=0.12)
    at_bowel = poses.of(p, (0, -30, -120), (6, 5, 10), turn=0.05)
    small = abdomen.small_organs(poses.of(p, (0, -20, 0), (4, 3, 5), turn=0.06), wall)
    draw.add(Label.VESSEL, abdomen.mesentery(p, rng))
    for label, distance in (
        *abdomen.small_bowel(at_bowel, wall, noise, rng),
        *small[:2],
        (Label.VESSEL, abdomen.vessels(p)),
        *abdomen.colon(at_bowel, wall, -noise, rng),
        *abdomen.stomach(at_stomach, wall, spleen),
        (Label.LIVER, liver),
        *small[2:],
        (Label.SPLEEN, spleen),
    ):
        draw.add(label, distance)
    draw.add_kidneys(right, left)
    return liver, union(right.whole, left.whole)


def _draw_bones(draw: Drawing, p: Points, wall: Wall) -> Field:
    """Returns the surface of vertebrae and pelvis."""
    bone, cartilage = torso.ribs(p, wall)
    draw.add(Label.CARTILAGE, within(cartilage, wall.muscle + 3))
    draw.add(Label.RIB, within(bone, wall.muscle + 3))
    draw.add(Label.STERNUM, torso.sternum(p, wall))
    skeleton = np.full(wall.muscle.shape, 30.0, dtype=np.float32)
    for label, distance in (*torso.pelvis(p), *torso.spine(p)):
        inside = within(distance, wall.muscle + 1)
        draw.add(label, inside)
        if label not in (Label.DISC, Label.CANAL):
            np.minimum(skeleton, inside, out=skeleton)
    return skeleton


def thorax_to_pelvis(rng: np.random.Generator, texture: Texture = three_scales) -> Anatomy:
    """A trunk from the upper chest to the pelvis, arms raised out of the field; always eight lesions."""
    stretch = (rng.uniform(0.96, 1.12), rng.uniform(0.95, 1.12), rng.uniform(0.96, 1.04))
    habitus = Habitus(stretch, 0.0, 0.0, ((3.0, 140.0),), arms=False)
    p = _warped(rng, stretch, habitus.sways, centred=False)
    spacing = SPACING_MM / habitus.scale
    wall = torso.body_wall(p, float(rng.uniform(8, 18)), spacing)
    draw = Drawing(rng, habitus.scale, texture)
    _draw_trunk(draw, p, wall)
    _draw_chest(draw, p, wall, Poses(), TISSUES[Label.LUNG].hu)
    liver, _ = _draw_abdomen(draw, p, wall, OrganVolumes.drawn(rng), Poses())
    _draw_bones(draw, p, wall)
    shapes = draw_lesions(p, liver, rng, spacing)
    for shape in shapes:
        draw.add_lesion(shape)
    return Anatomy(tuple(draw.layers), tuple(s.lesion for s in shapes), back_of(wall.skin))


def trunk(rng: np.random.Generator, texture: Texture = multiscale, law: LesionLaw = UNEVEN) -> Anatomy:
    """A patient of any habitus with lesions in liver, nodes, bones and lungs."""
    habitus = Habitus.drawn(rng)
    makeup = VariedMakeup(rng)
    poses = Poses(np.random.default_rng(rng.integers(2**63)))
    p = _warped(rng, habitus.stretch, habitus.sways, centred=True)
    spacing = SPACING_MM / habitus.scale
    wall = torso.body_wall(
        p, habitus.fat_mm, spacing, habitus.outward_mm, poses.of(p, (0, 0, 60), (4, 4, 9), turn=0.06)
    )
    draw = Drawing(rng, habitus.scale, texture, makeup, grain=np.random.default_rng(rng.integers(2**63)))
    _draw_trunk(draw, p, wall)
    lung = _draw_chest(draw, p, wall, poses, makeup.hu(Label.LUNG))
    target = OrganVolumes.varied(rng, habitus.scale**3)
    liver, kidneys = _draw_abdomen(draw, p, wall, target, poses)
    skeleton = _draw_bones(draw, p, wall)
    sites = _sites(p, wall, {"liver": liver, "kidneys": kidneys, "lung": lung, "bone": skeleton}, makeup)
    shapes = scattered(p, sites, wall.muscle + 2, rng, habitus.scale, SPACING_MM, law)
    for shape in shapes:
        draw.add_lesion(shape)
    back = back_of(wall.skin)
    limbs = arms(rng, texture, makeup, wall.skin, back) if habitus.arms else []
    return Anatomy((*limbs, *draw.layers), tuple(s.lesion for s in shapes), back)


def _sites(p: Points, wall: Wall, organs: dict[str, Field], makeup: VariedMakeup) -> list[Site]:
    ends = np.asarray(np.abs(p.z) - _LESIONS_WITHIN_MM, dtype=np.float32)
    normal_liver = makeup.mean(Label.LIVER)
    retroperitoneum = ellipsoid(p, (2, -4, -55), (58, 40, 100))
    spine = ellipsoid(p, (0, 46, -60), (34, 32, 400))
    nodes = without(without(within(retroperitoneum, wall.cavity + 4), spine), organs["kidneys"] - 3)
    bone_hu = makeup.hu(Label.L3) + 120
    return [
        Site("liver", within(organs["liver"], ends), normal_liver, share=0.55),
        Site("node", within(nodes, ends), normal_liver, share=0.2, buried=0.4),
        Site("bone", within(organs["bone"], ends), normal_liver, hu=bone_hu, share=0.17, buried=0.35),
        Site("lung", within(organs["lung"], ends), normal_liver, hu=20.0, share=0.08),
    ]
