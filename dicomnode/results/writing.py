"""What every result gets: its UIDs, and a file that is whole. Nothing heavy is loaded for it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.uid import generate_uid

from dicomnode.checksum import PREAMBLE_BYTES, from_disk, pieces_of, preamble
from dicomnode.durable import sync_folder
from dicomnode.privacy import opener

UidSource = Callable[[str], str]
"""From the role of an object within its case to its UID; the same role, the same UID."""


def uid_source(root: str, *identity: str) -> UidSource:
    """UIDs that depend on nothing but `root`, `identity` and the role.

    root: ends in a dot; empty for UUID-derived UIDs under 2.25 (PS3.5 B.2).
    identity: what sets this result apart from every other, e.g. Study Instance UID, the hash of the
        inputs, the configuration's hash and the number of the run.
    """

    def uid(role: str) -> str:
        name = "\n".join((*identity, role))
        if root in ("", "2.25."):
            return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"
        return str(generate_uid(prefix=root, entropy_srcs=[name]))

    return uid


def write_durably(result: Dataset, path: Path) -> None:
    """After this returns, `path` holds the whole object even if the power fails; never half of it.

    Its preamble says of what follows how long it is, and its checksum.
    """
    encoded = BytesIO()
    dcmwrite(encoded, result, enforce_file_format=True)
    content = encoded.getbuffer()[PREAMBLE_BYTES:]
    part = path.with_suffix(".part")
    with open(part, "wb", opener=opener) as file:
        file.write(preamble([content]))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def damage(path: Path, size_bytes: int) -> str:
    """What the disk has done to a result that was written with that size; empty when nothing.

    Raises OSError where it cannot be read to its end, FileNotFoundError where it is gone.
    """
    with from_disk(path) as file:
        said, found = file.read(PREAMBLE_BYTES), preamble(pieces_of(file))
        read_bytes = file.tell()
    if read_bytes != size_bytes:
        return f"{read_bytes} bytes of {size_bytes}"
    # Those of earlier versions say nothing.
    return "its checksum is not that of its content" if said.strip(b"\0") and said != found else ""
