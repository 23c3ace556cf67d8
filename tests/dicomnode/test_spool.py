"""Durability: what was acknowledged is there after any end, what was not is never used."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path

import pytest

from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.intake import Intake
from dicomnode.reception.spool import Spool
from dicomnode.reception.spool_file import Origin, split_file
from tests.dicomnode.modality import NOW, ROOMY, ct_slice, encoded, running_node, store

DATA = memoryview(b"data of an object")
ORIGIN = Origin("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", "SCANNER")


def spool_in(folder: Path, free: int = ROOMY, min_free: int = 0) -> Spool:
    """A spool on a disk with that much room."""
    return Spool(folder, min_free, free=lambda _: free)


def names(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_comes_back_as_it_went_in(tmp_path: Path) -> None:
    """Data set and origin."""
    path, size_bytes = spool_in(tmp_path).store("1.2", ORIGIN, DATA)
    assert size_bytes == path.stat().st_size
    assert split_file(memoryview(path.read_bytes())) == (ORIGIN, DATA)


@pytest.mark.parametrize("uid", ["..", "../x", "/etc/passwd", "1/2", "", "1.2\0", "."])
def test_nothing_but_a_uid_becomes_part_of_a_path(tmp_path: Path, uid: str) -> None:
    """The last line of defence, behind the header's own check."""
    spool = spool_in(tmp_path)
    for study, instance in ((uid, "1.2"), ("1.2", uid)):
        with pytest.raises(ValueError, match="not a UID"):
            spool.path(study, instance)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """Whichever step fails, the object is refused and can be sent again."""
    spool = spool_in(tmp_path)
    spool.store("1.2", Origin("1.2", "1.2.9", "1.2", "X"), DATA)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "rename", fail)
        with pytest.raises(Flawed) as caught:
            spool.store("1.2", ORIGIN, DATA)
    assert caught.value.defect is Defect.DISK_FULL
    assert names(tmp_path) == ["1.2.9.dcm"]
    assert spool.find("1.2", "1.2.3") is None
    assert spool.store("1.2", ORIGIN, DATA)[0].exists()


def test_a_disk_that_is_nearly_full_is_full(tmp_path: Path) -> None:
    """`min_free_gb` stays free, this object included."""
    assert spool_in(tmp_path, 100 + len(DATA), 100).store("1.2", ORIGIN, DATA)[0].exists()
    with pytest.raises(Flawed, match="No space"):
        spool_in(tmp_path, 99 + len(DATA), 100).store("1.3", ORIGIN, DATA)


@pytest.mark.parametrize("others", [pytest.param(0, id="alone"), pytest.param(4, id="in a crowd")])
def test_both_file_and_folder_are_synced_before_the_object_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """The file with its final name, its folder, and the spool that got a new folder."""
    synced: list[str] = []
    original = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        original(descriptor)

    spool = spool_in(tmp_path)
    monkeypatch.setattr(os, "fsync", watch)
    for _ in range(others):
        spool._beside.acquire()
    path, _ = spool.store("1.2", ORIGIN, DATA)
    assert set(synced) == {str(path), str(path.parent), str(path.parent.parent)}


def test_a_study_whose_folder_is_gone_gets_another_which_is_as_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention takes it when it is empty, or a person did: nothing looks at the disk for each object."""
    spool = spool_in(tmp_path)
    first, _ = spool.store("1.2", ORIGIN, DATA)
    first.unlink()
    first.parent.rmdir()
    synced: list[Path] = []
    monkeypatch.setattr("dicomnode.reception.spool.sync_folder", synced.append)
    again, _ = spool.store("1.2", ORIGIN, DATA)
    assert split_file(memoryview(again.read_bytes())) == (ORIGIN, DATA)
    assert synced == [first.parent.parent, first.parent]


# ── after an end without warning ─────────────────────────────────────────────────────────────────


def test_what_was_acknowledged_survives_the_loss_of_memory(tmp_path: Path) -> None:
    """Killed after the answer and before the ledger heard: the next start finds it in the spool."""
    dataset = ct_slice()
    with running_node(tmp_path) as node:
        assert store(node, dataset) == 0
        assert node.ledger.cases() == [], "nobody has ticked"
    with running_node(tmp_path) as node:
        (case,) = node.ledger.cases()
        (instance,) = node.ledger.instances(case.id)
        assert (instance.sop_instance_uid, instance.peer) == (dataset.SOPInstanceUID, "SCANNER")
        assert (instance.patient_id, instance.received_at) == ("P1", NOW)
        assert store(node, dataset) == 0, "and knows it when it comes again"
        assert node.intake.flush(NOW) == set()


def test_a_contradiction_survives_the_loss_of_memory(tmp_path: Path) -> None:
    """The quarantine's note holds the case after the restart."""
    dataset = ct_slice()
    other = copy.deepcopy(dataset)
    other.PixelData = bytes(48)
    with running_node(tmp_path) as node:
        assert (store(node, dataset), store(node, other)) == (0, 0xC030)
    for _ in range(2):
        with running_node(tmp_path) as node:
            (case,) = node.ledger.cases()
            assert "PixelData" in case.conflict
            assert len(node.ledger.quarantined(dataset.StudyInstanceUID)) == 1


