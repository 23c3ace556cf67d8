"""Files of the objects that the node holds, read from the disk before anybody relies on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dicomnode.reception.defects import Defect, Flawed
from dicomnode.reception.header import describe_file
from dicomnode.reception.spool_file import read_back
from dicomnode.records import HeldObject
from dicomnode.results.writing import damage

SetAside = Callable[[Mapping[str, Path], float], None]
"""From SOP Instance UIDs and files of received objects that the disk damaged, and the time: their cases are
held."""


def leave(_paths: Mapping[str, Path], _now: float) -> None:
    """Nobody holds cases here."""


def require_whole(path: Path, held: HeldObject) -> None:
    """The disk gives back all that was written, and it is that object.

    Raises Flawed; OSError where the file cannot be read, FileNotFoundError where it is gone.
    """
    if held.is_result:
        _require_result(path, held)
    else:
        _require_received(path, held)


def folder_away(data_dir: Path, path: str) -> Path | None:
    """Of a file that is not there, data_dir's folder for its kind, where that is away too.

    A file system that is away comes back, with all that is on it: its files are not lost.
    """
    folder = data_dir / Path(path).parts[0]
    try:
        return None if folder.is_dir() else folder
    except OSError:
        return folder


def gone(held: HeldObject) -> str:
    """What became of a file that is not there, while its folder is, and what to do."""
    return f"its file {held.path} is gone: bring it back, or {how_to_have_anew(held)}"


def unreadable(held: HeldObject, error: OSError) -> str:
    """What became of a file that the disk does not give back at the moment, and what to do."""
    return f"its file {held.path} cannot be read ({error.strerror or error}): check the disk"


def how_to_have_anew(held: HeldObject) -> str:
    """What a person does about a file that is lost, as the end of a sentence."""
    return "`dicomnode retry` its case to have it computed again" if held.is_result else "have it sent again"


def damaged(held: HeldObject, flaw: Flawed) -> str:
    """What became of a file, and what to do; a received object's is set aside, and its case held."""
    aside = "" if held.is_result else "; it goes to quarantine/ and its case is held"
    return (
        f"its file {held.path} is damaged ({flaw.detail or flaw.reason}){aside}: check the disk, and "
        f"{how_to_have_anew(held)}"
    )


def _require_received(path: Path, held: HeldObject) -> None:
    origin = read_back(path)
    found = origin.sop_class_uid, origin.sop_instance_uid, origin.transfer_syntax_uid
    if found != (held.sop_class_uid, held.sop_instance_uid, held.transfer_syntax_uid):
        raise Flawed(Defect.CUT_SHORT, "its file meta information is of another object")


def _require_result(path: Path, held: HeldObject) -> None:
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
