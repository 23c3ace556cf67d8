"""Where numba keeps the machine code that it compiles.

Where it can write nowhere, it refuses to compile at all: with software and home that are read-only (a
hardened service, a container) not even a kernel could be integrated. So a place is always found.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
_BESIDE_THE_SOFTWARE = Path(__file__).parents[2] / "pipeline" / "__pycache__"

log = logging.getLogger(__name__)


def folder_for_service(data_dir: Path) -> Path:
    """What the environment names, else below `data_dir`: beside the software a service may not write."""
    named = _named()
    return named if named is not None else _below(data_dir)


def find_place(data_dir: Path) -> None:
    """For a command that a person gives, before anything that numba compiles is imported.

    The environment's folder; beside the software, which is numba's own choice; below `data_dir`; the
    account's cache; and where none of these can be written, a folder that goes when the command ends.
    """
    if _named() is not None or (VARIABLE not in os.environ and _writable(_BESIDE_THE_SOFTWARE)):
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    found = [_below(data_dir)] if data_dir.is_dir() else []
    folder = next((f for f in (*found, cache / "dicomnode" / "numba") if _writable(f)), None)
    if folder is None:
        # Of a name that nobody can guess: numba runs what lies there.
        folder = Path(tempfile.mkdtemp(prefix="dicomnode-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[VARIABLE] = str(folder)


def _named() -> Path | None:
    """The folder that the environment names, if it can be written to."""
    named = os.environ.get(VARIABLE)
    if not named or _writable(Path(named)):
        return Path(named) if named else None
    log.warning("%s %s cannot be written: compiled code goes elsewhere", VARIABLE, named)
    return None


def _below(data_dir: Path) -> Path:
    return data_dir / "cache" / "numba"


def _writable(folder: Path) -> bool:
    """It is made if need be. Tried, not asked for: a right says nothing of a read-only file system."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
