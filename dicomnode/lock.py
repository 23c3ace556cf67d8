"""Who uses a `data_dir`: one node, or several that share it, each under its own name.

Two nodes that do not know of each other would queue each other's cases and remove each other's files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dicomnode.claims import SHARED
from dicomnode.errors import ConfigurationError
from dicomnode.privacy import FILE_MODE, FOLDER_MODE

_NAME = "lock"
_NODES = "nodes"
# Another node may be looking after what this one left when it was killed.
_PATIENCE_S = 60.0
_POLL_S = 0.1


class Lock:
    """Held while a node runs. The kernel takes it back when the process ends, however it ends.

    name: of the node among those that share the folder; empty: it has the folder to itself.
    """

    def __init__(self, data_dir: Path, name: str = "", patience_s: float = _PATIENCE_S) -> None:
        self._data_dir = data_dir
        self._name = name
        self._patience_s = patience_s
        self._descriptors: list[int] = []

    def take(self) -> None:
        """Raises ConfigurationError when another process has it."""
        kind = fcntl.LOCK_SH if self._name else fcntl.LOCK_EX
        try:
            descriptor = _locked(self._data_dir / _NAME, kind)
        except BlockingIOError:
            raise self._in_use(self._data_dir / _NAME, f"data_dir {self._data_dir}") from None
        self._descriptors.append(descriptor)
        if self._name:
            try:
                descriptor = self._take_name()
            except BaseException:
                self.release()
                raise
            self._descriptors.append(descriptor)
        _write(descriptor, f"{os.getpid()}\n")

    def _take_name(self) -> int:
        path = _node_file(self._data_dir, self._name)
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        end = time.monotonic() + self._patience_s
        while True:
            try:
                return _locked(path, fcntl.LOCK_EX)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise self._in_use(path, f"name {self._name!r}") from None
                time.sleep(_POLL_S)

    def _in_use(self, path: Path, what: str) -> ConfigurationError:
        process = path.read_text(encoding="ascii", errors="replace").strip()
        others = ", ".join(running(self._data_dir))
        who = f"process {process or '?'}" if not others or self._name else f"the nodes {others}"
        return ConfigurationError(
            f"another node uses [node] {what}: {who}",
            "Stop it first (`systemctl stop dicomnode`), or give this one a data_dir of its own; several "
            "nodes that share one need [node] name, each its own (docs/scale.md)",
        )

    def release(self) -> None:
        """Let another node have it. What this one had in hand is done."""
        if self._name and len(self._descriptors) == 2:
            os.ftruncate(self._descriptors[-1], 0)
        while self._descriptors:
            os.close(self._descriptors.pop())


def is_held(data_dir: Path, name: str = "") -> bool:
    """Whether a node, or the one of that name, runs on this `data_dir`. Raises OSError on a wrong right."""
    path = _node_file(data_dir, name) if name else data_dir / _NAME
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def running(data_dir: Path) -> list[str]:
    """Names of the nodes that share the folder and run."""
    return [path.name for path in _node_files(data_dir) if is_held(data_dir, path.name)]


@contextlib.contextmanager
def abandoned(data_dir: Path) -> Iterator[list[str]]:
    """Names of the nodes that were killed and have not come back. None of them can start meanwhile.

    What they left is looked after when the block is left well.
    """
    left: dict[str, int] = {}
    try:
        for path in _node_files(data_dir):
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                descriptor = _locked(path, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_size:
                    left[path.name] = descriptor
                else:
                    os.close(descriptor)
        yield sorted(left)
        for descriptor in left.values():
            os.ftruncate(descriptor, 0)
    finally:
        for descriptor in left.values():
            os.close(descriptor)


def _node_file(data_dir: Path, name: str) -> Path:
    return data_dir / SHARED / _NODES / name


def _node_files(data_dir: Path) -> list[Path]:
    folder = data_dir / SHARED / _NODES
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _locked(path: Path, kind: int) -> int:
    """An open file with the lock. Raises BlockingIOError when another process has it."""
    # Not inherited (PEP 446): a computing child never outlives its node with it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, text.encode())
