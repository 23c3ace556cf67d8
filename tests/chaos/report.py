"""The run as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.chaos.episode import Kind
from tests.chaos.journal import Entry
from tests.chaos.verdict import Verdict

_TEXT = """# Faults, measured

`make chaos`: a real node, Orthanc as PACS, DCMTK's storescu as modalities that send again what was not
acknowledged, and one fault after the other: `kill -9` at a random moment of a case's life (a fifth of them
again while the node starts), the disk of `data_dir` full to the watermark or to its last byte, PACS that
refuses, hangs up, is silent, is full, rejects, stalls in an object or is killed.

{date}, {machine}; seed {seed}, {duration}.

{table}

Recovery: from the moment when the fault is over (the node is started again, the disk freed, PACS back)
until every case of the episode is DONE. A case that cannot be computed because the disk is full is tried
again after a minute. Lost: acknowledged objects that are not in the spool, whole. Duplicates: results in
PACS that the ledger does not name, or twice. Superseded: results that were sent before more of the study
came; the later ones name them.
{moments}
{findings}
"""


def page(
    entries: Sequence[Entry], final: Verdict, seed: int, duration_s: float, date: str, machine: str
) -> str:
    """The page. final: of all studies together, after everything."""
    return _TEXT.format(
        date=date,
        machine=machine,
        seed=seed,
        duration=f"{duration_s / 60:.0f} minutes" if duration_s >= 120 else f"{duration_s:.0f} s",
        table=table(entries, final),
        moments=_moments(entries),
        findings=_findings(entries, final),
    )


def table(entries: Sequence[Entry], final: Verdict) -> str:
    """One row for each kind of fault, and one for all studies at the end."""
    lines = [
        "| fault | episodes | cases | acknowledged | lost | duplicates | superseded | wrong "
        "| recovery, median (longest) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in Kind:
        of_kind = [entry for entry in entries if entry.kind == kind]
        if of_kind:
            lines.append(_row(kind, of_kind))
    lines.append(
        f"| all, at the end | {len(entries)} | {final.cases} | {final.acknowledged} | {final.lost} "
        f"| {final.duplicates} | {final.superseded} | {len(final.findings)} | |"
    )
    return "\n".join(lines)


def _row(kind: Kind, entries: Sequence[Entry]) -> str:
    recovery = [entry.recovery_s for entry in entries]
    numbers = [
        len(entries),
        sum(len(entry.studies) for entry in entries),
        sum(len(acked) for entry in entries for acked in entry.studies.values()),
        sum(entry.lost for entry in entries),
        sum(entry.duplicates for entry in entries),
        sum(entry.superseded for entry in entries),
        sum(len(entry.findings) for entry in entries),
    ]
    times = f"{statistics.median(recovery):.1f} s ({max(recovery):.1f} s)"
    return f"| {kind} | " + " | ".join(map(str, numbers)) + f" | {times} |"


def _moments(entries: Sequence[Entry]) -> str:
    lines = ["", "| fault | when, how | episodes |", "|---|---|---|"]
    for kind in Kind:
        details = [entry.detail for entry in entries if entry.kind == kind]
        lines += [f"| {kind} | {d} | {details.count(d)} |" for d in sorted(set(details))]
    return "\n".join(lines)


def _findings(entries: Sequence[Entry], final: Verdict) -> str:
    found = [f"- {entry.kind} {entry.number}: {text}" for entry in entries for text in entry.findings]
    found += [f"- at the end: {text}" for text in final.findings]
    return "\nWhat was wrong:\n\n" + "\n".join(found) if found else "\nNothing was wrong."
