"""The node as an administrator starts it: `dicomnode serve` as a process of its own, on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pydicom import dcmread

from dicomnode.config import Peer
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.errors import NodeError
from dicomnode.ledger import Ledger
from dicomnode.network.send import Answer, Outgoing, Verdict, echo, send
from dicomnode.records import Case
from dicomnode.states import State

NODE_AE, CAMERA_AE = "DICOMNODE", "VIRTUALCAM"
START_WITHIN_S, STOP_WITHIN_S = 60.0, 60.0
POLL_S = 0.1

_CONFIG = """\
[node]
ae_title = "{node_ae}"
bind = "127.0.0.1"
port = {port}
data_dir = {data_dir}

[[peers]]
name = "gamma camera"
ae_title = "{camera_ae}"

[[peers]]
name = "PACS"
ae_title = "{pacs_ae}"
host = "{pacs_host}"
port = {pacs_port}

[receive]
min_free_gb = 0.5

[assemble]
quiet_s = {quiet_s}
max_wait_s = {max_wait_s}
tick_s = {tick_s}

[deliver]
to = ["PACS"]
first_retry_s = 1.0
"""


class NodeProcess:
    """Runs from `start` to `stop`; `with` does both.

    folder: config.toml and the node's data. log: the node's standard output and error.
    Whatever fails raises NodeError.
    """

    def __init__(
        self, folder: Path, log: Path, pacs: StandinPacs, *, quiet_s: float, tick_s: float = 0.25
    ) -> None:
        self.log = log
        self._port = _free_port()
        self._data_dir = folder.resolve() / "data"
        self._config = folder / "config.toml"
        self._config.write_text(
            _CONFIG.format(
                node_ae=NODE_AE,
                camera_ae=CAMERA_AE,
                port=self._port,
                # A JSON string is a TOML basic string.
                data_dir=json.dumps(str(self._data_dir)),
                pacs_ae=pacs.ae_title,
                pacs_host=pacs.host,
                pacs_port=pacs.port,
                quiet_s=quiet_s,
                max_wait_s=60.0 + quiet_s,
                tick_s=tick_s,
            ),
            encoding="utf-8",
        )
        self._peer = Peer(name="node", ae_title=NODE_AE, host="127.0.0.1", port=self._port)
        self._process: subprocess.Popen[bytes] | None = None
        self._ledger: Ledger | None = None

    def start(self) -> NodeProcess:
        """Start it and wait until it answers C-ECHO."""
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "dicomnode", "serve", "--config", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._await_answer(time.monotonic() + START_WITHIN_S)
        except BaseException:
            self.stop()
            raise
        self._ledger = Ledger(f"sqlite:///{self._data_dir / 'ledger.sqlite3'}")
        return self

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> NodeProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the listening process, while it runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def ledger(self) -> Ledger:
        """What the node decided, while it runs."""
        assert self._ledger is not None
        return self._ledger

    def push(self, files: Sequence[Path], sent: Callable[[int], None] = lambda _count: None) -> None:
        """C-STORE the files over one association. sent: called with the number that is stored."""
        stored = 0

        def answered(file: Outgoing, answer: Answer) -> None:
            nonlocal stored
            if answer.verdict is not Verdict.STORED:
                raise NodeError(f"the node did not take {file.path.name}: {answer.text}")
            stored += 1
            sent(stored)

        send(self._peer, [_outgoing(path) for path in files], CAMERA_AE, 60.0, answered)

    def follow(
        self, study_uid: str, within_s: float, tell: Callable[[State], None] = lambda _state: None
    ) -> Case:
        """Wait until the study's case is DONE. tell: each new state."""
        deadline = time.monotonic() + within_s
        state: State | None = None
        while True:
            self._require_alive()
            case = next((c for c in self.ledger.cases() if c.study_instance_uid == study_uid), None)
            if case is not None and case.state is not state:
                state = case.state
                tell(state)
            if case is not None and state is State.DONE:
                return case
            if case is not None and state in (State.HELD, State.FAILED):
                raise NodeError(f"the case is {state}: {case.reason}", case.remedy)
            if time.monotonic() > deadline:
                raise NodeError(f"the case is still {state or 'unknown'} after {within_s:g} s")
            time.sleep(POLL_S)

    def _await_answer(self, deadline: float) -> None:
        while not self._answers():
            self._require_alive()
            if time.monotonic() > deadline:
                raise NodeError(f"the node did not answer within {START_WITHIN_S:g} s of its start")
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        # pynetdicom calls an error what is only the wait for a port that opens.
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1.0):
            echo(self._peer, CAMERA_AE, 10.0)
            return True
        return False

    def _require_alive(self) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            raise NodeError(f"the node ended by itself with exit status {status}")


def _outgoing(path: Path) -> Outgoing:
    header = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    syntax = header.file_meta.TransferSyntaxUID
    return Outgoing(path, str(header.SOPClassUID), str(header.SOPInstanceUID), str(syntax))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
