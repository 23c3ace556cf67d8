"""What is found of patients, what classes of VOIs have in common, and where a network is worse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from pipeline.errors import InputRejected
from pipeline.learning import comparison, evaluation, metrics, paper, results
from pipeline.learning.evaluation import Method
from pipeline.learning.example import Example
from pipeline.learning.results import CNN, DVK, MC, Evaluation, VoiResult
from pipeline.vois import VoiClass, judged_vois, voi_class
from tests.pipeline.learning import synthetic

Array = NDArray[np.float32]
HALFWAY: Method = lambda example: synthetic.nearly_true(0.5, example)  # noqa: E731


def evaluated(*examples: Example, cnn: Method = HALFWAY) -> Evaluation:
    return evaluation.evaluate(examples, evaluation.classical_methods() | {CNN: cnn})


def voi_of(found: Evaluation, name: str) -> VoiResult:
    return next(voi for voi in found.vois() if voi.name == name)


# ── volumes of interest ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lesion 12", VoiClass.LESION),
        ("Liver_lesion_1", VoiClass.LESION),
        ("Tumour A", VoiClass.LESION),
        ("L2", VoiClass.LUMBAR),
        ("L2-L5", VoiClass.LUMBAR),
        ("vertebrae_L4", VoiClass.LUMBAR),
        ("kidney_left", VoiClass.LEFT_KIDNEY),
        ("Right Kidney", VoiClass.RIGHT_KIDNEY),
        ("liver", VoiClass.HEALTHY_LIVER),
        ("healthy liver", VoiClass.HEALTHY_LIVER),
        ("spleen", VoiClass.SPLEEN),
        ("lungs", VoiClass.OTHER),
    ],
)
def test_a_voi_is_classed_by_its_name(name: str, kind: VoiClass) -> None:
    assert voi_class(name) is kind


def test_healthy_liver_is_the_liver_less_its_lesions() -> None:
    liver, lesion = np.zeros((2, 8, 8), bool)
    liver[:6], lesion[4:7] = True, True
    judged = judged_vois({"liver": liver, "lesion 1": lesion, "empty": np.zeros(8, bool)})
    assert set(judged) == {"healthy liver", "lesion 1"}
    assert judged["healthy liver"][:4].all()
    assert not judged["healthy liver"][4:].any()


def test_lobes_of_the_liver_are_judged_one_by_one() -> None:
    left, right, lesions = np.zeros((3, 8), bool)
    left[:4], right[4:], lesions[3:5] = True, True, True
    judged = judged_vois({"liver_left": left, "liver_right": right, "lesions": lesions})
    assert {name: int(mask.sum()) for name, mask in judged.items()} == {
        "healthy liver_left": 3,
        "healthy liver_right": 3,
    }


def test_the_whole_body_and_the_union_of_lesions_are_no_vois() -> None:
    mask = np.ones((2, 2), bool)
    assert set(judged_vois({"body": mask, "lesions": mask, "lesion 1": mask})) == {"lesion 1"}


# ── one patient ──────────────────────────────────────────────────────────────────────────────────


def test_every_voi_of_every_patient_is_judged_by_every_method() -> None:
    found = evaluated(synthetic.example(1), synthetic.example(2))
    assert found.methods == (DVK, MC, CNN)
    assert [patient.patient for patient in found.patients] == ["patient 1", "patient 2"]
    for patient in found.patients:
        assert {voi.name for voi in patient.vois} == set(synthetic.CENTRES_MM) - {"liver"} | {"healthy liver"}
        assert all(set(voi.by_method) == {DVK, MC, CNN} for voi in patient.vois)


def test_figures_are_those_of_the_metrics() -> None:
    example = synthetic.example(3)
    mask = example.vois["left kidney"]
    found = voi_of(evaluated(example), "left kidney").by_method[DVK]
    assert found.mean_error == pytest.approx(metrics.mean_error(example.dvk, example.truth, mask))
    assert found.nrmse == pytest.approx(metrics.nrmse(example.dvk, example.truth, mask))
    assert found.dr30 == pytest.approx(metrics.dose_rate_at_error(example.dvk, example.truth, 30, mask))
    assert found.energy_over_dvk == 1.0


def test_mean_dose_rate_is_per_activity_of_the_whole_field() -> None:
    example = synthetic.example(3)
    voi = voi_of(evaluated(replace(example, total_mbq=5000.0)), "spleen")
    mgy_per_h = float(example.truth[example.vois["spleen"]].mean(dtype=np.float64))
    # mGy/h -> nGy/s: 1e6 / 3600
    assert voi.true_mean == pytest.approx(mgy_per_h * 1e6 / 3600 / 5000)


def test_halfway_to_the_truth_halves_every_error() -> None:
    for voi in evaluated(synthetic.example(4)).vois():
        dvk, cnn = voi.by_method[DVK], voi.by_method[CNN]
        assert cnn.mean_error == pytest.approx(dvk.mean_error / 2, rel=1e-4)
        assert cnn.nrmse == pytest.approx(dvk.nrmse / 2, rel=1e-4)


def test_an_example_without_monte_carlo_is_judged_without_it() -> None:
    found = evaluated(replace(synthetic.example(1), mc_on_spect=None))
    assert all(set(voi.by_method) == {DVK, CNN} for voi in found.vois())
    assert math.isnan(comparison.summary(found, VoiClass.LESION).reduction("nrmse", CNN, MC))


def test_a_voi_without_dose_is_left_out_with_the_reason() -> None:
    example = synthetic.example(1)
    truth = np.where(example.vois["L2"], np.float32(0), example.truth)
    patient = evaluated(replace(example, truth=truth)).patients[0]
    assert "L2" not in {voi.name for voi in patient.vois}
    assert patient.skipped[0].startswith("L2: the VOI's mean dose rate is 0")


def test_a_map_that_is_not_finite_is_refused() -> None:
    broken: Method = lambda example: example.dvk * np.float32(np.nan)  # noqa: E731
    with pytest.raises(InputRejected, match=r"CNN gave .* not finite numbers for patient 1"):
        evaluated(synthetic.example(1), cnn=broken)


def test_without_examples_there_is_no_evaluation() -> None:
    with pytest.raises(InputRejected, match="no example"):
        evaluated()


def test_what_is_stated_of_the_statistics_is_kept(tmp_path: Path) -> None:
    example = synthetic.example(1)
    stated = {"spleen": {"of_mean": 0.002, "of_voxels": math.inf}}
    found = evaluated(replace(example, meta={**example.meta, "mc_on_spect_uncertainty": stated}))
    results.save(found, tmp_path / "evaluation.json")
    spleen = voi_of(results.load(tmp_path / "evaluation.json"), "spleen")
    assert (spleen.label_uncertainty, spleen.label_noise) == (0.001, 0.005)
    assert (spleen.mc_uncertainty, spleen.mc_noise) == (0.002, math.inf)
    assert voi_of(found, "L2").mc_noise == 0.0


# ── a network as a method ────────────────────────────────────────────────────────────────────────


def network_map(
    example: Example, run: Callable[[Array, Array], Array], residual: bool = True
) -> NDArray[np.float32]:
    return evaluation.NetworkMethod(run, residual, example.grid.spacing_mm)(example)


def test_a_residual_of_nothing_is_dvk_in_tissue_and_nothing_in_air() -> None:
    example = synthetic.example(5)
    found = network_map(example, lambda spect, _density: np.zeros_like(spect))
    assert_allclose(found, example.dvk * (example.density > 0.1), rtol=1e-5)


def test_a_network_is_given_the_published_scaling() -> None:
    example = synthetic.example(5)
    seen: dict[str, Array] = {}

    def run(spect: Array, density: Array) -> Array:
        seen.update(spect=spect, density=density)
        return np.zeros_like(spect)

    network_map(replace(example, total_mbq=2 * example.total_mbq), run)
    # The SPECT is a fraction of the activity of the whole field, twice what the box holds: 0.024e8 per unit.
    assert seen["spect"].sum() * example.grid.voxel_volume_ml == pytest.approx(0.5 * 0.024e8, rel=1e-4)
    assert seen["density"].max() == pytest.approx(1000.0)


def test_a_network_without_residual_gives_the_dose_rate_itself() -> None:
    example = synthetic.example(5)
    # In the network's unit, mGy/s per MBq times 1e8.
    wanted = example.truth * np.float32(1e8 / 3600 / example.total_mbq)

    def run(spect: Array, _density: Array) -> Array:
        output = np.zeros_like(spect)
        at = tuple((n - m) // 2 for n, m in zip(spect.shape, wanted.shape, strict=True))
        box = tuple(slice(a, a + m) for a, m in zip(at, wanted.shape, strict=True))
        output[box] = wanted
        return output

    assert_allclose(network_map(example, run, residual=False), example.truth, rtol=2e-3, atol=1e-3)


def test_activity_doubled_is_dose_doubled() -> None:
    example = synthetic.example(5)
    twice = replace(
        example,
        spect=2 * example.spect,
        dvk=2 * example.dvk,
        total_mbq=2 * example.total_mbq,
        mc_on_spect=None,
    )
    run: Callable[[Array, Array], Array] = lambda spect, density: (np.sqrt(spect) - 0.01 * density).astype(  # noqa: E731
        np.float32
    )
    assert_allclose(network_map(twice, run), 2 * network_map(example, run), rtol=1e-4, atol=1e-5)


def test_no_activity_gives_no_dose() -> None:
    example = synthetic.example(5)
    biased: Method = lambda of: network_map(of, lambda spect, _density: spect + 1)  # noqa: E731
    assert evaluation.zero_for_zero(biased, example)
    assert not evaluation.zero_for_zero(lambda of: of.truth, example)
    assert evaluated(example, cnn=biased).patients[0].zero_for_zero[CNN]


def test_what_the_network_itself_says_of_no_activity_is_kept(tmp_path: Path) -> None:
    """A bias of 1 in the network's unit, mGy/s per MBq times 1e8, against DVK in tissue."""
    example = synthetic.example(5)
    biased = evaluation.NetworkMethod(lambda spect, _density: spect + 1, True, example.grid.spacing_mm)
    found = evaluated(example, cnn=biased)
    assert found.patients[0].zero_for_zero[CNN]
    bias = example.total_mbq / 1e8 * 3600
    inside = example.dvk[example.density > 0.1]
    assert found.patients[0].bare_for_zero[CNN] == pytest.approx(
        (bias / inside.max(), bias / inside.mean()), rel=1e-4
    )
    results.save(found, tmp_path / "evaluation.json")
    assert results.load(tmp_path / "evaluation.json") == found
    without = {"methods": [], "patients": []} | json.loads((tmp_path / "evaluation.json").read_text())
    for patient in without["patients"]:  # as earlier versions wrote it
        del patient["bare_for_zero"]
    (tmp_path / "evaluation.json").write_text(json.dumps(without))
    assert results.load(tmp_path / "evaluation.json").patients[0].bare_for_zero == {}


