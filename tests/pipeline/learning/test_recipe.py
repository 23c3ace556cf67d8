from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import training, weights
from models.errors import ModelRejected
from pipeline.errors import InputRejected
from pipeline.learning import example as examples
from pipeline.learning import generate as generating
from pipeline.learning import recipe as recipes
from pipeline.learning import results
from pipeline.learning.recipe import Recipe, Work, run
from tests.pipeline.learning import synthetic
from tests.pipeline.learning.test_generate import CAMERA, SETTINGS, hospital

STEPS = 2
LOOP = {
    "batch": 1, "slab": 4, "crop": 32, "margin": 4, "in_plane": 1, "precision": "fp32", "log_every": 1,
    "validate_every": 2, "validation_crops": 1,
}  # fmt: skip


def data(folder: Path, count: int = 4) -> Path:
    """A hospital with so many patients."""
    for number in range(count):
        hospital(folder / f"patient-{number}")
    return folder


def work(tmp_path: Path, **changes: object) -> tuple[Work, list[str]]:
    told: list[str] = []
    settings = replace(SETTINGS, decays=1e4, test_decays=1e4, realisations=2)
    recipe = Recipe(
        hours=1.0,
        middle=8,
        name="small",
        threads=1,
        software="dicomnode test",
        generate=settings,
        steps=STEPS,
        learning=LOOP,
    )
    recipe = replace(recipe, **changes)  # type: ignore[arg-type]
    return Work(recipe, CAMERA, tmp_path / "out", "2026-01-31", "a machine", tell=told.append), told


def with_examples(folder: Path) -> None:
    """What generation leaves."""
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        for number in range(count):
            one = synthetic.example(number, f"{split}-{number:03d}-trunk", again=1)
            examples.save(one, folder / split / f"{one.patient_id}.npz")


def test_a_hospitals_own_truth_becomes_weights(tmp_path: Path) -> None:
    """Every stage, in a folder of which nothing was there; then again, which changes nothing."""
    job, told = work(tmp_path, data=data(tmp_path / "data"))
    run(job)
    assert [p.name for p in sorted((job.folder / "test").glob("*.npz"))] == ["patient-0.npz"]
    loaded = weights.load(job.folder / "weights" / "small")
    assert loaded.manifest.training["patients"] == 2
    assert loaded.manifest.training["steps"] == STEPS
    assert loaded.manifest.voxel_mm == (3.0, 1.953125, 1.953125)
    assert loaded.manifest.resolution_fwhm_mm == pytest.approx(
        (0.9 * CAMERA.fwhm_mm(100), 1.1 * CAMERA.fwhm_mm(100)), abs=0.01
    )
    made = [examples.load(path) for path in sorted((job.folder / "train").glob("*.npz"))]
    assert loaded.manifest.camera["counts"] == pytest.approx(
        sorted(one.meta["counts"] for one in made), rel=1e-5
    )
    assert loaded.manifest.training["electron_decays"] == made[0].meta["electron_decays"]
    card = (loaded.folder / "MODEL_CARD.md").read_text()
    assert "10% of the FWHM at 10 cm; one collimator was simulated" in card
    assert "lesion" in (job.folder / "evaluation.md").read_text()
    assert (job.folder / "figures" / "slices.png").exists()
    before = {p: p.stat().st_mtime_ns for p in job.folder.glob("*/*.npz")}
    told.clear()
    run(job, ["generate", "train", "publish"])
    assert {p: p.stat().st_mtime_ns for p in job.folder.glob("*/*.npz")} == before
    assert any(line.startswith("0 examples made, 4 of 4") for line in told)
    assert weights.load(job.folder / "weights" / "small").manifest.sha256 == loaded.manifest.sha256


def test_a_pause_leaves_a_checkpoint_that_the_next_call_takes_up(tmp_path: Path) -> None:
    seconds = iter(range(10_000))
    job, told = work(tmp_path, pause_s=14.0, steps=20)
    with_examples(job.folder)
    ticking = replace(job, clock=lambda: float(next(seconds)))
    run(ticking, ["train"])
    path = recipes.network_folder(job.folder, "dblurdosenet") / training.CHECKPOINT
    first = int(training.read_checkpoint(path)["step"])
    assert 0 < first < 20
    assert any("call again" in line for line in told)
    run(replace(ticking, recipe=replace(job.recipe, pause_s=None)), ["train"])
    assert int(training.read_checkpoint(path)["step"]) == 20


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> weights.Weights:
    """Weights that something was trained for."""
    job, _ = work(tmp_path_factory.mktemp("begun"))
    with_examples(job.folder)
    run(job, ["train", "evaluate", "publish"])
    return weights.load(job.folder / "weights" / "small")


