"""Kernels kept on disk between processes, each under the hash of what it was made from.

A file is an array in NumPy's format, followed by the SHA-256 of all the bytes before it. It is written
beside its place and moved there whole, so that a reader never meets a half-written one. One that was
damaged since, or that is not what its name says, is made again. When there are more than `FILES_KEPT`,
those that were not used for the longest time go.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

logger = logging.getLogger(__name__)

# A kernel takes some megabytes: 200-500 MB in all.
FILES_KEPT = 64
SUFFIX = ".kernel"
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class KernelCache:
    """A folder of kernels; None keeps nothing. It is made when the first kernel is written."""

    folder: Path | None = None

    def array(self, description: str, make: Callable[[], Float32]) -> Float32:
        """The array of that description, read or made; not to be written to.

        description: all that the array depends on, the version of the method included.
        A folder that cannot be written to is logged and costs time, nothing else.
        """
        if self.folder is None:
            return make()
        path = self.folder / (hashlib.sha256(description.encode()).hexdigest() + SUFFIX)
        found = _read(path)
        if found is not None:
            return found
        made = make()
        try:
            _write(path, made)
            _drop_oldest(self.folder)
        except OSError as error:
            logger.warning("the kernel was not kept in %s: %s", self.folder, error)
        return made


NOT_KEPT = KernelCache(None)


def _read(path: Path) -> Float32 | None:
    try:
        mapped = np.memmap(path, np.uint8, mode="r")
        content, digest = mapped[:-DIGEST_BYTES], mapped[-DIGEST_BYTES:]
        if hashlib.sha256(content.data).digest() != digest.tobytes():
            raise ValueError("its checksum is wrong")
        array: Float32 = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the kernel %s is damaged (%s): made again", path.name, error)
        return None
    with suppress(OSError):
        os.utime(path)  # used now: the last to go
    return array


def _write(path: Path, array: Float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = io.BytesIO()
    np.save(stored, np.ascontiguousarray(array), allow_pickle=False)
    content = stored.getbuffer()
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def _drop_oldest(folder: Path) -> None:
    def used(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except FileNotFoundError:  # another process drops as well
            return 0.0

    for path in sorted(folder.glob("*" + SUFFIX), key=used, reverse=True)[FILES_KEPT:]:
        path.unlink(missing_ok=True)