# ── ensemble noise ───────────────────────────────────────────────────────────────────────────────


def test_the_noise_sphere_lies_deepest_in_the_voi() -> None:
    grid = synthetic.grid()
    mask = synthetic.example(1).vois["liver"]
    found = evaluation.noise_sphere(mask, grid)
    assert found is not None
    sphere, radius = found
    assert radius == 15.0
    assert not (sphere & ~mask).any()
    volume = np.count_nonzero(sphere) * grid.voxel_volume_ml
    assert volume == pytest.approx(4 / 3 * math.pi * 1.5**3, rel=0.4)  # voxels of 6 to 7 mm


def test_a_thin_voi_has_no_noise_sphere() -> None:
    mask = np.zeros(synthetic.SHAPE, bool)
    mask[10, 5:30, 5:40] = True
    assert evaluation.noise_sphere(mask, synthetic.grid()) is None


def test_ensemble_noise_is_that_of_the_realisations() -> None:
    example = synthetic.example(6, again=2, noise=0.05)
    noise = evaluated(example).patients[0].noise
    assert {one.voi for one in noise} == {"healthy liver", "spleen"}
    for one in noise:
        assert one.realisations == 3
        assert one.by_method[DVK] == pytest.approx(0.05, rel=0.35)
        # Halfway to a truth without noise; the truth is not blurred, and its mean is higher.
        assert one.by_method[CNN] < 0.6 * one.by_method[DVK]
        assert MC not in one.by_method
    assert evaluated(synthetic.example(6)).patients[0].noise == ()


