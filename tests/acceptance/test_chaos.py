"""The short form of `make chaos`: one kill (`test_kill.py` has twenty), one full disk, one PACS outage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.episode import Kind
from tests.chaos.journal import Journal
from tests.chaos.report import table
from tests.chaos.run import Plan, run

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]


def test_faults_lose_nothing_and_send_nothing_twice(
    peer_program: Callable[[str], str], tmp_path: Path
) -> None:
    for name in ("Orthanc", "storescu"):
        peer_program(name)
    plan = Plan(kills=1, disk_full=1, outages=1, seed=int(os.environ["KILL_SEED"]))
    print(f"python -m tests.chaos --kills 1 --disk-full 1 --outages 1 --seed {plan.seed}")
    entries, final = run(plan, tmp_path)
    print(table(entries, final))
    # What a run that was broken off goes on from.
    assert Journal(tmp_path / f"journal-{plan.seed}.jsonl").read() == entries
    assert [finding for entry in entries for finding in entry.findings] == []
    assert (final.lost, final.duplicates, final.findings) == (0, 0, [])
    assert sorted(e.kind for e in entries) == sorted([Kind.KILL, Kind.DISK_FULL, Kind.OUTAGE])
    assert final.cases >= 3
    assert final.acknowledged == sum(len(acked) for e in entries for acked in e.studies.values()) >= 3 * 26