@pytest.mark.parametrize("length", [0, 100, 200, -1])
def test_what_a_power_cut_left_of_an_unacknowledged_object_is_not_used(tmp_path: Path, length: int) -> None:
    """Its name may be durable before its content: the checksum tells, and it can be sent again."""
    dataset = ct_slice()
    with running_node(tmp_path) as node:
        path = node.spool.path(dataset.StudyInstanceUID, dataset.SOPInstanceUID)
        store(node, dataset)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with running_node(tmp_path) as node:
        assert node.ledger.cases() == []
        assert store(node, dataset) == 0
        assert path.read_bytes() == whole


def test_what_was_half_written_is_removed_at_the_start(tmp_path: Path) -> None:
    """A `.part` was never acknowledged."""
    (tmp_path / "spool" / "1.2").mkdir(parents=True)
    (tmp_path / "spool" / "1.2" / "1.2.3.dcm.part").write_bytes(b"half")
    with running_node(tmp_path) as node:
        assert node.files == []


def test_a_ledger_that_does_not_answer_costs_no_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch waits; objects are acknowledged meanwhile, because their files are durable."""

    def gone(*_: object) -> None:
        raise LedgerUnavailable("locked")

    first, second = ct_slice(), ct_slice()
    other = copy.deepcopy(first)
    other.PixelData = bytes(48)
    with running_node(tmp_path) as node:
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "add_instances", gone)
            assert [store(node, dataset) for dataset in (first, second, other)] == [0, 0, 0xC030]
            assert node.intake.flush(NOW) == set()
        assert len(node.intake.flush(NOW)) == 2
        assert {bool(case.conflict) for case in node.ledger.cases()} == {True, False}
        assert node.intake.flush(NOW) == set()


def test_a_conflict_that_the_ledger_does_not_take_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects that went in with the same tick are reported all the same."""

    def gone(*_: object) -> None:
        raise LedgerUnavailable("locked")

    dataset = ct_slice()
    other = copy.deepcopy(dataset)
    other.PixelData = bytes(48)
    with running_node(tmp_path) as node:
        store(node, dataset)
        store(node, other)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "conflict", gone)
            (case,) = node.intake.flush(NOW)
            assert node.ledger.case(case).conflict == ""
        node.intake.flush(NOW)
        assert "PixelData" in node.ledger.case(case).conflict


def test_a_conflict_whose_case_is_not_there_yet_is_told_again(tmp_path: Path) -> None:
    """Two associations bring both objects between the two halves of one flush."""
    dataset = ct_slice()
    other = copy.deepcopy(dataset)
    other.PixelData = bytes(48)
    with running_node(tmp_path) as node:
        store(node, dataset)
        store(node, other)
        node.intake._flush_conflicts(NOW)
        (case,) = node.intake.flush(NOW)
        assert "PixelData" in node.ledger.case(case).conflict


def test_a_node_that_cannot_ask_its_ledger_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take for new what it has used already."""
    spool = spool_in(tmp_path)
    spool.store("1.2", ORIGIN, memoryview(encoded(ct_slice())))
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")

    def gone(*_: object) -> None:
        raise LedgerUnavailable("locked")

    monkeypatch.setattr(Ledger, "missing_from", gone)
    with pytest.raises(LedgerUnavailable):
        Intake(spool, ledger).recover(NOW)
    ledger.close()
