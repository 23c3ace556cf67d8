"""A disk that loses power: what a process did to a folder, and what may be left of it after a power cut.

::

    disk_recorder.Recorder   notes every open, write, truncate, rename, unlink, mkdir, rmdir and fsync below a
                             folder, of Python (its `os` and `open` are wrapped) and of SQLite (its VFS is:
                             sqlite_recorder), in their order
    Disk                     does them again, one by one, and knows at each what is durable
    Disk.after               the files that a power cut at this point may leave

What POSIX promises and no more: content is durable after an fsync of the file, a name after an fsync of its
folder, and neither says anything about the other. What was not synced may be there, wholly, in part, or not.
Of a file system's own kindness (ext4 makes a new file's name durable with its content) nothing is assumed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Op = tuple[Any, ...]


class Loss(StrEnum):
    """What becomes of that which was not synced."""

    EVERYTHING = "all of it is lost"
    NOTHING = "all of it is there, as after kill -9"
    CONTENTS = "names are there, contents are not"
    NAMES = "contents are there, names are not"
    ZEROS = "names and lengths are there, contents are zeros"
    TORN = "names are there, each content up to somewhere"
    MIXED = "each folder and each file up to somewhere"


@dataclass
class _Folder:
    names: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[dict[str, int | None]] = field(default_factory=list)
    """Changes since the last sync; those of one call together."""

    def change(self, names: dict[str, int | None]) -> None:
        self.names = _changed(self.names, names)
        self.pending.append(names)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()

    def up_to(self, count: int) -> dict[str, int]:
        names = self.durable
        for change in self.pending[:count]:
            names = _changed(names, change)
        return names


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, what was written there), (length, None) for a truncation; since the last sync."""

    def change(self, offset: int, data: bytes | None) -> None:
        _write(self.content, offset, data)
        self.pending.append((offset, data))

    def sync(self) -> None:
        self.durable = bytes(self.content)
        self.pending.clear()

    def up_to(self, count: int) -> bytes:
        content = bytearray(self.durable)
        for offset, data in self.pending[:count]:
            _write(content, offset, data)
        return bytes(content)


def _changed(names: dict[str, int], change: dict[str, int | None]) -> dict[str, int]:
    return {n: node for n, node in {**names, **change}.items() if node is not None}


def _write(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


class Disk:
    """One folder, empty and durable at first."""

    def __init__(self) -> None:
        self._nodes: list[_Folder | _File] = [_Folder()]
        self._handles: dict[int, int] = {}

    def do(self, op: Op) -> None:
        """Repeat one operation; see `Recorder` for their names."""
        getattr(self, f"_{op[0]}")(*op[1:])

    def after(self, loss: Loss, dice: random.Random) -> dict[str, bytes | None]:
        """Path → content of what is left, None for folders. dice: how far, where that is random."""
        found: dict[str, bytes | None] = {}
        self._walk(0, "", loss, dice, found)
        return found

    def _walk(
        self, node: int, path: str, loss: Loss, dice: random.Random, found: dict[str, bytes | None]
    ) -> None:
        folder = self._nodes[node]
        assert isinstance(folder, _Folder)
        for name, child in sorted(self._names(folder, loss, dice).items()):
            below = f"{path}/{name}" if path else name
            entry = self._nodes[child]
            if isinstance(entry, _Folder):
                found[below] = None
                self._walk(child, below, loss, dice, found)
            else:
                found[below] = self._content(entry, loss, dice)

    @staticmethod
    def _names(folder: _Folder, loss: Loss, dice: random.Random) -> dict[str, int]:
        match loss:
            case Loss.EVERYTHING | Loss.NAMES:
                return folder.durable
            case Loss.MIXED:
                return folder.up_to(dice.randint(0, len(folder.pending)))
            case _:
                return folder.names

    @staticmethod
    def _content(file: _File, loss: Loss, dice: random.Random) -> bytes:
        match loss:
            case Loss.EVERYTHING | Loss.CONTENTS:
                return file.durable
            case Loss.NOTHING | Loss.NAMES:
                return bytes(file.content)
            case Loss.ZEROS:
                return file.durable[: len(file.content)].ljust(len(file.content), b"\0")
            case _:
                return file.up_to(dice.randint(0, len(file.pending)))

    # ── the operations ───────────────────────────────────────────────────────────────────────

    def _find(self, path: str) -> int | None:
        node = 0
        for name in path.split("/") if path else ():
            folder = self._nodes[node]
            if not isinstance(folder, _Folder) or name not in folder.names:
                return None
            node = folder.names[name]
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        parent, _, name = path.rpartition("/")
        node = self._find(parent)
        assert node is not None, f"{path} in a folder that nobody has made"
        folder = self._nodes[node]
        assert isinstance(folder, _Folder)
        return folder, name

    def _new(self, path: str, node: _Folder | _File) -> int:
        folder, name = self._parent(path)
        self._nodes.append(node)
        folder.change({name: len(self._nodes) - 1})
        return len(self._nodes) - 1

    def _open(self, handle: int, path: str, truncate: bool) -> None:
        node = self._find(path)
        self._handles[handle] = node = self._new(path, _File()) if node is None else node
        if truncate:
            self._truncate(handle, 0)

    def _write(self, handle: int, offset: int, data: bytes) -> None:
        file = self._nodes[self._handles[handle]]
        assert isinstance(file, _File)
        file.change(offset, data)

    def _truncate(self, handle: int, length: int) -> None:
        file = self._nodes[self._handles[handle]]
        assert isinstance(file, _File)
        file.change(length, None)

    def _sync(self, handle: int) -> None:
        self._nodes[self._handles[handle]].sync()

    def _sync_folder(self, path: str) -> None:
        node = self._find(path)
        assert node is not None
        self._nodes[node].sync()

    def _rename(self, source: str, target: str) -> None:
        node = self._find(source)
        assert node is not None
        (from_folder, old), (to_folder, new) = self._parent(source), self._parent(target)
        if from_folder is to_folder:
            to_folder.change({old: None, new: node})  # PS: rename is atomic within a folder
        else:
            to_folder.change({new: node})
            from_folder.change({old: None})

    def _unlink(self, path: str) -> None:
        folder, name = self._parent(path)
        folder.change({name: None})

    def _mkdir(self, path: str) -> None:
        self._new(path, _Folder())

    def _mark(self, *_: object) -> None:
        """Something that happened outside the disk."""
