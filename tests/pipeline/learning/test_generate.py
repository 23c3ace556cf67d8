from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.averaging import averaged
from pipeline.errors import InputRejected
from pipeline.learning import generate as generating
from pipeline.learning import scene as scenes
from pipeline.learning.example import Example, load, save_volume
from pipeline.learning.generate import Settings, example_of, example_path, generate, plan
from pipeline.learning.scene import Patient, drawn_scene, given_scene, spect_grid_on
from pipeline.simulate.acquisition import Means
from pipeline.simulate.camera import SpectCamera
from pipeline.volume import Grid, Volume
from tests.pipeline.learning import synthetic

# A camera and a body as small as the physics allows: 20 pixels of 12 mm.
CAMERA = SpectCamera("small", bins=20, slices=12, pixel_mm=12.0, views=12, radius_mm=130.0)
SETTINGS = Settings(decays=4e4, test_decays=4e4, rounds=1, margin_mm=10.0, realisations=3)
CT = Grid((36, 72, 88), (-87.0, -71.0, -52.5), (3.0, 2.0, 2.0))


def body() -> tuple[Volume, Volume]:
    """Bq/mL and g/cm3: an ellipse of water with a warm background and a hot ball."""
    axes = zip(CT.shape, CT.origin_mm[::-1], CT.spacing_mm, strict=True)
    z, y, x = np.meshgrid(*(start + step * np.arange(n) for n, start, step in axes), indexing="ij")
    inside = (x / 75) ** 2 + (y / 55) ** 2 < 1
    ball = (x - 25) ** 2 + y**2 + z**2 < 15**2
    density = np.where(inside, 1.0, 0.0012).astype(np.float32)
    activity = np.where(ball, 2e6, np.where(inside, 1e5, 0)).astype(np.float32)
    return Volume(activity, CT, "Bq/mL"), Volume(density, CT, "g/cm3")


def hospital(folder: Path) -> Path:
    """A patient in the format that a hospital brings."""
    activity, density = body()
    save_volume(folder / "activity.npz", activity)
    save_volume(folder / "density.npz", density)
    ball = activity.with_array((activity.array > 1e6).astype(np.float32), "1")
    save_volume(folder / "vois" / "lesion 1.npz", ball)
    return folder


