"""What is said of an evaluation, in tables and in the model card."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from models.weights import Manifest
from pipeline.learning import evaluation, report
from pipeline.learning.comparison import Spread
from pipeline.learning.metrics import PairedTest
from pipeline.learning.results import CNN, DVK, MC, PLAIN_2D, Evaluation
from tests.pipeline.learning import synthetic


@cache
def found() -> Evaluation:
    """Half of DVK's error everywhere; the 2D network is a tenth worse than DVK."""
    methods = evaluation.classical_methods() | {
        CNN: lambda example: synthetic.nearly_true(0.5, example),
        PLAIN_2D: lambda example: synthetic.nearly_true(-0.1, example),
    }
    return evaluation.evaluate([synthetic.example(1, again=2), synthetic.example(2)], methods)


def manifest(**changes: Any) -> Manifest:
    return Manifest(
        **{
            "name": "dblurdosenet-lu177",
            "architecture": "dblurdosenet",
            "middle": 16,
            "sha256": "ab" * 32,
            "nuclide": "Lu-177",
            "voxel_mm": (3.0, 1.953125, 1.953125),
            "camera": {"name": "medium energy", "resolution_fwhm_mm": (9.5, 22.0)},
            "training": {"patients": 30, "families": ["trunk", "harmonic"], "hours": 1.5},
            "version": "1",
            "date": "2026-11-23",
            "software": "dicomnode 0.1",
            **changes,
        }
    )


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]


def test_every_table_is_whole() -> None:
    text = report.evaluation_section(
        found(), "2026-11-23", "a 2-core machine", pictures=["figures/errors.png"]
    )
    for part in text.split("\n\n"):
        if part.startswith("|"):
            assert len({len(row) for row in rows(part)}) == 1
            assert "nan" not in part
    assert "2026-11-23, a 2-core machine" in text
    assert "![](figures/errors.png)" in text


def test_what_was_asked_stands_beside_what_was_reached() -> None:
    table = {row[0]: row[1:] for row in rows(report.targets_table(found()))}
    assert table["lesion mean error below that of DVK"] == ["at least 55 %", "50.0 %", "**not reached**"]
    assert table["lesion NRMSE below that of DVK"] == ["at least 18 %", "50.0 %", "reached"]
    lesions = next(row for name, row in table.items() if name.startswith("lesions of 2 mL or more"))
    assert lesions == ["at least 15", "4", "**not reached**"]
    assert table["uncertainty of truth in any VOI of 2 mL or more"][1:] == [
        "0.10 %, on average 0.10 %",
        "reached",
    ]
    # these examples do not say
    assert table["uncertainty of MC in any VOI of 2 mL or more"][1:] == ["–", "not measured"]
    assert table["uncertainty of truth in a lesion below 2 mL"][0] == "–"
    assert table["dose rate without activity"][-1] == "**not reached**"  # these functions know no activity


def test_what_the_network_itself_says_of_no_activity_stands_in_the_table() -> None:
    patients = tuple(
        replace(patient, bare_for_zero={CNN: (0.001 * k, 0.02)}) for k, patient in enumerate(found().patients)
    )
    table = {row[0]: row[1:] for row in rows(report.targets_table(replace(found(), patients=patients)))}
    assert table["the network itself, given a SPECT of zero"] == [
        "–", "up to 0.10 % of DVK's highest, on average 2.00 % of DVK's mean", "never returned",
    ]  # fmt: skip


def test_what_could_not_be_measured_says_so() -> None:
    once = evaluation.evaluate(
        [replace(synthetic.example(1), mc_on_spect=None)],
        evaluation.classical_methods() | {CNN: lambda example: synthetic.nearly_true(0.5, example)},
    )
    table = {row[0]: row[1:] for row in rows(report.targets_table(once))}
    assert table["ensemble noise below that of DVK"][1:] == ["–", "not measured"]
    assert table["lesion mean error below that of MC"][1:] == ["–", "not measured"]
    assert "ensemble noise is not known" in report.evaluation_section(once, "2026-11-23", "m")


