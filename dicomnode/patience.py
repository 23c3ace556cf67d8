"""How long to wait after failures: pauses that double, and destinations that rest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)


class Pauses(Protocol):
    """Settings of what is tried again."""

    @property
    def first_retry_s(self) -> float:
        """The pause after the first failure; it doubles each time."""
        ...

    @property
    def max_retry_s(self) -> float:
        """The longest pause."""
        ...


def backoff_s(failures: int, settings: Pauses, jitter: float = 0.0) -> float:
    """The pause after so many failures in a row: first_retry_s, doubled each time, to max_retry_s.

    jitter: 0 to 1; up to a tenth is added.
    """
    # The exponent is bounded, so that years of failures do not overflow.
    pause_s = min(settings.first_retry_s * 2.0 ** min(failures - 1, 60), settings.max_retry_s)
    return pause_s * (1 + 0.1 * jitter)


def spread(case_id: int) -> float:
    """A jitter in [0, 1) that differs from case to case: multiples of the golden ratio."""
    return case_id * 0.6180339887498949 % 1.0


def lasts(until: float, now: float, longest_s: float) -> bool:
    """Whether a pause lasts. One longer than any that is ever set is a clock that was set back."""
    return 0 < until - now <= 1.1 * longest_s


@dataclass(frozen=True, slots=True)
class _Rest:
    """A destination that failed and is left alone for a while."""

    until: float
    failures: int
    reason: str
    remedy: str


class Resting:
    """The peers that take nothing at the moment: each is left alone by all cases, for pauses that double."""

    def __init__(self, settings: Pauses) -> None:
        self._settings = settings
        self._resting: dict[str, _Rest] = {}

    def rests(self, peer: str, now: float) -> bool:
        """Whether it is to be left alone."""
        rest = self._resting.get(peer)
        return rest is not None and lasts(rest.until, now, self._settings.max_retry_s)

    def reason(self, peer: str) -> str | None:
        """Why it was last put to rest; None when it answered since."""
        rest = self._resting.get(peer)
        return None if rest is None else rest.reason

    def remedy(self, peer: str) -> str:
        """What a person can do about it; empty where nothing is known."""
        rest = self._resting.get(peer)
        return "" if rest is None else rest.remedy

    def rest(self, peer: str, reason: str, now: float, waiting: str = "", remedy: str = "") -> None:
        """It failed: leave it alone, longer each time.

        waiting: who waits, for the end of the log's line. remedy: follows it where the reason is new.
        """
        before = self._resting.get(peer)
        failures = 1 if before is None else before.failures + 1
        pause_s = backoff_s(failures, self._settings)
        self._resting[peer] = _Rest(now + pause_s, failures, reason, remedy)
        is_known = before is not None and before.reason == reason
        told = f". {remedy}" if remedy and not is_known else ""
        log.warning("%s; tried again in %.0f s%s%s", reason, pause_s, waiting, told)

    def wake(self, peer: str) -> None:
        """It answered."""
        self._resting.pop(peer, None)
