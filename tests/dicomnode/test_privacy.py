"""Who may read what the node writes, and what its log says of patients."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.assemble import Assembler
from dicomnode.commands.check import check
from dicomnode.config import Assemble, parse
from dicomnode.daemon import prepare_data_dir
from dicomnode.errors import Rejected
from dicomnode.ledger import Ledger
from dicomnode.lock import Lock
from dicomnode.privacy import FILE_MODE, FOLDER_MODE, UMASK, is_open_to_others, without_identity
from dicomnode.reception.spool import Note, Spool
from dicomnode.reception.spool_file import Origin
from dicomnode.records import Identity
from dicomnode.results import encode
from dicomnode.results.writing import uid_source
from tests.dicomnode.modality import ct_slice, encoded
from tests.dicomnode.results_on_disk import instance
from tests.dicomnode.synthetic_findings import NOW, SETTINGS, STUDY, findings

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def careless() -> Iterator[None]:
    """The umask that keeps nothing from anybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> set[tuple[bool, int]]:
    """(is a folder, mode) of everything below."""
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in folder.rglob("*")}


def test_the_modes_leave_nothing_to_group_and_others() -> None:
    assert (FILE_MODE, FOLDER_MODE, UMASK) == (0o600, 0o700, 0o077)


@pytest.mark.usefixtures("careless")
def test_what_is_received_is_the_service_accounts_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    config = parse({"node": {"data_dir": str(data_dir)}})
    prepare_data_dir(config)
    lock = Lock(data_dir)
    lock.take()
    spool = Spool(data_dir, 0)
    ds = ct_slice()
    data = memoryview(encoded(ds))
    origin = Origin(str(ds.SOPClassUID), str(ds.SOPInstanceUID), EXPLICIT, "CAMERA")
    spool.store(str(ds.StudyInstanceUID), origin, data)
    note = Note("NO_PIXEL_DATA", "r", 0xA902, "CAMERA", 0.0, "1.2", "1.3", "1.4", EXPLICIT, "", "")
    spool.set_aside(note, origin, data)
    spool.close()
    lock.release()
    assert modes(data_dir) == {(True, FOLDER_MODE), (False, FILE_MODE)}
    assert data_dir.stat().st_mode & 0o777 == FOLDER_MODE


def test_the_folders_of_a_new_node_outlast_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the database is: what is acknowledged lies in spool/."""
    synced = []
    sync = os.fsync
    monkeypatch.setattr(
        "os.fsync", lambda fd: (synced.append((Path(f"/proc/self/fd/{fd}").readlink(), there())), sync(fd))
    )

    def there() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    prepare_data_dir(parse({"node": {"data_dir": str(tmp_path)}}))
    assert synced == [(tmp_path, {"spool", "quarantine", "results"})]


@pytest.mark.usefixtures("careless")
def test_results_are_the_service_accounts_alone(tmp_path: Path) -> None:
    """The child writes them; on a cluster under another machine's umask."""
    objects = encode.encode(findings(), SETTINGS, tmp_path / "results", NOW, uid_source("", STUDY))
    assert {o.path.stat().st_mode & 0o777 for o in objects} == {FILE_MODE}
    assert (tmp_path / "results").stat().st_mode & 0o777 == FOLDER_MODE


@pytest.mark.parametrize(("mode", "is_open"), [(0o700, False), (0o750, False), (0o755, True), (0o701, True)])
def test_a_folder_is_open_when_accounts_beside_owner_and_group_get_in(
    tmp_path: Path, mode: int, is_open: bool
) -> None:
    tmp_path.chmod(mode)
    assert is_open_to_others(tmp_path) is is_open


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield ledger
    ledger.close()


def test_the_reason_of_a_held_case_is_logged_without_its_patient(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`show` keeps the whole sentence."""
    ledger.add_instances([instance(patient_id="ZZ-4711", accession_number="ACC-0815")], 0.0)
    assembler = Assembler(Assemble(quiet_s=1, max_wait_s=1), (), ledger, tmp_path)

    def unsafe(*_: object) -> None:
        raise Rejected("ZZ-4711 is not ZZ-47110 (order ACC-0815)", "Look at ZZ-4711")

    monkeypatch.setattr(assembler, "_assemble", unsafe)
    with caplog.at_level(logging.INFO):
        assembler.tick(10.0)
    assert "is HELD: [Patient ID] is not ZZ-47110 (order [Accession Number])" in caplog.text
    assert "ZZ-4711 " not in caplog.text
    assert ledger.case(1).reason == "ZZ-4711 is not ZZ-47110 (order ACC-0815)"


def test_short_identifiers_are_left_for_they_are_also_words(ledger: Ledger) -> None:
    ledger.add_instances([instance()], 0.0)
    case = replace(ledger.case(1), identity=Identity("CT"))
    assert without_identity("the CT is missing", case) == "the CT is missing"


def test_the_check_names_an_audit_file_and_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.crt"
    wrong.write_text("no certificate")
    audit = {"file": str(tmp_path / "nowhere" / "audit.log"), "ca": str(wrong)}
    audit |= {"syslog_host": "arr", "syslog_transport": "tls"}
    config = parse({"node": {"data_dir": str(tmp_path / "data")}, "audit": audit})
    found = {f.subject: f for f in check(config, network=False) if f.subject.startswith("[audit]")}
    assert found["[audit] file"].level == "warning"
    assert "nowhere/audit.log cannot be written" in found["[audit] file"].text
    assert "ca.crt cannot be used" in found["[audit] ca, certificate, key"].text
    # It is what the service runs before it starts, and a destination that fails stops nothing.
    assert {f.level for f in found.values()} == {"warning"}
