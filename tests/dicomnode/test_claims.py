"""Receivers that share a folder: one object is stored once, and nobody removes what another is writing."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from dicomnode.claims import Claims
from dicomnode.errors import ConfigurationError
from dicomnode.ledger import Ledger
from dicomnode.lock import Lock, abandoned, is_held, running
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import Spool
from dicomnode.reception.spool_file import Origin
from tests.dicomnode.modality import ROOMY, ct_slice, encoded

DATA = memoryview(b"data of an object")
SPAWN = multiprocessing.get_context("spawn")


def origin(uid: str) -> Origin:
    return Origin("1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2.1", "SCANNER")


def spool_of(folder: Path, node: str) -> Spool:
    return Spool(folder, 0, free=lambda _: ROOMY, node=node)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Spool, Spool]]:
    """The spools of two nodes."""
    spools = spool_of(tmp_path, "a"), spool_of(tmp_path, "b")
    yield spools
    for spool in spools:
        spool.close()


# ── objects ──────────────────────────────────────────────────────────────────────────────────────


def test_an_object_that_another_node_has_is_found_in_its_study(two: tuple[Spool, Spool]) -> None:
    a, b = two
    with a.claim("1.2.3"):
        path, _ = a.store("1.2", origin("1.2.3"), DATA)
    with b.claim("1.2.3"):
        assert b.find("1.9", "1.2.3") == path
        assert b.find("1.2", "1.2.3") == path


def test_an_object_that_was_removed_may_come_again_under_another_study(two: tuple[Spool, Spool]) -> None:
    a, b = two
    path, _ = a.store("1.2", origin("1.2.3"), DATA)
    a.remove([a.relative(path)])
    assert b.find("1.9", "1.2.3") is None
    path, _ = b.store("1.9", origin("1.2.3"), DATA)
    assert a.find("1.2", "1.2.3") == path


def store_if_new(folder: str, node: str, start: Barrier, stored: str) -> None:
    """As the store service does."""
    spool = spool_of(Path(folder), node)
    start.wait(60)
    for number in range(100):
        uid = f"1.2.3.{number}"
        # The two begin at opposite ends of each ten.
        uid = uid if node == "a" else f"1.2.3.{number - number % 10 + 9 - number % 10}"
        with spool.claim(uid):
            if spool.find("1.2", uid) is None:
                spool.store("1.2", origin(uid), DATA)
                with Path(stored).open("a") as file:
                    file.write(f"{uid}\n")
    spool.close()


def test_two_processes_that_get_the_same_objects_at_once_store_each_once(tmp_path: Path) -> None:
    barrier = SPAWN.Barrier(2)
    nodes = [
        SPAWN.Process(target=store_if_new, args=(str(tmp_path), node, barrier, str(tmp_path / node)))
        for node in "ab"
    ]
    for process in nodes:
        process.start()
    for process in nodes:
        process.join(100)
        assert process.exitcode == 0
    stored = [*(tmp_path / "a").read_text().split(), *(tmp_path / "b").read_text().split()]
    assert sorted(stored) == sorted({f"1.2.3.{n}" for n in range(100)})
    assert len(list((tmp_path / "spool" / "1.2").iterdir())) == 100


def hold(folder: str, name: str, held: str) -> None:
    with Claims(Path(folder)).hold(name):
        Path(held).touch()
        time.sleep(600)


def test_a_claim_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    holder = SPAWN.Process(target=hold, args=(str(tmp_path), "1.2.3", str(tmp_path / "held")))
    holder.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        os.sched_yield()
    got = threading.Event()

    def wait() -> None:
        with claims.hold("1.2.3"):
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.wait(0.2)
    holder.kill()
    assert got.wait(30)
    waiting.join(10)


def test_one_thread_may_hold_many_objects_though_they_fall_on_the_same_lock(tmp_path: Path) -> None:
    """Retention holds a whole study."""
    spool = spool_of(tmp_path, "a")
    with spool.claim_all(f"1.2.3.{n}" for n in range(3000)):
        pass
    spool.close()


def test_what_lay_there_before_the_node_had_a_name_is_known(tmp_path: Path) -> None:
    alone = Spool(tmp_path, 0, free=lambda _: ROOMY)
    path, _ = alone.store("1.2", origin("1.2.3"), DATA)
    a = spool_of(tmp_path, "a")
    a.scan()
    b = spool_of(tmp_path, "b")
    assert b.find("1.9", "1.2.3") == path
    # Alone again for a while, and then shared once more.
    alone.scan()
    path, _ = alone.store("1.2", origin("1.2.4"), DATA)
    a.scan()
    assert b.find("1.9", "1.2.4") == path
    for spool in (alone, a, b):
        spool.close()


# ── what was half written ────────────────────────────────────────────────────────────────────────


def test_a_start_forgets_what_this_node_left_half_written_and_nothing_of_others(
    two: tuple[Spool, Spool], tmp_path: Path
) -> None:
    folder = tmp_path / "spool" / "1.2"
    folder.mkdir()
    for node in "ab":
        (folder / f"1.2.3.dcm.{node}.part").touch()
    two[0].scan()
    assert [path.name for path in folder.iterdir()] == ["1.2.3.dcm.b.part"]


def test_what_a_killed_node_acknowledged_is_registered_by_another(tmp_path: Path) -> None:
    a, b = spool_of(tmp_path, "a"), spool_of(tmp_path, "b")
    dataset = ct_slice()
    a.store(dataset.StudyInstanceUID, origin(dataset.SOPInstanceUID), memoryview(encoded(dataset)))
    half = tmp_path / "spool" / dataset.StudyInstanceUID / "1.9.dcm.a.part"
    mine = tmp_path / "spool" / dataset.StudyInstanceUID / "1.8.dcm.b.part"
    for path in (half, mine):
        path.touch()
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    (case_id,) = Intake(b, ledger).adopt(["a"], 100.0)
    assert [i.sop_instance_uid for i in ledger.instances(case_id)] == [dataset.SOPInstanceUID]
    assert (half.exists(), mine.exists()) == (False, True)
    ledger.close()
    for spool in (a, b):
        spool.close()


# ── who runs ─────────────────────────────────────────────────────────────────────────────────────


def test_nodes_with_names_run_side_by_side_and_none_beside_one_without(tmp_path: Path) -> None:
    a, b, alone = Lock(tmp_path, "a"), Lock(tmp_path, "b"), Lock(tmp_path)
    a.take()
    b.take()
    assert running(tmp_path) == ["a", "b"]
    with pytest.raises(ConfigurationError, match="the nodes a, b"):
        alone.take()
    a.release()
    b.release()
    alone.take()
    assert is_held(tmp_path)
    with pytest.raises(ConfigurationError, match="another node uses"):
        a.take()
    alone.release()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    first, second = Lock(tmp_path, "a"), Lock(tmp_path, "a", patience_s=0.0)
    first.take()
    with pytest.raises(ConfigurationError, match=r"name 'a': process \d+"):
        second.take()
    assert is_held(tmp_path, "a")
    first.release()
    second.take()
    second.release()
    assert not is_held(tmp_path, "a")


def run_and_die(folder: str, name: str) -> None:
    Lock(Path(folder), name).take()
    os._exit(9)


def test_a_node_that_was_killed_is_abandoned_until_somebody_has_looked_after_it(tmp_path: Path) -> None:
    ended_well = Lock(tmp_path, "well")
    ended_well.take()
    ended_well.release()
    killed = SPAWN.Process(target=run_and_die, args=(str(tmp_path), "killed"))
    killed.start()
    killed.join(60)
    runs = Lock(tmp_path, "runs")
    runs.take()
    with pytest.raises(RuntimeError, match="no time"), abandoned(tmp_path):
        raise RuntimeError("no time for it now")
    with abandoned(tmp_path) as nodes:
        assert nodes == ["killed"]
        with pytest.raises(ConfigurationError):
            Lock(tmp_path, "killed", patience_s=0.0).take()
    with abandoned(tmp_path) as nodes:
        assert nodes == []
    runs.release()
