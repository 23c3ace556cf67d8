"""PACS that is down, silent, full, rejecting or that hangs up in the middle of an object."""

from __future__ import annotations

import contextlib
import random
import socket
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.states import State
from tests.acceptance.harness import PACS_AE, Gate
from tests.chaos.episode import Episode, Outcome

if TYPE_CHECKING:
    from tests.chaos.site import Site

# A-ASSOCIATE-RJ (PS3.8 9.3.4): transient, by the service provider, local limit exceeded; permanent, by the
# service user, calling AE title not recognized.
_REJECTION = bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 2))
_REJECTION_FOR_GOOD = bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3))
# All results of a case of tests/small_study.py, with what goes with them over the wire.
_RESULTS_BYTES = 280_000
# Within it the outage begins, from the moment when the modality begins to send: before there are results.
_LATEST_S = 2.0
# How long it lasts after the case has come to it.
_LONGEST_S = 4.0


class Outage(StrEnum):
    """How a PACS is out."""

    REFUSED = "connection refused"
    HANGS_UP = "hangs up"
    SILENT = "takes the connection and is silent"
    REJECTS = "rejects associations"
    KNOWS_US_NOT = "rejects associations for good"
    FULL = "refuses for lack of space (0xA700)"
    STALLS = "falls silent in an object"
    KILLED = "Orthanc killed"


class FaultyGate(Gate):
    """A relay before a PACS that can be out in several ways."""

    def __init__(self, port: int) -> None:
        self._outage: Outage | None = None
        self._open: list[socket.socket] = []
        self._full: StandinPacs | None = None
        self._healthy = port
        super().__init__(port)

    def fail(self, outage: Outage, after_bytes: int = 0) -> None:
        """Be out from now on, connections that are open included."""
        if outage is Outage.STALLS:
            self.shut_after(after_bytes)
        self._outage = outage
        if outage is Outage.FULL:
            # It keeps nothing, and needs no room for it.
            folder = Path(tempfile.gettempdir())
            self._full = StandinPacs(folder, PACS_AE, status=lambda _sop_class, _uid: 0xA700).start()
            self._peer = self._full.port
        if outage is Outage.REFUSED:
            # Closed alone, it would go on listening as long as a thread waits in `accept`.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        if outage not in (Outage.SILENT, Outage.STALLS):
            self.hang_up()
        elif outage is Outage.SILENT:
            self.shut_after(0)

    def recover(self) -> None:
        """Be there again."""
        if self._outage is Outage.REFUSED:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._start()
        if self._full is not None:
            self._peer = self._healthy
            self._full.stop()
            self._full = None
        if self._outage in (Outage.SILENT, Outage.STALLS):
            self.hang_up()
        self._outage = None
        self.open()

    def hang_up(self) -> None:
        """End every connection."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _takes(self, caller: socket.socket) -> bool:
        self._open.append(caller)
        if self._outage in (Outage.REJECTS, Outage.KNOWS_US_NOT):
            with contextlib.suppress(OSError):
                caller.recv(65536)
                caller.sendall(_REJECTION if self._outage is Outage.REJECTS else _REJECTION_FOR_GOOD)
        if self._outage in (Outage.REJECTS, Outage.KNOWS_US_NOT, Outage.HANGS_UP, Outage.KILLED):
            caller.close()
            return False
        return True


def outage(site: Site, episode: Episode) -> Outcome:
    """One study while PACS goes away at some moment and comes back."""
    dice = random.Random(episode.seed)
    how = dice.choice(list(Outage))
    modality = site.modality(site.study(episode.name)).start()
    outcome = Outcome(episode, f"{how}", (modality,))
    time.sleep(dice.uniform(0, _LATEST_S))
    if how is Outage.KILLED:
        site.kill_pacs()
    site.gate.fail(how, dice.randrange(_RESULTS_BYTES))
    case = site.node.reaches(modality.study_uid, *State)
    too_late = case.state in (State.SENDING, State.DONE)
    site.node.reaches(modality.study_uid, State.SENDING, State.DONE)
    time.sleep(dice.uniform(0, _LONGEST_S))
    case = site.node.reaches(modality.study_uid, *State)
    if case.state is State.DONE and not too_late:
        outcome.findings.append(f"{modality.study_uid}: DONE while PACS was out")
    began = time.monotonic()
    if how is Outage.KILLED:
        site.orthanc.start()
    site.gate.recover()
    outcome.drain(site, began)
    return outcome
