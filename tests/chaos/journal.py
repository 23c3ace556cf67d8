"""What has been done, on disk: a run that was broken off goes on from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.episode import Kind, Outcome
from tests.chaos.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Entry:
    """One episode that is over."""

    number: int
    kind: Kind
    detail: str
    studies: dict[str, list[str]]
    """Study Instance UID → SOP Instance UIDs that were acknowledged."""
    recovery_s: float
    took_s: float
    lost: int
    duplicates: int
    superseded: int
    findings: list[str]

    @classmethod
    def of(cls, outcome: Outcome, verdict: Verdict, took_s: float) -> Entry:
        """What an episode came to."""
        return cls(
            outcome.episode.number,
            outcome.episode.kind,
            outcome.detail,
            {m.study_uid: list(m.acked) for m in outcome.modalities},
            round(outcome.recovery_s, 2),
            round(took_s, 2),
            verdict.lost,
            verdict.duplicates,
            verdict.superseded,
            [*outcome.findings, *verdict.findings],
        )


class Journal:
    """A line of JSON for each episode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Entry]:
        """What is over already."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [Entry(**{**record, "kind": Kind(record["kind"])}) for record in map(json.loads, lines)]

    def write(self, entry: Entry) -> None:
        """One more."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
