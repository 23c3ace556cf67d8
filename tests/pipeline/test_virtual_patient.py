"""The virtual patient is plausible, reproducible and the same on every grid."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

from pipeline.errors import InputRejected
from pipeline.simulate.cube import hot_cube, inside_box, water_block
from pipeline.simulate.fields import sample, smooth_field
from pipeline.simulate.patient import VirtualPatient, abdominal_ct_grid, activity_on, virtual_patient
from pipeline.simulate.spect import abdominal_spect_grid, gathered, spect_image, surrounding_activity
from pipeline.simulate.tissue import Label
from pipeline.volume import Grid, Volume

SPACING = 3.0
GRID = Grid((130, 140, 150), (-223.5, -183.5, -193.5), (SPACING,) * 3)


@cache
def drawn(seed: int) -> VirtualPatient:
    return virtual_patient(GRID, seed)


@pytest.fixture(params=[1, 5])
def patient(request: pytest.FixtureRequest) -> VirtualPatient:
    return drawn(request.param)


@pytest.fixture
def one_patient() -> VirtualPatient:
    return drawn(5)


def volume_ml(patient: VirtualPatient, region: str) -> float:
    return float(patient.mask(region).sum()) * GRID.voxel_volume_ml


def centre_mm(patient: VirtualPatient, region: str) -> np.ndarray:
    return GRID.positions(np.argwhere(patient.mask(region)).mean(axis=0))


def activity_bq(patient: VirtualPatient, region: str) -> float:
    return float(patient.activity.array[patient.mask(region)].sum(dtype=float)) * GRID.voxel_volume_ml


def test_the_full_size_grids_are_those_of_a_clinical_study() -> None:
    ct, spect = abdominal_ct_grid(), abdominal_spect_grid()
    assert ct.shape == (130, 512, 512)
    assert ct.spacing_mm == (3.0, 500 / 512, 500 / 512)
    assert spect.shape == (81, 128, 128)
    assert spect.spacing_mm == (4.7952,) * 3
    middle = [g.positions((np.array(g.shape) - 1) / 2) for g in (ct, spect)]
    assert np.allclose(*middle)


@pytest.mark.parametrize(
    ("region", "low", "high"),
    [("spleen", 130, 290), ("right kidney", 110, 190), ("left kidney", 110, 200), ("lungs", 1500, 5000)],
)
def test_organs_have_the_volumes_of_an_adult(
    patient: VirtualPatient, region: str, low: float, high: float
) -> None:
    assert low < volume_ml(patient, region) < high


def test_the_liver_with_its_lesions_has_the_volume_of_an_adult(patient: VirtualPatient) -> None:
    lesions = [f"lesion {k + 1}" for k, s in enumerate(patient.lesions) if s.name == "liver"]
    assert 1350 < sum(volume_ml(patient, name) for name in ("liver", *lesions)) < 1900


def test_left_and_right_and_head_are_where_lps_says(patient: VirtualPatient) -> None:
    liver, spleen = centre_mm(patient, "liver"), centre_mm(patient, "spleen")
    right, left = centre_mm(patient, "right kidney"), centre_mm(patient, "left kidney")
    assert liver[0] < -40 < 40 < spleen[0]
    assert right[0] < -40 < 40 < left[0]
    assert right[2] < left[2] < liver[2] < centre_mm(patient, "lungs")[2]
    assert centre_mm(patient, "L2-L5")[1] > 10  # the spine lies at the back
    assert right[1] > liver[1]  # and the kidneys behind the liver


def test_kidneys_have_cortex_medulla_and_pelvis(patient: VirtualPatient) -> None:
    for side in ("RIGHT", "LEFT"):
        parts = [Label[f"{side}_KIDNEY_{part}"] for part in ("CORTEX", "MEDULLA", "PELVIS")]
        cortex, medulla, pelvis = (patient.labels == part for part in parts)
        assert cortex.sum() > medulla.sum() > 0
        assert pelvis.sum() > 0
        mean = [float(patient.activity.array[m].mean()) for m in (cortex, medulla)]
        assert mean[0] > 1.5 * mean[1]


@pytest.mark.parametrize(
    ("code", "low", "high"),
    [
        (Label.LUNG, -880, -720),
        (Label.FAT, -125, -85),
        (Label.MUSCLE, 35, 65),
        (Label.LIVER, 48, 65),
        (Label.SPLEEN, 40, 60),
        (Label.L3, 150, 450),
    ],
)
def test_tissues_have_their_ct_numbers(patient: VirtualPatient, code: Label, low: float, high: float) -> None:
    assert low < float(patient.hu.array[patient.labels == code].mean()) < high


def test_the_ct_has_noise_inside_organs(patient: VirtualPatient) -> None:
    core = binary_erosion(patient.mask("spleen"), iterations=2)
    assert 9 < float(patient.hu.array[core].std()) < 18


def test_the_table_lies_below_the_body_and_does_not_touch_it(patient: VirtualPatient) -> None:
    table = patient.labels == Label.TABLE
    assert table.any()
    regions, _ = label((patient.hu.array > -400) & ((patient.labels > Label.TABLE) | table))
    body = regions[tuple(np.argwhere(patient.mask("liver"))[0])]
    assert not np.any(table & (regions == body))
    lowest_skin = np.argwhere(patient.mask("body"))[:, 1].max()
    assert np.argwhere(table & (patient.hu.array > -400))[:, 1].max() > lowest_skin


def test_the_body_holds_less_than_was_given_and_not_too_little(patient: VirtualPatient) -> None:
    left = patient.administered_bq * 0.5 ** (patient.hours_after_injection / (6.647 * 24))
    assert 0.05 < activity_bq(patient, "body") / left < 0.5


def test_each_kidney_holds_about_a_hundredth_of_what_was_given(patient: VirtualPatient) -> None:
    for side in ("left", "right"):
        assert 0.005 < activity_bq(patient, f"{side} kidney") / patient.administered_bq < 0.025


def test_no_organ_is_uniform(patient: VirtualPatient) -> None:
    for region in ("liver", "spleen"):
        inside = patient.activity.array[binary_erosion(patient.mask(region), iterations=2)]
        assert 0.03 < float(inside.std() / inside.mean()) < 0.4


def test_lesions_are_hot_and_one_has_a_cold_core(patient: VirtualPatient) -> None:
    assert {s.name for s in patient.lesions} > {"liver", "vertebra"}
    liver = float(patient.activity.array[patient.mask("liver")].mean())
    for k, lesion in enumerate(patient.lesions):
        values = patient.activity.array[patient.mask(f"lesion {k + 1}")]
        assert float(np.quantile(values, 0.8)) > 3 * liver
        if lesion.necrotic:
            assert float(np.quantile(values, 0.02)) < 0.3 * lesion.uptake
    assert any(s.necrotic for s in patient.lesions)


def test_nothing_is_active_outside_the_body(patient: VirtualPatient) -> None:
    away = ~binary_dilation(patient.mask("body"), iterations=1)
    assert not patient.activity.array[away].any()
    assert patient.activity.array.min() >= 0


def test_the_same_seed_gives_the_same_patient_on_another_grid(one_patient: VirtualPatient) -> None:
    part = GRID.boxed((40, 30, 40), (12, 60, 60))
    flipped = replace(
        part,
        origin_mm=tuple(part.positions((11, 0, 0))),
        direction=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    again = virtual_patient(flipped, 5)
    box = (slice(40, 52), slice(30, 90), slice(40, 100))
    assert np.array_equal(again.labels[::-1], one_patient.labels[box])
    assert np.allclose(again.activity.array[::-1], one_patient.activity.array[box], rtol=1e-3, atol=1.0)
    assert np.allclose(
        activity_on(one_patient.anatomy, part).array, one_patient.activity.array[box], rtol=1e-3, atol=1.0
    )


def test_another_seed_gives_another_patient() -> None:
    assert np.mean(drawn(1).labels != drawn(5).labels) > 0.02


def test_an_unknown_region_is_a_key_error(one_patient: VirtualPatient) -> None:
    assert all(one_patient.mask(name).any() for name in one_patient.regions)
    with pytest.raises(KeyError):
        one_patient.mask("tail")


def test_an_oblique_grid_is_refused() -> None:
    c, s = float(np.cos(0.1)), float(np.sin(0.1))
    oblique = replace(GRID, direction=((0.0, -s, c), (0.0, c, s), (1.0, 0.0, 0.0)))
    with pytest.raises(InputRejected, match="axial"):
        sample(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 2), (0, 0, 0), (1, 1, 1)), oblique)


def test_a_sampled_linear_field_stays_linear() -> None:
    coarse = Grid((4, 5, 6), (0.0, 0.0, 0.0), (3.0, 3.0, 3.0))
    fine = Grid((5, 7, 9), (1.0, 2.0, 0.5), (1.5, 1.3, 1.2))

    def plane(grid: Grid) -> np.ndarray:
        return grid.positions(np.moveaxis(np.indices(grid.shape), 0, -1)) @ [1.0, -2.0, 3.0]

    assert np.allclose(sample(plane(coarse).astype(np.float32), coarse, fine), plane(fine), atol=1e-4)


def test_a_random_field_has_unit_variance_and_the_stated_length() -> None:
    field = smooth_field(np.random.default_rng(0), (90, 90, 90), 3.0, 18.0)
    assert abs(float(field.mean())) < 0.05
    assert float(field.var()) == pytest.approx(1, abs=0.1)
    half_way = float((field[:, :, 3:] * field[:, :, :-3]).mean() / field.var())  # 9 mm: half of 18 mm
    assert half_way == pytest.approx(0.5, abs=0.06)


# The SPECT stand-in.

FINE = Grid((40, 60, 60), (-59.0, -59.0, -39.0), (2.0, 2.0, 2.0))
SPECT = Grid((24, 32, 32), (-74.4, -74.4, -55.2), (4.8, 4.8, 4.8))


def turned(grid: Grid, radians: float) -> Grid:
    c, s = float(np.cos(radians)), float(np.sin(radians))
    return replace(grid, direction=((0.0, -s, c), (0.0, c, s), (1.0, 0.0, 0.0)))


@pytest.mark.parametrize("angle", [0.0, 0.03])
def test_gathering_conserves_activity_and_its_centre_in_any_orientation(angle: float) -> None:
    grid = turned(SPECT, angle)
    cube = hot_cube(FINE, (5.0, -7.0, 3.0), 20.0)
    voxels = gathered(cube, grid)
    assert voxels.sum() == pytest.approx(float(cube.array.sum(dtype=float)) * FINE.voxel_volume_ml, rel=1e-6)
    weights = voxels.ravel() / voxels.sum()
    centre = weights @ grid.positions(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    assert np.allclose(centre, centre_of(cube), atol=1e-6)


def centre_of(volume: Volume) -> np.ndarray:
    weights = volume.array.ravel() / volume.array.sum(dtype=float)
    return weights @ volume.grid.positions(np.moveaxis(np.indices(volume.grid.shape), 0, -1).reshape(-1, 3))


def test_a_point_is_blurred_to_the_stated_width() -> None:
    array = np.zeros(FINE.shape, np.float32)
    array[20, 30, 30] = 1e6
    image = spect_image(Volume(array, FINE, "Bq/mL"), SPECT, 0, fwhm_mm=12.0, events=None)
    for axis in range(3):
        profile = image.array.sum(axis=tuple(a for a in range(3) if a != axis), dtype=float)
        position = 4.8 * np.arange(len(profile))
        mean = (profile * position).sum() / profile.sum()
        variance = (profile * (position - mean) ** 2).sum() / profile.sum()
        assert 2.3548 * np.sqrt(variance) == pytest.approx(12.0, rel=0.03)


def test_noise_is_seeded_positive_and_keeps_the_total() -> None:
    cube = hot_cube(FINE, (0.0, 0.0, 0.0), 50.0)
    clean = spect_image(cube, SPECT, 0, events=None).array
    noisy, again, other = (spect_image(cube, SPECT, seed, events=1e5).array for seed in (1, 1, 2))
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, other)
    assert noisy.min() >= 0
    assert float(noisy.sum()) == pytest.approx(float(clean.sum()), rel=0.02)  # 6 sd of 1e5 events
    fewer = spect_image(cube, SPECT, 1, events=1e4).array
    hot = clean > 0.8 * clean.max()
    ratio = float((fewer - clean)[hot].std() / (noisy - clean)[hot].std())
    assert ratio == pytest.approx(np.sqrt(10), rel=0.35)


def test_an_empty_activity_gives_an_empty_image() -> None:
    empty = Volume(np.zeros(FINE.shape, np.float32), FINE, "Bq/mL")
    assert not spect_image(empty, SPECT, 0).array.any()


def test_a_width_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="too fine"):
        spect_image(hot_cube(FINE, (0, 0, 0), 20.0), SPECT, 0, fwhm_mm=8.0)


def test_the_camera_sees_the_patient_beyond_the_ct(one_patient: VirtualPatient) -> None:
    low = Grid((10, 40, 40), (-95.0, -95.0, -230.0), (4.8,) * 3)  # reaches 36 mm below the CT
    activity = surrounding_activity(one_patient.anatomy, low, margin_mm=10, spacing_mm=4.0)
    assert activity.grid.origin_mm[2] == pytest.approx(-240)
    assert activity.array[:5].max() > 0


def test_the_hot_cube_has_its_volume_and_the_block_its_water() -> None:
    cube = hot_cube(FINE, (5.0, -7.0, 3.0), 20.0, 2e6)
    assert float(cube.array.sum(dtype=float)) * FINE.voxel_volume_ml == pytest.approx(2e6 * 8.0, rel=1e-6)
    coarse = hot_cube(turned(SPECT, 0.03), (5.0, -7.0, 3.0), 31.0)
    assert float(coarse.array.sum(dtype=float)) * SPECT.voxel_volume_ml == pytest.approx(
        1e6 * 31**3 / 1000, rel=0.01
    )
    assert np.allclose(centre_of(coarse), (5.0, -7.0, 3.0), atol=0.3)
    assert inside_box(FINE, (0, 0, 0), (4.0, 8.0, 12.0)).sum() == 2 * 4 * 6
    water = water_block(FINE).array
    assert set(np.unique(water)) == {-1000.0, 0.0}
    assert water[0, 30, 30] == 0
    assert water[0, 0, 0] == -1000
