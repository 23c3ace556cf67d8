"""Stage: brings into the index what came before there was one.

What is received and computed now is described on its way into the ledger. Left are the objects of a ledger
of an older version, results that nobody has described, and those of a ledger that was lost: their headers
are read here, some hundred at a tick, beside everything else. A file that cannot be reached may lie on a
share that is away for a moment: it is tried again, with pauses that double, and nothing is stored of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from dicomnode.ledger import Ledger
from dicomnode.ledger.index import Described
from dicomnode.patience import backoff_s, lasts
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import describe_file
from dicomnode.records import Unread

log = logging.getLogger(__name__)

# Of known objects many pass at once; of the others each is a file to open.
_LOOK_AT = 2000
_READ_AT_ONCE = 200
# A share that is away fails them all: nothing more is read until some of these can be.
_MOST_MISSED = 200
# After that, about three hours, a file is looked at again at the next start.
_MOST_TRIES = 8
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@dataclass(frozen=True, slots=True)
class _Pauses:
    """Between two looks at files that could not be reached."""

    first_retry_s: float = 60.0
    max_retry_s: float = 3600.0


_PAUSES = _Pauses()


@dataclass(frozen=True, slots=True)
class _Missed:
    """A file that could not be reached."""

    unread: Unread
    is_result: bool
    tries: int
    next_at: float


class Indexer:
    """Reads what the index lacks. One thread calls `tick`."""

    def __init__(self, ledger: Ledger, data_dir: Path) -> None:
        self._ledger = ledger
        self._data_dir = data_dir
        # The last SOP Instance UID that was looked at; None when all received objects were.
        self._after: str | None = ""
        self._after_result = 0
        self._added = 0
        self._missed: dict[str, _Missed] = {}

    def tick(self, now: float) -> None:
        """Some of what is left."""
        self._try_again(now)
        if len(self._missed) >= _MOST_MISSED:
            return
        for result in self._ledger.unread_results(_READ_AT_ONCE, self._after_result):
            self._result(result, now)
            self._after_result = result.number
        if self._after is not None:
            self._after = self._received(self._after, now)

    def _try_again(self, now: float) -> None:
        """What could not be reached, one by one: they are few."""
        for missed in list(self._missed.values()):
            if lasts(missed.next_at, now, _PAUSES.max_retry_s):
                continue
            if missed.is_result:
                self._result(missed.unread, now)
            else:
                self._add([missed.unread], now)

    def _result(self, result: Unread, now: float) -> None:
        found = self._reached(result, now, is_result=True)
        if found is not None:
            # Nothing of one that cannot be understood: it is not tried again.
            self._ledger.index_result(result.sop_instance_uid, found)
            self._missed.pop(result.sop_instance_uid, None)

    def _add(self, received: list[Unread], now: float) -> None:
        found = {unread.sop_instance_uid: self._reached(unread, now) for unread in received}
        described = [one for one in found.values() if one]
        if described:
            self._ledger.index_received(described)
            self._added += len(described)
        for uid, one in found.items():
            if one is not None:
                self._missed.pop(uid, None)

    def _received(self, after: str, now: float) -> str | None:
        seen = self._ledger.unread_instances(after, _LOOK_AT)
        unknown = [unread for unread in seen if not unread.known]
        some = unknown[:_READ_AT_ONCE]
        self._add(some, now)
        if len(unknown) > len(some):
            return some[-1].sop_instance_uid
        if len(seen) == _LOOK_AT:
            return seen[-1].sop_instance_uid
        if self._added:
            log.info("%d objects that were here before are found by queries now", self._added)
        return None

    def _reached(self, unread: Unread, now: float, *, is_result: bool = False) -> Described | None:
        """As `_described`. returns: None of a file that could not be reached; it is among the missed then."""
        try:
            return self._described(unread)
        except OSError as error:
            self._miss(unread, is_result, error, now)
            return None

    def _described(self, unread: Unread) -> Described:
        """returns: nothing of what cannot be understood. Raises OSError."""
        try:
            found = describe_file(self._data_dir / unread.path, unread.transfer_syntax_uid)
        except (ValueError, Flawed) as error:
            log.warning("%s cannot be read for the index: %s", unread.path, error)
            return {}
        if found.get("SOPInstanceUID") != unread.sop_instance_uid or not all(map(found.get, _IDENTIFIERS)):
            log.warning("%s is not indexed: it is not the object that it should be", unread.path)
            return {}
        return found

    def _miss(self, unread: Unread, is_result: bool, error: OSError, now: float) -> None:
        before = self._missed.pop(unread.sop_instance_uid, None)
        tries = 1 if before is None else before.tries + 1
        if tries > _MOST_TRIES:
            log.warning("%s is not indexed before the next start: %s", unread.path, error)
            return
        if before is None:
            log.warning("%s cannot be reached for the index and is tried again: %s", unread.path, error)
        next_at = now + backoff_s(tries, _PAUSES)
        self._missed[unread.sop_instance_uid] = _Missed(unread, is_result, tries, next_at)
