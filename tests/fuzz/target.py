"""The node as a process of its own, and what must not change of it: threads, files, memory, other folders."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from tests.acceptance.harness import free_port, listens, until
from tests.fuzz.wire import ASSOCIATE_RQ

# What takes longer hangs.
HANG_S = 5.0
# An answer to a changed A-ASSOCIATE-RQ may never come: then the rest is sent all the same.
_ANSWER_S = 0.5
# How long the node is given to come back to what it was.
_SETTLE_S = 15.0
# Compiled patterns, caches of dictionaries and the like grow to an end; a leak does not. Measured: 60 MB
# after 5,000 data sets by C-STORE, 62 MB after 15,000.
_MEMORY_MB = 80.0
# Threads of pools that were not needed before, and what they hold open. A leak grows with the inputs.
_SPARE = 8
# Its last line, the first that is not indented, says what was raised.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*.*")

_CONFIG = """
[node]
ae_title = "DICOMNODE"
bind = "127.0.0.1"
port = {port}
data_dir = "{data_dir}"
[[peers]]
name = "fuzzer"
ae_title = "FUZZER"
host = "127.0.0.1"
port = {nobody}
may = ["echo", "store", "find", "move", "get", "commit"]
[receive]
min_free_gb = 0.1
acse_timeout_s = 2.0
dimse_timeout_s = 2.0
message_timeout_s = 3.0
network_timeout_s = 2.0
[assemble]
quiet_s = 86400.0
max_wait_s = 86400.0
[query]
timeout_s = 1.0
[commitment]
stay_s = 0.1
"""


class Failure(Exception):
    """An input did what no input may do. kind: crash, hang, leak, file."""

    def __init__(self, kind: str, text: str) -> None:
        # Where Python lies differs from machine to machine, and would make of one failure many.
        text = re.sub(r'File "[^"]*/(?=(site-packages|python3\.\d+)/)', 'File "', text)
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    @property
    def signature(self) -> str:
        """The same for inputs that find the same."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        places = [line for line in lines if line.startswith("File ")]
        last = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", lines[-1] if lines else "")
        return f"{self.kind}: {places[-1] if places else ''} {last[:120]}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Level:
    """What a process holds."""

    threads: int
    descriptors: int
    memory_mb: float


class Target:
    """`dicomnode serve` in `folder`/around/data; anything that appears beside data is a failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.around = folder / "around"
        self.data_dir = self.around / "data"
        self.port = free_port()
        self._log = folder / "node.log"
        self._read = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._outside: set[str] = set()

    def start(self) -> None:
        """Start it. Raises AssertionError when it does not listen."""
        self.around.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.toml"
        nobody = free_port()
        config.write_text(_CONFIG.format(port=self.port, data_dir=self.data_dir, nobody=nobody))
        command = [sys.executable, "-m", "dicomnode", "serve", "--config", str(config)]
        with self._log.open("ab") as log:
            # Where it runs is watched too: a relative path would lead there.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.around)
        until(lambda: not self._alive() or listens(self.port), "the node listens", 60)
        assert self._alive(), self._log.read_text()
        self._outside = self._beside()

    def stop(self) -> None:
        """SIGTERM. Raises Failure when it does not end in order."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failure("hang", "the node does not stop") from None
        if status != 0:
            raise Failure("crash", f"the node ended with status {status}")

    def send(self, streams: Sequence[bytes]) -> None:
        """A connection for each of them, at the same time. Raises Failure."""
        try:
            with ThreadPoolExecutor(len(streams)) as pool:
                for done in [pool.submit(self._send, stream) for stream in streams]:
                    done.result()
        finally:
            self.look()

    def look(self) -> None:
        """Raises Failure when the node died or logged what it did not expect."""
        if not self._alive():
            raise Failure("crash", f"the node died: {self._new_log()[-3000:]}")
        found = self._new_log()
        traced = _TRACEBACK.search(found)
        if traced:
            raise Failure("crash", traced.group())

    def echo(self) -> None:
        """It still answers. Raises Failure."""
        ae = AE("FUZZER")
        ae.add_requested_context(Verification)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = HANG_S
        association = ae.associate("127.0.0.1", self.port, ae_title="DICOMNODE")
        if not association.is_established:
            raise Failure("hang", "no association for a C-ECHO")
        status = association.send_c_echo()
        association.release()
        if status.get("Status") != 0x0000:
            raise Failure("hang", "C-ECHO is not answered")

    def level(self) -> Level:
        """What it holds now."""
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        return Level(process.num_threads(), process.num_fds(), process.memory_info().rss / 1e6)

    def back_at(self, before: Level) -> Level:
        """Wait until it holds no more than before. Raises Failure when that does not happen."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            now = self.level()
            if now.threads <= before.threads + _SPARE and now.descriptors <= before.descriptors + _SPARE:
                break
            if time.monotonic() > deadline:
                raise Failure("leak", f"before {before}, now {now}")
            time.sleep(0.1)
        if now.memory_mb > before.memory_mb + _MEMORY_MB:
            raise Failure("leak", f"memory: before {before}, now {now}")
        return now

    def nothing_outside(self) -> None:
        """Raises Failure when a file appeared that is not the node's."""
        found = self._beside() - self._outside
        allowed = re.compile(r"[0-9.]{1,64}/[0-9.]{1,64}\.dcm|[0-9.]{1,64}")
        spool = self.data_dir / "spool"
        for path in spool.rglob("*"):
            if not allowed.fullmatch(str(path.relative_to(spool))):
                found.add(str(path))
        if found:
            raise Failure("file", f"files where none belong: {sorted(found)[:10]}")

    def _beside(self) -> set[str]:
        known = {"spool", "quarantine", "results", "cache"}
        inside = {str(path) for path in self.data_dir.glob("*") if path.name not in known}
        beside = {
            str(p) for p in self.folder.rglob("*") if self.data_dir not in p.parents and p != self.data_dir
        }
        return {name for name in inside | beside if "ledger.sqlite3" not in name}

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _new_log(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
            self._read = file.tell()
        return text.decode(errors="replace")

    def _send(self, stream: bytes) -> None:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # It may hang up in the middle, as it should.
            with contextlib.suppress(OSError):
                for part, answered in _parts(stream):
                    connection.sendall(part)
                    if answered:
                        select.select([connection], [], [], _ANSWER_S)
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(HANG_S)
            try:
                while connection.recv(65536):
                    if time.monotonic() - began > 2 * HANG_S:
                        raise Failure("hang", "it goes on sending")
            except TimeoutError:
                raise Failure("hang", f"the connection is open {HANG_S:g} s after our end of it") from None
            except ConnectionError:
                pass


def _parts(stream: bytes) -> Iterator[tuple[bytes, bool]]:
    """A whole A-ASSOCIATE-RQ, which is answered before the rest may be sent; then the rest."""
    end = 6 + int.from_bytes(stream[2:6], "big") if stream[:1] == bytes([ASSOCIATE_RQ]) else 0
    if 6 <= end < len(stream):
        yield stream[:end], True
        stream = stream[end:]
    yield stream, False
