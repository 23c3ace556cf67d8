"""Real processes on loopback: the node as administrators start it, Orthanc as PACS, DCMTK as modality."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pynetdicom import AE

from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.records import Case, Transition
from dicomnode.states import State
from tests.ports import free_port

NODE_AE, PACS_AE, MODALITY_AE, READER_AE = "DICOMNODE", "ORTHANC", "MODALITY", "READER"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
SHARED_KERNELS = "SHARED_KERNELS"
"""The environment's variable for a folder of kernels: each node would integrate its own. Unset: each does."""


def until(condition: Callable[[], Any], what: str, timeout_s: float = 240.0, pause_s: float = 0.02) -> Any:
    """Wait for something that another process does. returns: the condition's first true value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(pause_s)
    return value


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Orthanc:
    """Debian's Orthanc in a folder of its own."""

    program: str
    folder: Path
    port: int = field(default_factory=free_port)
    reader_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    modalities: dict[str, object] = field(default_factory=dict)
    """More entries of DicomModalities."""
    http_port: int | None = None
    """Where it offers its REST API; None: nowhere."""
    more: dict[str, object] = field(default_factory=dict)
    """More of its configuration."""

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "PACS of the acceptance tests",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "DicomAet": PACS_AE,
            "DicomPort": self.port,
            "DicomServerEnabled": True,
            "HttpServerEnabled": self.http_port is not None,
            "HttpPort": self.http_port or 8042,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowMove": True,
            "DicomAlwaysAllowGet": True,
            "UnknownSopClassAccepted": False,
            "DicomModalities": {"reader": [READER_AE, "127.0.0.1", self.reader_port], **self.modalities},
            "Plugins": [],
            **self.more,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, str(self.folder / "orthanc.json")], stdout=log, stderr=log
            )
        until(lambda: self._alive() and listens(self.port), "Orthanc listens")

    def _alive(self) -> bool:
        assert self.process is not None
        log = self.folder / "orthanc.log"
        assert self.process.poll() is None, f"Orthanc ended: {log.read_text(errors='replace')[-2000:]}"
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(120)
            self.process = None

    def rest(self, path: str, body: object = None, method: str | None = None) -> Any:
        """Its REST API: POST where there is a body (text as it is, else JSON), else GET. returns: JSON."""
        text = body if body is None or isinstance(body, str) else json.dumps(body)
        data = None if text is None else text.encode()
        url = f"http://127.0.0.1:{self.http_port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=60) as answer:
            return json.load(answer)

    def find(self, level: str, **keys: str) -> list[Dataset]:
        """C-FIND, Study Root."""
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        ae = AE(READER_AE)
        ae.add_requested_context(STUDY_ROOT_FIND)
        association = ae.associate("127.0.0.1", self.port, ae_title=PACS_AE)
        assert association.is_established
        try:
            answers = list(association.send_c_find(query, STUDY_ROOT_FIND))
        finally:
            association.release()
        assert answers[-1][0].Status == 0x0000
        return [found for status, found in answers if found is not None and status.Status in (0xFF00, 0xFF01)]

    def held(self, study_uid: str) -> dict[str, int]:
        """Modality → number of instances that the PACS has of a study."""
        counts: dict[str, int] = {}
        for series in self.find("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID="", Modality=""):
            instances = self.find(
                "IMAGE",
                StudyInstanceUID=study_uid,
                SeriesInstanceUID=series.SeriesInstanceUID,
                SOPInstanceUID="",
            )
            counts[series.Modality] = counts.get(series.Modality, 0) + len(instances)
        return counts

    def move(self, movescu: str, study_uid: str, into: Path) -> list[Path]:
        """C-MOVE a study by DCMTK's movescu, which receives the objects itself."""
        into.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                movescu, "-S", "-aet", READER_AE, "-aec", PACS_AE, "-aem", READER_AE,
                "+P", str(self.reader_port), "+xa", "-od", str(into),
                "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}",
                "127.0.0.1", str(self.port),
            ],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip
        return sorted(into.iterdir())


