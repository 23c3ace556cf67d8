"""The spool: what was received, on disk, before it is acknowledged.

::

    data_dir/spool/<StudyInstanceUID>/<SOPInstanceUID>.dcm     accepted objects
    data_dir/quarantine/<SHA-256>.dcm and .json                refused objects and why

An object is written as `.part`, renamed, and then the file and its folder are synced side by side:
where a flush of the disk's cache is slow, that takes one and not two. While many objects come at once they
are synced one after the other: the disk is then busy anyway, and each change of thread costs more than it
spares. Only then is it acknowledged.
What a power cut may leave of an object that was not acknowledged yet is told by the checksum in the
preamble, and never used. The file meta information is built here and the data set's bytes follow as
they came.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.claims import Claims, leave_alone
from dicomnode.durable import sync_folder
from dicomnode.privacy import FILE_MODE, FOLDER_MODE
from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.header import is_valid_uid
from dicomnode.reception.incoming import pieces
from dicomnode.reception.spool_file import Origin, file_meta

log = logging.getLogger(__name__)

# Folders below data_dir.
SPOOL = "spool"
QUARANTINE = "quarantine"
# Objects at once whose folder is synced beside the file, in another thread.
_SIDE_BY_SIDE = 4
# The kernel sets memory aside in pieces of a write's size, and large pieces are slow to find where memory
# is scattered: half-megabyte writes took up to twice the system time of these. Each write lets other threads
# in between: with twenty peers at once, halves of these are a seventh more changes of thread for each object.
_WRITE_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Note:
    """Why an object lies in quarantine; the JSON file beside it."""

    defect: str
    reason: str
    status: int
    peer: str
    received_at: float
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    """Empty when it could not be read."""
    transfer_syntax_uid: str
    conflict_study_uid: str
    """The study whose object it contradicts; empty when it contradicts none."""
    path: str
    """Relative to data_dir; empty when the disk had no room for it."""

    def to_json(self) -> str:
        """The file's text: the fields, and two of them once more as people write them."""
        moment = datetime.fromtimestamp(self.received_at, UTC)
        told = {"answered": f"0x{self.status:04X}", "received": moment.isoformat(timespec="seconds")}
        return json.dumps(told | asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Note:
        """The note; what else the file holds is for people. Raises ValueError where it holds no note."""
        told = json.loads(text)
        if not isinstance(told, dict):
            raise ValueError("it holds no JSON object")
        kinds: dict[str, type | tuple[type, ...]] = {"status": int, "received_at": (int, float)}
        for field in fields(cls):
            if not isinstance(told.get(field.name), kinds.get(field.name, str)):
                raise ValueError(f"{field.name!r} is missing, or not of its kind")
        return cls(**{field.name: told[field.name] for field in fields(cls)})


def free_bytes(folder: Path) -> int:
    """What the file system of `folder` still has room for."""
    return shutil.disk_usage(folder).free


class Spool:
    """The only writer below `data_dir`/spool and /quarantine. Every method may be called from any thread.

    min_free_bytes: below it nothing is written. free: how to ask for the room there is. node: name among
    the nodes that share the folder; empty: there is no other.
    """

    def __init__(
        self,
        data_dir: Path,
        min_free_bytes: int,
        free: Callable[[Path], int] = free_bytes,
        node: str = "",
    ) -> None:
        self.data_dir = data_dir
        self._spool = data_dir / SPOOL
        self._quarantine = data_dir / QUARANTINE
        self._min_free_bytes = min_free_bytes
        self._free = free
        self._study_of: dict[str, str] = {}
        self._claims = Claims(data_dir) if node else None
        self._part = f".{node}.part" if node else ".part"
        self._syncs = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="sync-folder")
        self._beside = threading.BoundedSemaphore(_SIDE_BY_SIDE)
        self._durable_folders: set[Path] = set()
        self._busy: set[str] = set()
        self._unread_notes: set[Path] = set()
        self._turn = threading.Condition()
        self._making = threading.Lock()
        for folder in (self._spool, self._quarantine):
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def configure(self, min_free_bytes: int) -> None:
        """Another watermark from the next object on."""
        self._min_free_bytes = min_free_bytes

    @contextlib.contextmanager
    def claim_all(self, sop_instance_uids: Iterable[str]) -> Iterator[None]:
        """Hold many objects. For the one caller that does: two of them could wait for each other."""
        with contextlib.ExitStack() as claims:
            for uid in sop_instance_uids:
                claims.enter_context(self.claim(uid))
            yield

    @contextlib.contextmanager
    def claim(self, sop_instance_uid: str) -> Iterator[None]:
        """Hold an object for oneself: the same object may come on two associations at once."""
        with self._turn:
            self._turn.wait_for(lambda: sop_instance_uid not in self._busy)
            self._busy.add(sop_instance_uid)
        try:
            with self._claims.hold(sop_instance_uid) if self._claims else contextlib.nullcontext():
                yield
        finally:
            with self._turn:
                self._busy.discard(sop_instance_uid)
                self._turn.notify_all()

    def find(self, study_instance_uid: str, sop_instance_uid: str) -> Path | None:
        """Where an accepted object lies, be it in another study; None when there is none."""
        if self._claims is None:
            study = self._study_of.get(sop_instance_uid, study_instance_uid)
        else:
            study = self._claims.study_of(sop_instance_uid) or study_instance_uid
        path = self.path(study, sop_instance_uid)
        if path.exists():
            return path
        return None

    def path(self, study_instance_uid: str, sop_instance_uid: str) -> Path:
        """Where an object of these UIDs lies. Nothing but a valid UID ever becomes part of a path."""
        for uid in (study_instance_uid, sop_instance_uid):
            if not is_valid_uid(uid):
                raise ValueError(f"{uid!r} is not a UID")
        return self._spool / study_instance_uid / f"{sop_instance_uid}.dcm"

    def relative(self, path: Path) -> str:
        """A path as the ledger keeps it."""
        return str(path.relative_to(self.data_dir))

    def store(self, study_instance_uid: str, origin: Origin, data: memoryview) -> tuple[Path, int]:
        """Write an object durably. returns: its file and the file's size in bytes.

        Raises Flawed(DISK_FULL), and then nothing of it is left.
        """
        path = self.path(study_instance_uid, origin.sop_instance_uid)
        try:
            self._require_room(len(data))
            meta = file_meta(origin, data)
            if self._claims is not None:
                self._claims.remember(origin.sop_instance_uid, study_instance_uid)
            self._write_in_folder(path, (meta, data))
        except OSError as error:
            raise Flawed(Defect.DISK_FULL, error.strerror or str(error)) from error
        if self._claims is None:
            self._study_of[origin.sop_instance_uid] = sys.intern(study_instance_uid)
        return path, len(meta) + len(data)

    def set_aside(self, note: Note, origin: Origin, data: memoryview) -> tuple[Note, bool]:
        """Keep a refused object with its reason.

        returns: the note with its path, and whether it is new: a sender that tries again and again
        fills neither the disk nor the ledger. A disk without room loses the object, never the note.
        """
        digest = hashlib.sha256(f"{note.defect}\n".encode())
        for piece in pieces(data):
            digest.update(piece)
        path = self._quarantine / f"{digest.hexdigest()}.dcm"
        kept = replace(note, path=self.relative(path))
        with self.claim(path.name):
            if path.with_suffix(".json").exists():
                return kept, False
            try:
                self._require_room(len(data))
                _write(path, (file_meta(origin, data), data), self._part)
                _write(path.with_suffix(".json"), (kept.to_json().encode(),), self._part)
            except OSError:
                return note, True
        return kept, True

    def notes(self) -> list[Note]:
        """What lies in quarantine; of a note that says nothing the log has a line, once."""
        return [note for path in sorted(self._quarantine.glob("*.json")) if (note := self._note_in(path))]

    def _note_in(self, path: Path) -> Note | None:
        try:
            return Note.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None  # another node has removed it
        except (OSError, ValueError, RecursionError) as error:
            if path not in self._unread_notes:
                self._unread_notes.add(path)
                why = (error.strerror if isinstance(error, OSError) else None) or error
                log.error(
                    "%s, which says why %s beside it was refused, cannot be read: %s. The node goes on "
                    "without it: check the disk, look at the object, then remove both; without this file the "
                    "object is set aside anew when it is sent again",
                    self.relative(path), path.with_suffix(".dcm").name, why,
                )  # fmt: skip
            return None

    def scan(self) -> dict[str, Path]:
        """At start: forget what was half written; SOP Instance UID → file of every accepted object."""
        self.forget_parts(f"*{self._part}")
        found = self.files()
        if self._claims is None:
            leave_alone(self.data_dir)
            # One text for a study, not one for each of its objects.
            self._study_of = {uid: sys.intern(path.parent.name) for uid, path in found.items()}
        elif not self._claims.is_complete():
            for uid, path in found.items():
                with self.claim(uid):
                    self._claims.remember(uid, path.parent.name)
            self._claims.complete()
        return found

    def files(self) -> dict[str, Path]:
        """SOP Instance UID → file of every accepted object."""
        return {path.stem: path for path in self._spool.glob("*/*.dcm")}

    def forget_parts(self, pattern: str) -> None:
        """Remove what was half written by a node that has ended."""
        for folder in (self._spool, self._quarantine):
            for path in folder.rglob(pattern):
                path.unlink(missing_ok=True)

    def make_durable(self, path: Path) -> None:
        """A file that its writer may not have synced: it was killed before it acknowledged."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)

    def discard(self, path: Path) -> None:
        """Take a broken file out of the way of the object that will be sent again."""
        path.rename(self.discarded(path))

    def discarded(self, path: Path) -> Path:
        """Where `discard` puts a file."""
        return self._quarantine / f"{path.stem}.broken"

    def close(self) -> None:
        """End the threads that sync folders."""
        self._syncs.shutdown()

    def remove(self, paths: Sequence[str]) -> None:
        """Take files that the ledger has given up off the disk, and folders that are empty then; durably.

        paths: relative to data_dir, below its folders. Hold the claims of received objects meanwhile.
        Raises OSError when the disk does not let go of them.
        """
        folders = set()
        for path in paths:
            file = self.data_dir / path
            file.unlink(missing_ok=True)
            if path.startswith(f"{SPOOL}/"):
                self._forget(file.stem)
            folders.add(file.parent)
        for folder in sorted(folders):
            self._remove_if_empty(folder)

    def _forget(self, sop_instance_uid: str) -> None:
        if self._claims is None:
            self._study_of.pop(sop_instance_uid, None)
        else:
            self._claims.forget(sop_instance_uid)

    def _remove_if_empty(self, folder: Path) -> None:
        """A study's folder, or an attempt's and then its case's; those directly below data_dir stay."""
        while folder.parent != self.data_dir:
            with self._making:
                self._durable_folders.discard(folder)
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    break
            folder = folder.parent
        sync_folder(folder)

    def _write_in_folder(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        self._make_folder(path.parent)
        # Another node may take up what has its name: then it is durable already.
        sync = self._sync if self._claims is None else None
        try:
            _write(path, parts, self._part, sync)
        except FileNotFoundError:
            # `remove` took the folder, which was empty, after it was looked at; or somebody else did.
            with self._making:
                self._durable_folders.discard(path.parent)
            self._make_folder(path.parent)
            _write(path, parts, self._part, sync)

    def _sync(self, descriptor: int, folder: Path) -> None:
        """A file that has its name, and its folder."""
        if not self._beside.acquire(blocking=False):
            os.fsync(descriptor)
            sync_folder(folder)
            return
        try:
            beside = self._syncs.submit(sync_folder, folder)
            os.fsync(descriptor)
            beside.result()
        finally:
            self._beside.release()

    def _make_folder(self, folder: Path) -> None:
        """A study's folder, itself durable before the first object in it is acknowledged."""
        # Without the lock, and without a look at the disk: every object of every association comes here.
        if folder in self._durable_folders:
            return
        with self._making:
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            sync_folder(folder.parent)
            self._durable_folders.add(folder)

    def _require_room(self, size_bytes: int) -> None:
        if self._free(self.data_dir) < self._min_free_bytes + size_bytes:
            raise OSError(errno.ENOSPC, "less free than [receive] min_free_gb")


def _write(
    path: Path,
    parts: Sequence[bytes | memoryview],
    suffix: str = ".part",
    sync: Callable[[int, Path], None] | None = None,
) -> None:
    """Write a file durably. Raises OSError, and then neither the file nor a part of it is left.

    sync: given the file's descriptor and its folder, when it has its name. Without it the file is whole from
    the moment it has its name, at the price of a second flush.
    """
    part = path.with_name(f"{path.name}{suffix}")
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            _write_all(descriptor, parts)
            if sync is None:
                os.fsync(descriptor)
                part.rename(path)
                sync_folder(path.parent)
            else:
                part.rename(path)
                sync(descriptor, path.parent)
        finally:
            os.close(descriptor)
    except OSError:
        # On a broken disk even this may fail; the first error is the one to report.
        for leftover in (part, path):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    for data in parts:
        for piece in pieces(memoryview(data)):
            view = piece
            while view:
                view = view[os.write(descriptor, view[:_WRITE_BYTES]) :]
