"""Length and checksum of a file's content, in the preamble of the file (PS3.10 7.1: free for any use).

A disk that turns one bit makes another dose, and no one would see it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

PREAMBLE_BYTES = 128
_READ_BYTES = 1 << 20


def preamble(content: Iterable[bytes | memoryview]) -> bytes:
    """What the preamble says of a content, which comes in pieces."""
    checksum = length = 0
    for piece in content:
        checksum, length = zlib.crc32(piece, checksum), length + len(piece)
    text = f"dicomnode {length} bytes, CRC-32 {checksum:08x}\n"
    return text.encode().ljust(PREAMBLE_BYTES, b"\0")


def from_disk(path: Path) -> FileIO:
    """A file to be read from the disk itself: not from the system's memory of what was written."""
    file = FileIO(path)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return file


def pieces_of(file: BinaryIO | FileIO) -> Iterator[bytes]:
    """What is left of a file, piece by piece."""
    return iter(lambda: file.read(_READ_BYTES), b"")
