"""What a study lacks is asked of Orthanc by C-FIND and pulled by C-MOVE and C-GET."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode.ledger import Ledger
from dicomnode.records import Enquiry
from dicomnode.states import State
from tests import small_study
from tests.acceptance.harness import NODE_AE, PACS_AE, Node, Orthanc, free_port, listens, push, until

pytestmark = pytest.mark.peers
Find = Callable[[str], str]


@pytest.fixture(scope="module")
def node_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def archive(
    peer_program: Find, tmp_path_factory: pytest.TempPathFactory, node_port: int
) -> Iterator[Orthanc]:
    """An Orthanc that knows the node, so that it can send there."""
    orthanc = Orthanc(
        peer_program("Orthanc"),
        tmp_path_factory.mktemp("archive"),
        modalities={"node": [NODE_AE, "127.0.0.1", node_port]},
    )
    orthanc.start()
    yield orthanc
    orthanc.stop()


@pytest.fixture(params=["move", "get"])
def node(request: pytest.FixtureRequest, archive: Orthanc, tmp_path: Path, node_port: int) -> Iterator[Node]:
    extra = f'[fetch]\nask = ["PACS"]\nby = "{request.param}"\nfirst_retry_s = 1.0\nmax_retry_s = 2.0\n'
    node = Node(tmp_path / "node", archive.port, extra, port=node_port)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def enquiries(node: Node, case_id: int) -> list[Enquiry]:
    ledger = Ledger(f"sqlite:///{node.data_dir / 'ledger.sqlite3'}")
    try:
        return ledger.enquiries(case_id)
    finally:
        ledger.close()


def test_a_ct_that_only_the_pacs_has_is_pulled(
    node: Node, archive: Orthanc, peer_program: Find, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files = small_study.write(tmp_path / "study", f"only SPECT {request.node.name}", rois=None)
    uid = files.study.study_instance_uid
    assert files.nm is not None
    push(peer_program("storescu"), archive.port, files.ct)
    push(peer_program("storescu"), node.port, [files.nm])
    case = node.reaches(uid, State.DONE)
    asked = enquiries(node, case.id)
    assert (asked[0].outcome, asked[0].missing, asked[0].came) == ("came", len(files.ct), len(files.ct))
    assert "SPECT without CT" in asked[0].lacking
    assert asked[-1].outcome == "agrees"
    # The study in PACS grew by the results alone; the node sent no inputs there.
    assert archive.held(uid) == {"CT": len(files.ct), "RTDOSE": 1, "SEG": 1, "SR": 1}
    shown = node.run("show", str(case.id)).stdout
    assert "SPECT without CT" in shown


def test_slices_that_did_not_come_are_pulled_before_the_study_is_computed(
    node: Node, archive: Orthanc, peer_program: Find, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The last slices are missing: geometry alone could not tell."""
    files = small_study.write(tmp_path / "study", f"cut off {request.node.name}", rois=None)
    uid = files.study.study_instance_uid
    assert files.nm is not None
    push(peer_program("storescu"), archive.port, files.all)
    push(peer_program("storescu"), node.port, [files.nm, *files.ct[:-3]])
    case = node.reaches(uid, State.DONE)
    assert [(e.outcome, e.missing) for e in enquiries(node, case.id)] == [("came", 3), ("agrees", 0)]
    assert f"{len(files.ct)} CT slices" in " ".join(t.reason for t in node.story(case.id))


def test_a_study_that_is_whole_is_asked_about_once(
    node: Node, archive: Orthanc, peer_program: Find, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files = small_study.write(tmp_path / "study", f"whole {request.node.name}", rois=None)
    uid = files.study.study_instance_uid
    push(peer_program("storescu"), archive.port, files.all)
    push(peer_program("storescu"), node.port, files.all)
    case = node.reaches(uid, State.DONE)
    assert [(e.outcome, e.missing) for e in enquiries(node, case.id)] == [("agrees", 0)]


@pytest.fixture
def dcmqrscp(peer_program: Find, tmp_path: Path, node_port: int) -> Iterator[int]:
    """DCMTK's archive, which knows the node. returns: its port."""
    port = free_port()
    (tmp_path / "DCMQR").mkdir()
    (tmp_path / "dcmqrscp.cfg").write_text(
        f"""
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
node = ({NODE_AE}, 127.0.0.1, {node_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
{PACS_AE} {tmp_path / "DCMQR"} RW (100, 1024mb) ANY
AETable END
"""
    )
    with (tmp_path / "dcmqrscp.log").open("wb") as log:
        process = subprocess.Popen(
            [peer_program("dcmqrscp"), "-c", str(tmp_path / "dcmqrscp.cfg")], stdout=log, stderr=log
        )
    until(lambda: listens(port), "dcmqrscp listens")
    yield port
    process.terminate()
    process.wait(30)


@pytest.mark.parametrize("by", ["move", "get"])
def test_dcmtk_is_asked_and_sends(
    dcmqrscp: int, peer_program: Find, tmp_path: Path, node_port: int, by: str
) -> None:
    extra = f'[fetch]\nask = ["PACS"]\nby = "{by}"\nfirst_retry_s = 1.0\nmax_retry_s = 2.0\n'
    files = small_study.write(tmp_path / "study", f"dcmqrscp {by}", rois=None)
    assert files.nm is not None
    storescu = peer_program("storescu")
    for path in (*files.ct, files.nm):
        subprocess.run([storescu, "-aec", PACS_AE, "127.0.0.1", str(dcmqrscp), str(path)], check=True)
    node = Node(tmp_path / "node", dcmqrscp, extra, port=node_port)
    node.start()
    try:
        push(storescu, node.port, [files.nm])
        case = node.reaches(
            files.study.study_instance_uid, State.READY, State.COMPUTING, State.SENDING, State.DONE
        )
        asked = enquiries(node, case.id)
        assert [(e.outcome, e.came) for e in asked] == [("came", len(files.ct)), ("agrees", 0)]
    finally:
        assert node.stop() == 0
