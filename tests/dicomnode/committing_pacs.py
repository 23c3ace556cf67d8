"""A PACS that is asked for storage commitment, written with pynetdicom alone. For several tests."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import N_ACTION_RSP
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicomnode.demo.standin_pacs import StandinPacs

# PS3.4 Table J.3-2, typed again.
ALL, SOME_FAILED = 1, 2


@dataclass(frozen=True)
class Asked:
    """One N-ACTION request."""

    transaction: str
    objects: tuple[tuple[str, str], ...]
    action_type: int
    instance: str


class CommittingPacs(StandinPacs):
    """Stores, takes N-ACTION requests, and reports when it is told to, or at once."""

    def __init__(self, folder: Path, ae_title: str = "PACS", **options: Any) -> None:
        self.asked: list[Asked] = []
        self.action_status = 0x0000
        self.at_once = False
        """Report over the association of the request."""
        self.before_it_answers = False
        """Report over it before the request itself is answered."""
        self.aborts = False
        self.answers_at_once: list[int | None] = []
        handlers = [(evt.EVT_N_ACTION, self._act), (evt.EVT_DIMSE_SENT, self._sent)]
        super().__init__(folder, ae_title, more=(StorageCommitmentPushModel,), handlers=handlers, **options)

    def _act(self, event: evt.Event) -> tuple[int, None]:
        ds = event.action_information
        objects = [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in ds.ReferencedSOPSequence]
        request: Any = event.request
        self.asked.append(
            Asked(
                str(ds.TransactionUID),
                tuple(objects),
                int(event.action_type or 0),
                str(request.RequestedSOPInstanceUID),
            )
        )
        if self.aborts:
            event.assoc.abort()
        elif self.before_it_answers:
            self._report_over(event.assoc)
        return self.action_status, None

    def _sent(self, event: evt.Event) -> None:
        if self.at_once and isinstance(event.message, N_ACTION_RSP):
            threading.Thread(target=self._report_over, args=(event.assoc,)).start()

    def _report_over(self, assoc: Any) -> None:
        asked = self.asked[-1]
        response, _ = assoc.send_n_event_report(
            report(asked), ALL, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.answers_at_once.append(response.get("Status"))


def report(
    asked: Asked, failed: Mapping[str, int] | None = None, names: Sequence[str] | None = None
) -> Dataset:
    """Event Information. failed: SOP Instance UID → FailureReason; names: only these are mentioned."""
    failed = failed or {}
    ds = Dataset()
    ds.TransactionUID = asked.transaction
    good, bad = [], []
    for sop_class, instance in asked.objects:
        if names is not None and instance not in names:
            continue
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        if instance in failed:
            item.FailureReason = failed[instance]
            bad.append(item)
        else:
            good.append(item)
    if good:
        ds.ReferencedSOPSequence = good
    if bad:
        ds.FailedSOPSequence = bad
    return ds


def send_report(
    port: int,
    ds: Dataset,
    event_type: int = ALL,
    calling: str = "PACS",
    instance: str = StorageCommitmentPushModelInstance,
    *,
    role: bool = True,
) -> int | None:
    """N-EVENT-REPORT over an association of the PACS's own, in the SCP role. returns: the status.

    None: the context was not accepted.
    """
    ae = AE(calling)
    ae.add_requested_context(StorageCommitmentPushModel)
    roles: list[Any] = [build_role(StorageCommitmentPushModel, scp_role=True)] if role else []
    assoc = ae.associate("127.0.0.1", port, ae_title="DICOMNODE", ext_neg=roles)
    if not assoc.is_established:
        return None
    try:
        response, _ = assoc.send_n_event_report(ds, event_type, StorageCommitmentPushModel, instance)
        return int(response.Status)
    finally:
        assoc.release()