def test_training_goes_on_from_weights(begun: weights.Weights, tmp_path: Path) -> None:
    """From exactly those, gently, with their BatchNorm; and what comes of it says what it began with."""
    further, _ = work(tmp_path, start_from=begun.folder, name="further")
    with_examples(further.folder)
    network, settings = recipes._beginning(further, "dblurdosenet")
    for key, value in begun.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert settings.hold_norm == 0.0
    assert settings.learning_rate < training.Settings(steps=1).learning_rate
    run(further, ["train", "evaluate", "publish"])
    then = weights.load(further.folder / "weights" / "further")
    assert then.manifest.training["settings"]["started_from"] == f"small, sha256 {begun.manifest.sha256}"
    for key, value in then.network.state_dict().items():
        if "running" in key:
            assert torch.equal(value, begun.network.state_dict()[key]), key
    assert then.manifest.sha256 != begun.manifest.sha256
    assert f"--steps {STEPS} --start-from small" in (then.folder / "MODEL_CARD.md").read_text()


def test_what_is_published_may_be_a_mix_with_what_training_began_with(
    begun: weights.Weights, tmp_path: Path
) -> None:
    """Mixed once, however often the finished training is looked at."""
    made = {}
    for mix in (1.0, 0.25):
        job, _ = work(tmp_path / str(mix), start_from=begun.folder, name="further", mix=mix)
        with_examples(job.folder)
        run(job, ["train", "evaluate"])
        run(job, ["train", "publish"])
        made[mix] = weights.load(job.folder / "weights" / "further")
    for key, old in begun.network.state_dict().items():
        learnt, mixed = (made[mix].network.state_dict()[key] for mix in (1.0, 0.25))
        if old.is_floating_point():
            assert torch.allclose(mixed, 0.75 * old + 0.25 * learnt, atol=1e-6), key
    assert made[0.25].manifest.training["settings"]["mix"] == 0.25
    assert "--start-from small --mix 0.25" in (made[0.25].folder / "MODEL_CARD.md").read_text()


def test_a_mix_needs_weights_to_start_from() -> None:
    with pytest.raises(InputRejected, match="no weights to start from"):
        Recipe(mix=0.5)
    for wrong in (0.0, 1.5):
        with pytest.raises(InputRejected, match=f"a mix of {wrong:g}"):
            Recipe(mix=wrong, start_from=Path("weights"))


def test_weights_of_another_architecture_are_not_gone_on_from(begun: weights.Weights, tmp_path: Path) -> None:
    other, _ = work(tmp_path, start_from=begun.folder, architectures=("2d",))
    with_examples(other.folder)
    with pytest.raises(InputRejected, match="of the architecture dblurdosenet, and 2d is to be trained"):
        run(other, ["train"])


def test_weights_of_another_voxel_size_are_not_gone_on_from(begun: weights.Weights, tmp_path: Path) -> None:
    other, _ = work(tmp_path, start_from=begun.folder)
    for number in range(2):
        one = synthetic.example(number, f"train-{number:03d}-trunk")
        grid = replace(one.grid, spacing_mm=(6.0, 5.0, 5.0))
        examples.save(replace(one, grid=grid), other.folder / "train" / f"{one.patient_id}.npz")
    with pytest.raises(InputRejected, match="of the voxel size 6 x 7 x 7 mm, and 6 x 5 x 5 mm"):
        run(other, ["train"])


def test_going_on_takes_the_weights_voxels_whatever_the_device_would(
    begun: weights.Weights, tmp_path: Path
) -> None:
    """On a GPU nothing is trained on merged voxels, unless it goes on from weights that were."""
    job, _ = work(tmp_path, start_from=begun.folder, learning=LOOP | {"in_plane": 2})
    with_examples(job.folder)
    _, settings = recipes._beginning(job, "dblurdosenet")
    assert settings.in_plane == 1


