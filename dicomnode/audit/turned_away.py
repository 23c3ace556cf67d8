"""Associations for which there was no room, counted: one message for each address and minute.

A peer that calls again and again would otherwise drown every other message of the audit trail.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicomnode.audit.trail import Party

TOLD_EVERY_S = 60.0


@dataclass(slots=True)
class _Counted:
    """Those of an address since a message told of one."""

    party: Party
    reason: str
    told_at: float
    count: int = 0


class TurnedAway:
    """By address. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: dict[str, _Counted] = {}

    def is_first(self, party: Party, reason: str, now: float) -> bool:
        """Whether to tell of it at once; else it is counted. `over` comes before."""
        with self._lock:
            earlier = self._counted.get(party.address)
            if earlier is None:
                self._counted[party.address] = _Counted(party, reason, now)
                return True
            earlier.party, earlier.reason, earlier.count = party, reason, earlier.count + 1
            return False

    def over(self, now: float) -> list[tuple[Party, str]]:
        """The last of each address whose minute is over, and how many they were."""
        with self._lock:
            ended = [a for a, one in self._counted.items() if not 0 <= now - one.told_at < TOLD_EVERY_S]
            counted = [self._counted.pop(address) for address in ended]
        return [(one.party, f"{one.reason}; {one.count} times since") for one in counted if one.count]
