"""A PACS that is queried, written with pynetdicom alone. For several tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from pynetdicom.transport import ThreadedAssociationServer


@dataclass(frozen=True)
class Kept:
    """An object of the PACS."""

    study: str
    series: str
    modality: str
    sop_class: str
    uid: str


class ArchivePacs:
    """Answers C-FIND at series and image level and sends by C-GET and C-MOVE; how it misbehaves is an
    attribute."""

    def __init__(self, ae_title: str = "PACS") -> None:
        self.ae_title = ae_title
        self.kept: list[Kept] = []
        self.queries: list[tuple[str, str, str]] = []
        """(level, study, series) of every C-FIND."""
        self.asked_for: list[list[str]] = []
        """SOP Instance UIDs of every C-GET and C-MOVE."""
        self.destinations: list[str] = []
        """Of every C-MOVE."""
        self.sends_to: int | None = None
        """The port on this host to which a C-MOVE sends; None: it knows no destination."""
        self.tells_counts = True
        self.tells_classes = True
        self.knows_us = True
        """Whether it takes our associations; from its next start on."""
        self.find_status = 0x0000
        self.withholds: set[str] = set()
        """Objects that it names but cannot send."""
        self.hangs: threading.Event | None = None
        """Set by a C-GET, which then waits until `stop`."""
        self._stopped = threading.Event()
        self.port = 0
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> ArchivePacs:
        ae = AE(self.ae_title)
        ae.require_calling_aet = [] if self.knows_us else ["OTHER"]
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(
                str(context.abstract_syntax), ExplicitVRLittleEndian, scu_role=True, scp_role=True
            )
        handlers: list[Any] = [
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_GET, self._get),
            (evt.EVT_C_MOVE, self._move),
        ]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        assert server is not None
        self._server, self.port = server, server.server_address[1]
        return self

    def stop(self) -> None:
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def __enter__(self) -> ArchivePacs:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        level, study = query.QueryRetrieveLevel, str(query.StudyInstanceUID)
        series = str(query.get("SeriesInstanceUID") or "")
        self.queries.append((level, study, series))
        if self.find_status:
            yield self.find_status, None
            return
        of_study = [k for k in self.kept if k.study == study]
        if level == "SERIES":
            for uid in dict.fromkeys(k.series for k in of_study):
                objects = [k for k in of_study if k.series == uid]
                match = Dataset()
                match.QueryRetrieveLevel, match.StudyInstanceUID = level, study
                match.SeriesInstanceUID, match.Modality = uid, objects[0].modality
                if self.tells_counts:
                    match.NumberOfSeriesRelatedInstances = len(objects)
                yield 0xFF00, match
            return
        for kept in (k for k in of_study if k.series == series):
            match = Dataset()
            match.QueryRetrieveLevel, match.StudyInstanceUID = level, study
            match.SeriesInstanceUID, match.SOPInstanceUID = series, kept.uid
            if self.tells_classes:
                match.SOPClassUID = kept.sop_class
            yield 0xFF00, match

    def _wanted(self, event: evt.Event) -> list[Kept]:
        uids = event.identifier.SOPInstanceUID
        names = [str(uids)] if isinstance(uids, str) else [str(uid) for uid in uids]
        self.asked_for.append(names)
        return [k for k in self.kept if k.uid in names and k.uid not in self.withholds]

    def _get(self, event: evt.Event) -> Iterator[Any]:
        wanted = self._wanted(event)
        yield len(wanted)
        if self.hangs is not None:
            self.hangs.set()
            self._stopped.wait(30)
        for kept in wanted:
            yield 0xFF00, an_object(kept)

    def _move(self, event: evt.Event) -> Iterator[Any]:
        wanted = self._wanted(event)
        self.destinations.append(str(event.move_destination))
        if self.sends_to is None:
            yield None, None  # 0xA801, move destination unknown
            return
        classes = sorted({kept.sop_class for kept in wanted})
        contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in classes]
        yield "127.0.0.1", self.sends_to, {"contexts": contexts}
        yield len(wanted)
        for kept in wanted:
            yield 0xFF00, an_object(kept)


def an_object(kept: Kept) -> Dataset:
    """Enough of it to be sent."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = kept.sop_class, kept.uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = kept.study, kept.series, kept.modality
    ds.file_meta = Dataset()  # type: ignore[assignment]
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds
