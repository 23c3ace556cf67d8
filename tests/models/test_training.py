from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from models import training
from models.dblurdosenet import REACH
from models.errors import ModelRejected
from models.loss import HUBER, USUAL_VOXELS, error_loss, loss_of
from models.samples import MOST_VOIS, Batch, Sample, draw, sample
from models.training import Settings, fresh, train

SHAPE = (14, 40, 36)
SMALL = Settings(
    steps=6, batch=1, slab=4, crop=32, margin=4, precision="fp32", log_every=1, validate_every=3,
    validation_crops=1, activity_jitter=0.1,
)  # fmt: skip


class Ticking:
    """A clock that is a second later whenever it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def made(name: str = "a.npz", seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Sample:
    """A patient in air whose dose DVK blurs, in the network's units."""
    rng = np.random.default_rng(seed)
    spots = gaussian_filter((rng.random(shape) > 0.995).astype(np.float32), 1.0) * 2e4
    density = np.full(shape, 1040.0, np.float32)
    density[:, :3] = density[:, -3:] = 1.2
    dvk = gaussian_filter(spots, 1.5) + 20
    return sample(name, dvk * 1.1, density, dvk, spots + 20)


def no_vois(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(maps.shape, dtype=torch.uint8), torch.zeros(len(maps), MOST_VOIS)


def weights(of: training.Trained) -> list[torch.Tensor]:
    return list(of.network.state_dict().values())


def small_network() -> training.Network:
    return fresh("dblurdosenet", 8)


def test_a_fresh_residual_network_gives_dvk() -> None:
    a = torch.rand(1, 1, 32, 32, 11) * 100
    dvk = torch.rand(1, 1, 32, 32)
    density = torch.full_like(a, 1000.0)
    assert torch.equal(small_network().eval()(a, density, dvk), dvk)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    samples = [made("a.npz"), made("b.npz", 1)]
    whole = train(small_network(), samples, SMALL, tmp_path / "whole", validation=samples, clock=Ticking())
    first = train(small_network(), samples, SMALL, tmp_path / "parts", clock=Ticking(), pause_after_s=8)
    assert not first.finished
    assert 0 < first.step < SMALL.steps
    # Other weights to begin with: all that counts is in the checkpoint.
    last = train(fresh("dblurdosenet", 8, seed=7), samples, SMALL, tmp_path / "parts", clock=Ticking())
    assert last.finished
    assert last.step == whole.step == SMALL.steps
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(last), strict=True))


def test_training_learns_what_dvk_lacks(tmp_path: Path) -> None:
    samples = [made(f"{k}.npz", k) for k in range(3)]
    settings = replace(SMALL, steps=60, average=0.9, validate_every=60, validation_crops=4)
    told: list[dict[str, float]] = []
    train(small_network(), samples, settings, tmp_path, validation=[made("v.npz", 9)], tell=told.append)
    last = [entry for entry in told if "validation" in entry][-1]
    assert last["validation"] < 0.95 * last["dvk"]


def test_the_time_budget_ends_the_training_and_the_schedule(tmp_path: Path) -> None:
    settings = replace(SMALL, steps=None, seconds=40.0)
    told: list[dict[str, float]] = []
    found = train(small_network(), [made()], settings, tmp_path, clock=Ticking(), tell=told.append)
    assert found.finished
    assert 40 <= found.elapsed_s < 60
    rates = [entry["learning_rate"] for entry in told if "loss" in entry]
    assert max(rates) > 0.5 * settings.learning_rate
    assert rates[-1] < 0.1 * settings.learning_rate


def test_the_rate_rises_then_falls_to_nothing() -> None:
    settings = replace(SMALL, warm_up=0.1)
    rates = [training.rate(settings, p) for p in np.linspace(0, 1, 101)]
    assert rates[0] < 0.02 * settings.learning_rate
    assert max(rates) == pytest.approx(settings.learning_rate)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert np.all(np.diff(rates[10:]) <= 0)


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_network(), [made()], SMALL, tmp_path, clock=Ticking(), pause_after_s=8)
    before = (tmp_path / training.CHECKPOINT).read_bytes()
    monkeypatch.setattr(training, "loss_of", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ModelRejected, match="is nan") as caught:
        train(small_network(), [made()], SMALL, tmp_path, clock=Ticking())
    assert training.CHECKPOINT in caught.value.remedy
    assert (tmp_path / training.CHECKPOINT).read_bytes() == before


