"""One node for one `data_dir`: two would queue each other's cases and remove each other's files."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dicomnode.errors import ConfigurationError

_NAME = "lock"


class Lock:
    """Held while a node runs. The kernel takes it back when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _NAME
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises ConfigurationError when another process has it."""
        # Not inherited (PEP 446): a computing child never outlives its node with it.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise ConfigurationError(
                f"another node uses [node] data_dir {self._path.parent}: process {process or '?'}",
                "Stop it first (`systemctl stop dicomnode`), or give this one a data_dir of its own",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another node have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(data_dir: Path) -> bool:
    """Whether a node runs on this `data_dir`. Raises OSError when the file cannot be read."""
    path = data_dir / _NAME
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
