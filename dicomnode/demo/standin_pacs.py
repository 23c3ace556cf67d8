"""A small PACS inside the process: for the demo and for tests, never for patients.

It answers C-ECHO and keeps every object that C-STORE brings as a file named by its SOP Instance
UID. How it misbehaves is an argument.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.transport import ThreadedAssociationServer

from dicomnode.contexts import VERIFICATION

Status = Callable[[str, str], int | None]
"""(SOP Class UID, SOP Instance UID) → DIMSE status; None aborts the association."""


def _success(_sop_class_uid: str, _sop_instance_uid: str) -> int | None:
    return 0x0000


class StandinPacs:
    """Listens on loopback from `start` to `stop`; `with` does both.

    folder: where the objects lie. port: 0 chooses a free one, kept over a stop and start.
    status: what to answer to an object. Statuses of success and warning keep it.
    sop_classes: the only storage SOP classes it accepts; None for all. more: other abstract syntaxes, which
    `handlers` answer.
    required_calling_aet: reject every other caller, as a PACS that does not know us.
    handlers: further pynetdicom event handlers, for what a test watches or breaks.
    """

    def __init__(
        self,
        folder: Path,
        ae_title: str = "STANDIN",
        *,
        port: int = 0,
        status: Status = _success,
        sop_classes: tuple[str, ...] | None = None,
        more: tuple[str, ...] = (),
        required_calling_aet: str = "",
        max_pdu: int = 131072,
        handlers: Sequence[tuple[Any, Callable[[evt.Event], Any]]] = (),
    ) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.host = "127.0.0.1"
        self.port = port
        self.status = status
        self.associations = 0
        self.received: list[str] = []
        """SOP Instance UIDs in the order of their arrival, repeats included."""
        self._sop_classes = sop_classes
        self._more = more
        self._required = required_calling_aet
        self._max_pdu = max_pdu
        self._handlers = handlers
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> StandinPacs:
        """Listen. Raises OSError when the port is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda _event: 0x0000),
            (evt.EVT_ACCEPTED, self._count),
            *self._handlers,
        ]
        server = self._entity().start_server((self.host, self.port), block=False, evt_handlers=handlers)
        assert server is not None
        self._server = server
        self.port = server.server_address[1]
        return self

    def stop(self) -> None:
        """Go down: open associations are aborted, new ones refused."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        for association in server.active_associations:
            if association.is_established:
                association.abort()

    def __enter__(self) -> StandinPacs:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def files(self) -> dict[str, Path]:
        """What it holds: SOP Instance UID → file."""
        return {path.stem: path for path in sorted(self.folder.glob("*.dcm"))}

    def forget(self) -> None:
        """Begin anew: empty, well-behaved."""
        for path in self.folder.glob("*.dcm"):
            path.unlink()
        self.received.clear()
        self.associations = 0
        self.status = _success

    def _entity(self) -> AE:
        ae = AE(self.ae_title)
        ae.maximum_pdu_size = self._max_pdu
        ae.require_called_aet = True
        ae.require_calling_aet = [self._required] if self._required else []
        ae.add_supported_context(VERIFICATION)
        uids = self._sop_classes or [str(c.abstract_syntax) for c in AllStoragePresentationContexts]
        for uid in uids:
            ae.add_supported_context(uid, AllTransferSyntaxes)
        for uid in self._more:
            ae.add_supported_context(uid)
        return ae

    def _count(self, _event: evt.Event) -> None:
        with self._lock:
            self.associations += 1

    def _store(self, event: evt.Event) -> int:
        request = cast(Any, event.request)
        uid = str(request.AffectedSOPInstanceUID)
        status = self.status(str(request.AffectedSOPClassUID), uid)
        if status is None:
            event.assoc.abort()
            return 0xC000
        if status == 0x0000 or status & 0xF000 == 0xB000:
            part = self.folder / f"{uid}.part"
            part.write_bytes(event.encoded_dataset())
            part.rename(self.folder / f"{uid}.dcm")
            with self._lock:
                self.received.append(uid)
        return status
