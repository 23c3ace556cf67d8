"""Which series are computed, and what a person is told when none can be chosen safely."""

from __future__ import annotations

import copy

import pytest
from pydicom.uid import generate_uid

from dicomnode.errors import Incomplete, Rejected
from dicomnode.selection import Header, Preferences, choose, digest, read_header
from tests import small_study

NO_PREFERENCE = Preferences()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Header]:
    files = small_study.write(tmp_path_factory.mktemp("study"))
    return [read_header(path) for path in files.all]


def of(headers: list[Header], modality: str) -> list[Header]:
    return [h for h in headers if h.text("Modality") == modality]


def another_series(headers: list[Header], **attributes: object) -> list[Header]:
    """The same objects as another series, with other attributes."""
    series = generate_uid()
    copies = []
    for header in headers:
        dataset = copy.deepcopy(header.dataset)
        dataset.SeriesInstanceUID = series
        dataset.SOPInstanceUID = generate_uid()
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        copies.append(Header(f"{header.path}-{series[-6:]}", dataset))
    return copies


def test_one_spect_one_ct_and_the_rois_are_chosen(study: list[Header]) -> None:
    inputs = choose(study, NO_PREFERENCE)
    assert set(inputs.ct) == {h.path for h in of(study, "CT")}
    assert inputs.spect == tuple(h.path for h in of(study, "NM"))
    assert inputs.rois == tuple(h.path for h in of(study, "RTSTRUCT"))


def test_the_choice_does_not_depend_on_the_order_of_arrival(study: list[Header]) -> None:
    forward, backward = choose(study, NO_PREFERENCE), choose(study[::-1], NO_PREFERENCE)
    assert (set(forward.ct), forward.spect) == (set(backward.ct), backward.spect)


@pytest.mark.parametrize(
    ("kept", "reason", "remedy"),
    [
        (("NM",), "SPECT without CT", "Send the CT"),
        (("CT",), "no SPECT: the study holds 24 CT", "Send the reconstructed SPECT"),
        (("RTSTRUCT",), "no SPECT: the study holds 1 RTSTRUCT", "Send the reconstructed SPECT"),
    ],
)
def test_what_is_missing_may_still_arrive(
    study: list[Header], kept: tuple[str, ...], reason: str, remedy: str
) -> None:
    with pytest.raises(Incomplete) as caught:
        choose([h for h in study if h.text("Modality") in kept], NO_PREFERENCE)
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy


def test_a_missing_slice_is_waited_for_and_named_by_its_place(study: list[Header]) -> None:
    ct = of(study, "CT")
    with pytest.raises(Incomplete, match="CT") as caught:
        choose([h for h in study if h is not ct[7]], NO_PREFERENCE)
    assert "missing" in str(caught.value)


