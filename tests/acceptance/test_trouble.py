"""What goes wrong around a node: a PACS that is down, a second node, a lost ledger."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode.states import Event, State
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, push, until

pytestmark = pytest.mark.peers
Find = Callable[[str], str]


@pytest.fixture(scope="module")
def own_pacs(peer_program: Find, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One that may be stopped."""
    orthanc = Orthanc(peer_program("Orthanc"), tmp_path_factory.mktemp("own-pacs"))
    orthanc.start()
    yield orthanc
    orthanc.stop()


@pytest.fixture
def troubled(own_pacs: Orthanc, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "node", own_pacs.port)
    node.start()
    yield node
    assert node.stop() == 0


def instances(pacs: Orthanc, study_uid: str) -> set[str]:
    """SOP Instance UIDs that the PACS has of a study."""
    series = pacs.find("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID="")
    return {
        str(found.SOPInstanceUID)
        for one in series
        for found in pacs.find(
            "IMAGE",
            StudyInstanceUID=study_uid,
            SeriesInstanceUID=one.SeriesInstanceUID,
            SOPInstanceUID="",
        )
    }


def test_a_second_node_on_the_same_data_is_refused_and_the_first_computes_on(
    troubled: Node, own_pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "second node")
    uid = files.study.study_instance_uid
    push(peer_program("storescu"), troubled.port, files.all)
    troubled.reaches(uid, State.COMPUTING)
    second = troubled.run("serve")
    assert second.returncode == 1
    assert "another node uses [node] data_dir" in second.stderr
    assert "Traceback" not in second.stderr
    case = troubled.reaches(uid, State.DONE)
    assert [t.event for t in troubled.story(case.id)].count(Event.CLAIM) == 1
    assert own_pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_a_port_that_is_taken_is_a_sentence_and_an_exit_status(
    own_pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    node = Node(tmp_path / "node", own_pacs.port)
    node.write_config()
    with socket.create_server(("127.0.0.1", node.port)):
        done = node.run("serve")
    assert done.returncode == 1
    assert f"[node] port {node.port} on 127.0.0.1 cannot be used: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_results_wait_for_a_pacs_that_is_down_and_arrive_once(
    troubled: Node, own_pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "PACS down")
    uid = files.study.study_instance_uid
    own_pacs.stop()
    push(peer_program("storescu"), troubled.port, files.all)
    case = troubled.reaches(uid, State.SENDING)
    troubled.says("cannot be reached")
    # The log's line comes before the ledger's.
    shown = troubled.run
    until(lambda: "cannot be reached" in shown("show", str(case.id)).stdout, "`show` says it too")
    own_pacs.start()
    troubled.reaches(uid, State.DONE)
    assert own_pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_a_lost_ledger_is_rebuilt_from_the_spool_and_gives_pacs_no_second_results(
    troubled: Node, own_pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    """The cases are numbered anew; their results keep their UIDs."""
    storescu = peer_program("storescu")
    studies = [small_study.write(tmp_path / name, f"lost {name}", rois=None) for name in ("a", "b")]
    uids = [files.study.study_instance_uid for files in studies]
    for files, uid in zip(studies, uids, strict=True):
        push(storescu, troubled.port, files.all)
        troubled.reaches(uid, State.DONE)
    before = [instances(own_pacs, uid) for uid in uids]
    assert troubled.stop() == 0
    for path in troubled.data_dir.glob("ledger.sqlite3*"):
        path.unlink()
    troubled.start()
    for uid in uids:
        troubled.reaches(uid, State.DONE)
    assert [instances(own_pacs, uid) for uid in uids] == before
