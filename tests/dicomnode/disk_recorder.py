"""What a process does to a folder, noted: see `fragile_disk`."""

from __future__ import annotations

import builtins
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.dicomnode import sqlite_recorder
from tests.dicomnode.fragile_disk import Op


class Recorder:
    """Notes what is done below a folder. Operations: see the methods of `Disk` of their names."""

    def __init__(self, root: Path, ignored: tuple[str, ...] = ()) -> None:
        """ignored: names directly below `root` that nothing depends on."""
        self.ops: list[Op] = []
        self._root = str(root)
        self._ignored = ignored
        self._lock = threading.RLock()
        self._handles: dict[int, int] = {}
        self._paths: dict[int, str] = {}
        self._next = 0

    def mark(self, *what: object) -> None:
        """Note something that happened outside the disk: what a peer heard."""
        with self._lock:
            self.ops.append(("mark", *what))

    def relative(self, path: object, folder: int | None = None) -> str | None:
        """A path below the root; None when it is elsewhere."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)  # type: ignore[arg-type]
        if folder is not None:
            text = str(Path(f"/proc/self/fd/{folder}").readlink() / text)
        text = str(Path(text).absolute())
        if text == self._root:
            return ""
        if not text.startswith(f"{self._root}/"):
            return None
        below = text.removeprefix(f"{self._root}/")
        return None if below.split("/")[0] in self._ignored else below

    def note(self, *op: object) -> None:
        self.ops.append(op)

    def new_handle(self) -> int:
        self._next += 1
        return self._next

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """While this lasts, everything is noted."""
        with patch.context() as patched, sqlite_recorder.recording(self, self._lock):
            for name in (
                "open",
                "write",
                "fsync",
                "close",
                "ftruncate",
                "unlink",
                "mkdir",
                "rmdir",
                "rename",
            ):
                patched.setattr(os, name, self._wrapped(name, getattr(os, name)))
            patched.setattr(os, "fdatasync", os.fsync)
            patched.setattr(os, "remove", os.unlink)
            patched.setattr(os, "replace", os.rename)
            original = io.open
            for module in (io, builtins):
                patched.setattr(module, "open", self._opener(original))
            yield

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        noted = getattr(self, f"_os_{name}")

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                return noted(original, *arguments, **named)

        return call

    # ── Python ───────────────────────────────────────────────────────────────────────────────

    def _os_open(self, original: Callable[..., int], path: Any, flags: int, *rest: Any, **named: Any) -> int:
        below = self.relative(path, named.get("dir_fd"))
        descriptor = original(path, flags, *rest, **named)
        if below is not None and flags & os.O_TMPFILE != os.O_TMPFILE:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self._paths[descriptor] = below
            elif flags & (os.O_WRONLY | os.O_RDWR):
                self._handles[descriptor] = handle = self.new_handle()
                self.note("open", handle, below, bool(flags & os.O_TRUNC))
        return descriptor

    def _os_write(self, original: Callable[..., int], descriptor: int, data: Any) -> int:
        if descriptor not in self._handles:
            return original(descriptor, data)
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        count = original(descriptor, data)
        self.note("write", self._handles[descriptor], offset, bytes(memoryview(data).cast("B")[:count]))
        return count

    def _os_fsync(self, original: Callable[[int], None], descriptor: int) -> None:
        original(descriptor)
        if descriptor in self._handles:
            self.note("sync", self._handles[descriptor])
        elif descriptor in self._paths:
            self.note("sync_folder", self._paths[descriptor])
        elif (below := self.relative(Path(f"/proc/self/fd/{descriptor}").readlink())) is not None:
            handle = self.new_handle()  # opened for reading
            self.note("open", handle, below, False)
            self.note("sync", handle)

    def _os_close(self, original: Callable[[int], None], descriptor: int) -> None:
        self._handles.pop(descriptor, None)
        self._paths.pop(descriptor, None)
        original(descriptor)

    def _os_ftruncate(self, original: Callable[[int, int], None], descriptor: int, length: int) -> None:
        original(descriptor, length)
        if descriptor in self._handles:
            self.note("truncate", self._handles[descriptor], length)

    def _os_unlink(self, original: Callable[..., None], path: Any, *, dir_fd: int | None = None) -> None:
        below = self.relative(path, dir_fd)
        original(path, dir_fd=dir_fd)
        if below is not None:
            self.note("unlink", below)

    def _os_rmdir(self, original: Callable[..., None], path: Any, *, dir_fd: int | None = None) -> None:
        self._os_unlink(original, path, dir_fd=dir_fd)

    def _os_mkdir(self, original: Callable[..., None], path: Any, *rest: Any, **named: Any) -> None:
        original(path, *rest, **named)
        below = self.relative(path, named.get("dir_fd"))
        if below:
            self.note("mkdir", below)

    def _os_rename(self, original: Callable[..., None], source: Any, target: Any, **named: Any) -> None:
        original(source, target, **named)
        below = self.relative(source)
        if below is not None:
            self.note("rename", below, self.relative(target))

    def _opener(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`open` whose files write by `os.write`."""

        def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            below = self.relative(file) if set(mode) & set("wax") else None
            if below is None:
                return original(file, mode, buffering, *rest, **named)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            flags |= os.O_APPEND if "a" in mode else os.O_TRUNC
            opener = named.get("opener") or (lambda path, flags: os.open(path, flags, 0o666))
            raw = _Raw(opener(os.fspath(file), flags))
            if buffering == 0:
                return raw
            buffered = io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, named.get("encoding") or "utf-8")

        return open_


class _Raw(io.RawIOBase):
    """A file that is written by `os.write`, as it is at that moment."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        return os.write(self._descriptor, data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)
