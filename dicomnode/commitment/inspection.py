"""May an object be committed to? It is of its class, and the disk gives back what came (PS3.4 J.3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dicomnode.commitment.message import FailureReason
from dicomnode.errors import Transient
from dicomnode.ledger.promises import OnDisk
from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.header import describe_file
from dicomnode.reception.spool_file import read_back
from dicomnode.results.writing import damage


@dataclass(frozen=True, slots=True)
class Finding:
    """Why an object is not committed to."""

    reason: FailureReason
    words: str = ""
    """What is wrong with its file, and what to do; empty where nothing is."""
    damaged: OnDisk | None = None
    """A received object whose file is not what came."""


def inspect_object(data_dir: Path, held: OnDisk | None, sop_class_uid: str) -> Finding | None:
    """Read an object's file from end to end. held: what the ledger knows of it.

    returns: None when it may be committed to. Raises Transient when nothing can be told: its folder is away.
    """
    if held is None:
        return Finding(FailureReason.NO_SUCH_OBJECT_INSTANCE)
    if held.sop_class_uid != sop_class_uid:
        return Finding(FailureReason.CLASS_INSTANCE_CONFLICT)
    path, is_result = data_dir / held.path, not held.study_instance_uid
    anew = "`dicomnode retry` its case to have it computed again" if is_result else "have it sent again"
    aside = "" if is_result else "; it goes to quarantine/ and its case is held"
    try:
        _require_result(path, held) if is_result else _require_received(path, held)
    except FileNotFoundError:
        folder = data_dir / Path(held.path).parts[0]
        if not folder.is_dir():
            raise Transient(f"{folder} is away: nothing can be committed to until it is back") from None
        words = f"its file {held.path} is gone: bring it back, or {anew}"
        return Finding(FailureReason.NO_SUCH_OBJECT_INSTANCE, words)
    except OSError as error:
        words = f"its file {held.path} cannot be read ({error.strerror or error}): check the disk"
        return Finding(FailureReason.PROCESSING_FAILURE, words)
    except Flawed as flaw:
        damaged = f"its file {held.path} is damaged ({flaw.detail or flaw.reason}){aside}"
        words = f"{damaged}: check the disk, and {anew}"
        return Finding(FailureReason.PROCESSING_FAILURE, words, None if is_result else held)
    return None


def _require_received(path: Path, held: OnDisk) -> None:
    """Raises Flawed, OSError."""
    origin = read_back(path)
    found = origin.sop_class_uid, origin.sop_instance_uid, origin.transfer_syntax_uid
    if found != (held.sop_class_uid, held.sop_instance_uid, held.transfer_syntax_uid):
        raise Flawed(Defect.CUT_SHORT, "its file meta information is of another object")


def _require_result(path: Path, held: OnDisk) -> None:
    """Whole, and the object that it should be. Raises Flawed, OSError."""
    if flaw := damage(path, held.size_bytes):
        raise Flawed(Defect.CUT_SHORT, flaw)
    try:
        header = describe_file(path, held.transfer_syntax_uid)
    except ValueError as error:
        raise Flawed(Defect.UNREADABLE, str(error)[:200]) from error
    if (header.get("SOPClassUID"), header.get("SOPInstanceUID")) != (
        held.sop_class_uid,
        held.sop_instance_uid,
    ):
        raise Flawed(Defect.SOP_INSTANCE_MISMATCH, "its header is of another object")
