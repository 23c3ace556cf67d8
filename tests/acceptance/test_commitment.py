"""Storage commitment with Orthanc, both ways: it commits to our results, and it asks us to commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage

from dicomnode.commitment.ask import Committer
from dicomnode.commitment.report import ReportService
from dicomnode.config import Receive, parse
from dicomnode.deliver import Deliverer
from dicomnode.ledger import Ledger
from dicomnode.network.receive import Receiver
from dicomnode.records import Delivery
from dicomnode.states import Event, State
from tests import small_study
from tests.acceptance.harness import NODE_AE, PACS_AE, Node, Orthanc, free_port, push, until
from tests.dicomnode.results_on_disk import encoded_case

pytestmark = pytest.mark.peers
Find = Callable[[str], str]

# The shortest waits: the tests below must not wait for hours.
COMMITMENT = """
[commitment]
stay_s = 1.0
ask_again_h = 0.002
max_ask_again_h = 0.002
"""


@pytest.fixture(scope="module")
def node_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def committing(
    peer_program: Find, tmp_path_factory: pytest.TempPathFactory, node_port: int
) -> Iterator[Orthanc]:
    """An Orthanc that knows the node and commits when it asks."""
    ours = {"AET": NODE_AE, "Host": "127.0.0.1", "Port": node_port, "AllowStorageCommitment": True}
    orthanc = Orthanc(
        peer_program("Orthanc"),
        tmp_path_factory.mktemp("committing"),
        modalities={"node": ours},
        http_port=free_port(),
    )
    orthanc.start()
    yield orthanc
    orthanc.stop()


@pytest.fixture
def asking(committing: Orthanc, tmp_path: Path, node_port: int) -> Iterator[Node]:
    """A node that asks the PACS to commit, and that the PACS may ask."""
    may = 'commitment = true\nmay = ["echo", "store", "commit"]'
    node = Node(tmp_path / "node", committing.port, COMMITMENT, port=node_port, pacs_extra=may)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def deliveries(node: Node, case_id: int) -> list[Delivery]:
    ledger = Ledger(f"sqlite:///{node.data_dir / 'ledger.sqlite3'}")
    try:
        run = ledger.latest_run(case_id)
        return [] if run is None else [delivery for _, delivery in ledger.deliveries(run.id)]
    finally:
        ledger.close()


def test_a_case_is_done_when_orthanc_has_committed(
    asking: Node, committing: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "committed")
    uid = files.study.study_instance_uid
    push(peer_program("storescu"), asking.port, files.all)
    case = asking.reaches(uid, State.DONE)
    assert all(delivery.committed_at for delivery in deliveries(asking, case.id))
    assert [t.event for t in asking.story(case.id)][-2:] == [Event.AWAIT, Event.DELIVER]
    assert committing.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}
    shown = asking.run("show", str(case.id)).stdout
    assert "waits for storage commitment of PACS" in shown
    assert "PACS committed to keeping every result" in shown
    assert "commitment asked" in shown


def test_a_node_that_is_killed_after_it_asked_asks_again_or_takes_the_report(
    asking: Node, committing: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "killed")
    uid = files.study.study_instance_uid
    push(peer_program("storescu"), asking.port, files.all)
    until(lambda: "is asked to commit" in asking.log(), "the node asks", pause_s=0.001)
    asking.kill()
    asking.start()
    case = asking.reaches(uid, State.DONE)
    assert all(delivery.committed_at for delivery in deliveries(asking, case.id))
    assert committing.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_what_orthanc_lost_is_sent_and_asked_about_again(
    committing: Orthanc, tmp_path: Path, node_port: int
) -> None:
    """The stages in this process, so that an object can vanish between delivery and question."""
    config = parse(
        {
            "node": {"ae_title": NODE_AE, "bind": "127.0.0.1", "port": node_port, "data_dir": str(tmp_path)},
            "peers": [
                {"name": "PACS", "ae_title": PACS_AE, "host": "127.0.0.1", "port": committing.port}
                | {"commitment": True}
            ],
            "deliver": {"to": ["PACS"], "first_retry_s": 0.1},
            "commitment": {"stay_s": 0.5},
        }
    )
    with contextlib.ExitStack() as stack:
        ledger = Ledger.open(config.node.ledger_url)
        stack.callback(ledger.close)
        reports = ReportService(config.peers, config.committing(), ledger)
        receiver = Receiver(config.node, config.peers, Receive(), [reports])
        receiver.start()
        stack.callback(receiver.stop, 5.0)
        deliverer, committer = Deliverer(config, ledger), Committer(config, ledger, reports)
        case = encoded_case(ledger, tmp_path, ("PACS",), time.time(), study="1.2.3")
        run = ledger.latest_run(case.id)
        assert run is not None
        deliverer.tick(time.time())
        lost = ledger.results(run.id)[1].new.sop_instance_uid
        (found,) = committing.rest("/tools/lookup", lost)
        committing.rest(found["Path"], method="DELETE")

        def tick() -> bool:
            deliverer.tick(time.time())
            committer.tick(time.time())
            return ledger.case(case.id).state is State.DONE

        until(tick, "Orthanc commits to what it was sent again")
        first, *_, last = ledger.commitments(run.id)
        assert (first.outcome, last.outcome) == ("failed", "committed")
        assert "0x0112" in first.detail
        assert [d.tries for _, d in ledger.deliveries(run.id)] == [1, 2, 1]
        assert len(committing.rest("/tools/lookup", lost)) == 1


@pytest.mark.parametrize("known", [True, False], ids=["what it sent", "and something else"])
def test_orthanc_asks_the_node_to_commit(
    asking: Node, committing: Orthanc, peer_program: Find, tmp_path: Path, known: bool
) -> None:
    """Orthanc sends a study as a modality would, asks, and hears of every object."""
    files = small_study.write(tmp_path / "study", f"asked {known}", spect=None)
    push(peer_program("storescu"), committing.port, files.all)
    (study,) = committing.rest("/tools/lookup", files.study.study_instance_uid)
    committing.rest("/modalities/node/store", study["ID"])
    objects = [
        {"SOPClassUID": str(ds.SOPClassUID), "SOPInstanceUID": str(ds.SOPInstanceUID)}
        for ds in (dcmread(path, stop_before_pixels=True) for path in files.all)
    ]
    if not known:
        objects.append({"SOPClassUID": str(CTImageStorage), "SOPInstanceUID": "1.2.3.999"})
    asked = committing.rest("/modalities/node/storage-commitment", {"DicomInstances": objects})
    heard = until(
        lambda: (said := committing.rest(asked["Path"]))["Status"] != "Pending" and said,
        "Orthanc hears of it",
    )
    assert len(heard["Success"]) == len(files.all)
    assert heard["Status"] == ("Success" if known else "Failure")
    failures = [(f["SOPInstanceUID"], f["FailureReason"]) for f in heard["Failures"]]
    assert failures == ([] if known else [("1.2.3.999", 0x0112)])


def test_check_tells_whether_the_pacs_takes_such_requests(
    asking: Node, committing: Orthanc, peer_program: Find
) -> None:
    asked = asking.run("check")
    assert "it takes storage commitment" in asked.stdout
    asking.pacs_extra += "\n[fetch]\nask = ['PACS']\nby = 'get'"
    asking.write_config()
    assert "it takes C-FIND and C-GET" in asking.run("check").stdout
