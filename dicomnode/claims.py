"""What receivers that share one `data_dir` agree upon, by the file system alone.

::

    data_dir/shared/nodes/NAME      locked while the node NAME runs; not empty: it has not ended well
    data_dir/shared/claims/NNN      locked while an object whose UID falls there is stored or removed
    data_dir/shared/studies/NN/UID  a symbolic link whose text is the Study Instance UID it was stored under

Locks are flock(2): the kernel, or the file server (NFS 4, SMB 3), takes them back when their holder ends,
however it ends. A receiver acknowledges what is on the disk without asking the database; so the
database cannot be where they agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from dicomnode.privacy import FILE_MODE, FOLDER_MODE

SHARED = "shared"
# So many objects are stored at a time on all receivers; two that fall on one lock wait for each other.
_LOCKS = 1024
_COMPLETE = ".complete"


class Claims:
    """Locks on objects, and where they were stored. Every method may be called from any thread."""

    def __init__(self, data_dir: Path) -> None:
        self._claims = data_dir / SHARED / "claims"
        self._studies = data_dir / SHARED / "studies"
        for folder in (self._claims, self._studies):
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # The threads of one process share a lock: among themselves they hold objects by name.
        self._turns = [threading.Lock() for _ in range(_LOCKS)]
        self._held: dict[int, tuple[int, int]] = {}

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep other processes from what has this name. Raises OSError where the folder is out of reach."""
        number = zlib.crc32(name.encode()) % _LOCKS
        self._take(number)
        try:
            yield
        finally:
            self._give_back(number)

    def _take(self, number: int) -> None:
        with self._turns[number]:
            descriptor, holders = self._held.get(number, (-1, 0))
            if holders == 0:
                path = self._claims / f"{number:03x}"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                except BaseException:
                    os.close(descriptor)
                    raise
            self._held[number] = descriptor, holders + 1

    def _give_back(self, number: int) -> None:
        with self._turns[number]:
            descriptor, holders = self._held[number]
            if holders > 1:
                self._held[number] = descriptor, holders - 1
                return
            del self._held[number]
            os.close(descriptor)

    # ── where an object was stored ───────────────────────────────────────────────────────────────

    def study_of(self, sop_instance_uid: str) -> str | None:
        """The study that an object was stored under; it may have been removed since. Hold it meanwhile."""
        try:
            return str(self._link(sop_instance_uid).readlink())
        except FileNotFoundError:
            return None

    def remember(self, sop_instance_uid: str, study_instance_uid: str) -> None:
        """Before the object gets its name. Hold it meanwhile."""
        link = self._link(sop_instance_uid)
        link.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        try:
            link.symlink_to(study_instance_uid)
        except FileExistsError:
            if str(link.readlink()) != study_instance_uid:
                link.unlink()
                link.symlink_to(study_instance_uid)

    def forget(self, sop_instance_uid: str) -> None:
        """The object is removed."""
        self._link(sop_instance_uid).unlink(missing_ok=True)

    def is_complete(self) -> bool:
        """Whether every object of the spool is known here: not before the first start with a name."""
        return (self._studies / _COMPLETE).exists()

    def complete(self) -> None:
        """Everything that lies in the spool was told."""
        (self._studies / _COMPLETE).touch(mode=FILE_MODE)

    def _link(self, sop_instance_uid: str) -> Path:
        # The last two digits: those of one study differ there.
        return self._studies / f"{sop_instance_uid.replace('.', '')[-2:]:0>2}" / sop_instance_uid


def leave_alone(data_dir: Path) -> None:
    """A node that has `data_dir` to itself writes no links: what is there is not complete any more."""
    (data_dir / SHARED / "studies" / _COMPLETE).unlink(missing_ok=True)
