"""Stage: brings into the index what came before there was one.

What is received and computed now is described on its way into the ledger. Left are the objects of a ledger
of an older version, results that nobody has described, and those of a ledger that was lost: their headers
are read here, some hundred at a tick, beside everything else. While their folder is away, on a share, nothing
of it is read, and a file that cannot be reached is tried again: both with pauses that double, and nothing is
stored of it. A file that has gone from a folder that is there is passed over until the next start, as is an
object that the database refuses.

An older version's index lacks the keys that were added since: of each of its series one object is read again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dicomnode.errors import RowRefused
from dicomnode.held_files import folder_away
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
# More of them are not kept in memory: they are looked at again at the next start.
_MOST_MISSED = 2000
# After that, about three hours, a file is looked at again at the next start.
_MOST_TRIES = 8
_RESULTS, _RECEIVED = True, False
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


class _AwayError(Exception):
    """A folder of data_dir is not there, so nothing is known of the files in it."""


class Indexer:
    """Reads what the index lacks. One thread calls `tick`."""

    def __init__(self, ledger: Ledger, data_dir: Path) -> None:
        self._ledger = ledger
        self._data_dir = data_dir
        # The last SOP Instance UID that was looked at; None when all received objects were.
        self._after: str | None = ""
        self._after_result = 0
        # The last series of an older version that was looked at; no entry when all of the kind were.
        self._after_series = {_RESULTS: 0, _RECEIVED: 0}
        self._added = 0
        self._missed: dict[str, _Missed] = {}
        self._beyond = 0
        # Of the kinds whose folder is away: how often that was seen, and when to look again.
        self._away: dict[bool, tuple[int, float]] = {}

    def tick(self, now: float) -> None:
        """Some of what is left."""
        self._look(_RESULTS, now)
        self._look(_RECEIVED, now)
        if self._beyond and self._after is None:
            log.warning(
                "%d more files cannot be reached and are not indexed before the next start", self._beyond
            )
            self._beyond = 0

    def _look(self, is_result: bool, now: float) -> None:
        """At one of the two kinds; each lies in a folder of its own, which may be away."""
        times, until = self._away.get(is_result, (0, 0.0))
        if lasts(until, now, _PAUSES.max_retry_s):
            return
        try:
            self._try_again(is_result, now)
            if is_result:
                self._results(now)
            elif self._after is not None:
                self._after = self._received(self._after, now)
            self._again(is_result)
        except _AwayError as away:
            if not times:
                log.warning("%s is away: nothing of it is read for the index until it is back", away)
            self._away[is_result] = (times + 1, now + backoff_s(times + 1, _PAUSES))
        else:
            self._away.pop(is_result, None)

    def _results(self, now: float) -> None:
        for result in self._ledger.unread_results(_READ_AT_ONCE, self._after_result):
            self._result(result, now)
            self._after_result = result.number

    def _again(self, is_result: bool) -> None:
        """One object of each series that an older version described, which knew of fewer keys."""
        after = self._after_series.get(is_result)
        if after is None:
            return
        outdated = self._ledger.outdated_series(is_result, after, _READ_AT_ONCE)
        for unread in outdated:
            found = self._read_again(unread)
            try:
                if found:
                    self._ledger.index_again(unread.number, found, is_result=is_result)
            except RowRefused as error:
                _pass_over(unread.sop_instance_uid, error)
            self._after_series[is_result] = unread.number
        if len(outdated) < _READ_AT_ONCE:
            del self._after_series[is_result]

    def _read_again(self, unread: Unread) -> Described:
        """returns: nothing of what cannot be read; the next start tries again. Raises _AwayError."""
        try:
            return self._described(unread)
        except OSError as error:
            self._see_folder(unread, error)
            log.warning("%s cannot be read again for the index before the next start: %s", unread.path, error)
            return {}

    def _see_folder(self, unread: Unread, error: OSError) -> None:
        if folder := folder_away(self._data_dir, unread.path):
            raise _AwayError(folder) from error

    def _try_again(self, is_result: bool, now: float) -> None:
        """What could not be reached; those that have waited longest."""
        mine = (missed for missed in self._missed.values() if missed.is_result is is_result)
        due = (missed for missed in mine if not lasts(missed.next_at, now, _PAUSES.max_retry_s))
        for missed in list(islice(due, _READ_AT_ONCE)):
            if missed.is_result:
                self._result(missed.unread, now)
            else:
                self._add([missed.unread], now)

    def _result(self, result: Unread, now: float) -> None:
        found = self._reached(result, now, is_result=True)
        if found is None:
            return
        try:
            # Nothing of one that cannot be understood: it is not tried again.
            self._ledger.index_result(result.sop_instance_uid, found)
        except RowRefused as error:
            _pass_over(result.sop_instance_uid, error)
        self._missed.pop(result.sop_instance_uid, None)

    def _add(self, received: list[Unread], now: float) -> None:
        found = {unread.sop_instance_uid: self._reached(unread, now) for unread in received}
        described = [one for one in found.values() if one]
        if described:
            self._index(described)
        for uid, one in found.items():
            if one is not None:
                self._missed.pop(uid, None)

    def _index(self, described: list[Described]) -> None:
        """Together, or one by one when the database refuses one of them."""
        try:
            self._ledger.index_received(described)
            self._added += len(described)
        except RowRefused as error:
            if len(described) == 1:
                _pass_over(described[0]["SOPInstanceUID"], error)
                return
            for one in described:
                self._index([one])

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
        """As `_described`. returns: None of a file that could not be reached. Raises _AwayError."""
        try:
            return self._described(unread)
        except OSError as error:
            self._see_folder(unread, error)
            if isinstance(error, FileNotFoundError):
                log.warning("%s is not indexed: it is not there", unread.path)
                self._missed.pop(unread.sop_instance_uid, None)
            else:
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
        if before is None and len(self._missed) >= _MOST_MISSED:
            self._beyond += 1
            return
        if before is None:
            log.warning("%s cannot be reached for the index and is tried again: %s", unread.path, error)
        next_at = now + backoff_s(tries, _PAUSES)
        self._missed[unread.sop_instance_uid] = _Missed(unread, is_result, tries, next_at)


def _pass_over(sop_instance_uid: str, error: RowRefused) -> None:
    log.error("%s is found by no query before the next start: %s", sop_instance_uid, error)
