"""The stylised family: adults of every habitus, drawn by shapes that no family of training uses."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from pipeline.simulate import stylised as family
from pipeline.simulate.anatomy import LATTICE, Anatomy
from pipeline.simulate.patient import VirtualPatient, activity_on
from pipeline.simulate.shapes import Points
from pipeline.simulate.stylised import stylised
from pipeline.simulate.stylised_quadrics import Space, cone, cylinder, hyperboloid, plane, ring, tilt, torus
from pipeline.simulate.stylised_trunk import Frame
from pipeline.simulate.tissue import REGIONS, Label
from pipeline.simulate.uptake import uniform
from pipeline.volume import Grid
from tests.pipeline.simulate.patients import GRID, drawn

SEEDS = range(5)
FIELD_OF_VIEW_MM = 193.5
SPINE = (Label.THORACIC_SPINE, Label.L1, Label.L2, Label.L3, Label.L4, Label.L5)
ORGANS = [label for label in Label if Label.STOMACH <= label <= Label.LEFT_KIDNEY_PELVIS]
VERTEBRAE = (Label.L2, Label.L3, Label.L4, Label.L5)
# mL: wide ranges about the reference man's liver of 1800 g, spleen of 150 g and kidneys of 310 g together
# (ICRP Publication 89, table 2.8). Lungs: what of them lies in the field of view.
VOLUMES_ML = {
    "liver": (950, 2400),
    "spleen": (80, 500),
    "right kidney": (95, 240),
    "left kidney": (95, 240),
    "L2-L5": (120, 300),
    "lungs": (900, 5000),
}


@cache
def anatomy(seed: int) -> Anatomy:
    """Without texture, which costs half of the time and moves no surface."""
    return stylised(np.random.default_rng(seed), uniform)


def inside(patient: Anatomy, *labels: int) -> np.ndarray:
    """(z, y, x) of the lattice: inside any surface of these labels, whatever covers it."""
    found = np.zeros(LATTICE.shape, dtype=bool)
    for layer in patient.layers:
        if layer.label in labels:
            found[layer.surface.box] |= layer.surface.distance < 0
    return found


def in_view(found: np.ndarray) -> np.ndarray:
    z = LATTICE.origin_mm[2] + LATTICE.spacing_mm[0] * np.arange(LATTICE.shape[0])
    return found[np.abs(z) < FIELD_OF_VIEW_MM]


@pytest.fixture(params=SEEDS)
def patient(request: pytest.FixtureRequest) -> Anatomy:
    return anatomy(request.param)


@pytest.mark.parametrize("region", VOLUMES_ML)
def test_organs_have_the_volumes_of_adults(patient: Anatomy, region: str) -> None:
    low, high = VOLUMES_ML[region]
    volume = in_view(inside(patient, *REGIONS[region])).sum() * LATTICE.voxel_volume_ml
    assert low < volume < high


def test_no_two_patients_have_the_same_organs() -> None:
    for labels in ((Label.LIVER,), (Label.SPLEEN,), (Label.LEFT_KIDNEY_CORTEX,), SPINE):
        volumes = [inside(anatomy(seed), *labels).sum() for seed in SEEDS]
        assert len(set(volumes)) == len(SEEDS)
        assert np.std(volumes) / np.mean(volumes) > 0.04


def test_each_lumbar_vertebra_is_there_and_each_below_the_next(patient: Anatomy) -> None:
    levels = [np.argwhere(inside(patient, label))[:, 0].mean() for label in (Label.L1, *VERTEBRAE)]
    assert np.all(np.diff(levels) * LATTICE.spacing_mm[0] < -25)


def test_nothing_lies_outside_the_skin_and_no_organ_close_to_it(patient: Anatomy) -> None:
    skin = inside(patient, Label.SKIN)
    assert not np.any(inside(patient, *(set(Label) - {Label.SKIN})) & ~skin)
    assert not np.any(inside(patient, *ORGANS) & ~binary_erosion(skin, iterations=3, border_value=1))


def test_kidneys_liver_and_spleen_lie_clear_of_spine_and_each_other(patient: Anatomy) -> None:
    spine = inside(patient, *SPINE)
    organs = [
        inside(patient, label)
        for label in (Label.RIGHT_KIDNEY_CORTEX, Label.LEFT_KIDNEY_CORTEX, Label.LIVER, Label.SPLEEN)
    ]
    assert not any(np.any(organ & spine) for organ in organs)
    covered = np.sum(organs, axis=0)
    assert not np.any(covered > 1)


def test_kidneys_hold_medulla_and_a_sinus_open_to_the_spine(patient: Anatomy) -> None:
    for side, outwards in (("RIGHT", -1), ("LEFT", 1)):
        whole, medulla, pelvis = (
            inside(patient, Label[f"{side}_KIDNEY_{part}"]) for part in ("CORTEX", "MEDULLA", "PELVIS")
        )
        assert not np.any((medulla | pelvis) & ~whole)
        assert 0.10 < medulla.sum() / whole.sum() < 0.40
        assert 0.02 < pelvis.sum() / whole.sum() < 0.20
        x = [np.argwhere(mask)[:, 2].mean() for mask in (pelvis, whole)]
        assert outwards * (x[1] - x[0]) * LATTICE.spacing_mm[2] > 4


def test_left_and_right_and_head_are_where_lps_says(patient: Anatomy) -> None:
    def centre(*labels: int) -> np.ndarray:
        return LATTICE.positions(np.argwhere(inside(patient, *labels)).mean(axis=0))

    liver, right, left = (centre(*REGIONS[name]) for name in ("liver", "right kidney", "left kidney"))
    assert liver[0] < -20 < 60 < centre(Label.SPLEEN)[0]
    assert right[0] < -45 < 45 < left[0]
    assert right[2] < liver[2] < centre(Label.LUNG)[2]
    assert liver[1] < right[1]
    assert centre(Label.L3)[1] > 10


def test_the_body_is_14_to_20_cm_wide_on_either_side() -> None:
    widths = [Frame.drawn(np.random.default_rng(seed)).half_width for seed in range(60)]
    assert 140 <= min(widths) < 150 < 190 < max(widths) <= 200


def test_the_same_generator_gives_the_same_patient_under_every_texture() -> None:
    one, again = anatomy(2), drawn("stylised", 2).anatomy
    assert one.back_mm == again.back_mm
    assert [lesion.volume_ml for lesion in one.lesions] == [lesion.volume_ml for lesion in again.lesions]
    for a, b in zip(one.layers, again.layers, strict=True):
        assert (a.label, a.surface.start) == (b.label, b.surface.start)
        assert np.array_equal(a.surface.distance, b.surface.distance)


@pytest.fixture(scope="module")
def painted() -> VirtualPatient:
    return drawn("stylised", 2)


def test_every_region_of_the_painted_patient_is_there(painted: VirtualPatient) -> None:
    assert all(painted.mask(name).any() for name in painted.regions)
    assert 4 <= len(painted.lesions) <= 15


def test_activity_stays_in_the_body_and_the_same_seed_repeats_it(painted: VirtualPatient) -> None:
    away = ~binary_dilation(painted.mask("body"), iterations=1)
    assert not painted.activity.array[away].any()
    again = activity_on(stylised(np.random.default_rng(2)), GRID)
    assert np.array_equal(again.array, painted.activity.array)


@pytest.mark.parametrize("region", ["liver", "left kidney", "right kidney", "spleen", "L2-L5"])
def test_shapes_are_not_those_of_the_same_seed_in_a_family_of_training(
    painted: VirtualPatient, region: str
) -> None:
    a, b = painted.mask(region), drawn("trunk", 2).mask(region)
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) < 0.9


def test_no_shape_comes_from_a_family_of_training() -> None:
    training = {"abdomen", "torso", "trunk", "limbs"}
    for path in sorted(Path(family.__file__).parent.glob("stylised*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                last = node.module.rpartition(".")[2]
                names = {last, *(alias.name for alias in node.names)} if last == "simulate" else {last}
                assert not names & training
                assert not any(name.startswith("harmonic") for name in names)


# Quadrics.


def points(step: float = 1.0, half: int = 40) -> Points:
    axis = np.arange(-half, half + 1, dtype=np.float32) * np.float32(step)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return Points(x, y, z)


def test_volumes_of_quadrics_are_those_of_the_formulas() -> None:
    p = points()
    slab = np.abs(p.z) < 20.5
    assert ((torus(p, (25, 25), 8) < 0).sum()) == pytest.approx(2 * np.pi**2 * 25 * 64, rel=0.02)
    assert ((cylinder(p, (3, -2), (20, 12)) < 0) & slab).sum() == pytest.approx(np.pi * 240 * 41, rel=0.02)
    frustum = (cone(p, (0, 0, -60), (0, 0, 60), (6, 18)) < 0) & slab
    ends = 12 + np.array([-20.5, 20.5]) / 10
    expected = np.pi * 41 / 3 * (ends[0] ** 2 + ends[0] * ends[1] + ends[1] ** 2)
    assert frustum.sum() == pytest.approx(expected, rel=0.02)
    waisted = (hyperboloid(p, (0, 0), (15, 10), (0, 40)) < 0) & slab
    assert waisted.sum() == pytest.approx(np.pi * 150 * (41 + 2 * 20.5**3 / 3 / 1600), rel=0.02)


@pytest.mark.parametrize("name", ["cylinder", "torus", "hyperboloid", "cone", "plane"])
def test_distances_have_a_slope_of_one_at_the_surface(name: str) -> None:
    p = points()
    distance = {
        "cylinder": lambda: cylinder(p, (0, 0), (25, 15)),
        "torus": lambda: torus(p, (25, 18), 7),
        "hyperboloid": lambda: hyperboloid(p, (0, 0), (20, 14), (0, 90)),
        "cone": lambda: cone(p, (-20, 0, -20), (20, 10, 20), (8, 12)),
        "plane": lambda: plane(p, (1, 2, 3), (1, 1, -2)),
    }[name]()
    slope = np.sqrt(sum(g * g for g in np.gradient(distance)))
    at_surface = np.abs(distance) < 0.5
    assert np.quantile(np.abs(slope[at_surface] - 1), 0.95) < 0.12


def test_a_tilt_turns_the_patients_axes() -> None:
    assert np.allclose(tilt(0, 0, 90) @ [0, 1, 0], [1, 0, 0], atol=1e-12)
    axes = tilt(20, -35, 50)
    assert np.allclose(axes @ axes.T, np.eye(3), atol=1e-12)


def test_a_part_in_its_box_is_what_it_is_on_the_whole_lattice() -> None:
    p = points()
    loop = ring((6.0, -4.0, 3.0), tilt(30, 40, 0), (14, 10), 4.0)
    near = Space(p).gathered([loop])
    everywhere = loop.shape(p)
    assert np.allclose(np.clip(near, None, 4), np.clip(everywhere, None, 4))
    beyond = ring((500.0, 0.0, 0.0), tilt(0, 0, 0), (10, 10), 3.0)
    assert (Space(p).gathered([beyond]) > 0).all()


def test_grids_of_any_spacing_hold_the_same_activity() -> None:
    patient = anatomy(1)
    totals = []
    for step in (4.0, 6.0):
        shape = tuple(int(np.floor(extent / step)) for extent in (360, 280, 420))
        corner = [-(n - 1) * step / 2 for n in shape]
        grid = Grid((shape[0], shape[1], shape[2]), (corner[2], corner[1], corner[0]), (step,) * 3)
        totals.append(float(activity_on(patient, grid).array.sum(dtype=float)) * grid.voxel_volume_ml)
    assert totals[0] == pytest.approx(totals[1], rel=0.02)
