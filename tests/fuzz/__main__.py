"""Inputs that no sane peer would send, against the node as a process of its own and its parsers.

    python -m tests.fuzz [--inputs 100000] [--seed S] [--only NAME ...] [--write docs/bench-fuzz.md]

A failing input is shrunk and saved in tests/fuzz/found/, with what it did beside it; from then on
tests/dicomnode/test_fuzz.py sends it too. The exit status is 1 when there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.machine import machine
from tests.fuzz.campaigns import campaigns
from tests.fuzz.hunt import Catch, hunt
from tests.fuzz.target import Failure, Level, Target
from tests.fuzz.traffic import capture

FOUND = Path(__file__).parent / "found"
# So many valid associations first: what the node keeps from its first ones is no leak.
_WARM_UP, _AT_ONCE = 6, 16

_TEXT = """# Fuzzing, measured

`make fuzz`: captured traffic (association, C-ECHO, C-STORE, C-FIND, C-MOVE, C-GET, N-ACTION), changed by
hypothesis, against `dicomnode serve` as a process of its own and against the parsers alone.

{date}, {machine}; seed {seed}.

{table}

Crash: the process ended, or its log holds a traceback. Hang: a connection is still open 5 s after our end of
it, a C-ECHO is not answered, or a parser takes 5 s. Leak: threads, file descriptors or memory do not come
back to where they were. File: anything written but below `data_dir`, or below `spool/` under a name
that is no UID.

{levels}

The node's threads are its stages' (one each and one more, made when first needed), up to 4 that sync
folders, and few others; associations leave none behind, however many there were.
{failures}
"""


def main() -> int:
    """Run and report. returns: the exit status."""
    arguments = _arguments()
    print(f"seed {arguments.seed}; repeat with: python -m tests.fuzz --seed {arguments.seed}", flush=True)
    catches, before, after = run(arguments.inputs, arguments.seed, FOUND, arguments.only)
    print(table(catches))
    if arguments.write:
        failed = [f"- `{path.name}`: {text}" for c in catches for text, path in c.failures.items()]
        text = _TEXT.format(
            date=arguments.date,
            machine=arguments.machine,
            seed=arguments.seed,
            table=table(catches),
            levels=levels(before, after),
            failures="\nWhat failed:\n\n" + "\n".join(failed) if failed else "\nNothing failed.",
        )
        arguments.write.write_text(text, encoding="utf-8")
    return 1 if any(c.failures for c in catches) else 0


def run(inputs: int, seed: int, found: Path, only: Sequence[str] = ()) -> tuple[list[Catch], Level, Level]:
    """All campaigns, or those in `only`. found: where failing inputs are saved.

    returns: what each came to, and what the node held before and after.
    """
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        target = Target(folder / "node")
        target.start()
        try:
            traffic = capture(target.port)
            for _ in range(_WARM_UP):
                with contextlib.suppress(Failure):  # the campaigns find it too
                    target.send([traffic.stream] * _AT_ONCE)
            here = folder / "here"
            here.mkdir()
            chosen = [c for c in campaigns(target, traffic, here) if not only or c.name in only]
            progress = _Progress(inputs * sum(c.share for c in chosen))
            before = target.back_at(target.level())

            def settle() -> None:
                """Raises Failure."""
                target.echo()
                target.look()

            catches = []
            for campaign in chosen:
                catch = hunt(campaign, round(inputs * campaign.share), seed, found, settle, progress.tell)
                _settled(target, before, catch)
                catches.append(catch)
                progress.over(catch)
            after = target.level()
        finally:
            target.stop()
    return catches, before, after


def _settled(target: Target, before: Level, catch: Catch) -> None:
    """What cannot be told of one input."""
    for check in (lambda: target.back_at(before), target.nothing_outside, target.look):
        try:
            check()
        except Failure as failure:
            print(f"    FAILED: {failure}", flush=True)
            catch.failures.setdefault(failure.signature, Path("of all together"))


def table(catches: Sequence[Catch]) -> str:
    """One row for each campaign."""
    lines = ["| inputs | how many | time | crash | hang | leak | file |", "|---|---|---|---|---|---|---|"]
    for catch in catches:
        kinds = " | ".join(str(catch.count(kind)) for kind in ("crash", "hang", "leak", "file"))
        lines.append(f"| {catch.what} | {catch.inputs} | {catch.seconds:.0f} s | {kinds} |")
    total = sum(catch.inputs for catch in catches)
    seconds = sum(catch.seconds for catch in catches)
    kinds = " | ".join(str(sum(c.count(kind) for c in catches)) for kind in ("crash", "hang", "leak", "file"))
    lines.append(f"| all | {total} | {seconds:.0f} s | {kinds} |")
    return "\n".join(lines)


def levels(before: Level, after: Level) -> str:
    """What the node held."""
    return "\n".join(
        [
            "| the node holds | before | after |",
            "|---|---|---|",
            f"| threads | {before.threads} | {after.threads} |",
            f"| file descriptors | {before.descriptors} | {after.descriptors} |",
            f"| memory | {before.memory_mb:.0f} MB | {after.memory_mb:.0f} MB |",
        ]
    )


class _Progress:
    """A line now and then, with how long the rest will take."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._done = 0
        self._began = self._told = time.monotonic()

    def tell(self, catch: Catch) -> None:
        now = time.monotonic()
        if now - self._told < 10:
            return
        self._told = now
        done = self._done + catch.inputs
        left_min = (now - self._began) * max(0.0, self._total - done) / max(1, done) / 60
        print(
            f"[{done}/{self._total:.0f}] {catch.campaign}: "
            f"{1000 * catch.seconds / catch.inputs:.1f} s a thousand; {left_min:.0f} min left",
            flush=True,
        )

    def over(self, catch: Catch) -> None:
        self._done += catch.inputs
        each = 1000 * catch.seconds / max(1, catch.inputs)
        print(f"{catch.campaign}: {catch.inputs} inputs, {each:.1f} s a thousand", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Inputs that no sane peer would send")
    parser.add_argument("--inputs", type=int, default=100_000)
    drawn = os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(1, 10**6)
    parser.add_argument("--seed", type=int, default=int(drawn), help="FUZZ_SEED, or another in every run")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help="campaigns of these names")
    parser.add_argument("--write", type=Path, help="also write the page, for example docs/bench-fuzz.md")
    parser.add_argument("--machine", default=machine(), help="how the page describes the machine")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
