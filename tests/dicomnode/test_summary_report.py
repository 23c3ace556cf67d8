"""The SR: every number, with its unit, its region and where it came from."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)
from rich.console import Console

from dicomnode.results import summary_report, vocabulary
from dicomnode.results.findings import EncodingSettings, Findings, InstanceReference, ResultKind
from dicomnode.results.header import ResultIdentity
from dicomnode.results.report_table import report_table
from dicomnode.results.summary_report import WrittenResults, read_table
from pipeline.dose_rate import WeightsUsed
from pipeline.errors import InputRejected
from tests.dicomnode.synthetic_findings import (
    CT_SERIES,
    NOW,
    RTSTRUCT,
    SETTINGS,
    STUDY,
    ct_headers,
    engine_map,
    findings,
    grid,
    header,
    montecarlo_map,
    predecessor,
)

IDENTITY = ResultIdentity("2.25.400", "2.25.401", 9003, "Lu-177 dose rate report")
SEG = InstanceReference(SegmentationStorage, "2.25.200", "2.25.201", STUDY)


def report(found: Findings | None = None, settings: EncodingSettings = SETTINGS) -> Dataset:
    found = found or findings()
    dose = {
        m.engine: InstanceReference(RTDoseStorage, f"2.25.10{n}", f"2.25.11{n}", STUDY)
        for n, m in enumerate(found.maps)
    }
    uncertain = {
        m.engine: InstanceReference(ParametricMapStorage, "2.25.500", "2.25.501", STUDY)
        for m in found.maps
        if m.uncertainty is not None
    }
    tracking = [f"2.25.{300 + n}" for n in range(len(found.rois))]
    return summary_report.build(
        found, settings, IDENTITY, NOW, WrittenResults(SEG, dose, {}, uncertain, tracking)
    )


def items(root: Dataset) -> Iterator[Dataset]:
    """Every content item below `root`."""
    for item in root.get("ContentSequence", []):
        yield item
        yield from items(item)


def named(root: Dataset, code: str) -> list[Dataset]:
    return [i for i in items(root) if i.get("ConceptNameCodeSequence") and name(i) == code]


def derivation(item: Dataset) -> str:
    """The code of the item's own derivation."""
    (found,) = (i for i in item.ContentSequence if name(i) == "121401")
    return str(found.ConceptCodeSequence[0].CodeValue)


def value(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].FloatingPointValue)


def name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def test_the_table_reads_back_every_number() -> None:
    """One row per region and engine, all figures as they were measured."""
    found = findings(engines=("dvk", "cnn"), names=("Kidney left", "Lesion 1"))
    rows = read_table(report(found))
    assert len(rows) == 2 * 4
    expected = [(roi, m.engine) for m in found.maps for roi in found.rois]
    for row, (roi, engine) in zip(rows, expected, strict=True):
        statistics = roi.statistics[engine]
        assert row.roi == roi.name
        for field in dataclasses.fields(row):
            if field.name.endswith("_uncertainty"):
                assert getattr(row, field.name) is None
            elif field.name not in ("roi", "algorithm"):
                assert getattr(row, field.name) == pytest.approx(getattr(statistics, field.name), rel=1e-9)


def with_statistics() -> Findings:
    """One map with statistics beside one without."""
    return findings(maps=(engine_map(grid()), montecarlo_map(grid())))


def test_the_table_says_how_certain_a_region_is() -> None:
    """In per cent, of the ROI that the engine was asked for; nothing is made up for the others."""
    rows = {(r.roi, r.algorithm): r for r in read_table(report(with_statistics()))}
    row = rows["Kidney left", "Monte Carlo"]
    assert (row.mean_uncertainty, row.voxel_uncertainty) == pytest.approx((0.3, 1.5))
    del rows["Kidney left", "Monte Carlo"]
    assert {(r.mean_uncertainty, r.voxel_uncertainty) for r in rows.values()} == {(None, None)}
    shown = Console(width=200, file=io.StringIO())
    with shown.capture() as printed:
        shown.print(report_table(report(with_statistics())))
    assert "u mean % u voxel %" in " ".join(printed.get().split())
    assert printed.get().split("Kidney left")[2].split("\n")[0].split()[-2:] == ["0.3", "1.5"]


def test_the_uncertainty_is_a_property_of_the_mean() -> None:
    """TID 310, CID 225: in the unit of the mean; one standard deviation, as its derivation says."""
    found = with_statistics()
    sr = report(found)
    (plus_minus,) = named(sr, "371884006")
    (mean,) = [i for i in items(sr) if plus_minus in i.get("ContentSequence", [])]
    assert (name(mean), derivation(mean)) == ("DOSE_RATE", "373098007")
    assert plus_minus.RelationshipType == "HAS PROPERTIES"
    assert plus_minus.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "mGy/h"
    statistics = found.rois[2].statistics["mc"]
    assert value(plus_minus) == pytest.approx(0.003 * statistics.mean)
    assert derivation(plus_minus) == "386136009"
    for code, per_cent in (("MEAN_UNCERT", 0.3), ("VOXEL_UNCERT", 1.5)):
        (item,) = named(sr, code)
        assert value(item) == pytest.approx(per_cent)
        assert item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "%"


