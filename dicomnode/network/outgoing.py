"""What waits to be sent over an accepted association, one message after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pynetdicom.pdu_primitives import P_DATA

from dicomnode.network.messages import IDLE_S

if TYPE_CHECKING:
    from dicomnode.network.upper_layer import UpperLayer

# PDUs that wait to be sent, of at most 128 KiB each.
_WINDOW_PDUS = 8


class RingingQueue(queue.Queue[Any]):
    """A queue that wakes whoever waits for what is put into it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class Outgoing(RingingQueue):
    """For the thread that sends, from the one that serves requests or asks.

    An object of a C-GET is read no faster than the network takes it.
    """

    def __init__(self, dul: UpperLayer) -> None:
        super().__init__(dul.ring)
        self._dul = dul
        self._room = threading.Condition()
        self._in_message = False
        self._held_back: list[P_DATA] = []

    @contextmanager
    def message(self) -> Iterator[None]:
        """Put the P-DATA of one message: nothing of another comes between them (PS3.8 E.1).

        For one thread at a time, whose turn it is (`AcceptedAssociation.turn`).
        """
        with self._room:
            self._in_message = True
        try:
            yield
        finally:
            with self._room:
                self._in_message = False
                held_back, self._held_back = self._held_back, []
                for answer in held_back:
                    super().put(answer)

    def hold_back(self, answer: Callable[[], P_DATA]) -> bool:
        """An answer of the very thread that sends, which cannot wait here: it goes after the message that has
        begun, and after what waits. returns: False when there is neither, and it can be sent at once."""
        with self._room:
            if self._in_message:
                self._held_back.append(answer())
            elif self.empty():
                return False
            else:
                super().put(answer())
            return True

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, P_DATA) and threading.current_thread() is not self._dul:
            with self._room:
                while self.qsize() >= _WINDOW_PDUS and self._dul.is_alive():
                    self._room.wait(IDLE_S)
        super().put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        with self._room:
            self._room.notify()
        return item
