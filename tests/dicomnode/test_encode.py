"""Files: complete, durable, the same again, and accepted by software that no one here wrote."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.implementation import IMPLEMENTATION_CLASS_UID
from dicomnode.results import encode
from dicomnode.results.findings import EncodingSettings, Findings, ResultKind
from dicomnode.results.writing import uid_source
from tests.dicomnode.synthetic_findings import (
    DIRECTIONS,
    NOW,
    SETTINGS,
    STUDY,
    ct_headers,
    engine_map,
    findings,
    grid,
    montecarlo_map,
    predecessor,
)

ALL = dataclasses.replace(SETTINGS, parametric_map=True, uncertainty_map=True)


def encoded(
    folder: Path, found: Findings | None = None, settings: EncodingSettings = ALL
) -> tuple[encode.EncodedObject, ...]:
    uids = uid_source(settings.uid_root, STUDY, "inputs", "1")
    return encode.encode(found or findings(engines=("dvk", "cnn")), settings, folder, NOW, uids)


def test_results_come_in_the_order_of_their_references(tmp_path: Path) -> None:
    """What the SR refers to is written, and should be sent, before it."""
    objects = encoded(tmp_path / "new" / "folder")
    assert [(o.kind, o.engine) for o in objects] == [
        (ResultKind.SEG, ""),
        (ResultKind.RTDOSE, "dvk"),
        (ResultKind.PM, "dvk"),
        (ResultKind.RTDOSE, "cnn"),
        (ResultKind.PM, "cnn"),
        (ResultKind.SR, ""),
    ]
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        o.path.name for o in objects
    )


def test_the_files_are_part_10_of_our_own(tmp_path: Path) -> None:
    """Explicit VR little endian, file meta and data set agree, nothing private, one series each."""
    objects = encoded(tmp_path)
    for o in objects:
        ds = pydicom.dcmread(o.path)
        meta = ds.file_meta
        assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert meta.MediaStorageSOPClassUID == ds.SOPClassUID == o.sop_class_uid
        assert meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == o.sop_instance_uid
        assert ds.SeriesInstanceUID == o.series_instance_uid
        assert not [element for element in ds.iterall() if element.tag.is_private]
    assert len({o.series_instance_uid for o in objects}) == len(objects)
    assert len({pydicom.dcmread(o.path).SeriesNumber for o in objects}) == len(objects)


def test_all_results_agree_about_patient_and_study(tmp_path: Path) -> None:
    """Every object carries the CT's identity, in the same words."""
    ct = ct_headers(PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100", StudyDescription="Therapie")
    keywords = (
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDescription",
    )
    for o in encoded(tmp_path, findings(ct_headers=ct)):
        ds = pydicom.dcmread(o.path)
        assert [ds[k].value for k in keywords] == [ct[0][k].value for k in keywords]
        assert (ds.StudyInstanceUID, ds.SpecificCharacterSet) == (STUDY, "ISO_IR 100")
        assert (ds.ContentDate, ds.ContentTime, ds.InstanceCreationDate) == ("20240507", "080910", "20240507")


def test_the_same_attempt_writes_the_same_bytes(tmp_path: Path) -> None:
    """An attempt that died halfway is repeated without making second objects."""
    first = [o.path.read_bytes() for o in encoded(tmp_path)]
    assert first == [o.path.read_bytes() for o in encoded(tmp_path)]


def test_a_half_written_file_of_a_dead_attempt_is_replaced(tmp_path: Path) -> None:
    """No `.part` is left, and the object is whole."""
    (tmp_path / "RTDOSE-dvk.part").write_bytes(b"half")
    encoded(tmp_path)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("root", ["", "2.25.", "1.2.826.0.1.3680043.10.999."])
def test_uids_depend_on_identity_and_role_alone(root: str) -> None:
    """Another case, run or role has another UID; the same ones have the same; all are valid."""
    one, same, other = (uid_source(root, STUDY, run) for run in ("1", "1", "2"))
    assert one("SR") == same("SR")
    assert len({one("SR"), one("SEG"), other("SR")}) == 3
    for uid in (one("SR"), other("SEG")):
        assert pydicom.uid.UID(uid).is_valid
        assert uid.startswith(root or "2.25.")


def test_the_parametric_map_is_exact(tmp_path: Path) -> None:
    """float32 mGy/h, bit for bit, in UCUM."""
    found = findings(DIRECTIONS["sagittal, reversed"])
    path = next(o.path for o in encoded(tmp_path, found) if o.kind is ResultKind.PM)
    ds = pydicom.dcmread(path)
    values = np.frombuffer(ds.FloatPixelData, "<f4")
    assert np.array_equal(np.sort(values), np.sort(found.maps[0].dose_rate.array.ravel()))
    mapping = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "mGy/h"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)


def with_statistics() -> Findings:
    """One map with statistics beside one without."""
    return findings(maps=(engine_map(grid()), montecarlo_map(grid())))


def test_the_uncertainty_is_a_map_of_its_own_beside_the_dose_of_its_engine(tmp_path: Path) -> None:
    """Of the engine with statistics alone, sent before the SR; the numbers of the other series stay."""
    objects = encoded(tmp_path / "with", with_statistics())
    assert [(o.kind, o.engine) for o in objects][3:] == [
        (ResultKind.RTDOSE, "mc"),
        (ResultKind.PM, "mc"),
        (ResultKind.UNCERTAINTY, "mc"),
        (ResultKind.SR, ""),
    ]
    without = encoded(
        tmp_path / "without", with_statistics(), dataclasses.replace(ALL, uncertainty_map=False)
    )
    numbers = {o.sop_instance_uid: pydicom.dcmread(o.path).SeriesNumber for o in objects}
    assert len(set(numbers.values())) == len(objects)
    assert all(numbers[o.sop_instance_uid] == pydicom.dcmread(o.path).SeriesNumber for o in without)


