"""SQLite's writes, noted: its own file layer (VFS), with four of its functions wrapped.

https://www.sqlite.org/c3ref/vfs.html and io_methods.html give the structures.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.dicomnode.disk_recorder import Recorder

_P, _INT, _I64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
# Names as addresses: SQLite keeps them, and looks for parameters behind their end.
_OPEN = ctypes.CFUNCTYPE(_INT, _P, _P, _P, _INT, _P)
_DELETE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT)
_WRITE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT, _I64)
_TRUNCATE = ctypes.CFUNCTYPE(_INT, _P, _I64)
_SYNC = ctypes.CFUNCTYPE(_INT, _P, _INT)
_OK = 0
_MAIN_DB, _MAIN_JOURNAL, _WAL = 0x100, 0x800, 0x80000


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("version", _INT), ("file_size", _INT), ("path_length", _INT), ("next", _P),
        ("name", ctypes.c_char_p), ("data", _P), ("open", _OPEN), ("delete", _DELETE), ("more", _P * 14),
    ]  # fmt: skip


class _Methods(ctypes.Structure):
    _fields_ = [
        ("version", _INT), ("close", _P), ("read", _P), ("write", _WRITE), ("truncate", _TRUNCATE),
        ("sync", _SYNC), ("more", _P * 13),
    ]  # fmt: skip


class _OpenFile(ctypes.Structure):
    _fields_ = [("methods", ctypes.POINTER(_Methods))]


@contextmanager
def recording(recorder: Recorder, lock: Any) -> Iterator[None]:
    """SQLite's own file layer, with every write, truncation, sync and deletion noted."""
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3") or "libsqlite3.so.0")
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    original = library.sqlite3_vfs_find(None)
    layer = _Layer(recorder, lock, original)
    library.sqlite3_vfs_register(ctypes.byref(layer.vfs), 1)
    try:
        yield
    finally:
        library.sqlite3_vfs_register(original, 1)
        library.sqlite3_vfs_unregister(ctypes.byref(layer.vfs))
        _KEPT.append(layer)  # connections that are still open call it


_KEPT: list[_Layer] = []


class _Layer:
    """The callbacks. They live as long as a file that was opened through them."""

    def __init__(self, recorder: Recorder, lock: Any, original: Any) -> None:
        self._recorder = recorder
        self._lock = lock
        self._original = original
        self._handles: dict[int, int] = {}
        # Journals whose name is not durable yet: SQLite syncs their folder with their first sync.
        self._new: dict[int, str] = {}
        self._ours: dict[int, _Methods] = {}
        self._its: dict[int, _Methods] = {}
        self._open, self._delete = _OPEN(self._on_open), _DELETE(self._on_delete)
        self._write, self._truncate = _WRITE(self._on_write), _TRUNCATE(self._on_truncate)
        self._sync = _SYNC(self._on_sync)
        self.vfs = _Vfs()
        ctypes.memmove(ctypes.byref(self.vfs), original, ctypes.sizeof(_Vfs))
        self.vfs.name, self.vfs.open, self.vfs.delete = b"recorded", self._open, self._delete

    def _on_open(self, _vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        with self._lock:
            path = None if name is None else self._recorder.relative(ctypes.string_at(name))
            existed = name is not None and Path(os.fsdecode(ctypes.string_at(name))).exists()
            status = int(
                self._original.contents.open(
                    ctypes.addressof(self._original.contents), name, file, flags, out
                )
            )
            if status != _OK or path is None or not flags & (_MAIN_DB | _MAIN_JOURNAL | _WAL):
                return status
            self._put_before(file)
            self._handles[file] = handle = self._recorder.new_handle()
            self._new.pop(file, None)
            if not existed and not flags & _MAIN_DB:
                self._new[file] = path.rpartition("/")[0]
            self._recorder.note("open", handle, path, False)
            return status

    def _put_before(self, file: int) -> None:
        """Our methods in the place of its own, which those of databases and of journals differ in."""
        opened = _OpenFile.from_address(file)
        address = ctypes.addressof(opened.methods.contents)
        its = _Methods.from_address(address)
        if address not in self._ours:
            self._ours[address] = ours = _Methods()
            ctypes.memmove(ctypes.byref(ours), address, ctypes.sizeof(_Methods))
            ours.write, ours.truncate, ours.sync = self._write, self._truncate, self._sync
        opened.methods = ctypes.pointer(self._ours[address])
        self._its[file] = its

    def _on_delete(self, _vfs: int, name: int, sync_folder: int) -> int:
        with self._lock:
            path = self._recorder.relative(ctypes.string_at(name))
            existed = Path(os.fsdecode(ctypes.string_at(name))).exists()
            status = int(
                self._original.contents.delete(ctypes.addressof(self._original.contents), name, sync_folder)
            )
            if path is not None and existed and status == _OK:
                self._recorder.note("unlink", path)
                if sync_folder:
                    self._recorder.note("sync_folder", path.rpartition("/")[0])
            return status

    def _on_write(self, file: int, data: int, length: int, offset: int) -> int:
        with self._lock:
            status = int(self._its[file].write(file, data, length, offset))
            if status == _OK:
                self._recorder.note("write", self._handles[file], offset, ctypes.string_at(data, length))
            return status

    def _on_truncate(self, file: int, length: int) -> int:
        with self._lock:
            status = int(self._its[file].truncate(file, length))
            if status == _OK:
                self._recorder.note("truncate", self._handles[file], length)
            return status

    def _on_sync(self, file: int, flags: int) -> int:
        with self._lock:
            status = int(self._its[file].sync(file, flags))
            if status == _OK:
                self._recorder.note("sync", self._handles[file])
                if file in self._new:
                    self._recorder.note("sync_folder", self._new.pop(file))
            return status
