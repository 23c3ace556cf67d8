"""What a clock that is set does to the time that has passed.

Moments are told by the clock of the wall: people read them, and they outlive the process. It may be set
by hours while the node runs; what was written before it was set ahead then looks old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

# Less is what synchronising clocks do all the time.
_JUMP_S = 1.0


def running(now: float, monotonic: Callable[[], float]) -> Callable[[], float]:
    """A clock that shows `now` at this moment and goes on by one that nobody sets."""
    started = monotonic()
    return lambda: now + monotonic() - started


class Jumps:
    """Notices that the clock was set ahead.

    steady: seconds of a clock that nobody sets; None: a test's, which has one clock for everything.
    """

    def __init__(self, steady: Callable[[], float] | None = time.monotonic) -> None:
        self._steady = steady
        self._offset: float | None = None
        self._ahead_s = 0.0
        self._turn = threading.Lock()

    def tick(self, now: float) -> None:
        """Look at the clock: one that is not looked at before it is set cannot be seen to be set."""
        self.ahead_s(now)

    def steady(self, now: float) -> float:
        """For what lasts while the node runs."""
        return now if self._steady is None else self._steady()

    def ahead_s(self, now: float) -> float:
        """How far the clock was set ahead since this was first asked: ages may be too high by so much."""
        with self._turn:
            offset = now - self.steady(now)
            jump_s = 0.0 if self._offset is None else offset - self._offset
            self._offset = offset
            if abs(jump_s) > _JUMP_S:
                log.warning("the clock was set %s by %.0f s", "ahead" if jump_s > 0 else "back", abs(jump_s))
                self._ahead_s += max(0.0, jump_s)
            return self._ahead_s