class Gate:
    """A TCP relay before a peer; shut after some bytes, it keeps a sender where it is."""

    def __init__(self, port: int) -> None:
        """port: where the peer listens."""
        self._peer = port
        self._changed = threading.Condition()
        self._allowed: int | None = None
        # One that is there to be listened on again after it was closed.
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def shut_after(self, n_bytes: int) -> None:
        """Let so many more bytes through to the peer, in all associations together."""
        with self._changed:
            self._allowed = n_bytes

    def open(self) -> None:
        with self._changed:
            self._allowed = None
            self._changed.notify_all()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _takes(self, caller: socket.socket) -> bool:
        """Whether a caller is put through to the peer."""
        return True

    def _accept(self, listener: socket.socket) -> None:
        """Until the listener is shut down."""
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            if not self._takes(caller):
                continue
            try:
                peer = socket.create_connection(("127.0.0.1", self._peer))
            except OSError:
                caller.close()
                continue
            for source, sink, counted in ((caller, peer, True), (peer, caller, False)):
                threading.Thread(target=self._relay, args=(source, sink, counted), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if counted:
                    self._pass(len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, n_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._allowed is None or self._allowed >= n_bytes)
            if self._allowed is not None:
                self._allowed -= n_bytes


@dataclass
class Node:
    """`dicomnode serve` as a process of its own."""

    folder: Path
    pacs_port: int
    extra: str = ""
    """More of config.toml."""
    pacs_extra: str = ""
    """More of the PACS's [[peers]] entry."""
    tick_s: float = 0.1
    min_free_gb: float = 0.1
    deliver_timeout_s: float = 60.0
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    def write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f"""
[node]
ae_title = "{NODE_AE}"
bind = "127.0.0.1"
port = {self.port}
data_dir = "{self.data_dir}"
[[peers]]
name = "modality"
ae_title = "{MODALITY_AE}"
[[peers]]
name = "PACS"
ae_title = "{PACS_AE}"
host = "127.0.0.1"
port = {self.pacs_port}
{self.pacs_extra}
[receive]
min_free_gb = {self.min_free_gb}
[assemble]
quiet_s = 1.0
max_wait_s = 2.0
tick_s = {self.tick_s}
[deliver]
to = ["PACS"]
first_retry_s = 0.5
max_retry_s = 1.0
timeout_s = {self.deliver_timeout_s}
[dose]
device = "cpu"
{self.extra}
"""
        )

    def start(self) -> None:
        self.launch()
        until(lambda: self._alive() and listens(self.port), "the node listens")

    def launch(self) -> None:
        """Begin to start."""
        self.write_config()
        shared = os.environ.get(SHARED_KERNELS)
        if shared and not self.data_dir.exists():
            cache = self.data_dir / "cache"
            for folder in (self.data_dir, cache):
                folder.mkdir(mode=0o700)
            (cache / "kernels").symlink_to(shared)
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicomnode", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
            )

    def _alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the node ended: {self.log()[-2000:]}"
        return True

    def log(self) -> str:
        return (self.folder / "node.log").read_text()

    def says(self, *texts: str) -> None:
        """Wait for each of `texts` in the log: a line may be written after what a peer or the ledger sees."""
        for text in texts:
            try:
                until(lambda text=text: text in self.log(), f"the log says {text!r}", 60)
            except AssertionError as error:
                raise AssertionError(f"{error}: {self.log()[-3000:]}") from None

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def stop(self) -> int:
        """SIGTERM. returns: the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        status = self.process.wait(120)
        self.process = None
        return status

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another dicomnode command with this node's config.toml."""
        return subprocess.run(
            [sys.executable, "-m", "dicomnode", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "COLUMNS": "250"},
        )

    def case(self, study_uid: str) -> Case | None:
        """What the ledger says of a study; None before it knows it."""
        try:
            ledger = Ledger(f"sqlite:///{self.data_dir / 'ledger.sqlite3'}")
            try:
                return next((c for c in ledger.cases() if c.study_instance_uid == study_uid), None)
            finally:
                ledger.close()
        except LedgerUnavailable:
            return None

    def story(self, case_id: int) -> list[Transition]:
        """Every transition of a case."""
        ledger = Ledger(f"sqlite:///{self.data_dir / 'ledger.sqlite3'}")
        try:
            return ledger.story(case_id)
        finally:
            ledger.close()

    def reaches(
        self, study_uid: str, *states: State, timeout_s: float = 240.0, pause_s: float = 0.02
    ) -> Case:
        """Wait until a study's case is in one of `states`."""

        # One ledger for the whole wait: opening it takes longer than the shortest states last.
        with contextlib.ExitStack() as stack:
            ledger: Ledger | None = None

            def there() -> Case | None:
                nonlocal ledger
                with contextlib.suppress(LedgerUnavailable):
                    if ledger is None:
                        ledger = Ledger(f"sqlite:///{self.data_dir / 'ledger.sqlite3'}")
                        stack.callback(ledger.close)
                    case = next((c for c in ledger.cases() if c.study_instance_uid == study_uid), None)
                    return case if case is not None and case.state in states else None
                return None

            found = self._waited(there, study_uid, states, timeout_s, pause_s)
        assert isinstance(found, Case)
        return found

    def _waited(
        self,
        there: Callable[[], Case | None],
        study_uid: str,
        states: Sequence[State],
        timeout_s: float,
        pause_s: float,
    ) -> Any:
        try:
            return until(there, f"{study_uid} becomes {'/'.join(states)}", timeout_s, pause_s)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; it is {self.case(study_uid)}; log: {self.log()[-3000:]}"
            ) from None


def sop_instance_uid(path: Path) -> str:
    """Of a file; the node keeps it as UID.dcm."""
    return str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def push(storescu: str, port: int, files: Sequence[Path], *options: str) -> list[Path]:
    """storescu. returns: the files that the node acknowledged with 0x0000."""
    process = start_push(storescu, port, files, *options)
    output = process.communicate(timeout=300)[0].decode(errors="replace")
    return acknowledged(output, files)


def start_push(storescu: str, port: int, files: Iterable[Path], *options: str) -> subprocess.Popen[bytes]:
    """storescu in the background; its output tells what was acknowledged."""
    return subprocess.Popen(
        [
            storescu, "-v", *options, "-aet", MODALITY_AE, "-aec", NODE_AE,
            "127.0.0.1", str(port), *map(str, files),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip


def acknowledged(output: str, files: Sequence[Path]) -> list[Path]:
    """Files for which storescu reports a success, from its verbose output."""
    by_name = {str(f): f for f in files}
    accepted: list[Path] = []
    current: Path | None = None
    for line in output.splitlines():
        sending = re.search(r"Sending file: (.*)$", line)
        if sending:
            current = by_name.get(sending.group(1).strip())
        elif "Received Store Response (Success)" in line and current is not None:
            accepted.append(current)
            current = None
    return accepted
