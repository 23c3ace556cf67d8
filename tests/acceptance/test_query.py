"""DCMTK and Orthanc ask the running node what it holds, and fetch it."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pydicom
import pytest

from dicomnode.states import State
from dicomnode.virtual_study import Identity, StudyFiles, recompress
from tests import small_study
from tests.acceptance.harness import (
    MODALITY_AE,
    NODE_AE,
    PACS_AE,
    Node,
    Orthanc,
    free_port,
    listens,
    push,
    until,
)

pytestmark = pytest.mark.peers
Find = Callable[[str], str]

VIEWER_AE, STORE_AE = "VIEWER", "ARCHIVE"
IDENTITY = Identity(patient_id="Q/R_7", patient_name="Müller^Jörg")
RESULTS = {"RTDOSE", "SEG", "SR"}
REQUEST, OTHER_ID = pydicom.Dataset(), pydicom.Dataset()
REQUEST.ScheduledProcedureStepID, REQUEST.RequestedProcedureID = "STEP-7", "PROC-7"
OTHER_ID.PatientID, OTHER_ID.IssuerOfPatientID, OTHER_ID.TypeOfPatientID = "Ö-42", "NATION", "TEXT"


@dataclass
class Viewer:
    """DCMTK's programs as a workstation."""

    find: Find
    port: int
    folder: Path

    def query(self, *keys: str, model: str = "-S", options: tuple[str, ...] = ()) -> list[pydicom.Dataset]:
        """findscu. returns: the matches."""
        into = self.folder / f"query{len(list(self.folder.iterdir()))}"
        into.mkdir()
        self.run("findscu", model, "-X", "-od", str(into), *options, keys=keys)
        return [pydicom.dcmread(path, force=True) for path in sorted(into.iterdir())]

    def run(self, program: str, *options: str, keys: tuple[str, ...], calling: str = VIEWER_AE) -> str:
        """returns: what the program says."""
        arguments = [argument for key in keys for argument in ("-k", key)]
        done = subprocess.run(
            [
                self.find(program), "-v", "-aet", calling, "-aec", NODE_AE, *options, *arguments,
                "127.0.0.1", str(self.port),
            ],
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        return (done.stdout + done.stderr).decode(errors="replace")


@dataclass
class Archive:
    """DCMTK's storescp."""

    process: subprocess.Popen[bytes]
    folder: Path

    def objects(self) -> dict[str, pydicom.FileDataset]:
        """What it has, by SOP Instance UID."""
        found = [pydicom.dcmread(path) for path in self.folder.iterdir()]
        return {str(ds.SOPInstanceUID): ds for ds in found}

    def empty(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@pytest.fixture(scope="module")
def archive_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def orthanc(peer_program: Find, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc of this module's own, which knows the node."""
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    modalities: dict[str, object] = {"node": [NODE_AE, "127.0.0.1", port]}
    running = Orthanc(peer_program("Orthanc"), folder, modalities=modalities, http_port=free_port())
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def node(orthanc: Orthanc, archive_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    extra = f"""
[[peers]]
name = "viewer"
ae_title = "{VIEWER_AE}"
may = ["echo", "find", "move", "get"]
[[peers]]
name = "archive"
ae_title = "{STORE_AE}"
host = "127.0.0.1"
port = {archive_port}
may = []
"""
    may = 'may = ["echo", "store", "find", "move"]'
    port = int(str(cast(list[object], orthanc.modalities["node"])[2]))
    node = Node(tmp_path_factory.mktemp("node"), orthanc.port, extra, may, port=port)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


@pytest.fixture(scope="module")
def study(node: Node, peer_program: Find, tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    """Computed; one of its CT slices came compressed."""
    files = small_study.write(tmp_path_factory.mktemp("study"), "query", identity=IDENTITY)
    recompress(files.ct[:1], "1.2.840.10008.1.2.4.80")
    for path in files.ct:
        ds = pydicom.dcmread(path)
        ds.RequestAttributesSequence, ds.OtherPatientIDsSequence = [REQUEST], [OTHER_ID]
        ds.save_as(path)
    assert len(push(peer_program("storescu"), node.port, files.all[1:])) == len(files.all) - 1
    assert push(peer_program("storescu"), node.port, files.all[:1], "-xt") == files.all[:1]
    node.reaches(files.study.study_instance_uid, State.DONE)
    return files


@pytest.fixture
def viewer(node: Node, study: StudyFiles, peer_program: Find, tmp_path: Path) -> Viewer:
    return Viewer(peer_program, node.port, tmp_path)


@pytest.fixture(scope="module")
def running_archive(
    archive_port: int, peer_program: Find, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    command = [peer_program("storescp"), "-aet", STORE_AE, "-od", str(folder), str(archive_port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: listens(archive_port), "storescp listens")
    yield Archive(process, folder)
    process.terminate()
    process.wait(30)


@pytest.fixture
def archive(running_archive: Archive) -> Archive:
    running_archive.empty()
    return running_archive


def test_a_study_is_found_with_its_results_and_its_inputs(viewer: Viewer, study: StudyFiles) -> None:
    (found,) = viewer.query(
        "QueryRetrieveLevel=STUDY",
        "PatientName=m*",
        "PatientID",
        "StudyDate=20000101-",
        "StudyInstanceUID",
        "ModalitiesInStudy",
        "NumberOfStudyRelatedInstances",
        options=("-k", "SpecificCharacterSet=ISO_IR 192"),
    )
    assert found.StudyInstanceUID == study.study.study_instance_uid
    assert (found.PatientID, str(found.PatientName)) == (IDENTITY.patient_id, IDENTITY.patient_name)
    assert set(found.ModalitiesInStudy) == RESULTS | {"CT", "NM", "RTSTRUCT"}
    assert found.NumberOfStudyRelatedInstances == len(study.all) + len(RESULTS)
    assert found.RetrieveAETitle == NODE_AE


def test_a_dose_is_found_by_its_dose_keys(viewer: Viewer, study: StudyFiles) -> None:
    uid = study.study.study_instance_uid
    series = viewer.query(
        "QueryRetrieveLevel=SERIES", f"StudyInstanceUID={uid}", "SeriesInstanceUID", "Modality"
    )
    assert {s.Modality for s in series[:3]} == RESULTS, "results come first"
    dose = next(s for s in series if s.Modality == "RTDOSE")
    (found,) = viewer.query(
        "QueryRetrieveLevel=IMAGE",
        f"PatientID={IDENTITY.patient_id}",
        f"StudyInstanceUID={uid}",
        f"SeriesInstanceUID={dose.SeriesInstanceUID}",
        "SOPInstanceUID",
        "DoseUnits=GY",
        "DoseType",
        "DoseSummationType",
        "DoseComment=DVK*",
        "NumberOfFrames",
        model="-P",
    )
    assert (found.DoseType, found.DoseSummationType) == ("PHYSICAL", "PLAN_OVERVIEW")
    assert "Gy" in found.DoseComment
    assert found.NumberOfFrames > 1


def test_series_are_found_by_their_procedure_step(viewer: Viewer, study: StudyFiles) -> None:
    """Sequence matching, as findscu asks for it (PS3.4 C.2.2.2.6)."""
    keys = ("QueryRetrieveLevel=SERIES", f"StudyInstanceUID={study.study.study_instance_uid}", "Modality")
    step, procedure = "RequestAttributesSequence[0].ScheduledProcedureStepID", "(0040,0275)[0].0040,1001"
    (found,) = viewer.query(*keys, f"{step}=STEP-7", procedure)
    assert found.Modality == "CT"
    (told,) = found.RequestAttributesSequence
    assert (told.ScheduledProcedureStepID, told.RequestedProcedureID) == ("STEP-7", "PROC-7")
    assert viewer.query(*keys, f"{step}=STEP-7", f"{procedure}=PROC-8") == []
    assert len(viewer.query(*keys, f"{step}=STEP?7", f"{procedure}=PROC*")) == 1
    for universal in ("RequestAttributesSequence", "RequestAttributesSequence[0]", step):
        answers = viewer.query(*keys, universal)
        assert {f.Modality for f in answers} == RESULTS | {"CT", "NM", "RTSTRUCT"}
        assert sum(len(f.RequestAttributesSequence) for f in answers) == 1
    # Another sequence fails nothing and is not told (C.2.2.1.3).
    answers = viewer.query(*keys, "ReferencedStudySequence[0].ReferencedSOPInstanceUID=1.2")
    assert len(answers) == len(RESULTS) + 3
    assert not any("ReferencedStudySequence" in answer for answer in answers)


def test_a_patient_is_found_by_other_ids(viewer: Viewer, study: StudyFiles) -> None:
    """At patient and study level, in the sequence and in the attribute that it replaces."""
    utf_8 = ("-k", "SpecificCharacterSet=ISO_IR 192")
    one_id = "OtherPatientIDsSequence[0].PatientID=Ö-42"
    issuer = "OtherPatientIDsSequence[0].IssuerOfPatientID"
    for level, model in (("PATIENT", "-P"), ("STUDY", "-S")):
        keys = f"QueryRetrieveLevel={level}", "PatientID", "IssuerOfPatientID=VIRTUAL", "(0010,1000)"
        (found,) = viewer.query(*keys, one_id, f"{issuer}=NAT*", model=model, options=utf_8)
        assert (found.PatientID, found.OtherPatientIDs) == (IDENTITY.patient_id, "Ö-42")
        (told,) = found.OtherPatientIDsSequence
        assert (told.PatientID, told.IssuerOfPatientID) == ("Ö-42", "NATION")
        assert viewer.query(*keys, one_id, f"{issuer}=X", model=model, options=utf_8) == []
        assert len(viewer.query(keys[0], "PatientID", "(0010,1000)=?-42", model=model)) == 1
        assert viewer.query(keys[0], "(0010,1000)=?-43", model=model) == []
        assert viewer.query(keys[0], "IssuerOfPatientID=OTHER", model=model) == []


def test_what_does_not_fit_the_model_is_refused(viewer: Viewer) -> None:
    said = viewer.run("findscu", "-S", keys=("QueryRetrieveLevel=PATIENT", "PatientName"))
    assert "DataSetDoesNotMatchSOPClass" in said
    said = viewer.run("findscu", "-S", keys=("QueryRetrieveLevel=SERIES", "SeriesInstanceUID"))
    assert "DataSetDoesNotMatchSOPClass" in said


def test_a_query_can_be_cancelled(viewer: Viewer, study: StudyFiles) -> None:
    uid = study.study.study_instance_uid
    said = viewer.run(
        "findscu",
        "-S",
        "--cancel",
        "1",
        keys=("QueryRetrieveLevel=SERIES", f"StudyInstanceUID={uid}", "SeriesInstanceUID"),
    )
    # Six matches may all have been sent before the node hears of it.
    assert "Received Final Find Response (Cancel" in said or "Received Final Find Response (Success" in said


def test_a_peer_without_the_right_finds_nothing(viewer: Viewer, node: Node) -> None:
    said = viewer.run("findscu", "-S", keys=("QueryRetrieveLevel=STUDY",), calling=MODALITY_AE)
    assert "No Acceptable Presentation Contexts" in said
    node.says("asked to find")


def test_a_study_moves_to_a_known_peer_as_it_was_received(
    viewer: Viewer, study: StudyFiles, archive: Archive
) -> None:
    uid = study.study.study_instance_uid
    said = viewer.run(
        "movescu", "-S", "-aem", STORE_AE, keys=("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid}")
    )
    assert "Received Final Move Response (Success)" in said
    objects = archive.objects()
    assert len(objects) == len(study.all) + len(RESULTS)
    for path in study.all:
        sent = pydicom.dcmread(path)
        came = objects[str(sent.SOPInstanceUID)]
        if "PixelData" in sent:
            assert (came.pixel_array == sent.pixel_array).all()
            assert not came.file_meta.TransferSyntaxUID.is_compressed  # storescp takes no JPEG-LS by default


def test_series_and_single_instances_move_by_lists_of_uids(
    viewer: Viewer, study: StudyFiles, archive: Archive
) -> None:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in study.ct[:3]]
    wanted = [str(ds.SOPInstanceUID) for ds in headers]
    said = viewer.run(
        "movescu",
        "-P",
        "-aem",
        STORE_AE,
        keys=(
            "QueryRetrieveLevel=IMAGE",
            f"PatientID={IDENTITY.patient_id}",
            f"StudyInstanceUID={study.study.study_instance_uid}",
            f"SeriesInstanceUID={headers[0].SeriesInstanceUID}",
            "SOPInstanceUID=" + "\\".join([*wanted, "1.2.3"]),
        ),
    )
    assert "Received Final Move Response (Success)" in said
    assert sorted(archive.objects()) == sorted(wanted)


def test_a_study_moves_into_orthanc(viewer: Viewer, study: StudyFiles, orthanc: Orthanc) -> None:
    uid = study.study.study_instance_uid
    said = viewer.run(
        "movescu", "-S", "-aem", PACS_AE, keys=("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid}")
    )
    assert "Received Final Move Response (Success)" in said
    assert orthanc.held(uid) == {"CT": len(study.ct), "NM": 1, "RTSTRUCT": 1, "RTDOSE": 1, "SEG": 1, "SR": 1}


def test_orthanc_queries_the_node_and_fetches_from_it(
    node: Node, study: StudyFiles, orthanc: Orthanc
) -> None:
    uid = study.study.study_instance_uid
    for number in orthanc.rest("/studies"):
        orthanc.rest(f"/studies/{number}", method="DELETE")
    keys = {"PatientID": IDENTITY.patient_id, "PatientName": "", "StudyDate": "19000101-"}
    asked = {"Level": "Study", "Query": keys}
    query = orthanc.rest("/modalities/node/query", asked)["ID"]
    (answer,) = orthanc.rest(f"/queries/{query}/answers?expand&simplify")
    assert (answer["StudyInstanceUID"], answer["PatientName"]) == (uid, IDENTITY.patient_name)
    orthanc.rest(f"/queries/{query}/answers/0/retrieve", {"TargetAet": PACS_AE, "Synchronous": True})
    assert orthanc.held(uid) == {"CT": len(study.ct), "NM": 1, "RTSTRUCT": 1, "RTDOSE": 1, "SEG": 1, "SR": 1}


def test_a_destination_that_nobody_knows_is_refused(viewer: Viewer, study: StudyFiles) -> None:
    uid = study.study.study_instance_uid
    for destination in ("NOBODY", MODALITY_AE):
        said = viewer.run(
            "movescu", "-S", "-aem", destination, keys=("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid}")
        )
        assert "MoveDestinationUnknown" in said


def test_a_study_is_got_over_the_same_association(viewer: Viewer, study: StudyFiles, tmp_path: Path) -> None:
    into = tmp_path / "got"
    into.mkdir()
    uid = study.study.study_instance_uid
    said = viewer.run(
        "getscu", "-S", "-od", str(into), keys=("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid}")
    )
    # getscu proposes no context for Segmentation and its like in every version: what it takes, it gets.
    assert "Received C-GET Response (Success)" in said or "(Warning" in said, said[-2000:]
    got = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, into.iterdir())}
    for path in study.ct:
        sent = pydicom.dcmread(path)
        assert (got[str(sent.SOPInstanceUID)].pixel_array == sent.pixel_array).all()
    assert "RTDOSE" in {ds.Modality for ds in got.values()}


def test_a_ledger_of_an_older_version_is_read_in(node: Node, viewer: Viewer, study: StudyFiles) -> None:
    """Without its index, as the migration leaves it; last, because it stops the node."""
    before = len(viewer.query("QueryRetrieveLevel=STUDY", "StudyInstanceUID"))
    assert node.stop() == 0
    with sqlite3.connect(node.data_dir / "ledger.sqlite3") as database:
        items = "held_requests", "held_other_patient_ids"
        for table in (*items, "held_classes", "held_instances", "held_series", "held_studies"):
            database.execute(f"DELETE FROM {table}")
        database.execute("UPDATE results SET attributes_json = NULL")
    node.start()
    viewer.port = node.port
    number = len(study.all) + len(RESULTS)

    def all_there() -> bool:
        found = viewer.query(
            "QueryRetrieveLevel=STUDY",
            f"StudyInstanceUID={study.study.study_instance_uid}",
            "NumberOfStudyRelatedInstances",
        )
        return len(found) == 1 and found[0].NumberOfStudyRelatedInstances == number

    until(all_there, "the index is whole again", pause_s=0.5)
    assert len(viewer.query("QueryRetrieveLevel=STUDY", "(0010,1000)=?-42")) == 1
    assert len(viewer.query("QueryRetrieveLevel=STUDY", "StudyInstanceUID")) == before


def test_what_a_retrieval_finds_damaged_is_given_to_nobody_and_taken_again(
    node: Node, viewer: Viewer, study: StudyFiles, peer_program: Find, tmp_path: Path
) -> None:
    """After the others: the case is held meanwhile."""
    uid, path = study.study.study_instance_uid, study.ct[3]
    instance = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
    stored = node.data_dir / "spool" / uid / f"{instance}.dcm"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    into = tmp_path / "got"
    into.mkdir()
    viewer.run("getscu", "-S", "-od", str(into), keys=("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid}"))
    got = {str(pydicom.dcmread(each, stop_before_pixels=True).SOPInstanceUID) for each in into.iterdir()}
    assert got
    assert instance not in got
    node.says(f"its file spool/{uid}/{instance}.dcm is damaged")
    node.reaches(uid, State.HELD)
    assert push(peer_program("storescu"), node.port, [path]) == [path]
    until(stored.exists, "it is taken again", timeout_s=30.0)
    assert "case 1" in node.run("retry", "1").stdout
    node.reaches(uid, State.DONE, timeout_s=60.0)
    viewer.run("getscu", "-S", "-od", str(into), keys=("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={uid}"))
    assert instance in {str(pydicom.dcmread(each).SOPInstanceUID) for each in into.iterdir()}
