"""Whose turn it is to work, where several nodes share a ledger and a folder.

Any number of nodes receive. One of those whose [node] roles name "work" assembles, computes and delivers;
the others stand by, and one of them goes on when it ends, however it ends. Work grows by the cluster
([dose] executor), not by workers: so each decision about a case has one author.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dicomnode.ledger import Ledger
from dicomnode.lock import abandoned
from dicomnode.reception.intake import Intake

log = logging.getLogger(__name__)

# Every look asks the database; a stand-by that goes on some seconds later does no harm.
LOOK_EVERY_S = 2.0
# Locks of the other nodes, each a request to the file server.
LOOK_AFTER_EVERY_S = 10.0

Stage = Callable[[float], object]


class Work:
    """Asks for the work and keeps it; looks after nodes that were killed.

    recover: called with the time whenever the work comes to this node. let_go: when it was lost.
    """

    def __init__(
        self,
        ledger: Ledger,
        intake: Intake,
        data_dir: Path,
        recover: Callable[[float], None],
        let_go: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._intake = intake
        self._data_dir = data_dir
        self._recover = recover
        self._let_go = let_go
        self._monotonic = monotonic
        self._has_work = False
        self._certain = False
        self._next_look: float | None = None
        self._next_care: float | None = None
        self._turn = threading.Lock()

    def take(self, now: float) -> bool:
        """Ask for the work. returns: whether this node has it. Raises LedgerUnavailable."""
        with self._turn:
            try:
                has_work = self._ledger.has_work()
            except BaseException:
                # The lock went with the connection. Another node may have worked when it is back.
                self._certain = False
                raise
            if has_work and not (self._has_work and self._certain):
                self._recover(now)
                log.info("this node works: it assembles, computes and delivers")
            elif self._has_work and not has_work:
                log.warning("another node has taken the work over: this one stands by")
                # First: a stage that ticks just now would begin what is about to be let go.
                self._has_work = False
                self._let_go()
            self._has_work = self._certain = has_work
            return has_work

    def tick(self, now: float) -> None:
        """Ask again; look after what killed nodes have left."""
        monotonic = self._monotonic()
        if self._next_look is None or monotonic >= self._next_look:
            self._next_look = monotonic + LOOK_EVERY_S
            self.take(now)
        if self._has_work and (self._next_care is None or monotonic >= self._next_care):
            self._next_care = monotonic + LOOK_AFTER_EVERY_S
            self._look_after_the_killed(now)

    def of(self, stage: Stage) -> Stage:
        """A stage that does nothing where another node works."""

        @functools.wraps(stage)
        def tick(now: float) -> object:
            return stage(now) if self._has_work else None

        return tick

    def _look_after_the_killed(self, now: float) -> None:
        """Objects that a node acknowledged just before it was killed must not wait for its return."""
        with abandoned(self._data_dir) as nodes:
            if nodes:
                log.warning("%s ended without a word: what it received is registered here", ", ".join(nodes))
                self._intake.adopt(nodes, now)