def test_the_uncertainty_map_is_a_source_of_its_engines_groups() -> None:
    """By IMAGE: readers know Parametric Maps."""
    groups = named(report(with_statistics()), "125007")
    images = [
        [
            i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for i in named(g, "121112")
            if i.ValueType == "IMAGE"
        ]
        for g in groups
    ]
    assert images == [[]] * 3 + [["2.25.500"]] * 3


def test_no_text_of_a_code_is_longer_than_the_standard_allows() -> None:
    """CodeValue is SH (16 characters), CodeMeaning LO (64)."""
    for code in (v for v in vars(vocabulary).values() if isinstance(v, Code)):
        assert len(code.value) <= 16, code
        assert len(code.meaning) <= 64, code


def test_another_document_has_no_table() -> None:
    """Reading a report from something else fails with a remedy, not with an empty table."""
    with pytest.raises(InputRejected, match="not an imaging measurement report"):
        read_table(Dataset())


def test_units_are_ucum() -> None:
    """mGy/h, MBq, ml, g and %; nothing else."""
    units = {
        (i.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue, name(i))
        for i in items(report())
        if i.ValueType == "NUM"
    }
    assert {u for u, _ in units} == {"mGy/h", "MBq", "ml", "g", "%"}
    assert ("ml", "118565006") in units
    assert ("g", "118538004") in units
    assert {n for u, n in units if u == "mGy/h"} == {"DOSE_RATE", "DR10", "DR30", "DR70", "DR90"}


def test_mean_maximum_minimum_and_sd_are_modifiers_of_the_dose_rate() -> None:
    """PS3.16 CID 7464, on one concept: absorbed dose rate."""
    group = named(report(), "125007")[0]
    modifiers = [named(i, "121401")[0].ConceptCodeSequence[0].CodeValue for i in named(group, "DOSE_RATE")]
    assert modifiers == ["373098007", "56851009", "255605001", "386136009"]


def test_no_digit_is_lost_before_rounding() -> None:
    """A float32 is widened first; FloatingPointValue keeps all, NumericValue what a person reads."""
    found = findings()
    value = float(np.float32(1 / 3) * np.float32(123.4))
    roi = found.rois[0]
    changed = dataclasses.replace(roi.statistics["dvk"], mean=value)
    rois = (dataclasses.replace(roi, statistics={"dvk": changed}), *found.rois[1:])
    measured = named(report(dataclasses.replace(found, rois=rois)), "DOSE_RATE")[0].MeasuredValueSequence[0]
    assert str(measured.NumericValue) == "41.13334"
    assert measured.FloatingPointValue == value


def test_a_number_that_is_not_finite_holds_the_case() -> None:
    """The report never hides a NaN."""
    found = findings()
    roi = found.rois[0]
    broken = dataclasses.replace(roi.statistics["dvk"], sd=float("nan"))
    rois = (dataclasses.replace(roi, statistics={"dvk": broken}), *found.rois[1:])
    with pytest.raises(InputRejected, match="Standard Deviation of the region 'Field of view' is nan"):
        report(dataclasses.replace(found, rois=rois))


def test_each_group_refers_to_its_segment_and_its_map() -> None:
    """Segment n of our SEG by IMAGE, the engine's RTDOSE by COMPOSITE."""
    found = findings(engines=("dvk", "cnn"))
    groups = named(report(found), "125007")
    assert len(groups) == 6
    for number, group in enumerate(groups):
        segment = named(group, "121191")[0]
        assert segment.ValueType == "IMAGE"
        reference = segment.ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == SEG.sop_instance_uid
        assert reference.ReferencedSegmentNumber == number % 3 + 1
        dose = named(group, "121112")[0]
        assert dose.ValueType == "COMPOSITE"
        assert dose.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"2.25.10{number // 3}"
        assert named(group, "121232")[0].UID == CT_SERIES


def test_no_rtdose_is_referred_to_as_an_image() -> None:
    """dsrdump and others reject IMAGE to RTDOSE."""
    images = [i for i in items(report()) if i.ValueType == "IMAGE"]
    classes = {i.ReferencedSOPSequence[0].ReferencedSOPClassUID for i in images}
    assert classes == {SegmentationStorage, "1.2.840.10008.5.1.4.1.1.20"}


