"""Jobs of `test_cluster.py`. Every process of a job imports this module: nothing heavy stands in it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from dicomnode.computing.job import Job, Outcome
from dicomnode.errors import Rejected
from dicomnode.records import NewResult, NewRun


def square(x: int) -> int:
    return x * x


def reject() -> None:
    raise Rejected("no calibration for camera X", "add [[camera]]")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def hang(started: str) -> None:
    Path(started).with_suffix(".part").write_text(f"{os.getpid()} {os.getppid()}")
    Path(started).with_suffix(".part").rename(started)
    signal.pause()


def one_result(job: Job) -> Outcome:
    """A tiny job of the computer: one file, whose content tells who wrote it."""
    job.out.mkdir(parents=True)
    path = job.out / "RTDOSE.dcm"
    path.write_text(str(os.getppid()))
    uid = f"2.25.{abs(hash(job.identity)) % 10**12}"
    new = NewResult(uid, "1.2", "1.3", "1.2.840.10008.1.2.1", "RTDOSE", "dvk", str(path), 1)
    return Outcome((new,), NewRun("", "0.1.0", "config", "calibration", "kernel", "", "{}"))


def hangs_first(job: Job) -> Outcome:
    """Hangs at the first attempt of its case."""
    begun = job.out.parent.parent.parent / f"begun-{job.out.parent.name}"
    if begun.exists():
        return one_result(job)
    hang(str(begun))
    raise AssertionError("never")