def test_reductions_stand_beside_the_papers() -> None:
    table = {row[0]: row for row in rows(report.reductions_table(found()))}
    assert table["lesion"][1:5:2] == ["50.0 %", table["lesion"][3]]
    assert table["lesion"][2::2] == ["55 %", "53 %", "18 %", "17 %"]
    assert table["spleen"][2::2] == ["48 %", "49 %", "26 %", "27 %"]
    assert table["ensemble noise"][2:5:2] == ["21 %", "27 %"]


def test_errors_stand_beside_the_papers_and_the_labels_noise() -> None:
    heading, _, *lines = rows(report.errors_table(found(), "nrmse"))
    assert heading[-4:] == ["paper's network, %", "its DVK, %", "noise of truth, %", "noise of MC, %"]
    lesion = next(line for line in lines if line[0] == "lesion")
    assert lesion[-4:] == ["21.2", "25.9", "0.5", "–"]
    assert rows(report.errors_table(found(), "mean_error"))[0][-2:] == heading[-4:-2]


def test_the_limits_say_what_tests_share_with_training() -> None:
    other = replace(found(), patients=tuple(replace(p, family="stylised") for p in found().patients))
    assert "lesions of the test patients have shapes and textures" in report.model_card(
        manifest(), other, 1, ""
    )
    assert "lesions of the test patients have" not in report.model_card(manifest(), found(), 1, "")


def test_worse_vois_are_named_with_the_criterion() -> None:
    text = report.worse_section(found(), PLAIN_2D)
    assert "2 standard uncertainties" in text
    assert f"worse by more than noise in {len(found().vois())}." in text
    named = {(row[0], row[1]) for row in rows(text)[2:]}
    assert named == {(p.patient, v.name) for p in found().patients for v in p.vois}
    assert "No VOI is worse by more than noise." in report.worse_section(found(), CNN)


def test_every_voi_has_its_dose_rate_and_errors() -> None:
    table = rows(report.voi_table(found()))
    assert len(table) == 2 + len(found().vois())
    voi = found().vois()[0]
    assert table[2][:4] == ["patient 1", voi.name, f"{voi.volume_ml:.3g}", f"{voi.true_mean:.4g}"]
    assert table[2][4] == f"{voi.by_method[DVK].mean:.4g}"
    assert table[2][5] == f"{100 * (voi.by_method[DVK].ratio - 1):+.1f}"


def test_the_model_card_says_all_that_a_physicist_must_know() -> None:
    card = report.model_card(manifest(), found(), 1_143_233, "dicomnode train --hours 3", PLAIN_2D)
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert headings == [
        "What it is", "Intended use", "Camera", "Voxel size", "Training data", "How good it is",
        "Where it is worse than DVK", "Limits", "How to make it again",
    ]  # fmt: skip
    for said in ("1,143,233", "ab" * 32, "Lu-177", "3 x 1.95312 x 1.95312 mm", "9.5 to 22", "trunk, harmonic",
                 "not a medical device", "dicomnode train --hours 3", "lesion 1"):  # fmt: skip
        assert said in card
    assert "nan" not in card


def test_the_manifests_figures_are_plain_numbers() -> None:
    figures = report.manifest_metrics(found())
    assert figures["patients"] == 2
    assert figures["vois"]["lesion"]["mean_error_below_DVK"] == pytest.approx(0.5, abs=1e-3)
    assert figures["worse_than_DVK_by_more_than_noise"] == 0
    assert manifest(metrics=figures).metrics["patients"] == 2


def test_pieces() -> None:
    assert report.p_value(PairedTest(5, 0.1, 9.0, 0.0004)) == "**< 0.001**"
    assert report.p_value(PairedTest(5, 0.1, 1.0, 0.374)) == "0.374"
    assert report.p_value(PairedTest(1, 0.1, math.nan, math.nan)) == "–"
    assert report.p_value(None) == "–"
    assert report.spread(Spread.of([0.1, 0.3])) == f"20.0 ± {100 * np.std([0.1, 0.3], ddof=1):.1f}"
    assert report.spread(Spread.of([0.1])) == "10.0"
    assert report.spread(Spread.of([])) == "–"
    assert report.counted(1, "lesion") == "1 lesion"
    assert report.percent(math.nan, 1) == "–"
    assert MC in report.errors_table(found(), "dr10")
