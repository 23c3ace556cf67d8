"""A disk that is full or read-only under a node that runs: it refuses, waits, and goes on by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode.ledger import Ledger
from dicomnode.records import Attempt
from dicomnode.states import State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, push, sop_instance_uid, start_push, until

pytestmark = pytest.mark.peers
Find = Callable[[str], str]
Mount = Callable[[Path], Path]
RESULTS = {"RTDOSE": 1, "SEG": 1, "SR": 1}


def mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk() -> Iterator[Mount]:
    """Puts a small file system under a folder."""
    there: list[Path] = []

    def mount(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        options = "size=32m,mode=0700"
        if os.geteuid() != 0 or not mounted("-t", "tmpfs", "-o", options, "tmpfs", str(folder)):
            pytest.skip("a file system can be mounted by root only")
        there.append(folder)
        return folder

    yield mount
    for folder in there:
        subprocess.run(["umount", "-R", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a byte more fits, until the `with` ends."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As after an error of the disk, until the `with` ends."""
    if os.geteuid() != 0 or not mounted("--bind", str(folder), str(folder)):
        pytest.skip("a file system can be mounted by root only")
    assert mounted("-o", "remount,bind,ro", str(folder))
    try:
        yield
    finally:
        # Busy as long as the node looks into it.
        until(lambda: subprocess.run(["umount", str(folder)], check=False).returncode == 0, "it is unmounted")


@pytest.fixture
def node(pacs: Orthanc, tmp_path: Path) -> Iterator[Node]:
    """Not started: a test prepares its disk."""
    node = Node(tmp_path / "node", pacs.port, min_free_gb=0.0)
    yield node
    assert node.stop() == 0


def calm(node: Node) -> None:
    """What happened was foreseen."""
    assert "Traceback" not in node.log(), node.log()[-4000:]


def refused(storescu: str, node: Node, files: StudyFiles) -> None:
    """Every object is answered 0xA700."""
    said = start_push(storescu, node.port, files.all).communicate(timeout=120)[0].decode(errors="replace")
    assert "Received Store Response (Success)" not in said
    assert "Refused: OutOfResources" in said


def taken(storescu: str, node: Node, files: StudyFiles) -> None:
    assert len(push(storescu, node.port, files.all)) == len(files.all)


def attempts(node: Node, case_id: int) -> list[Attempt]:
    ledger = Ledger(f"sqlite:///{node.data_dir / 'ledger.sqlite3'}")
    try:
        return ledger.attempts(case_id)
    finally:
        ledger.close()


def test_a_full_disk_refuses_objects_and_goes_on_when_there_is_room(
    node: Node, pacs: Orthanc, small_disk: Mount, peer_program: Find, tmp_path: Path
) -> None:
    """Spool, ledger and results on it: nothing is acknowledged that is not kept."""
    storescu = peer_program("storescu")
    disk = small_disk(node.data_dir)
    node.start()
    files = small_study.write(tmp_path / "study", "full disk")
    with full(disk):
        refused(storescu, node, files)
    assert list((node.data_dir / "spool").rglob("*.part")) == []
    assert list((node.data_dir / "spool").rglob("*.dcm")) == []
    taken(storescu, node, files)
    node.reaches(files.study.study_instance_uid, State.DONE)
    assert pacs.held(files.study.study_instance_uid) == RESULTS
    calm(node)


def test_what_was_acknowledged_before_the_disk_was_full_waits_for_the_ledger(
    node: Node, pacs: Orthanc, small_disk: Mount, peer_program: Find, tmp_path: Path
) -> None:
    """The ledger cannot write: the node says so, goes on trying, and loses nothing."""
    disk = small_disk(node.data_dir)
    node.start()
    files = small_study.write(tmp_path / "study", "ledger on a full disk")
    taken(peer_program("storescu"), node, files)
    with full(disk):
        until(lambda: "disk is full" in node.log(), "the ledger is refused")
    node.reaches(files.study.study_instance_uid, State.DONE, timeout_s=180)
    assert pacs.held(files.study.study_instance_uid) == RESULTS
    calm(node)


def test_a_read_only_spool_refuses_objects_and_goes_on_when_it_can_be_written(
    node: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    storescu = peer_program("storescu")
    node.start()
    files = small_study.write(tmp_path / "study", "read-only")
    with read_only(node.data_dir / "spool"):
        refused(storescu, node, files)
        node.says("Read-only file system")
    taken(storescu, node, files)
    node.reaches(files.study.study_instance_uid, State.DONE)
    assert pacs.held(files.study.study_instance_uid) == RESULTS
    calm(node)


def test_results_that_find_no_room_are_written_when_there_is_some(
    node: Node, pacs: Orthanc, small_disk: Mount, peer_program: Find, tmp_path: Path
) -> None:
    """No attempt counts, and no person is asked: the case waits, READY, and says for what."""
    disk = small_disk(node.data_dir / "results")
    node.start()
    files = small_study.write(tmp_path / "study", "no room for results")
    uid = files.study.study_instance_uid
    with full(disk):
        taken(peer_program("storescu"), node, files)
        until(lambda: "No space left on device" in node.log(), "the attempt fails")
        waiting = node.reaches(uid, State.READY)
    assert waiting.attempts == 0
    done = node.reaches(uid, State.DONE, timeout_s=240)
    outcomes = [a.outcome for a in attempts(node, done.id) if a.stage == "compute"]
    assert outcomes[0] == "postponed"
    assert outcomes[-1] == "ok"
    assert pacs.held(uid) == RESULTS


def test_nothing_is_computed_from_what_the_disk_damaged_until_it_was_sent_again(
    node: Node, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    """One bit of a CT slice would make another dose, and nobody would see it."""
    storescu = peer_program("storescu")
    node.start()
    files = small_study.write(tmp_path / "study", "a bit that turned")
    uid, (slice_, *_, spect) = files.study.study_instance_uid, files.all
    push(storescu, node.port, files.all[:-1])
    spooled = node.data_dir / "spool" / uid / f"{sop_instance_uid(slice_)}.dcm"
    content = bytearray(spooled.read_bytes())
    content[-1000] ^= 1
    spooled.write_bytes(content)
    push(storescu, node.port, [spect])

    def held() -> bool:
        case = node.case(uid)
        return case is not None and case.state is State.HELD and "the disk damaged" in case.reason

    until(held, "the case is held for what the disk damaged")
    assert pacs.held(uid) == {}
    node.says("1 of its 26 files are not what was received")
    assert push(storescu, node.port, [slice_]) == [slice_]
    case = node.case(uid)
    assert case is not None
    assert "sent again; then `dicomnode retry" in case.remedy
    assert node.run("retry", str(case.id)).returncode == 0
    node.reaches(uid, State.DONE)
    assert pacs.held(uid) == RESULTS
    assert [a.outcome for a in attempts(node, case.id) if a.stage == "compute"] == ["stopped", "ok"]
    calm(node)
