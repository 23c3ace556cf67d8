"""Objects on disk, for a receiver that takes other transfer syntaxes than theirs.

What can be sent goes as it lies, once the disk has shown that it is what was written. Otherwise it is
decompressed or written in another uncompressed syntax, without loss and under its own UID, into a file that
lives as long as it is sent.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.errors import LedgerUnavailable
from dicomnode.held_files import SetAside, damaged, folder_away, gone, leave, require_whole, unreadable
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import inflated_bytes
from dicomnode.records import HeldObject

# Explicit VR keeps the VRs of private attributes.
FALLBACKS = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


# No object is sent for longer.
_LEFT_S = 86400.0
# Of what is converted, decoded: it lies in the memory of the process that receives. One at a time for that.
LARGEST_BYTES = 1 << 30
_turn = threading.Lock()
# For that turn: a peer that asked hears nothing meanwhile, and most give up after a minute.
TURN_WITHIN_S = 60.0


class Unsendable(Exception):
    """An object cannot be given to this receiver. The message says why."""


class Files:
    """Held objects as files to send. Every method may be called from any thread."""

    def __init__(
        self, data_dir: Path, clock: Callable[[], float] = time.time, damaged: SetAside = leave
    ) -> None:
        """clock: seconds since 1970. damaged: takes received objects that the disk has changed, so that they
        can be sent again.
        """
        self._data_dir = data_dir
        self._damaged = damaged
        self._clock = clock
        now = clock()
        self._scratch = data_dir / "cache" / "retrieve"
        # What a node that was killed left there; another that shares the folder may be at work in it.
        for left in self._scratch.glob("*"):
            with contextlib.suppress(OSError):
                if left.stat().st_mtime < now - _LEFT_S:
                    shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def fitting(self, held: HeldObject, accepted: Collection[str]) -> Iterator[Path]:
        """The object's file, in one of the accepted transfer syntaxes. Raises Unsendable."""
        path = self._data_dir / held.path
        self._require_sound(path, held)
        if held.transfer_syntax_uid in accepted:
            yield path
            return
        target = next((syntax for syntax in FALLBACKS if syntax in accepted), None)
        if target is None:
            name = UID(held.transfer_syntax_uid).name
            raise Unsendable(f"it is stored as {name}, and no presentation context was accepted for it")
        with self._converted(path, UID(target)) as converted:
            yield converted

    def _require_sound(self, path: Path, held: HeldObject) -> None:
        """Raises Unsendable."""
        try:
            require_whole(path, held)
        except FileNotFoundError:
            if folder := folder_away(self._data_dir, held.path):
                raise Unsendable(f"{folder} is away: ask for it again when that is back") from None
            raise Unsendable(gone(held)) from None
        except OSError as error:
            raise Unsendable(unreadable(held, error)) from None
        except Flawed as flaw:
            with contextlib.suppress(LedgerUnavailable):
                # Without the ledger it stays, and is found again by whoever asks next.
                if not held.is_result:
                    self._damaged({held.sop_instance_uid: path}, self._clock())
            raise Unsendable(damaged(held, flaw)) from None

    @contextmanager
    def _converted(self, path: Path, target: UID) -> Iterator[Path]:
        try:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=self._scratch)
        except OSError as error:
            raise Unsendable(f"no room to convert it: {error.strerror}") from None
        with folder as name:
            converted = Path(name) / "object.dcm"
            try:
                _convert(path, target, converted)
            except Unsendable:
                raise
            except Exception as error:
                # Decoders raise whatever they like.
                raise Unsendable(f"it cannot be converted: {type(error).__name__}: {error}") from error
            yield converted


def _convert(path: Path, target: UID, into: Path) -> None:
    source = UID(read_file_meta_info(path).TransferSyntaxUID)
    if source == ExplicitVRBigEndian:
        raise Unsendable("it is stored as Explicit VR Big Endian, and the receiver does not take that")
    if (size := _decoded_bytes(path, source)) > LARGEST_BYTES:
        raise Unsendable(
            f"of {size / 1e9:.1f} GB and more it is too large to be converted from {source.name}"
        )
    if not _turn.acquire(timeout=TURN_WITHIN_S):
        raise Unsendable(f"others were converted for more than {TURN_WITHIN_S:g} s: ask for it again later")
    try:
        _rewrite(path, source, target, into)
    finally:
        _turn.release()


def _rewrite(path: Path, source: UID, target: UID, into: Path) -> None:
    dataset = dcmread(path)
    if source.is_compressed and not source.is_deflated:
        dataset.decompress(generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = target
    dataset.save_as(into, enforce_file_format=True)


def _decoded_bytes(path: Path, source: UID) -> int:
    """What lies in memory while it is converted. A few kilobytes may stand for gigabytes."""
    if source.is_deflated:
        return inflated_bytes(path, LARGEST_BYTES)
    if not source.is_compressed:
        return path.stat().st_size
    header = dcmread(path, stop_before_pixels=True)
    frames = int(header.get("NumberOfFrames") or 1)
    pixels = header.Rows * header.Columns * header.get("SamplesPerPixel", 1) * frames
    return int(pixels * header.BitsAllocated // 8)