def test_maps_that_do_not_fit_are_refused_by_the_name_of_their_file() -> None:
    good = np.ones(SHAPE, np.float32) * 1000
    with pytest.raises(ModelRejected, match=r"p7\.npz differ in shape: .*truth \(13, 40, 36\)"):
        sample("p7.npz", good, good, good, good[1:])
    bad = good.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(ModelRejected, match=r"the dvk of p7\.npz is no number in 1 voxels"):
        sample("p7.npz", good, good, bad, good)
    with pytest.raises(ModelRejected, match="no tissue"):
        sample("p7.npz", good, good / 1000, good, good)


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="nothing to learn from"):
        train(small_network(), [], SMALL, tmp_path)
    assert not (tmp_path / training.CHECKPOINT).exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    train(small_network(), [made()], SMALL, tmp_path, clock=Ticking(), pause_after_s=8)
    with pytest.raises(ModelRejected, match="another settings"):
        train(small_network(), [made()], replace(SMALL, batch=2), tmp_path)
    with pytest.raises(ModelRejected, match="another network"):
        train(fresh("2d"), [made()], SMALL, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / training.CHECKPOINT).write_bytes(content)
    with pytest.raises(ModelRejected, match="cannot be read"):
        train(small_network(), [made()], SMALL, tmp_path)


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", architecture=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelRejected, match="cannot be read"):
        training.read_checkpoint(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "wrong", [{"seconds": 5.0}, {"steps": None}, {"crop": 40}, {"margin": 16}, {"batch": 0}, {"slab": 2}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ModelRejected):
        replace(SMALL, **wrong)


def test_the_log_has_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    slow = replace(SMALL, save_every_s=1e9)
    train(small_network(), [made()], slow, tmp_path, clock=Ticking(), pause_after_s=8)
    log = tmp_path / training.LOG
    ahead = '{"step": 5, "loss": 1.0}\n'  # of a run that was killed after it
    log.write_text(log.read_text() + ahead)
    train(small_network(), [made()], slow, tmp_path, clock=Ticking())
    steps = [entry["step"] for entry in training.read_log(log) if "loss" in entry]
    assert steps == list(range(1, 7))


def test_samples_that_come_while_it_trains_are_taken_in(tmp_path: Path) -> None:
    asked: list[set[str]] = []

    def more(known: set[str]) -> Sequence[Sample]:
        asked.append(set(known))
        return [] if "b.npz" in known else [made("b.npz", 1)]

    settings = replace(SMALL, look_every_s=2.0)
    train(small_network(), [made()], settings, tmp_path, more=more, clock=Ticking())
    assert asked[0] == {"a.npz"}
    assert asked[-1] == {"a.npz", "b.npz"}


def test_batches_made_ahead_by_several_threads_are_the_same(tmp_path: Path) -> None:
    samples = [made("a.npz"), made("b.npz", 1)]
    one = train(small_network(), samples, SMALL, tmp_path / "1")
    four = train(small_network(), samples, replace(SMALL, loaders=4), tmp_path / "4")
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(four), strict=True))


