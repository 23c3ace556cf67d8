"""Several nodes on one folder and one PostgreSQL: two that receive, one that works, one that stands by."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from dicomnode.ledger import Ledger
from dicomnode.records import Case, Instance
from dicomnode.states import State
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, acknowledged, push, sop_instance_uid, start_push, until
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]
Find = Callable[[str], str]
UP = "data lies in"


@dataclass
class Fellow(Node):
    """A node that shares its data with others."""

    name: str = ""
    roles: str = '["receive"]'
    database_url: str = ""
    shared: Path = Path()

    @property
    def data_dir(self) -> Path:
        return self.shared

    def write_config(self) -> None:
        super().write_config()
        node = f'[node]\nname = "{self.name}"\nroles = {self.roles}\ndatabase_url = "{self.database_url}"\n'
        self.config.write_text(self.config.read_text().replace("[node]\n", node))

    def start(self) -> None:
        if "receive" in self.roles:
            super().start()
            return
        self.write_config()
        before = self.log().count(UP) if (self.folder / "node.log").exists() else 0
        with (self.folder / "node.log").open("ab") as log:
            command = [sys.executable, "-m", "dicomnode", "serve", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self._alive() and self.log().count(UP) > before, "the node is up")


@dataclass
class Site:
    """All of them, and their ledger."""

    a: Fellow
    b: Fellow
    worker: Fellow
    standby: Fellow
    ledger: Ledger

    def case(self, study_uid: str) -> Case | None:
        return next((c for c in self.ledger.cases() if c.study_instance_uid == study_uid), None)

    def reaches(self, study_uid: str, state: State) -> Case:
        def there() -> Case | None:
            case = self.case(study_uid)
            return case if case is not None and case.state is state else None

        try:
            found = until(there, f"{study_uid} becomes {state}", 180)
        except AssertionError as error:
            logs = "\n".join(f"{n.name}: {n.log()[-1500:]}" for n in (self.a, self.b, self.worker))
            raise AssertionError(f"{error}; it is {self.case(study_uid)}; {logs}") from None
        assert isinstance(found, Case)
        return found

    def instances(self, study_uid: str) -> list[Instance]:
        case = self.case(study_uid)
        return [] if case is None else self.ledger.instances(case.id)


@pytest.fixture(scope="module")
def site(
    pacs: Orthanc, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    url = postgres_server.new_database()

    def fellow(name: str, roles: str) -> Fellow:
        return Fellow(
            folder / name, pacs.port, name=name, roles=roles, database_url=url, shared=folder / "data"
        )

    a, b = fellow("a", '["receive"]'), fellow("b", '["receive"]')
    worker, standby = fellow("worker", '["work"]'), fellow("standby", '["work"]')
    nodes = [a, b, worker, standby]
    try:
        for node in nodes:
            node.start()
        ledger = Ledger(url)
        yield Site(a, b, worker, standby, ledger)
        ledger.close()
        for node in nodes:
            assert node.stop() == 0
            assert "Traceback" not in node.log(), node.log()[-4000:]
    finally:
        for node in nodes:
            if node.process is not None:
                node.kill()


def push_to_both(storescu: str, site: Site, to_a: list[Path], to_b: list[Path]) -> list[Path]:
    """At the same time. returns: what was acknowledged."""
    running = [
        (start_push(storescu, node.port, files), files) for node, files in ((site.a, to_a), (site.b, to_b))
    ]
    return [
        path
        for process, files in running
        for path in acknowledged(process.communicate(timeout=120)[0].decode(errors="replace"), files)
    ]


def test_a_study_that_comes_in_two_halves_over_two_receivers_is_one_case(
    site: Site, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "two halves")
    to_a, to_b = files.all[::2], files.all[1::2]
    assert len(push_to_both(peer_program("storescu"), site, to_a, to_b)) == len(files.all)
    uid = files.study.study_instance_uid
    site.reaches(uid, State.DONE)
    assert {i.sop_instance_uid for i in site.instances(uid)} == {sop_instance_uid(f) for f in files.all}
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_the_same_study_to_both_at_once_is_stored_once(
    site: Site, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "twice")
    acked = push_to_both(peer_program("storescu"), site, files.all, files.all)
    assert len(acked) == 2 * len(files.all)
    uid = files.study.study_instance_uid
    site.reaches(uid, State.DONE)
    assert len(site.instances(uid)) == len(files.all)
    assert len(list((site.a.data_dir / "spool" / uid).iterdir())) == len(files.all)
    assert site.ledger.quarantined(uid) == []
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}


def test_an_object_that_another_receiver_has_under_another_study_is_refused(
    site: Site, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "elsewhere")
    first = files.ct[0]
    assert push(peer_program("storescu"), site.a.port, [first]) == [first]
    ds = pydicom.dcmread(first)
    ds.StudyInstanceUID = f"{files.study.study_instance_uid[:50]}.77"
    ds.save_as(tmp_path / "moved.dcm")
    assert push(peer_program("storescu"), site.b.port, [tmp_path / "moved.dcm"]) == []
    site.b.says(f"study {files.study.study_instance_uid}")


def test_what_a_killed_receiver_acknowledged_is_registered_by_the_worker(
    site: Site, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    """It does not come back; the other receiver takes the rest of the study."""
    storescu = peer_program("storescu")
    files = small_study.write(tmp_path, "killed")
    uid = files.study.study_instance_uid
    process = start_push(storescu, site.a.port, files.all)
    folder = site.a.data_dir / "spool" / uid
    until(lambda: folder.exists() and len(list(folder.iterdir())) >= 3, "objects arrive", pause_s=0.001)
    site.a.kill()
    acked = acknowledged(process.communicate(timeout=60)[0].decode(errors="replace"), files.all)
    wanted = {sop_instance_uid(path) for path in acked}
    until(lambda: wanted <= {i.sop_instance_uid for i in site.instances(uid)}, "they are registered")
    until(lambda: not list(folder.glob("*.part")), "what was half written is removed")
    assert len(push(storescu, site.b.port, files.all)) == len(files.all)
    site.reaches(uid, State.DONE)
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}
    site.a.start()
    assert len(push(storescu, site.a.port, files.all)) == len(files.all)


def test_when_the_worker_is_killed_the_one_that_stands_by_goes_on(
    site: Site, pacs: Orthanc, peer_program: Find, tmp_path: Path
) -> None:
    files = small_study.write(tmp_path, "worker killed")
    uid = files.study.study_instance_uid
    assert len(push(peer_program("storescu"), site.b.port, files.all)) == len(files.all)
    site.reaches(uid, State.COMPUTING)
    assert "this node works" not in site.standby.log()
    site.worker.kill()
    case = site.reaches(uid, State.DONE)
    site.standby.says("this node works")
    outcomes = [a.outcome for a in site.ledger.attempts(case.id)]
    assert outcomes[0] == "interrupted"
    assert pacs.held(uid) == {"RTDOSE": 1, "SEG": 1, "SR": 1}
    site.worker.start()
