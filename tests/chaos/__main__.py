"""Faults on a whole site: `kill -9`, full disks, PACS outages; and whether anything was lost.

    python -m tests.chaos [--kills 200] [--disk-full 50] [--outages 50] [--seed S] [--quick]
                          [--folder chaos-output] [--write docs/bench-chaos.md]

A run that was broken off (Ctrl-C, SIGTERM) goes on where it was with the same --seed, counts and --folder.
The folder is removed when a run has come to its end and nothing was wrong. As root, the full disk is a file
system of its own. The exit status is 1 when anything was lost, twice, stuck or otherwise wrong.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.machine import machine
from tests.chaos.report import page, table
from tests.chaos.run import Plan, run


def main() -> int:
    """Run and report. returns: the exit status."""
    arguments = _arguments()
    plan = Plan(arguments.kills, arguments.disk_full, arguments.outages, arguments.seed)
    if arguments.quick:
        plan = Plan(3, 1, 1, arguments.seed)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {plan.seed}; repeat or go on with: python -m tests.chaos --seed {plan.seed}", flush=True)
    entries, final = run(plan, folder)
    took_s = sum(entry.took_s for entry in entries)
    print(table(entries, final))
    for finding in final.findings:
        print(f"WRONG at the end: {finding}")
    if arguments.write:
        text = page(entries, final, plan.seed, took_s, arguments.date, arguments.machine)
        arguments.write.write_text(text, encoding="utf-8")
    if final.findings or any(entry.findings for entry in entries):
        print(f"logs, journal and data are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Faults on a whole site")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disk-full", type=int, default=50)
    parser.add_argument("--outages", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--quick", action="store_true", help="3 kills, 1 full disk, 1 outage")
    parser.add_argument(
        "--folder", type=Path, default=Path("chaos-output"), help="data and journal of the run"
    )
    parser.add_argument("--write", type=Path, help="also write the page, for example docs/bench-chaos.md")
    parser.add_argument("--machine", default=machine(), help="how the page describes the machine")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    return parser.parse_args()


if __name__ == "__main__":
    began = time.monotonic()
    status = main()
    print(f"took {time.monotonic() - began:.0f} s")
    sys.exit(status)
