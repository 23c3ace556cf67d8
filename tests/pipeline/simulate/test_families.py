"""Patients of every family are plausible, differ widely, and are the same on every grid."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from pipeline.density import hu_to_density
from pipeline.errors import InputRejected
from pipeline.simulate import harmonic_shapes
from pipeline.simulate.abdomen import OrganVolumes
from pipeline.simulate.families import FAMILIES, family_named
from pipeline.simulate.makeup import BONES, VariedMakeup
from pipeline.simulate.patient import (
    VirtualPatient,
    abdominal_ct_grid,
    activity_on,
    drawn_patient,
    hu_on,
    training_grid,
)
from pipeline.simulate.tissue import Label
from pipeline.simulate.trunk import Habitus
from pipeline.volume import Grid
from tests.pipeline.simulate.patients import GRID, TRAINED, drawn

SEED = 3
PATIENTS = [(family, SEED) for family in TRAINED]


@pytest.fixture(params=PATIENTS, ids=lambda p: p[0], scope="module")
def patient(request: pytest.FixtureRequest) -> VirtualPatient:
    return drawn(*request.param)


def volume_ml(patient: VirtualPatient, region: str) -> float:
    return float(patient.mask(region).sum()) * GRID.voxel_volume_ml


def centre_mm(patient: VirtualPatient, region: str) -> np.ndarray:
    return GRID.positions(np.argwhere(patient.mask(region)).mean(axis=0))


def test_the_networks_grid_is_the_cts_field_in_voxels_of_two_by_two_pixels() -> None:
    ct, network = abdominal_ct_grid(), training_grid("1.2.3")
    assert network.shape == (130, 256, 256)
    assert network.spacing_mm == (3.0, 1.953125, 1.953125)
    assert network.frame_of_reference_uid == "1.2.3"
    pairs = ct.positions([(0, 0, 0), (0, 1, 1), (129, 510, 510), (129, 511, 511)])
    assert np.allclose(network.positions([0, 0, 0]), pairs[:2].mean(axis=0))
    assert np.allclose(network.positions([129, 255, 255]), pairs[2:].mean(axis=0))


@pytest.mark.parametrize(
    ("region", "low", "high"),
    [("spleen", 70, 480), ("right kidney", 80, 260), ("left kidney", 80, 260), ("lungs", 1000, 5000),
     ("L2-L5", 80, 300), ("body", 12000, 50000)],
)  # fmt: skip
def test_organs_have_volumes_of_adults(patient: VirtualPatient, region: str, low: float, high: float) -> None:
    assert low < volume_ml(patient, region) < high


def test_the_liver_with_its_lesions_has_the_volume_of_an_adult(patient: VirtualPatient) -> None:
    lesions = sum(s.volume_ml for s in patient.lesions if s.name == "liver")
    assert 850 < volume_ml(patient, "liver") + lesions < 2600


def test_organs_lie_where_they_belong(patient: VirtualPatient) -> None:
    right, left, liver = (centre_mm(patient, n) for n in ("right kidney", "left kidney", "liver"))
    assert liver[0] < -25 < 60 < centre_mm(patient, "spleen")[0]
    assert right[0] < -40 < 40 < left[0]
    assert right[2] < liver[2] < centre_mm(patient, "lungs")[2]
    assert right[1] > liver[1]
    assert centre_mm(patient, "L2-L5")[1] > 10
    levels = [np.argwhere(patient.labels == Label[f"L{k}"])[:, 0].mean() for k in range(1, 6)]
    assert np.all(np.diff(levels) < 0)  # L5 lies lowest


def test_organs_lie_inside_the_wall(patient: VirtualPatient) -> None:
    """No organ reaches the skin: fat or muscle lies between it and the air."""
    organs = np.isin(
        patient.labels, [lab for lab in Label if Label.STOMACH <= lab <= Label.LEFT_KIDNEY_PELVIS]
    )
    outside = ~patient.mask("body")
    assert not np.any(binary_dilation(organs, iterations=2) & outside)


def test_kidneys_have_cortex_medulla_and_pelvis(patient: VirtualPatient) -> None:
    for side in ("RIGHT", "LEFT"):
        cortex, medulla, pelvis = (
            float((patient.labels == Label[f"{side}_KIDNEY_{part}"]).sum())
            for part in ("CORTEX", "MEDULLA", "PELVIS")
        )
        assert cortex > medulla > 0.08 * cortex
        assert pelvis > 0


def test_densities_are_those_of_the_tissues(patient: VirtualPatient) -> None:
    density = hu_to_density(hu_on(patient.anatomy, GRID)).array

    def mean(label: Label) -> float:
        core = binary_erosion(patient.labels == label)
        return float(density[core if core.any() else patient.labels == label].mean())

    assert 0.2 < mean(Label.LUNG) < 0.4
    assert 0.91 < mean(Label.FAT) < 0.97
    assert 1.03 < mean(Label.MUSCLE) < 1.08
    assert 1.1 < mean(Label.L3) < 1.6
    assert density.max() < 1.95
    in_bone = np.isin(patient.labels, list(BONES))
    assert density[in_bone].max() > 1.3


def test_lesions_are_where_and_what_they_say(patient: VirtualPatient) -> None:
    assert 0 < len(patient.lesions) <= 15
    for number, lesion in enumerate(patient.lesions, 1):
        mask = patient.mask(f"lesion {number}")
        assert 6 <= lesion.diameter_mm <= 70
        assert 1.5 <= lesion.contrast <= 12
        assert mask.sum() * GRID.voxel_volume_ml == pytest.approx(lesion.volume_ml, rel=0.15, abs=0.3)
        if mask.sum() > 60:
            viable = float(np.quantile(patient.activity.array[mask], 0.75))
            assert 0.5 < viable / lesion.uptake < 1.8


def test_necrotic_cores_are_cold() -> None:
    necrotic = [
        (p, number, lesion)
        for p in (drawn(*key) for key in PATIENTS)
        for number, lesion in enumerate(p.lesions, 1)
        if lesion.necrotic
    ]
    assert necrotic
    for p, number, lesion in necrotic:
        assert lesion.diameter_mm >= 25
        values = p.activity.array[p.mask(f"lesion {number}")]
        assert float(values.min()) < 0.45 * lesion.uptake


def test_nothing_is_active_outside_the_body(patient: VirtualPatient) -> None:
    away = ~binary_dilation(patient.mask("body"), iterations=2)
    assert not patient.activity.array[away].any()
    assert patient.activity.array.min() >= 0
    assert np.isfinite(patient.hu.array).all()


def test_the_body_holds_less_than_was_given_and_not_too_little(patient: VirtualPatient) -> None:
    held = float(patient.activity.array.sum(dtype=float)) * GRID.voxel_volume_ml
    assert 0.03 < held / patient.administered_bq < 0.5


def test_activity_is_the_same_on_every_grid(patient: VirtualPatient) -> None:
    """Two grids of one box: 392 x 400 x 500 mm."""
    fine = Grid((140, 160, 200), (-248.75, -184.25, -194.1), (2.8, 2.5, 2.5))
    totals = [
        float(activity_on(patient.anatomy, grid).array.sum(dtype=float)) * grid.voxel_volume_ml
        for grid in (GRID, fine)
    ]
    assert totals[0] == pytest.approx(totals[1], rel=0.01)


def test_what_breathes_is_soft_and_what_is_bone_does_not(patient: VirtualPatient) -> None:
    moving = patient.moving
    assert set(np.unique(moving)) == {0.0, 1.0}
    assert moving[patient.mask("liver")].all()
    assert moving[patient.mask("lungs")].all()
    assert not moving[patient.mask("L2-L5")].any()


def test_another_seed_and_another_family_give_another_patient() -> None:
    first = drawn("trunk", SEED)
    assert np.mean(first.labels != drawn("harmonic", SEED).labels) > 0.05


def test_the_same_seed_gives_the_same_patient_and_textures_change_no_shape() -> None:
    first = drawn("trunk", SEED)
    again = drawn_patient(GRID, SEED, "trunk", "patchy")
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.hu.array, again.hu.array)
    assert not np.array_equal(first.activity.array, again.activity.array)
    assert first.lesions == again.lesions


def test_unknown_families_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputRejected, match="no family of anatomy is called 'cat'") as failed:
        family_named("cat")
    assert set(TRAINED) <= set(FAMILIES)
    assert "harmonic" in failed.value.remedy


def test_families_share_no_shapes() -> None:
    """What one family's modules import of the others' shape modules is nothing."""
    folder = Path(harmonic_shapes.__file__).parent
    own = {
        "trunk": {"trunk", "torso", "abdomen"},
        "harmonic": {p.stem for p in folder.glob("harmonic*.py")},
        "stylised": {p.stem for p in folder.glob("stylised*.py")},
    }
    for family, stems in own.items():
        others = {f"pipeline.simulate.{s}" for f, ss in own.items() if f != family for s in ss}
        for stem in stems:
            tree = ast.parse((folder / f"{stem}.py").read_text(encoding="utf-8"))
            imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            imported |= {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
                         for a in n.names}  # fmt: skip
            assert not imported & others, f"{stem} draws with shapes of another family"


# ── what is drawn, over many patients ────────────────────────────────────────────────────────────


def test_bodies_are_narrow_and_wide() -> None:
    bodies = [Habitus.drawn(np.random.default_rng(seed)) for seed in range(300)]
    widths = np.array([165 * b.stretch[0] + b.outward_mm * b.stretch[0] * 1.3 for b in bodies])
    assert 130 < widths.min() < 150
    assert 185 < widths.max() < 205
    bends = np.array([np.sqrt(3) * b.sways[0][0] for b in bodies])
    assert 3 <= bends.min() < 4 < 11 < bends.max() <= 12
    assert 0.05 < np.mean([b.arms for b in bodies]) < 0.4


def test_organs_are_small_and_large() -> None:
    volumes = [OrganVolumes.varied(np.random.default_rng(seed), 1.0) for seed in range(300)]
    for name, low, high, apart in (
        ("liver", 1050, 2500, 1.8), ("spleen", 85, 470, 3.0), ("left_kidney", 85, 250, 1.8),
    ):  # fmt: skip
        drawn_ml = np.array([getattr(v, name) for v in volumes])
        assert drawn_ml.min() >= low
        assert drawn_ml.max() <= high
        assert drawn_ml.max() / drawn_ml.min() > apart


def test_makeups_keep_to_their_ranges() -> None:
    makeups = [VariedMakeup(np.random.default_rng(seed)) for seed in range(200)]
    cortex, medulla, pelvis = (
        np.array([m.mean(Label[f"LEFT_KIDNEY_{part}"]) for m in makeups])
        for part in ("CORTEX", "MEDULLA", "PELVIS")
    )
    assert (medulla / cortex).min() >= 0.2
    assert (medulla / cortex).max() <= 0.6
    assert (pelvis / cortex).max() <= 1.5
    assert (pelvis / cortex).min() < 0.1
    liver = np.array([m.mean(Label.LIVER) for m in makeups])
    assert 0.25 < float(np.log(liver).std()) < 0.55
    for makeup in makeups:
        assert all(0.05 <= makeup.deviation(label) <= 0.4 for label in (Label.LIVER, Label.SPLEEN))
        assert 0 <= (makeup.edge_mm(Label.LIVER) or 0) <= 3
        # Compact bone and spongiosa, by the calibration of `pipeline.density`.
        assert 1.3 < 1.017 + 0.592e-3 * makeup.cortical_hu < 1.95
        assert 1.09 < 1.017 + 0.592e-3 * makeup.hu(Label.L3) < 1.31