# ── classes, tests, targets ──────────────────────────────────────────────────────────────────────


def test_a_summary_is_mean_and_spread_over_the_class() -> None:
    found = evaluated(synthetic.example(1), synthetic.example(2))
    lesions = comparison.summary(found, VoiClass.LESION)
    assert (lesions.vois, lesions.patients) == (4, 2)
    errors = [voi.by_method[DVK].mean_error for voi in found.vois(VoiClass.LESION)]
    spread = lesions.by_method[DVK]["mean_error"]
    assert (spread.mean, spread.sd) == (pytest.approx(np.mean(errors)), pytest.approx(np.std(errors, ddof=1)))
    assert lesions.reduction("mean_error", CNN, DVK) == pytest.approx(0.5, abs=1e-4)
    assert comparison.summary(found).vois == len(found.vois())


def test_lesions_below_two_millilitres_are_a_class_of_their_own(tmp_path: Path) -> None:
    example = synthetic.example(1)
    small = np.zeros_like(example.vois["lesion 2"])
    small[tuple(np.argwhere(example.vois["lesion 2"])[:6].T)] = True  # 6 voxels of 0.29 mL
    found = evaluated(replace(example, vois={**example.vois, "lesion 3": small}))
    kinds = {voi.name: voi.kind for voi in found.vois()}
    assert (kinds["lesion 2"], kinds["lesion 3"]) == (VoiClass.LESION, VoiClass.SMALL_LESION)
    lesions = comparison.summary(found, VoiClass.LESION)
    target = next(t for t in paper.targets(found) if (t.what, t.against) == ("lesion mean error", DVK))
    assert lesions.vois == 2
    assert target.reached == lesions.reduction("mean_error", CNN, DVK)
    # Earlier versions wrote all of them as lesions.
    results.save(found, tmp_path / "evaluation.json")
    text = (tmp_path / "evaluation.json").read_text().replace('"lesion below 2 mL"', '"lesion"')
    (tmp_path / "evaluation.json").write_text(text)
    assert results.load(tmp_path / "evaluation.json") == found