def test_projections_are_no_spect(study: list[Header]) -> None:
    nm = another_series(of(study, "NM"), ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"])
    with pytest.raises(Incomplete) as caught:
        choose([*of(study, "CT"), *nm], NO_PREFERENCE)
    assert "reconstruct the SPECT" in caught.value.remedy


def test_the_corrected_spect_wins_over_the_uncorrected(study: list[Header]) -> None:
    uncorrected = another_series(of(study, "NM"), CorrectedImage=["DECY"])
    inputs = choose([*study, *uncorrected], NO_PREFERENCE)
    assert inputs.spect == tuple(h.path for h in of(study, "NM"))
    assert any("left aside" in note for note in inputs.notes)


def test_two_equal_spect_series_are_a_tie_that_shows_both(study: list[Header]) -> None:
    twin = another_series(of(study, "NM"), SeriesDescription="SPECT twin")
    with pytest.raises(Rejected, match="2 SPECT series fit") as caught:
        choose([*study, *twin], NO_PREFERENCE)
    assert not isinstance(caught.value, Incomplete)
    assert twin[0].text("SeriesInstanceUID") in caught.value.reason
    assert "prefer_spect" in caught.value.remedy


def test_the_sites_preference_breaks_a_tie(study: list[Header]) -> None:
    twin = another_series(of(study, "NM"), SeriesDescription="SPECT twin")
    inputs = choose([*study, *twin], Preferences(spect=("nothing", "* twin")))
    assert inputs.spect == (twin[0].path,)
    assert any("prefer_spect" in note for note in inputs.notes)


def test_a_preference_that_fits_both_decides_nothing(study: list[Header]) -> None:
    twin = another_series(of(study, "NM"))
    with pytest.raises(Rejected, match="2 SPECT series fit"):
        choose([*study, *twin], Preferences(spect=("*",)))


def test_a_localizer_and_a_shorter_ct_are_left_aside(study: list[Header]) -> None:
    ct = of(study, "CT")
    localizer = another_series(ct[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    short = another_series(ct[:12])
    inputs = choose([*study, *localizer, *short], NO_PREFERENCE)
    assert set(inputs.ct) == {h.path for h in ct}


def test_two_kernels_of_one_ct_are_a_tie(study: list[Header]) -> None:
    sharp = another_series(of(study, "CT"), SeriesDescription="CT B80", ConvolutionKernel="B80s")
    with pytest.raises(Rejected, match="2 CT series fit") as caught:
        choose([*study, *sharp], NO_PREFERENCE)
    assert "B80s" in caught.value.reason
    assert choose([*study, *sharp], Preferences(ct=("CT B80",))).ct == tuple(h.path for h in sharp)


def test_another_frame_of_reference_is_rejected(study: list[Header]) -> None:
    elsewhere = another_series(of(study, "CT"), FrameOfReferenceUID=generate_uid())
    with pytest.raises(Rejected, match="mixed frames of reference") as caught:
        choose([*of(study, "NM"), *elsewhere], NO_PREFERENCE)
    assert "Spatial Registration" in caught.value.remedy


def test_two_patients_under_one_study_are_rejected(study: list[Header]) -> None:
    stranger = another_series(of(study, "NM"), PatientID="SOMEBODY-ELSE")
    with pytest.raises(Rejected, match="two patients under one Study Instance UID") as caught:
        choose([*study, *stranger], NO_PREFERENCE)
    assert "1 and 26 of each" in caught.value.reason
    assert "SOMEBODY-ELSE" not in str(caught.value), "it goes into the log and into mails"


def test_two_issuers_of_one_patient_id_are_two_patients(study: list[Header]) -> None:
    stranger = another_series(of(study, "NM"), IssuerOfPatientID="OTHER HOSPITAL")
    with pytest.raises(Rejected, match="two patients"):
        choose([*study, *stranger], NO_PREFERENCE)


def test_an_issuer_that_is_left_out_contradicts_nothing(study: list[Header]) -> None:
    rest = [h for h in study if h.text("Modality") != "NM"]
    anonymous = another_series(of(study, "NM"), IssuerOfPatientID="")
    assert choose([*rest, *anonymous], NO_PREFERENCE).spect == (anonymous[0].path,)


def test_an_object_without_patient_id_is_rejected(study: list[Header]) -> None:
    with pytest.raises(Rejected, match="no Patient ID"):
        choose([*study, *another_series(of(study, "NM"), PatientID="")], NO_PREFERENCE)


def test_the_digest_follows_the_objects_and_not_their_order() -> None:
    assert digest(["1.2", "1.3"]) == digest(["1.3", "1.2"]) != digest(["1.2", "1.4"])


def test_a_longer_ct_that_does_not_reach_the_spect_is_left_aside(study: list[Header]) -> None:
    """A thorax CT of the same session: longer than the CT of the SPECT, and above it."""
    ct = of(study, "CT")
    thorax = another_series([*ct, *ct], SeriesDescription="CT thorax")
    for k, header in enumerate(thorax):
        header.dataset.ImagePositionPatient = [-126.0, -126.0, 300.0 + 5.0 * k]
    assert set(choose([*study, *thorax], NO_PREFERENCE).ct) == {h.path for h in ct}


def test_two_cts_that_cover_the_spect_alike_are_a_tie(study: list[Header]) -> None:
    """However much longer one of them is: the preference decides, not the length beyond the SPECT."""
    ct = of(study, "CT")
    whole = another_series([*ct, *ct], SeriesDescription="CT whole body")
    for k, header in enumerate(whole):
        header.dataset.ImagePositionPatient = [-126.0, -126.0, -120.0 + 5.0 * k]
    short = another_series([*ct, *ct], SeriesDescription="CT whole trunk")
    for k, header in enumerate(short):
        header.dataset.ImagePositionPatient = [-126.0, -126.0, -110.0 + 5.0 * k]
    with pytest.raises(Rejected, match="2 CT series fit"):
        choose([*study, *whole, *short], NO_PREFERENCE)
    assert len(choose([*study, *whole, *short], Preferences(ct=("*trunk",))).ct) == 48
