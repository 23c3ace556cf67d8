"""The database is away: said once, now and then that it still is, and once that it is back.

Every stage notices it at every tick; a line for each would fill the log and hide what it says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dicomnode.errors import LedgerUnavailable

log = logging.getLogger(__name__)

REMIND_EVERY_S = 600.0


class Outage:
    """Stages say how they fared. where: the database, without its password.

    probe: raises LedgerUnavailable while it does not answer. waiting: how many objects wait for it.
    """

    def __init__(
        self,
        where: str,
        probe: Callable[[], object],
        waiting: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where = where
        self._probe = probe
        self._waiting = waiting
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        self._since: float | None = None
        self._told_at = 0.0

    def failed(self, stage: str, error: LedgerUnavailable) -> None:
        """A stage could not do its work without the database."""
        now = self._monotonic()
        with self._lock:
            self._failing.add(stage)
            is_new = self._since is None
            if self._since is None:
                self._since = now
            elif now - self._told_at < REMIND_EVERY_S:
                return
            self._told_at, since = now, self._since
        if is_new:
            log.error(
                "%s (%s). Objects are received and acknowledged all the same, except those of classes that "
                "results are of (0xA701); nothing is computed, sent or removed, and queries are refused, "
                "until it is back; all of it goes on by itself then. %s",
                error.reason, self._where, error.remedy,
            )  # fmt: skip
        else:
            log.error(
                "%s (%s), for %d min now; %d received objects wait for it. %s",
                error.reason, self._where, (now - since) / 60, self._waiting(), error.remedy,
            )  # fmt: skip

    def ended_without(self, stage: str) -> None:
        """A stage had nothing to say against the database. It may not have asked it, so that we do."""
        with self._lock:
            self._failing.discard(stage)
            if self._since is None or self._failing:
                return
        try:
            self._probe()
        except LedgerUnavailable:
            return
        with self._lock:
            if self._since is None or self._failing:
                return
            lasted_s, self._since = self._monotonic() - self._since, None
        log.warning("the ledger answers again (%s), after %d s: everything goes on", self._where, lasted_s)
