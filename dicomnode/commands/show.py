"""What `dicomnode cases` and `dicomnode show` print: the ledger for people."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from dicomnode.ledger import Ledger
from dicomnode.records import Case, Commitment, Delivery
from dicomnode.retention import Planned
from dicomnode.states import State

COLOURS = {
    State.DONE: "green",
    State.HELD: "yellow",
    State.FAILED: "red",
    State.COMPUTING: "cyan",
    State.SENDING: "cyan",
}


def case_list(cases: Sequence[Case]) -> Table:
    """One line a case."""
    table = Table("case", "state", "since", "patient ID", "accession", "nuclide", "reason", box=None)
    for case in cases:
        identity = case.identity
        table.add_row(
            str(case.id),
            _state(case.state),
            _at(case.updated_at),
            Text(identity.patient_id),
            Text(identity.accession_number),
            identity.nuclide,
            Text(case.reason),
        )
    return table


def removal_list(planned: Sequence[Planned], *, dry_run: bool) -> RenderableType:
    """What is due to be removed, or was."""
    if not planned:
        return Text("nothing is due")
    table = Table("what", "case", "since", "objects", "MB", "why", box=None)
    for item in planned:
        case, since = (
            ("", "") if item.holding is None else (str(item.holding.case_id), _at(item.holding.since))
        )
        table.add_row(
            item.what, case, since, str(item.objects), f"{item.size_bytes / 1e6:.1f}", Text(item.why)
        )
    size_gb = sum(item.size_bytes for item in planned) / 1e9
    return Group(table, Text(f"{size_gb:.2f} GB {'would be' if dry_run else 'were'} removed"))


def case_story(ledger: Ledger, case: Case) -> RenderableType:
    """Everything that happened to a case, and what a person has to do now."""
    parts: list[RenderableType] = [_head(ledger, case)]
    if case.reason and case.state in (State.HELD, State.FAILED):
        parts.append(Text(f"\nreason: {case.reason}", style="bold"))
        parts.append(Text(f"remedy: {case.remedy or 'see the log'}", style="bold"))
    parts += [Text("\nseries"), _series(ledger, case), Text("\nstory"), _story(ledger, case)]
    attempts = _attempts(ledger, case)
    if attempts.row_count:
        parts += [Text("\nattempts"), attempts]
    enquiries = _enquiries(ledger, case)
    if enquiries.row_count:
        parts += [Text("\nasked of PACS"), enquiries]
    parts += _quarantined(ledger, case)
    parts += _results(ledger, case)
    return Group(*parts)


def _head(ledger: Ledger, case: Case) -> Table:
    identity = case.identity
    activity = identity.administered_activity_bq
    rows = {
        "case": str(case.id),
        "state": str(case.state),
        "Study Instance UID": case.study_instance_uid,
        "patient ID": _patient(identity.patient_id, identity.issuer_of_patient_id),
        "accession": identity.accession_number,
        "nuclide": identity.nuclide,
        "administered": ""
        if activity is None
        else f"{activity / 1e6:.1f} MBq, {_at(identity.administered_at)}",
        "inputs removed": _at(case.inputs_removed_at),
        "rejects": f"what it replaces, for reasons of {case.rejection_reason.replace('_', ' ')}"
        if case.rejection_reason
        else "",
        "now": case.reason if case.state is State.SENDING else "",
        "to do": case.remedy if case.state is State.SENDING else "",
        "next attempt": _at(case.next_attempt_at) if case.next_attempt_at else "",
    }
    table = Table("", _whole(""), show_header=False, box=None)
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value))
    return table


def _series(ledger: Ledger, case: Case) -> Table:
    """What was received and is used; `discard` takes a UID from here."""
    counts = Counter(
        (i.modality, i.series_instance_uid, i.patient_id, i.issuer_of_patient_id, i.peer)
        for i in ledger.instances(case.id)
    )
    table = Table("modality", "objects", _whole("Series Instance UID"), "patient ID", "from", box=None)
    for (modality, uid, patient_id, issuer, peer), count in sorted(counts.items()):
        table.add_row(modality, str(count), uid, Text(_patient(patient_id, issuer)), peer)
    here = {uid for _, uid, *_ in counts}
    for removed in ledger.removed_series(case.id):
        if removed.series_instance_uid not in here:
            aside = ", was set aside" if removed.discarded else ""
            text = f"{removed.objects} removed {_at(removed.removed_at)}{aside}"
            table.add_row(removed.modality, Text(text, style="dim"), removed.series_instance_uid, "", "")
    return table


def _patient(patient_id: str, issuer: str) -> str:
    return patient_id + (f" (issuer {issuer})" if issuer else "")


def _story(ledger: Ledger, case: Case) -> Table:
    table = Table("time", "from", "event", "to", "reason", "remedy", box=None)
    for step in ledger.story(case.id):
        from_state = "" if step.from_state is None else _state(step.from_state)
        table.add_row(
            _at(step.at),
            from_state,
            str(step.event),
            _state(step.to_state),
            Text(step.reason),
            Text(step.remedy),
        )
    return table


def _attempts(ledger: Ledger, case: Case) -> Table:
    table = Table("attempt", "stage", "began", "took", "outcome", "detail", box=None)
    for attempt in ledger.attempts(case.id):
        took = "" if attempt.ended_at is None else f"{attempt.ended_at - attempt.started_at:.1f} s"
        table.add_row(
            str(attempt.id),
            attempt.stage,
            _at(attempt.started_at),
            took,
            attempt.outcome,
            Text(attempt.detail),
        )
    return table


def _enquiries(ledger: Ledger, case: Case) -> Table:
    """Who was asked for what the study lacks, and what came."""
    table = Table("time", "of", "lacking", "outcome", "has more", "came", "detail", box=None)
    for each in ledger.enquiries(case.id):
        lacking = each.lacking or "nothing; counts compared"
        table.add_row(
            _at(each.at), each.peer, Text(lacking), each.outcome, str(each.missing), str(each.came),
            Text(each.detail),
        )  # fmt: skip
    return table


def _quarantined(ledger: Ledger, case: Case) -> Iterator[RenderableType]:
    table = Table("time", "from", "defect", "status", "reason", box=None)
    items = ledger.quarantined(case.study_instance_uid)
    for item in items:
        table.add_row(
            _at(item.received_at),
            item.peer,
            item.defect,
            f"0x{item.status:04X}",
            Text(item.reason),
        )
    if items:
        yield from (Text("\nquarantined"), table)
    for item in items:
        if item.path:
            # On a line of its own, however narrow the terminal is: it is there to be copied.
            path = f"{_at(item.received_at)}  {item.path}"
            yield Text(path, no_wrap=True, overflow="ignore")


def _results(ledger: Ledger, case: Case) -> Iterator[RenderableType]:
    for run in ledger.runs(case.id):
        predecessor = "" if run.predecessor_id is None else f", replaces run {run.predecessor_id}"
        removed = f", files removed {_at(run.removed_at)}" if run.removed_at is not None else ""
        yield Text(
            f"\nrun {run.id} of {_at(run.created_at)}, software {run.new.software_version}"
            f"{predecessor}{removed}"
        )
        details = json.loads(run.new.details_json or "{}")
        for engine, regions in details.get("uncertainty", {}).items():
            yield Text(f"{engine} uncertainty (k=1): {'; '.join(regions)}")
        for flag in details.get("flags", ()):
            yield Text(flag, style="yellow")
        table = Table("object", "engine", _whole("SOP Instance UID"), _whole("file"), "delivered", box=None)
        to: dict[int, list[str]] = {}
        for result, delivery in ledger.deliveries(run.id):
            to.setdefault(result.id, []).append(f"{delivery.peer}: {_delivered(delivery)}")
        for result in ledger.results(run.id):
            new = result.new
            table.add_row(
                new.kind,
                new.engine,
                new.sop_instance_uid,
                new.path,
                Text("\n".join(to.get(result.id, ["-"]))),
            )
        yield table
        asked = ledger.commitments(run.id)
        if asked:
            yield _commitments(asked)


def _delivered(delivery: Delivery) -> str:
    if not delivery.delivered_at:
        return f"not yet ({delivery.detail or '-'})"
    told = f" ({delivery.detail})" if delivery.detail else ""
    if not delivery.may_have:
        return f"nothing of it taken {_at(delivery.delivered_at)}{told}"
    committed = f", committed {_at(delivery.committed_at)}" if delivery.committed_at else ""
    return _at(delivery.delivered_at) + told + committed


def _commitments(asked: Sequence[Commitment]) -> Table:
    table = Table(
        "commitment asked", "of", "outcome", "report", "detail", _whole("Transaction UID"), box=None
    )
    for each in asked:
        reported = _at(each.reported_at)
        if each.outcome == "waiting":
            reported = f"asked again {_at(each.ask_again_at)}" if each is asked[-1] else "none came"
        table.add_row(
            _at(each.asked_at), each.peer, each.outcome, reported, Text(each.detail), each.transaction_uid
        )
    return table


def _whole(header: str) -> Column:
    """A column whose values a person copies: folded in a narrow window, never cut."""
    return Column(header, overflow="fold")


def _state(state: State) -> Text:
    return Text(str(state), style=COLOURS.get(state, ""))


def _at(seconds: float | None) -> str:
    return "" if not seconds else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
