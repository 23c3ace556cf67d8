"""May an object be committed to? It is of its class, and the disk gives back what came (PS3.4 J.3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dicomnode.commitment.message import FailureReason
from dicomnode.errors import Transient
from dicomnode.held_files import damaged, folder_away, gone, require_whole, unreadable
from dicomnode.reception.defects import Flawed
from dicomnode.records import HeldObject


@dataclass(frozen=True, slots=True)
class Finding:
    """Why an object is not committed to."""

    reason: FailureReason
    words: str = ""
    """What is wrong with its file, and what to do; empty where nothing is."""
    damaged: HeldObject | None = None
    """A received object whose file is not what came."""


def inspect_object(data_dir: Path, held: HeldObject | None, sop_class_uid: str) -> Finding | None:
    """Read an object's file from end to end. held: what the ledger knows of it.

    returns: None when it may be committed to. Raises Transient when nothing can be told: its folder is away.
    """
    if held is None:
        return Finding(FailureReason.NO_SUCH_OBJECT_INSTANCE)
    if held.sop_class_uid != sop_class_uid:
        return Finding(FailureReason.CLASS_INSTANCE_CONFLICT)
    try:
        require_whole(data_dir / held.path, held)
    except FileNotFoundError:
        if folder := folder_away(data_dir, held.path):
            raise Transient(f"{folder} is away: nothing can be committed to until it is back") from None
        return Finding(FailureReason.NO_SUCH_OBJECT_INSTANCE, gone(held))
    except OSError as error:
        return Finding(FailureReason.PROCESSING_FAILURE, unreadable(held, error))
    except Flawed as flaw:
        words = damaged(held, flaw)
        return Finding(FailureReason.PROCESSING_FAILURE, words, None if held.is_result else held)
    return None