def test_a_budget_is_of_steps_or_of_hours() -> None:
    both = ("dblurdosenet", "2d")
    assert (Recipe(steps=30, architectures=both).loop.steps, Recipe(steps=30).loop.seconds) == (30, None)
    assert Recipe(hours=1.0, architectures=both).loop.seconds == pytest.approx(0.45 * 1800)


def test_the_card_tells_the_settings_that_are_not_the_usual_ones(
    begun: weights.Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its command makes the same weights again."""
    monkeypatch.setattr(recipes._Pictures, "_draw", lambda *_: None)
    asked = {"noise_weight": 10.0, "voi_bounds": (0.5, 4.0), "learning_rate": 1e-4}
    job, _ = work(tmp_path, start_from=begun.folder, name="further", learning=LOOP | asked)
    with_examples(job.folder)
    run(job, ["train", "evaluate", "publish"])
    made = weights.load(job.folder / "weights" / "further")
    used = made.manifest.training["settings"]
    assert (used["noise_weight"], used["learning_rate"], used["hold_norm"]) == (10.0, 1e-4, 0.0)
    (command,) = (
        line for line in (made.folder / "MODEL_CARD.md").read_text().splitlines() if "dicomnode train" in line
    )
    for one in (
        "noise_weight=10.0",
        "voi_bounds=0.5,4.0",
        "learning_rate=0.0001",
        "batch=1",
        "precision=fp32",
    ):
        assert f"--setting {one}" in command
    for usual in ("hold_norm", "voi_weight", "seed", "started_from", "steps="):
        assert usual not in command.partition("#")[0]


@pytest.mark.parametrize("name", ["noise", "steps", "mix"])
def test_a_setting_that_there_is_not_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputRejected, match=f"'{name}' is no setting of the training") as refused:
        Recipe(learning={name: 1})
    assert "noise_weight" in str(refused.value)


def test_each_architecture_is_trained_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes._Pictures, "_draw", lambda *_: None)
    job, _ = work(tmp_path, architectures=("dblurdosenet", "2d"))
    with_examples(job.folder)
    run(job, ["train", "evaluate"])
    judged = json.loads((job.folder / "evaluation.json").read_text())
    names = [results.NETWORK_NAMES[name] for name in ("dblurdosenet", "2d")]
    assert judged["methods"] == [results.DVK, results.MC, *names]


@pytest.mark.parametrize(
    ("stage", "said"),
    [("train", "holds 0 examples"), ("evaluate", "nothing has been trained|holds no example"),
     ("publish", "Evaluate first"), ("bake", "there is no stage 'bake'")],
)  # fmt: skip
def test_a_stage_that_lacks_what_comes_before_says_so(tmp_path: Path, stage: str, said: str) -> None:
    job, _ = work(tmp_path)
    with pytest.raises(InputRejected, match=said):
        run(job, [stage])
    assert not (job.folder / "weights").exists()


def test_maps_of_another_shape_are_refused_with_the_name_of_their_file(tmp_path: Path) -> None:
    job, _ = work(tmp_path)
    with_examples(job.folder)
    path = job.folder / "train" / "train-001-trunk.npz"
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    content["truth"] = content["truth"][1:]
    np.savez(path, **content)
    with pytest.raises((InputRejected, ModelRejected), match="train-001-trunk"):
        run(job, ["train"])
    assert not (job.folder / "networks").exists()


def test_patients_without_activity_are_refused_by_name(tmp_path: Path) -> None:
    nothing = replace(synthetic.example(), total_mbq=0.0)
    with pytest.raises(InputRejected, match=r"p\.npz holds no activity"):
        recipes.sample_of(nothing, tmp_path / "p.npz")


def test_samples_are_scaled_by_the_activity_of_the_whole_field(tmp_path: Path) -> None:
    one = synthetic.example()
    sample = recipes.sample_of(one, tmp_path / "p.npz")
    per_ml = one.spect / (one.total_mbq * 1e6)
    assert float(sample.spect.max()) == pytest.approx(0.024e8 * float(per_ml.max()), rel=1e-3)
    # mGy/h -> mGy/s per MBq, times 1e8 (Li 2022).
    assert float(sample.truth.max()) == pytest.approx(
        float(one.truth.max()) / 3600 / one.total_mbq * 1e8, rel=1e-3
    )


def test_a_second_image_is_in_the_units_of_the_first(tmp_path: Path) -> None:
    one = synthetic.example(again=1)
    sample = recipes.sample_of(one, tmp_path / "p.npz")
    assert sample.again is not None
    (other,) = one.realisations
    for again, first, images in (
        (sample.again[0], sample.spect, (other.spect, one.spect)),
        (sample.again[1], sample.dvk, (other.dvk, one.dvk)),
    ):
        ratio = float(again.max()) / float(first.max())
        assert ratio == pytest.approx(float(images[0].max() / images[1].max()), rel=2e-3)
    assert recipes.sample_of(synthetic.example(), tmp_path / "p.npz").again is None
    assert recipes.sample_of(one, tmp_path / "p.npz", images=1).again is None


def test_some_to_learn_from_and_those_that_judge_come_first(tmp_path: Path) -> None:
    patients = recipes.patients_of(Recipe(train=30, validation=2, test=5), tmp_path)
    assert [p.split for p in patients[:15]] == ["train"] * 8 + ["validation"] * 2 + ["test"] * 5
    assert len(patients) == 37
    assert len({p.patient_id for p in patients}) == 37


def test_a_hospital_needs_patients_for_each_purpose(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"p{number}").mkdir()
        (tmp_path / f"p{number}" / "activity.npz").touch()
    with pytest.raises(InputRejected, match="holds 3 patients"):
        recipes.given_patients(tmp_path, tmp_path / "out")
    with pytest.raises(InputRejected, match="no folder"):
        Recipe(data=tmp_path / "nowhere")


def test_a_patient_stays_what_he_is_when_others_come_or_go(tmp_path: Path) -> None:
    """Whom training has seen must never be judged by."""

    def add(*names: str) -> None:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "activity.npz").touch()

    add(*"bcdefgh")
    before = {p.patient_id: p for p in recipes.given_patients(tmp_path, tmp_path / "out")}
    add("a")
    (tmp_path / "d" / "activity.npz").unlink()
    after = {p.patient_id: p for p in recipes.given_patients(tmp_path, tmp_path / "out")}
    assert after.keys() == {*"abcefgh"}
    assert all(after[name] == before[name] for name in "bcefgh")
    assert {p.split for p in after.values()} == {"train", "validation", "test"}


def test_generation_ends_with_its_share_of_the_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10_000_000, 600))
    monkeypatch.setattr(
        generating, "make_example", lambda patient, *_, **__: synthetic.example(1, patient.patient_id)
    )
    job, told = work(tmp_path, train=20, test=0, validation=0)
    run(replace(job, clock=lambda: float(next(seconds))), ["generate"])
    made = len(list((job.folder / "train").glob("*.npz")))
    # 45 % of an hour at 600 s a look.
    assert 2 <= made <= 3
    assert any(f"{made} of 20" in line for line in told)


def test_of_a_short_call_generation_leaves_training_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 10_000_000, 10))
    monkeypatch.setattr(
        generating, "make_example", lambda patient, *_, **__: synthetic.example(1, patient.patient_id)
    )
    job, _ = work(tmp_path, train=60, test=0, validation=0, pause_s=200.0, steps=3)
    run(replace(job, clock=lambda: float(next(seconds))), ["generate", "train"])
    assert 4 <= len(list((job.folder / "train").glob("*.npz"))) <= 9
    assert (recipes.network_folder(job.folder, "dblurdosenet") / training.CHECKPOINT).exists()


def test_only_the_chosen_patients_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        generating, "make_example", lambda patient, *_, **__: synthetic.example(1, patient.patient_id)
    )
    job, _ = work(tmp_path, chosen=(1, 3))
    run(job, ["generate"])
    assert sorted(p.stem for p in (job.folder / "train").glob("*.npz")) == [
        "train-001-harmonic",
        "train-002-trunk",
    ]


def test_several_processes_share_the_work(tmp_path: Path) -> None:
    job, _ = work(tmp_path, data=data(tmp_path / "data"), workers=2, chosen=(1, 3))
    run(job, ["generate"])
    assert len(list(job.folder.glob("*/*.npz"))) == 2
