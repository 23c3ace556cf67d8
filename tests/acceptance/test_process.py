"""The node as a process: signals, a child that the memory killer takes, a child that hangs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dicomnode.computing import child_process
from dicomnode.states import State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, acknowledged, push, sop_instance_uid, start_push, until

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]
Find = Callable[[str], str]


@pytest.fixture
def node(pacs: Orthanc, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "node", pacs.port)
    node.start()
    yield node
    assert node.stop() == 0
    assert "Traceback" not in node.log(), node.log()[-4000:]


def send(node: Node, number: int) -> None:
    assert node.process is not None
    node.process.send_signal(number)


def job_of(node: Node) -> psutil.Process | None:
    """The process that computes."""
    assert node.process is not None
    for child in psutil.Process(node.process.pid).children():
        # By what it runs: another child may still look like its parent, before it has become what it will be.
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end as it is looked at
            if child_process.__name__ in " ".join(child.cmdline()):
                return child
    return None


def test_sigterm_lets_what_is_being_received_finish_and_keeps_what_was_acknowledged(
    node: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    storescu = peer_program("storescu")
    files = small_study.write(tmp_path / "study", "drained")
    uid = files.study.study_instance_uid
    process = start_push(storescu, node.port, files.all)
    folder = node.data_dir / "spool" / uid
    until(lambda: folder.exists() and list(folder.iterdir()), "objects arrive", pause_s=0.001)
    assert node.stop() == 0
    acked = acknowledged(process.communicate(timeout=60)[0].decode(errors="replace"), files.all)
    kept = {path.name for path in folder.iterdir()}
    assert {f"{sop_instance_uid(path)}.dcm" for path in acked} == kept
    case = node.case(uid)
    assert case is not None, "the ledger heard of it before the end"
    node.start()
    push(storescu, node.port, files.all)
    node.reaches(uid, State.DONE)
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_sighup_takes_up_what_is_valid_and_a_wrong_file_changes_nothing(
    node: Node, peer_program: Find, tmp_path: Path
) -> None:
    storescu, good = peer_program("storescu"), node.config.read_text()
    files = small_study.write(tmp_path / "study", "reloaded")
    node.config.write_text(good.replace('name = "modality"', 'name = "modality"\nmay = ["eco"]\nport = "x"'))
    send(node, signal.SIGHUP)
    until(lambda: "the settings of before hold" in node.log(), "the mistake is told")
    assert "2 problem(s)" in node.log()
    assert push(storescu, node.port, files.ct[:1]) == files.ct[:1]
    changed = good.replace('name = "modality"', 'name = "modality"\nmay = ["echo"]')
    node.config.write_text(changed.replace('ae_title = "DICOMNODE"', 'ae_title = "OTHER"'))
    send(node, signal.SIGHUP)
    until(lambda: "taken up: [[peers]]" in node.log(), "the change is taken up")
    node.says("not taken up before the next start: [node] ae_title")
    assert push(storescu, node.port, files.ct[:1]) == []
    node.config.write_text(good)
    send(node, signal.SIGHUP)
    until(lambda: node.log().count("taken up: [[peers]]") == 2, "it is taken back")
    assert push(storescu, node.port, files.ct[:1]) == files.ct[:1]


def computing(node: Node, storescu: str, files: StudyFiles) -> psutil.Process:
    push(storescu, node.port, files.all)
    node.reaches(files.study.study_instance_uid, State.COMPUTING)
    job = until(lambda: job_of(node), "the job has a process", pause_s=0.001)
    assert isinstance(job, psutil.Process)
    return job


def test_a_job_that_the_memory_killer_takes_says_so_and_the_node_goes_on(
    node: Node, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path / "study", "memory")
    job = computing(node, peer_program("storescu"), files)
    until(lambda: score_of(job.pid) == 1000, "it offers itself first", pause_s=0.001)
    assert score_of(os.getpid()) < 1000
    job.kill()
    uid = files.study.study_instance_uid
    case = node.reaches(uid, State.READY)
    assert "memory killer" in case.reason
    assert "grid_spacing_mm" in case.remedy
    assert "(attempt 1 of 3)" in case.reason


def score_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_a_job_that_hangs_is_killed_at_its_timeout(pacs: Orthanc, peer_program: Find, tmp_path: Path) -> None:
    """The timeout is long enough for a busy machine to find the job before it."""
    node = Node(tmp_path / "node", pacs.port, extra="timeout_s = 8.0\n[montecarlo]\ntime_limit_s = 1.0")
    node.start()
    files = small_study.write(tmp_path / "study", "hangs")
    job = computing(node, peer_program("storescu"), files)
    job.suspend()
    case = node.reaches(files.study.study_instance_uid, State.READY)
    assert "killed after 8 s" in case.reason
    until(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE, "it is killed")
    assert node.stop() == 0
