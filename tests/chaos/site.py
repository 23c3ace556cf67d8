"""One node, one Orthanc and modalities: what the episodes work on."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicomnode.states import State
from dicomnode.virtual_study import StudyFiles
from tests import small_study
from tests.acceptance.harness import Node, Orthanc, acknowledged, sop_instance_uid, start_push
from tests.chaos.outages import FaultyGate

# A pause after which a modality sends again what was not acknowledged.
RESEND_S = 0.1
# [dose] max_attempts: a disk that is full again and again is no reason to give up.
PATIENT = "max_attempts = 50\n"


def program(name: str) -> str:
    """Where a program lies. Raises FileNotFoundError."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install orthanc dcmtk")
    return path


class Modality:
    """Sends a study until every object is acknowledged, as modalities do."""

    def __init__(self, storescu: str, port: int, files: StudyFiles) -> None:
        self.files = files
        self._storescu = storescu
        self._port = port
        self._uids = {path: sop_instance_uid(path) for path in files.all}
        self._acked: set[Path] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    @property
    def study_uid(self) -> str:
        return str(self.files.study.study_instance_uid)

    @property
    def acked(self) -> tuple[str, ...]:
        """SOP Instance UIDs that the node has answered with success."""
        return tuple(uid for path, uid in self._uids.items() if path in self._acked)

    @property
    def all_acked(self) -> bool:
        return len(self._acked) == len(self.files.all)

    def start(self) -> Modality:
        self._thread.start()
        return self

    def finished(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged. returns: False when it is not by then."""
        self._thread.join(timeout_s)
        self._stopped.set()
        self._thread.join(60)
        return self.all_acked

    def _send(self) -> None:
        while not self._stopped.is_set():
            # As storescu takes them: those that are missing, in their order.
            missing = [path for path in self.files.all if path not in self._acked]
            if not missing:
                return
            process = start_push(self._storescu, self._port, missing)
            output = process.communicate(timeout=300)[0].decode(errors="replace")
            self._acked.update(acknowledged(output, missing))
            self._stopped.wait(RESEND_S)


@dataclass
class Site:
    """A node between modalities and a PACS, with the gate through which it reaches the PACS."""

    folder: Path
    orthanc: Orthanc
    gate: FaultyGate
    node: Node
    storescu: str

    def study(self, seed: str) -> StudyFiles:
        """A new study. seed: decides its UIDs."""
        return small_study.write(self.folder / "studies" / seed.replace(" ", "-"), seed)

    def modality(self, files: StudyFiles) -> Modality:
        return Modality(self.storescu, self.node.port, files)

    def forget(self, files: StudyFiles) -> None:
        """The modality's own files are of no more use."""
        shutil.rmtree(files.folder, ignore_errors=True)

    def restart(self) -> float:
        """Start the node, which has ended. returns: when that began."""
        began = time.monotonic()
        self.node.start()
        return began

    def done(self, study_uid: str, timeout_s: float) -> bool:
        """Wait until a study's case is DONE. returns: False when it is stuck."""
        try:
            self.node.reaches(study_uid, State.DONE, timeout_s=timeout_s)
        except AssertionError as error:
            print(f"    stuck: {str(error)[:600]}")
            return False
        return True

    def mend(self) -> None:
        """After an episode that was broken off in the middle: everything runs again."""
        self.gate.recover()
        if self.orthanc.process is None:
            self.orthanc.start()
        if self.node.process is None or self.node.process.poll() is not None:
            self.node.start()

    def kill_pacs(self) -> None:
        """`kill -9` for Orthanc."""
        process = self.orthanc.process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        self.orthanc.process = None


@contextlib.contextmanager
def running(folder: Path, orthanc: Orthanc, min_free_gb: float = 0.1, tick_s: float = 0.1) -> Iterator[Site]:
    """A site whose node runs; it is stopped at the end."""
    gate = FaultyGate(orthanc.port)
    # Where a silent PACS is given up after two seconds, and tried again within one.
    node = Node(
        folder,
        gate.port,
        tick_s=tick_s,
        min_free_gb=min_free_gb,
        deliver_timeout_s=2.0,
        extra=PATIENT,
    )
    site = Site(folder, orthanc, gate, node, program("storescu"))
    node.start()
    try:
        yield site
    finally:
        gate.open()
        if node.process is not None and node.process.poll() is None:
            node.stop()