def test_every_reference_stands_in_the_evidence() -> None:
    """PS3.3 C.17.2.3, and all CT slices with it."""
    sr = report()
    referred = {
        i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items(sr) if "ReferencedSOPSequence" in i
    }
    evidence = {
        instance.ReferencedSOPInstanceUID
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert referred <= evidence
    assert {h.SOPInstanceUID for h in ct_headers()} <= evidence
    assert RTSTRUCT.sop_instance_uid in evidence


def test_a_series_of_pet_slices_is_named_by_its_uid() -> None:
    """Hundreds of IMAGE items would say no more."""
    pet = tuple(header("1.2.840.10008.5.1.4.1.1.128", "1.2.3.7", k, "PT") for k in range(5))
    assert "1.2.3.7" in {i.UID for i in named(report(findings(spect_headers=pet)), "121323")}


def test_it_is_an_unverified_imaging_measurement_report_of_a_device() -> None:
    """No person has looked at it, and it says which installation made it."""
    sr = report()
    assert (name(sr), sr.ContentTemplateSequence[0].TemplateIdentifier) == ("126000", "1500")
    assert (sr.CompletionFlag, sr.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert str(named(sr, "121012")[0].UID) == "2.25.7"
    assert named(sr, "121005")[0].ConceptCodeSequence[0].CodeValue == "121007"
    assert sr.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99RNT"


@pytest.mark.parametrize(
    ("setting", "sop_class"),
    [("comprehensive_3d", Comprehensive3DSRStorage), ("enhanced", EnhancedSRStorage)],
)
def test_the_sop_class_is_a_setting(setting: Any, sop_class: str) -> None:
    """Some PACS refuse Comprehensive 3D SR."""
    assert report(settings=dataclasses.replace(SETTINGS, sr=setting)).SOPClassUID == sop_class


def test_administration_reference_time_and_fraction_are_reported() -> None:
    """Nuclide and activity with their times, and how much of the activity was found."""
    sr = report()
    assert str(named(sr, "REFERENCE_TIME")[0].DateTime) == "20240506101213"
    assert named(sr, "89457008")[0].ConceptCodeSequence[0].CodeValue == "447553000"
    assert named(sr, "113507")[0].MeasuredValueSequence[0].NumericValue == 7400
    assert str(named(sr, "123003")[0].DateTime) == "20240505100000"
    assert named(sr, "FRACTION_FOUND")[0].MeasuredValueSequence[0].NumericValue == 83


def test_unknown_administration_is_left_out() -> None:
    """No zero stands for a number that nobody knows."""
    sr = report(findings(administered_bq=None, administered_at=None, fraction_found=None))
    assert not [*named(sr, "113507"), *named(sr, "123003"), *named(sr, "FRACTION_FOUND")]


def test_a_time_keeps_its_offset() -> None:
    """A reference time that knows its zone says it."""
    there = datetime(2024, 5, 6, 10, 12, 13, tzinfo=timezone(timedelta(hours=2)))
    item = named(report(findings(reference_time=there)), "REFERENCE_TIME")[0]
    assert str(item.DateTime) == "20240506101213+0200"


def test_provenance_and_notes_are_in_words() -> None:
    """Hashes of configuration, calibration and kernel, the software, and every note."""
    sr = report()
    texts = "\n".join(i.TextValue for i in items(sr) if i.ValueType == "TEXT")
    for words in ("dicomnode 0.1.0", "cd" * 32, "ab" * 32, "units of the image (Bq/ml)"):
        assert words in texts
    assert [i.TextValue for i in named(sr, "121106")] == ["1.2 % of the activity lies outside the CT."]


def test_the_weights_of_a_network_are_told() -> None:
    weights = WeightsUsed("lu177-medium", "2", "12" * 32)
    maps = (engine_map(grid()), engine_map(grid(), "cnn", weights=weights))
    told = [i.TextValue for i in named(report(findings(maps=maps)), "PROVENANCE")]
    assert told[-1] == f"CNN: network weights lu177-medium, version 2, SHA-256 {'12' * 32}"
    assert sum("weights" in text for text in told) == 1


def test_the_algorithm_stands_in_each_group() -> None:
    """111001, 111003 and 111002 DCM."""
    group = named(report(), "125007")[0]
    assert named(group, "111001")[0].TextValue == "Dose-voxel-kernel convolution"
    assert named(group, "111003")[0].TextValue == "0.1.0"
    assert [i.TextValue for i in named(group, "111002")] == [
        "density_scaling=1.04/rho",
        "zero_below_g_per_cm3=0.1",
    ]


def test_a_later_report_names_its_predecessor() -> None:
    """PredecessorDocumentsSequence holds the SR that is replaced, and no RTDOSE."""
    old = (predecessor(ResultKind.SR), predecessor(ResultKind.RTDOSE, "dvk"))
    sr = report(findings(predecessors=old))
    named_there = [
        instance.ReferencedSOPInstanceUID
        for study in sr.PredecessorDocumentsSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
    assert named_there == [old[0].instance.sop_instance_uid]
    assert "PredecessorDocumentsSequence" not in report()


def test_a_narrow_terminal_cuts_no_number() -> None:
    sr = report(with_statistics())
    shown = Console(width=60, file=io.StringIO())
    with shown.capture() as printed:
        shown.print(report_table(sr), crop=False)
    wide = Console(width=300, file=io.StringIO())
    with wide.capture() as whole:
        wide.print(report_table(sr), crop=False)
    numbers = [word for word in whole.get().split() if word[0].isdigit()]
    assert [word for word in printed.get().split() if word[0].isdigit()] == numbers
    assert len(numbers) > 30