PATIENT = Patient("p1", "test", 3, "given", "given")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Its means are projected once, whatever the number of realisations."""
    folder = tmp_path_factory.mktemp("hospital") / "p1"
    scene = given_scene(hospital(folder), PATIENT, CAMERA)
    calls: list[Means] = []
    true = generating.projected

    def counted(*args: Any, **how: Any) -> Means:
        calls.append(true(*args, **how))
        return calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "projected", counted)
        found = example_of(scene, PATIENT, SETTINGS, CAMERA, threads=1)
    assert len(calls) == 1
    return found


def test_a_plan_grows_without_changing_and_tests_on_a_family_of_its_own() -> None:
    few, many = plan(3, 1, 2), plan(90, 2, 5)
    assert set(few) <= set(many)
    crowded = [p.family.endswith("-crowded") for p in plan(90, 9, 9, crowded_from=81)]
    assert crowded == [False] * 81 + [True] * 9 + [False] * 18
    assert not any(p.family.endswith("-crowded") for p in many)
    assert len({p.seed for p in many}) == len({p.patient_id for p in many}) == len(many)
    families = {
        split: {p.family for p in many if p.split == split} for split in ("train", "validation", "test")
    }
    assert families["test"].isdisjoint(families["train"] | families["validation"])
    assert {p.texture for p in many if p.split == "test"}.isdisjoint(
        p.texture for p in many if p.split != "test"
    )


def test_an_example_holds_the_activity_that_there_is(made: Example) -> None:
    # A coarse camera, few views: what the image finds is the true activity within a tenth.
    assert made.total_mbq == pytest.approx(made.meta["true_mbq"], rel=0.1)
    assert made.grid.spacing_mm == (3.0, 1.953125, 1.953125)
    assert made.meta["counts"] >= SETTINGS.counts[0]
    assert set(made.vois) == {"lesion 1"}


def test_the_truth_is_hotter_than_what_the_camera_resolves(made: Example) -> None:
    ball = made.vois["lesion 1"]
    # All electrons absorbed, 1 MBq/mL of Lu-177 in water gives 85.3 mGy/h; the ball's edge loses a little,
    # photons from around it add a little.
    assert made.truth[ball].mean() == pytest.approx(2 * 85.3, rel=0.08)
    assert made.dvk[ball].mean() < 0.85 * made.truth[ball].mean()
    assert made.mc_on_spect is not None
    assert made.mc_on_spect[ball].mean() == pytest.approx(made.dvk[ball].mean(), rel=0.1)


def test_labels_state_how_certain_they_are(made: Example) -> None:
    for key in ("label_uncertainty", "mc_on_spect_uncertainty"):
        figures = made.meta[key]["lesion 1"]
        assert 0 < figures["of_mean"] < figures["of_voxels"] < 1


def test_it_says_how_it_was_made(made: Example) -> None:
    for prefix in ("", "mc_on_spect_"):
        assert made.meta[f"{prefix}rounds"] == 1
        assert made.meta[f"{prefix}electron_decays"] == pytest.approx(SETTINGS.test_decays, rel=0.05)
        assert made.meta[f"{prefix}photon_decays"] == pytest.approx(SETTINGS.test_decays, rel=0.05)
    assert made.meta["fwhm_mm_at_100_mm"] == pytest.approx(CAMERA.fwhm_mm(100), abs=1e-3)
    assert SETTINGS.clearance_mm[0] <= made.meta["clearance_mm"] <= SETTINGS.clearance_mm[1]


def test_realisations_differ_by_their_noise_alone(made: Example) -> None:
    assert len(made.realisations) == 2
    ball = made.vois["lesion 1"]
    for again in made.realisations:
        assert not np.array_equal(again.spect, made.spect)
        assert again.total_mbq == pytest.approx(made.total_mbq, rel=0.02)
        assert again.spect[ball].mean() == pytest.approx(made.spect[ball].mean(), rel=0.1)


def test_all_slices_are_kept_and_the_body_with_a_margin(made: Example) -> None:
    assert made.grid.shape[0] == CT.shape[0]
    body_there = made.density > 0.2
    assert not body_there[:, :, [0, -1]].any()


def test_further_rounds_follow_until_the_labels_are_certain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient = replace(PATIENT, split="train")
    scene = given_scene(hospital(tmp_path / "p1"), patient, CAMERA)
    density = scene.density
    runs = []
    for rounds in (1, 3):
        settings = replace(SETTINGS, decays=2e3, uncertainty=1e-6, rounds=rounds)
        truth = generating._Truth(density, scene.vois, settings, patient, "Lu-177", "cpu", 1)
        runs.append(truth.of(scene.activity))
    assert [run.rounds for run in runs] == [1, 3]
    assert runs[1].decays == (3 * runs[0].decays[0], 3 * runs[0].decays[1])
    certainty = [run.uncertainty["lesion 1"]["of_mean"] for run in runs]
    assert certainty[1] == pytest.approx(certainty[0] / np.sqrt(3), rel=0.5)
    # Nobody may take these labels for as certain as was asked.
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2
    assert "after 3 rounds" in warned[1]
    assert f"lesion 1 ({certainty[1]:.2%})" in warned[1]


def test_the_noise_of_monte_carlo_on_the_spect_is_not_that_of_the_truth(tmp_path: Path) -> None:
    scene = given_scene(hospital(tmp_path / "p1"), PATIENT, CAMERA)
    settings = replace(SETTINGS, test_decays=2e3)
    dose = generating._Truth(scene.density, scene.vois, settings, PATIENT, "Lu-177", "cpu", 1)
    truth, again, other = (
        dose.of(scene.activity, seed).rate.array for seed in (0, 0, generating.ON_SPECT_SEED)
    )
    assert np.array_equal(truth, again)
    assert not np.array_equal(truth, other)
    seeds = [one.seed for one in plan(2000, 500, 500)]
    assert 16 * max(seeds) + SETTINGS.rounds < generating.ON_SPECT_SEED


def test_a_training_patient_has_two_images_and_no_monte_carlo_on_the_spect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = replace(PATIENT, split="train")
    scene = given_scene(hospital(tmp_path / "p1"), patient, CAMERA)
    found = example_of(scene, patient, replace(SETTINGS, decays=2e3), CAMERA, threads=1)
    assert found.mc_on_spect is None
    (again,) = found.realisations
    assert not np.array_equal(again.spect, found.spect)


def test_heads_keep_clear_of_the_body() -> None:
    _, density = body()
    spect = spect_grid_on(CT, CAMERA, np.random.default_rng(0))
    orbit = np.asarray(generating._orbit(density, spect, CAMERA, 20.0))
    # Half axes of 75 and 55 mm, the lattice's chance and half a voxel: in front nearer than beside.
    assert orbit[0] == pytest.approx(55 + 20, abs=9)
    assert orbit[CAMERA.views // 4] == pytest.approx(75 + 20, abs=9)


@pytest.mark.parametrize("name", ["activity", "density"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_volumes_that_cannot_be_are_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    folder = hospital(tmp_path / "p1")
    volume = body()[name == "density"]
    save_volume(folder / f"{name}.npz", volume.with_array(np.full(CT.shape, value, np.float32)))
    with pytest.raises(InputRejected, match=f"{name}.npz"):
        given_scene(folder, PATIENT, CAMERA)


def test_a_mask_counts_where_it_is_not_zero_whatever_it_holds(tmp_path: Path) -> None:
    first = given_scene(hospital(tmp_path / "p1"), PATIENT, CAMERA).vois["lesion 1"]
    ball = body()[0].with_array(np.where(body()[0].array > 1e6, np.float32(255), np.float32(0)), "1")
    save_volume(tmp_path / "p1" / "vois" / "lesion 1.npz", ball)
    assert np.array_equal(given_scene(tmp_path / "p1", PATIENT, CAMERA).vois["lesion 1"], first)


def test_truth_that_no_image_can_show_is_refused(tmp_path: Path) -> None:
    short = replace(CAMERA, slices=6)  # 72 mm of a CT of 108 mm
    with pytest.raises(InputRejected, match=r"density\.npz is 108 mm long, .* 72 mm"):
        given_scene(hospital(tmp_path / "p1"), PATIENT, short)


def test_a_patient_to_judge_by_has_a_voi(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "p1")
    (folder / "vois" / "lesion 1.npz").unlink()
    with pytest.raises(InputRejected, match="holds no volume of interest"):
        given_scene(folder, PATIENT, CAMERA)
    assert not given_scene(folder, replace(PATIENT, split="train"), CAMERA).vois


def test_a_missing_volume_is_named(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "p1")
    (folder / "density.npz").unlink()
    with pytest.raises(InputRejected, match=r"density\.npz"):
        given_scene(folder, PATIENT, CAMERA)


def stub(patient: Patient, *_: object, **__: object) -> Example:
    return synthetic.example(patient.seed, patient.patient_id)


def test_generation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    patients = plan(3, 1, 0)
    asked = iter([False, False, True])
    assert generate(patients, tmp_path, SETTINGS, CAMERA, until=lambda: next(asked), make=stub) == 2
    before = example_path(tmp_path, patients[0]).stat().st_mtime_ns
    assert generate(patients, tmp_path, SETTINGS, CAMERA, make=stub) == 2
    assert example_path(tmp_path, patients[0]).stat().st_mtime_ns == before
    assert all(load(example_path(tmp_path, p)).patient_id == p.patient_id for p in patients)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == [
        f"{p.patient_id}.npz" for p in patients[:3]
    ]


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    patients = plan(2, 0, 0)
    path = example_path(tmp_path, patients[0])
    path.parent.mkdir(parents=True)
    with path.with_name(f".{path.name}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert generate(patients, tmp_path, SETTINGS, CAMERA, make=stub) == 1
    assert not path.exists()
    assert generate(patients, tmp_path, SETTINGS, CAMERA, make=stub) == 1


def test_a_patient_who_cannot_be_made_is_told_of_when_the_others_are_done(tmp_path: Path) -> None:
    patients = plan(3, 0, 0)

    def first_broken(patient: Patient, *_: object, **__: object) -> Example:
        if patient == patients[0]:
            raise InputRejected("no such family")
        return stub(patient)

    with pytest.raises(InputRejected, match="no such family"):
        generate(patients, tmp_path, SETTINGS, CAMERA, make=first_broken)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == [
        f"{p.patient_id}.npz" for p in patients[1:]
    ]


def test_a_virtual_patient_is_the_same_to_the_ct_and_to_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn on a coarse CT, to be quick: activity on both grids, and what breathing leaves of it."""
    coarse = Grid((49, 50, 50), (-245.0, -220.0, -192.0), (8.0, 10.0, 10.0))
    monkeypatch.setattr(scenes, "training_grid", lambda: coarse)
    camera = replace(CAMERA, bins=32, slices=24, pixel_mm=16.0)
    scene = drawn_scene(Patient("a", "train", 5, "trunk", "multiscale"), camera)
    seen = averaged(scene.seen, coarse)
    middle = slice(5, -5)
    assert seen.array[middle].sum() == pytest.approx(scene.activity.array[middle].sum(), rel=0.05)
    assert {"healthy liver", "left kidney", "right kidney", "spleen", "L2"} <= set(scene.vois)
    for name in ("healthy liver", "spleen"):
        assert seen.array[scene.vois[name]].mean() == pytest.approx(
            scene.activity.array[scene.vois[name]].mean(), rel=0.2
        )
    lesions = [mask for name, mask in scene.vois.items() if name.startswith("lesion")]
    assert not any((scene.vois["healthy liver"] & mask).any() for mask in lesions)