def test_a_finished_training_is_left_as_it_is(tmp_path: Path) -> None:
    train(small_network(), [made()], SMALL, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert train(small_network(), [made()], SMALL, tmp_path).finished
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_samples_beyond_the_memory_are_left_out() -> None:
    a, b = made("a.npz"), made("b.npz", 1)
    assert training._Known([a, b], memory_gb=1.5 * a.gb, more=None).samples == [a]
    assert training._Known([b, a], memory_gb=3 * a.gb, more=None).samples == [a, b]


def test_the_loss_is_the_papers_where_the_exponent_is_zero() -> None:
    rng = np.random.default_rng(0)
    maps = [torch.from_numpy(rng.random((1, 4, 32, 32)).astype(np.float32)) * 500 for _ in range(2)]
    counts = torch.ones(1, 4, 32, 32)
    counts[:, :, :5] = 0
    batch = Batch(maps[0], maps[0], maps[0], maps[1], counts, *no_vois(counts))
    error = maps[0] - maps[1]
    plain = error_loss(error, batch, replace(SMALL, loss_exponent=0.0, loss_floor=10.0))
    assert plain.item() == pytest.approx((error[:, :, 5:] ** 2).mean().item() / 100, rel=1e-5)


def test_with_exponent_two_errors_count_relative_to_the_dose() -> None:
    settings = replace(SMALL, loss_exponent=2.0, loss_floor=1e-3)
    losses = []
    for dose in (10.0, 1000.0):
        dvk = torch.full((1, 4, 32, 32), dose)
        batch = Batch(dvk, dvk, dvk, dvk, torch.ones_like(dvk), *no_vois(dvk))
        losses.append(error_loss(0.1 * dvk, batch, settings).item())
    assert losses == pytest.approx([0.01, 0.01], rel=1e-3)


def test_a_voi_counts_by_mean_and_nrmse_and_by_the_part_of_it_that_is_there() -> None:
    # The voxels by themselves count for nothing.
    settings = replace(SMALL, voi_weight=1.0, loss_floor=1e9, in_plane=2)
    truth = torch.full((1, 4, 32, 32), 500.0)
    vois = torch.zeros(truth.shape, dtype=torch.uint8)
    vois[:, :, :16] = 3
    per_voxel = torch.zeros(1, MOST_VOIS)
    per_voxel[0, 3] = 1 / (2 * 4 * 16 * 32)  # half of it lies elsewhere
    batch = Batch(truth, truth, truth, truth, torch.ones_like(truth), vois, per_voxel)
    error = torch.zeros_like(truth)
    # Too high in one part and too low in the other is no error of the mean.
    error[:, :, :8], error[:, :, 8:16], error[:, :, 16:] = 50.0, -50.0, 400.0
    assert error_loss(error, batch, settings).item() == pytest.approx(0.5 * 0.1**2, rel=1e-4)
    error[:, :, :16] = -0.2 * 500
    whole = 0.2 - HUBER / 2 + 0.2**2
    assert error_loss(error, batch, settings).item() == pytest.approx(0.5 * whole, rel=1e-4)
    batch.counts[:, :, :8] = 0  # what does not count is not there
    assert error_loss(error, batch, settings).item() == pytest.approx(0.25 * whole, rel=1e-4)


@pytest.mark.parametrize(("voxels", "k"), [(22, 0.5), (110, 0.5**0.5), (220, 1.0), (880, 2.0), (11000, 4.0)])
def test_the_mean_of_a_larger_voi_counts_more(voxels: int, k: float) -> None:
    assert USUAL_VOXELS == 4 * 220
    settings = replace(SMALL, voi_weight=1.0, voi_bounds=(0.5, 4.0), loss_floor=1e9, in_plane=2)
    truth = torch.full((1, 8, 40, 40), 500.0)
    per_voxel = torch.zeros(1, MOST_VOIS)
    per_voxel[0, 3] = 1 / voxels
    vois = torch.zeros(truth.shape, dtype=torch.uint8)
    vois.view(-1)[:voxels] = 3
    batch = Batch(truth, truth, truth, truth, torch.ones_like(truth), vois, per_voxel)
    loss = error_loss(0.1 * truth, batch, settings).item()
    assert loss == pytest.approx(k * (0.1 - HUBER / 2) + 0.1**2, rel=1e-3)


def test_of_vois_that_overlap_the_smaller_has_the_voxels() -> None:
    large, small = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    large[2:10, 5:30, 5:30] = True
    small[4:6, 10:14, 10:14] = True
    for order in ((large, small), (small, large)):
        one = sample("v.npz", *(np.full(SHAPE, 1000, np.float32),) * 4, order)
        assert one.vois[5, 12, 12] == 2
        assert one.vois[3, 12, 12] == 1
        assert one.per_voxel[2] == pytest.approx(1 / small.sum())
        assert one.per_voxel[1] == pytest.approx(1 / (large.sum() - small.sum()))
        assert one.per_voxel[0] == 0


def numbered(shape: tuple[int, int, int] = SHAPE) -> Sample:
    """Maps that say of every voxel which it is: spect z, dvk y, truth x."""
    z, y, x = (np.asarray(a, np.float32) for a in np.indices(shape))
    halves = [y <= 20, y > 20]
    return sample("n.npz", z, np.full(shape, 1000, np.float32), y, x, halves)


def test_the_maps_of_a_crop_belong_together_however_it_is_flipped() -> None:
    flipped = set()
    for step in range(12):
        batch = draw([numbered()], replace(SMALL, activity_jitter=0.0), step)
        spect, _, dvk, truth, counts, vois, _ = (tensor[0].numpy() for tensor in batch)
        assert np.array_equal(vois, 1 + (dvk > 20))
        z = spect[REACH:-REACH, 0, 0]
        assert set(np.abs(np.diff(z))) == {1.0}
        assert np.all(spect[REACH:-REACH] == z[:, None, None])
        assert set(np.abs(np.diff(dvk[0, :, 0]))) == {1.0}
        assert set(np.abs(np.diff(truth[0, 0]))) == {1.0}
        # End slices are repeated, as the network sees them at the ends of a patient.
        ends = np.sort(spect[:, 0, 0])
        assert ends[0] == max(z.min() - REACH, 0)
        assert ends[-1] == min(z.max() + REACH, SHAPE[0] - 1)
        # Cut edges do not count, the patient's own do.
        cut = int(dvk[0, :, 0].min() > 0) + int(dvk[0, :, 0].max() < SHAPE[1] - 1)
        assert np.count_nonzero(counts[0].max(axis=1)) == SMALL.crop - cut * SMALL.margin
        flipped.add(bool(z[0] > z[-1]))
    assert flipped == {True, False}


def test_a_patient_smaller_than_a_crop_is_padded_with_air_that_does_not_count() -> None:
    batch = draw([numbered((3, 20, 24))], replace(SMALL, flips=False), 0)
    assert batch.spect.shape == (1, 4 + 2 * REACH, 32, 32)
    assert batch.counts.sum() == 3 * 20 * 24
    assert batch.density[0, :, 20:].max() == 0


def test_hot_crops_go_where_the_dose_is() -> None:
    shape = (30, 96, 96)
    dvk = np.zeros(shape, np.float32)
    dvk[20:24, 60:72, 60:72] = 1000
    hot = sample("h.npz", dvk, np.full(shape, 1000, np.float32), dvk, dvk)
    settings = replace(SMALL, hot=1.0)
    seen = [((b := draw([hot], settings, k)).dvk * b.counts).max().item() > 100 for k in range(20)]
    assert all(seen)


@pytest.mark.parametrize("architecture", ["no-residual", "2d"])
def test_the_ablations_train_too(tmp_path: Path, architecture: str) -> None:
    found = train(fresh(architecture, 8), [made()], replace(SMALL, steps=2), tmp_path)
    assert found.finished
    again = training.averaged_network(training.read_checkpoint(tmp_path / training.CHECKPOINT))
    assert all(torch.equal(a, b) for a, b in zip(weights(found), again.state_dict().values(), strict=True))


def imaged_twice(second: Sample) -> Sample:
    """A patient, and another image of him."""
    one = made()
    maps = (one.spect, one.density, one.dvk, one.truth)
    return sample("a.npz", *maps, again=(second.spect, second.dvk))


def test_of_two_images_the_loss_takes_the_variance_that_is_left_relative_to_the_dose() -> None:
    settings = replace(SMALL, noise_weight=3.0)
    alone = replace(SMALL, noise_weight=0.0)
    losses = []
    for dose in (1e3, 1e5):
        dvk = torch.full((2, 4, 32, 32), dose)
        batch = Batch(dvk, dvk, dvk, dvk, torch.ones_like(dvk), *no_vois(dvk))
        error = torch.stack([0.3 * dvk[0], 0.1 * dvk[1]])  # what both have is bias
        losses.append((error_loss(error, batch, settings) - error_loss(error, batch, alone)).item())
    floor = SMALL.loss_floor
    wanted = [3 * 0.5 * (0.2 * dose / (dose + floor)) ** 2 for dose in (1e3, 1e5)]
    assert losses == pytest.approx(wanted, rel=1e-3)


def test_two_images_of_a_crop_are_of_one_place() -> None:
    settings = replace(SMALL, batch=2, noise_weight=1.0)
    one = made()
    doubled = made()._replace(spect=one.spect * 2, dvk=one.dvk * 3)
    batch = draw([imaged_twice(doubled)], settings, 4)
    for tensor in batch:
        assert len(tensor) == 4
    torch.testing.assert_close(batch.spect[2:], 2 * batch.spect[:2], rtol=2e-3, atol=0)
    torch.testing.assert_close(batch.dvk[2:], 3 * batch.dvk[:2], rtol=2e-3, atol=0)
    for same in (batch.density, batch.truth, batch.counts, batch.vois, batch.per_voxel):
        assert torch.equal(same[2:], same[:2])
    assert not torch.equal(batch.truth[0], batch.truth[1])
    # The crops are those that one image would have given: with or without the second, the same training.
    plain = draw([one], replace(settings, noise_weight=0.0), 4)
    assert torch.equal(plain.spect, batch.spect[:2])


def test_a_patient_of_one_image_is_refused_where_the_loss_compares_two() -> None:
    with pytest.raises(ModelRejected, match=r"b\.npz holds one image") as refused:
        draw([made("b.npz")], replace(SMALL, noise_weight=1.0), 0)
    assert "noise_weight = 0" in str(refused.value.remedy)


def test_bf16_and_fp32_lose_alike() -> None:
    batch, network = draw([made()], SMALL, 0), small_network().eval()
    for parameter in training.last_layer(network).parameters():
        torch.nn.init.constant_(parameter, 1.0)
    losses = [loss_of(network, batch, SMALL, p).item() for p in (torch.float32, torch.bfloat16)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"noise_weight": -1.0}, "noise_weight of -1"),
        ({"voi_weight": float("nan")}, "voi_weight of nan"),
        ({"learning_rate": 0.0}, "learning_rate of 0"),
        ({"voi_bounds": (4.0, 0.5)}, "voi_bounds of 4 and 0.5"),
        ({"crop": 20}, "crops of 20 voxels"),
    ],
)
def test_settings_that_nothing_is_learnt_with_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelRejected, match=said):
        training.Settings(steps=1, **wrong)
