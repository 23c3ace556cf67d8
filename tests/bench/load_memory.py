"""The resident memory of a process and of its children, while it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_EVERY_S = 0.2


class Memory:
    """Looks at a process tree five times a second; peaks of single processes are the kernel's own.

    peak_mb: of the process. largest_child_mb: of any of its descendants. together_mb: of all at one moment
    (pages that they share count in each).
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = self.largest_child_mb = self.together_mb = 0.0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        together = 0.0
        for pid in _tree(self._pid):
            now, peak = _resident_mb(pid)
            together += now
            if pid == self._pid:
                self.peak_mb = max(self.peak_mb, peak)
            else:
                self.largest_child_mb = max(self.largest_child_mb, peak)
        self.together_mb = max(self.together_mb, together)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _resident_mb(pid: int) -> tuple[float, float]:
    """Now, and at most until now; zero for a process that has ended."""
    values = {"VmRSS": 0.0, "VmHWM": 0.0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in values:
                values[name] = int(rest.split()[0]) / 1024
    return values["VmRSS"], values["VmHWM"]