def test_the_targets_are_measured_as_reductions() -> None:
    found = evaluated(synthetic.example(1, again=2), synthetic.example(2))
    by_name = {(target.what, target.against): target for target in paper.targets(found)}
    assert by_name["lesion NRMSE", DVK].reached == pytest.approx(0.5, abs=1e-4)
    assert by_name["lesion NRMSE", DVK].met
    assert not by_name["lesion mean error", DVK].met
    unknown = next(t for t in paper.targets(evaluated(synthetic.example(1))) if t.what == "ensemble noise")
    assert math.isnan(unknown.reached)
    assert not unknown.met


def test_the_papers_dvk_follows_from_its_network_and_the_reduction() -> None:
    # Lesions: 5.3 % are 55 % below 11.8 %; NRMSE 21.2 % are 18 % below 25.9 %.
    assert paper.dvk_error(VoiClass.LESION, "mean_error") == pytest.approx(0.118, abs=5e-4)
    assert paper.dvk_error(VoiClass.LESION, "nrmse") == pytest.approx(0.259, abs=5e-4)
    assert math.isnan(paper.dvk_error(VoiClass.SPLEEN, "nrmse"))


def with_energies(*ratios: float) -> Evaluation:
    """So many patients, the network's map DVK's times these."""
    factors = iter([ratio for ratio in ratios for _ in range(2)])  # with and without activity

    def scaled(example: Example) -> Array:
        return np.asarray(example.dvk * np.float32(next(factors)))

    return evaluated(*(synthetic.example(k + 1) for k in range(len(ratios))), cnn=scaled)


def test_energy_limits_hold_what_was_seen_and_nearly_all_that_is_to_come() -> None:
    ratios = [0.96, 1.0, 1.01, 0.99, 1.04, 0.98]
    limits = comparison.energy_limits(with_energies(*ratios))
    # Prediction interval of 99 % for the seventh: t(5) = 4.032.
    logarithms = np.log(ratios)
    half = 4.032 * logarithms.std(ddof=1) * np.sqrt(7 / 6)
    expected = np.exp([logarithms.mean() - half, logarithms.mean() + half])
    for name in ("body", "spleen", "left kidney"):
        assert limits[name] == pytest.approx(tuple(expected), rel=1e-3)
    assert limits["roi"][0] < 0.96
    assert limits["roi"][1] > 1.04


def test_of_few_there_are_no_energy_limits() -> None:
    limits = comparison.energy_limits(with_energies(0.9, 1.2, 1.0, 1.0))
    assert not {"body", "spleen"} & limits.keys()
    assert limits["roi"][0] < 0.9