@pytest.mark.peers
def test_a_weak_map_keeps_the_rules_too(peer_program: Callable[[str], str], tmp_path: Path) -> None:
    """Below 1 mGy/h: a LINEAR window that narrow is not permitted."""
    weak = montecarlo_map(grid())
    assert weak.uncertainty is not None
    for volume in (weak.dose_rate, weak.uncertainty):
        volume.array[:] *= 1e-3
    for o in encoded(tmp_path, findings(maps=(weak,)), dataclasses.replace(ALL, bits=16)):
        told = run(peer_program("dciodvfy"), "-new", o.path)
        assert "Error" not in told.stdout + told.stderr, o.kind


def test_the_uncertainty_map_holds_every_voxels_standard_deviation(tmp_path: Path) -> None:
    """float32 mGy/h under a quantity of its own, and a reference to the dose whose uncertainty it is."""
    found = with_statistics()
    objects = encoded(tmp_path, found)
    ds = pydicom.dcmread(next(o.path for o in objects if o.kind is ResultKind.UNCERTAINTY))
    values = np.frombuffer(ds.FloatPixelData, "<f4")
    assert found.maps[1].uncertainty is not None
    assert np.array_equal(np.sort(values), np.sort(found.maps[1].uncertainty.array.ravel()))
    mapping = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "mGy/h"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "DOSE_RATE_UNCERT"
    (of,) = ds.ReferencedInstanceSequence
    dose = next(o for o in objects if (o.kind, o.engine) == (ResultKind.RTDOSE, "mc"))
    assert of.ReferencedSOPInstanceUID == dose.sop_instance_uid
    assert of.PurposeOfReferenceCodeSequence[0].CodeValue == "UNCERTAINTY_OF"
    assert dose.series_instance_uid in {i.SeriesInstanceUID for i in ds.ReferencedSeriesSequence}
    assert "uncertainty" in ds.SeriesDescription


def test_times_are_told_in_the_zone_of_the_study(tmp_path: Path) -> None:
    """TimezoneOffsetFromUTC governs all times of an object, so ours are converted to it."""
    ct = ct_headers(TimezoneOffsetFromUTC="-0330")
    now = datetime(2024, 5, 7, 1, 0, 0, tzinfo=UTC)
    uids = uid_source("", STUDY)
    for o in encode.encode(findings(ct_headers=ct), SETTINGS, tmp_path, now, uids):
        ds = pydicom.dcmread(o.path)
        assert (ds.TimezoneOffsetFromUTC, ds.ContentDate, ds.ContentTime) == ("-0330", "20240506", "213000")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, errors="replace", check=False, timeout=60
    )


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> tuple[encode.EncodedObject, ...]:
    """A second run with 16-bit RTDOSE: dciodvfy aborts on 32-bit pixels."""
    tilted = grid(DIRECTIONS["slightly tilted"])
    found = findings(
        DIRECTIONS["slightly tilted"],
        maps=(engine_map(tilted), montecarlo_map(tilted)),
        ct_headers=ct_headers(PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100"),
        names=("Niere links", "Läsion 1"),
        predecessors=(predecessor(ResultKind.SR), predecessor(ResultKind.RTDOSE, "dvk")),
    )
    return encoded(tmp_path_factory.mktemp("validated"), found, dataclasses.replace(ALL, bits=16))


@pytest.mark.peers
def test_dciodvfy_finds_no_error(
    peer_program: Callable[[str], str], validated: tuple[encode.EncodedObject, ...]
) -> None:
    """Every object keeps the rules of its IOD."""
    for o in validated:
        told = run(peer_program("dciodvfy"), "-new", o.path)
        text = told.stdout + told.stderr
        assert told.returncode in (0, 1), text
        assert [line for line in text.splitlines() if line.startswith("Error")] == [], o.kind


@pytest.mark.peers
@pytest.mark.parametrize("sr", ["comprehensive_3d", "enhanced"])
def test_dsrdump_renders_the_report(peer_program: Callable[[str], str], sr: Any, tmp_path: Path) -> None:
    """DCMTK accepts every relationship and reference of the document."""
    report = encoded(tmp_path, with_statistics(), dataclasses.replace(ALL, sr=sr))[-1].path
    told = run(peer_program("dsrdump"), report)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    for words in (
        "Imaging Measurement Report",
        "UNVERIFIED",
        "Kidney left",
        "mGy/h",
        "Dose rate calculation",
        "range of measurement uncertainty",
    ):
        assert words in told.stdout


@pytest.mark.peers
def test_dcmftest_and_gdcm_know_the_files(
    peer_program: Callable[[str], str], validated: tuple[encode.EncodedObject, ...]
) -> None:
    """Part 10 for DCMTK, and images for GDCM (which knows no Comprehensive 3D SR and no Parametric Map)."""
    for o in validated:
        assert run(peer_program("dcmftest"), o.path).stdout.startswith("yes:")
        if o.kind in (ResultKind.SEG, ResultKind.RTDOSE):
            told = run(peer_program("gdcminfo"), o.path)
            assert told.returncode == 0, told.stderr
            assert "Dimensions: (7,6," in told.stdout
