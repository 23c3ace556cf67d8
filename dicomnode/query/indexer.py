"""Stage: brings into the index what came before there was one.

What is received and computed now is described on its way into the ledger. Left are the objects of a ledger
of an older version, results that nobody has described, and those of a ledger that was lost: their headers
are read here, some hundred at a tick, beside everything else.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dicomnode.ledger import Ledger
from dicomnode.ledger.index import Described
from dicomnode.reception.defects import Flawed
from dicomnode.reception.header import describe_file
from dicomnode.records import Unread

log = logging.getLogger(__name__)

# Of known objects many pass at once; of the others each is a file to open.
_LOOK_AT = 2000
_READ_AT_ONCE = 200
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


class Indexer:
    """Reads what the index lacks. One thread calls `tick`."""

    def __init__(self, ledger: Ledger, data_dir: Path) -> None:
        self._ledger = ledger
        self._data_dir = data_dir
        # The last SOP Instance UID that was looked at; None when all received objects were.
        self._after: str | None = ""
        self._added = 0

    def tick(self, now: float) -> None:
        """Some of what is left."""
        for result in self._ledger.unread_results(_READ_AT_ONCE):
            # Nothing of one that cannot be read: it is not tried again.
            self._ledger.index_result(result.sop_instance_uid, self._described(result) or {})
        if self._after is not None:
            self._after = self._received(self._after)

    def _received(self, after: str) -> str | None:
        seen = self._ledger.unread_instances(after, _LOOK_AT)
        unknown = [unread for unread in seen if not unread.known]
        some = unknown[:_READ_AT_ONCE]
        described = [found for unread in some if (found := self._described(unread)) is not None]
        if described:
            self._ledger.index_received(described)
            self._added += len(described)
        if len(unknown) > len(some):
            return some[-1].sop_instance_uid
        if len(seen) == _LOOK_AT:
            return seen[-1].sop_instance_uid
        if self._added:
            log.info("%d objects that were here before are found by queries now", self._added)
        return None

    def _described(self, unread: Unread) -> Described | None:
        try:
            found = describe_file(self._data_dir / unread.path, unread.transfer_syntax_uid)
        except (OSError, ValueError, Flawed) as error:
            log.warning("%s cannot be read for the index: %s", unread.path, error)
            return None
        if found.get("SOPInstanceUID") != unread.sop_instance_uid or not all(map(found.get, _IDENTIFIERS)):
            log.warning("%s is not indexed: it is not the object that it should be", unread.path)
            return None
        return found
