"""SEG: each segment holds exactly the voxels that were measured, at their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from dicomnode.results import segmentation
from dicomnode.results.findings import Findings, RoiFindings
from dicomnode.results.header import ResultIdentity
from pipeline.errors import InputRejected
from pipeline.histogram import RegionKind
from tests.dicomnode.synthetic_findings import DIRECTIONS, FRAME, NOW, SETTINGS, ct_headers, findings

IDENTITY = ResultIdentity("2.25.200", "2.25.201", 9000, "Lu-177 dose rate regions")


def written(folder: Path, found: Findings) -> Path:
    tracking = [f"2.25.{300 + n}" for n in range(len(found.rois))]
    path = folder / "seg.dcm"
    pydicom.dcmwrite(
        path, segmentation.build(found, SETTINGS, IDENTITY, NOW, tracking), enforce_file_format=True
    )
    return path


def positions_by_segment(seg: pydicom.Dataset) -> dict[int, np.ndarray[Any, Any]]:
    """Patient positions of all set pixels, from PS3.3 C.7.6.2.1.1 and the functional groups alone."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    found: dict[int, list[np.ndarray[Any, Any]]] = {}
    for pixels, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        r, c = np.nonzero(pixels)
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        points = place + np.outer(c * between_columns, row) + np.outer(r * between_rows, column)
        found.setdefault(number, []).append(points)
    return {number: np.concatenate(points) for number, points in found.items()}


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_segments_hold_the_measured_voxels(direction: Any, tmp_path: Path) -> None:
    """Mapped back to the dose grid, the pixels of segment n are the mask of region n."""
    found = findings(direction, names=("Kidney left", "Lesion 1"))
    grid = found.maps[0].dose_rate.grid
    by_segment = positions_by_segment(pydicom.dcmread(written(tmp_path, found)))
    assert sorted(by_segment) == [1, 2, 3, 4]
    for number, roi in enumerate(found.rois, start=1):
        indices = grid.indices(by_segment[number])
        assert np.abs(indices - np.rint(indices)).max() < 1e-4
        back = np.zeros(grid.shape, bool)
        back[tuple(np.rint(indices).astype(int).T)] = True
        assert np.array_equal(back, roi.mask)


def test_highdicom_reads_one_regular_volume(tmp_path: Path) -> None:
    """The frames of all segments form one volume, as viewers that need one expect."""
    found = findings(DIRECTIONS["oblique, reversed"])
    volume = hd.seg.segread(written(tmp_path, found)).get_volume(combine_segments=False)
    assert volume.array.sum() == sum(int(roi.mask.sum()) for roi in found.rois)
    assert volume.frame_of_reference_uid == FRAME


def test_overlapping_regions_stay_whole(tmp_path: Path) -> None:
    """A lesion inside the body takes nothing from the body."""
    seg = pydicom.dcmread(written(tmp_path, findings()))
    assert seg.SegmentationType == "BINARY"
    assert seg.SegmentsOverlap == "YES"


def test_empty_frames_are_left_out(tmp_path: Path) -> None:
    """A region of three slices costs three frames."""
    seg = pydicom.dcmread(written(tmp_path, findings()))
    assert seg.NumberOfFrames == 5 + 5 + 3


def test_segments_are_named_and_tracked(tmp_path: Path) -> None:
    """Label, tracking UID, kind and origin of each region stand with its segment."""
    seg = pydicom.dcmread(written(tmp_path, findings()))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["Field of view", "Body", "Kidney left"]
    assert [s.TrackingUID for s in seg.SegmentSequence] == ["2.25.300", "2.25.301", "2.25.302"]
    assert [s.SegmentAlgorithmType for s in seg.SegmentSequence] == [
        "AUTOMATIC",
        "AUTOMATIC",
        "SEMIAUTOMATIC",
    ]
    assert seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue == "38266002"
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99RNT"


def test_a_label_breaks_no_rule_of_its_vr(tmp_path: Path) -> None:
    """Whatever a region is called, SegmentLabel stays a valid LO."""
    found = findings(names=("left\\right\n" + "x" * 100, " "))
    labels = [s.SegmentLabel for s in pydicom.dcmread(written(tmp_path, found)).SegmentSequence]
    assert labels[2].startswith("left/right x")
    assert len(labels[2]) == 64
    assert labels[3] == "Region 4"


def test_a_region_in_another_alphabet_makes_it_utf8(tmp_path: Path) -> None:
    """Patient in Latin-1, region in Cyrillic: both are readable."""
    ct = ct_headers(PatientName="Müller^Änne", SpecificCharacterSet="ISO_IR 100")
    seg = pydicom.dcmread(written(tmp_path, findings(ct_headers=ct, names=("Почка",))))
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert str(seg.PatientName) == "Müller^Änne"
    assert seg.SegmentSequence[2].SegmentLabel == "Почка"


def test_demographics_that_break_a_rule_do_not_stop_the_result(tmp_path: Path) -> None:
    """A sex, a date or a name that no library accepts is passed on as it came."""
    ct = ct_headers(PatientName="Doe, Jane (Ward 7)")
    for header in ct:
        header.add_new("PatientSex", "CS", "female")
        header.PatientBirthDate = ""
        header.StudyDate = None
    seg = pydicom.dcmread(written(tmp_path, findings(ct_headers=ct)))
    assert str(seg.PatientName) == "Doe, Jane (Ward 7)"
    assert seg.PatientSex == "female"


def test_a_region_without_voxels_is_refused() -> None:
    """It could be neither measured nor shown."""
    with pytest.raises(InputRejected, match="no voxel"):
        RoiFindings("Ghost", RegionKind.ROI, np.zeros((2, 2, 2), bool), {})