# ── worse than DVK ───────────────────────────────────────────────────────────────────────────────


def made_worse(voi: str, factor: float) -> Method:
    """Halfway to the truth, but for one VOI, where DVK's map is scaled."""

    def estimate(example: Example) -> Array:
        rate = HALFWAY(example)
        assert rate is not None
        rate[example.vois[voi]] = factor * example.dvk[example.vois[voi]]
        return rate

    return estimate


def test_a_voi_that_is_worse_is_named() -> None:
    found = evaluated(synthetic.example(1), synthetic.example(2), cnn=made_worse("spleen", 0.9))
    named = comparison.worse(found)
    assert {(one.patient, one.voi) for one in named} == {("patient 1", "spleen"), ("patient 2", "spleen")}
    assert {one.metric for one in named} == {"mean_error", "nrmse"}
    counts = comparison.tally(found, "mean_error")
    assert (counts.better, counts.worse_within_noise, counts.worse) == (len(found.vois()) - 2, 0, 2)


def test_worse_by_less_than_the_labels_uncertainty_is_noise() -> None:
    # DVK a thousandth above the truth, the network a thousandth and a half below: on either side of it.
    example = synthetic.example(1)
    truth = np.maximum(example.truth, np.float32(0.01))
    meta = {"label_uncertainty": {name: {"of_mean": 0.001} for name in example.vois}}
    near = replace(example, truth=truth, dvk=(truth * np.float32(1.001)).astype(np.float32), meta=meta)
    below: Method = lambda of: (of.truth * np.float32(0.9985)).astype(np.float32)  # noqa: E731
    assert not [one for one in comparison.worse(evaluated(near, cnn=below)) if one.metric == "mean_error"]
    certain = replace(near, meta={})
    assert comparison.worse(evaluated(certain, cnn=below))


def test_on_one_side_of_the_truth_the_label_excuses_little() -> None:
    # Both too low: were the truth another, both errors would move together.
    example = synthetic.example(1)
    meta = {"label_uncertainty": {name: {"of_mean": 0.01} for name in example.vois}}
    low = replace(example, dvk=(example.truth * np.float32(0.9)).astype(np.float32), meta=meta)
    lower: Method = lambda of: (of.truth * np.float32(0.89)).astype(np.float32)  # noqa: E731
    named = [one for one in comparison.worse(evaluated(low, cnn=lower)) if one.metric == "mean_error"]
    assert len(named) == len(evaluated(low).vois())
    assert named[0].uncertainty == pytest.approx(0.01 * 0.01, rel=1e-3)


def test_poisson_noise_of_the_difference_excuses_what_it_makes() -> None:
    example = synthetic.example(7, again=2)
    rng = np.random.default_rng(1)

    def trembling(of: Example) -> Array:
        """DVK, a little worse in the mean, and with a noise of its own that is larger than that."""
        return np.asarray(of.dvk * np.float32(0.998 + rng.choice([-0.02, 0.02])))

    steady: Method = lambda of: np.asarray(of.dvk * np.float32(0.98))  # noqa: E731
    within = comparison.tally(evaluated(example, cnn=trembling), "mean_error")
    assert within.worse < comparison.tally(evaluated(example, cnn=steady), "mean_error").worse


def test_noise_is_that_of_the_class_whatever_three_realisations_of_a_voi_say() -> None:
    found = evaluated(synthetic.example(8, again=2), synthetic.example(9), cnn=made_worse("spleen", 0.95))
    assert comparison.poisson_known(found)
    spleens = [one for one in comparison.worse(found) if one.voi == "spleen" and one.metric == "nrmse"]
    assert spleens[0].uncertainty == pytest.approx(spleens[1].uncertainty, rel=1e-9)


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────


def test_an_evaluation_survives_the_disk(tmp_path: Path) -> None:
    found = evaluated(synthetic.example(1, again=1), synthetic.example(2))
    results.save(found, tmp_path / "a" / "evaluation.json")
    assert results.load(tmp_path / "a" / "evaluation.json") == found
    json.loads((tmp_path / "a" / "evaluation.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("content", ["", "{}", '{"methods": [], "patients": [{"patient": "x"}]}'])
def test_another_file_is_no_evaluation(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(InputRejected, match=r"evaluation\.json is no evaluation"):
        results.load(path)
