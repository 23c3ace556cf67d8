"""The bytes of a data set while it arrives: small ones in memory, large ones in a file without a name.

Twenty peers that send a SPECT or a map each would otherwise fill the memory of the listening process.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from dicomnode.reception.defects import Defect, Flawed

# A slice of 1024 x 1024 pixels of 16 bits and its header stay in memory.
_IN_MEMORY_BYTES = (1 << 21) + (1 << 18)
_PIECE_BYTES = 1 << 20


class Incoming(BytesIO):
    """Filled by the transport with `write`, read by a service with `getbuffer`.

    It never raises while it is filled: the rest of an object that cannot be kept is thrown away, and
    `flaw` says what is to be answered.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """folder: where the large ones lie; limit_bytes: above it nothing is kept."""
        super().__init__()
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._size = 0
        self._file: IO[bytes] | None = None
        self.flaw: Flawed | None = None

    def write(self, piece: bytes | memoryview) -> int:  # type: ignore[override]
        """Add a piece."""
        self._size += len(piece)
        if self.flaw is not None:
            return len(piece)
        if self._size > self._limit_bytes:
            text = f"more than {self._limit_bytes / 1e9:g} GB, [receive] max_object_gb"
            self._give_up(Flawed(Defect.TOO_LARGE, text))
        elif self._file is None and self._size <= _IN_MEMORY_BYTES:
            super().write(piece)
        else:
            self._write_to_file(piece)
        return len(piece)

    def getbuffer(self) -> memoryview:
        """Everything. Raises what is wrong with it."""
        if self.flaw is not None:
            raise self.flaw
        if self._file is None:
            return super().getbuffer()
        try:
            self._file.flush()
            return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            # The last of it was still in the buffer.
            raise Flawed(Defect.DISK_FULL, error.strerror or str(error)) from error

    def close(self) -> None:
        """Let memory and file go."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _write_to_file(self, piece: bytes | memoryview) -> None:
        try:
            if self._file is None:
                # Gone with the process, whatever ends it.
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - `close` closes it
                self._file.write(super().getvalue())
                self._empty()
            self._file.write(piece)
        except OSError as error:
            self._give_up(Flawed(Defect.DISK_FULL, error.strerror or str(error)))

    def _give_up(self, flaw: Flawed) -> None:
        self.flaw = flaw
        if self._file is not None:
            self._file.close()
            self._file = None
        self._empty()

    def _empty(self) -> None:
        super().seek(0)
        super().truncate()


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where large data sets lie while they are looked at, and how large they may become."""

    folder: Path
    limit_bytes: int

    def new(self) -> Incoming:
        """An empty data set."""
        return Incoming(self.folder, self.limit_bytes)


ANYWHERE = Scratch(Path(tempfile.gettempdir()), 4 * 10**9)


def pieces(data: memoryview) -> Iterator[memoryview]:
    """A data set from its beginning to its end; what has been read of a file does not stay in memory."""
    mapped = data.obj if isinstance(data.obj, mmap.mmap) and len(data) == len(data.obj) else None
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        yield piece
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED, start, len(piece))
