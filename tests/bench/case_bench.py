"""One full-size case through the real node: READY to DONE by step, memory, the convolution alone.

The virtual patient of the demonstration (CT 512 x 512 x 130, SPECT 128 x 128 x 81, 13 ROIs) is pushed over
C-STORE to `dicomnode serve` in its own process with the shipped tick, and delivered to a stand-in PACS;
several times, each with an empty data folder; after the first run with the voxel kernel that it made, as a
node has it after the first case with a CT's voxels. Times are those of the ledger, memory that of the kernel.

    python -m tests.bench.case_bench [--repeats 3] [--write docs/bench-case.md]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from dicomnode.config import Assemble
from dicomnode.demo.node import NodeProcess
from dicomnode.demo.patient import FULL_SIZE, write_patient
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.demo.timeline import Timeline, timeline
from dicomnode.virtual_study import StudyFiles
from pipeline import dvk
from pipeline.body import body_mask
from pipeline.convolve import Float32, Spectrum, convolve
from pipeline.ct import read_ct
from pipeline.decay import nuclide
from pipeline.density import SCHNEIDER_2000, hu_to_density
from pipeline.dose_rate import DoseRequest
from pipeline.grid import activity_onto
from pipeline.kernels import Shape
from pipeline.lattice import active_box, crop_box, union_grid
from pipeline.spect import read_spect
from pipeline.volume import Volume
from tests.bench.machine import machine

CASE_S, CHILD_GB, CONVOLUTION_S = 20.0, 4.0, 1.0  # what it must stay under
QUIET_S = 2.0
CONVOLUTIONS = 7
SAMPLE_S = 0.02
_KERNELS = "data/cache/kernels"  # below a run's folder


@dataclass
class Memory:
    """Peak resident memory, GB. child: of the largest process that the node starts."""

    node: float = 0.0
    child: float = 0.0


@dataclass(frozen=True)
class Case:
    """One run. load: the machine's load average of one minute when the push began."""

    times: Timeline
    memory: Memory
    load: float


@dataclass(frozen=True)
class Convolution:
    """Seconds of repeated convolutions from a source box to a result box (z, y, x), the spectrum ready."""

    what: str
    source: Shape
    result: Shape
    seconds: list[float]
    load: float


def main() -> None:
    """Run the cases and print the page."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="case-bench-") as folder:
        study = write_patient(Path(folder) / "study", FULL_SIZE, tell=_say)
        cases = _cases(study, Path(folder), arguments.repeats)
        maps = _maps(study)
    convolutions = [
        _convolution("the case", *maps),
        _convolution("512 x 512 x 130 voxels, all of them tissue and active", *_filled()),
    ]
    text = "\n".join(_page(cases, convolutions, arguments))
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One full-size case through the real node")
    parser.add_argument("--repeats", type=int, default=3, help="runs after the one that makes the kernel")
    parser.add_argument("--write", type=Path, help="also write the page, for example docs/bench-case.md")
    parser.add_argument("--machine", default=machine(), help="how the page describes the machine")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    return parser.parse_args()


# ── the case ─────────────────────────────────────────────────────────────────────────────────────


def _cases(study: StudyFiles, folder: Path, repeats: int) -> list[Case]:
    """The first makes its voxel kernel; the others find it."""
    first = _measured(study, folder / "0", None)
    kernels = folder / "0" / _KERNELS
    return [first, *(_measured(study, folder / str(n), kernels) for n in range(1, repeats + 1))]


def _measured(study: StudyFiles, work: Path, kernels: Path | None) -> Case:
    """Push the study to a new node and follow it to DONE. kernels: of another run."""
    work.mkdir()
    if kernels is not None:
        shutil.copytree(kernels, work / _KERNELS)
    load = os.getloadavg()[0]
    files = [*study.ct, *(p for p in (study.rtstruct, study.nm) if p is not None)]
    with (
        StandinPacs(work / "pacs") as pacs,
        NodeProcess(work, work / "node.log", pacs, quiet_s=QUIET_S, tick_s=Assemble().tick_s) as node,
        _watched(node.pid) as memory,
    ):
        node.push(files)
        case = node.follow(str(study.study.study_instance_uid), 600.0)
        times = timeline(node.ledger, case)
    _say(
        f"run {work.name}: READY to DONE {times.ready_to_done:.1f} s, "
        f"child {memory.child:.2f} GB, load {load:.1f}"
    )
    return Case(times, memory, load)


@contextmanager
def _watched(pid: int) -> Iterator[Memory]:
    """Look at the process and its children until the block ends."""
    memory, ended = Memory(), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            memory.node = max(memory.node, _peak_gb(pid))
            memory.child = max([memory.child, *map(_peak_gb, _children(pid))])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def _children(pid: int) -> list[int]:
    try:
        return [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in _words(task / "children")]
    except OSError:
        return []


def _peak_gb(pid: int) -> float:
    """VmHWM: the most that the process ever held, 0 when it is gone."""
    words = _words(Path(f"/proc/{pid}/status"))
    return int(words[words.index("VmHWM:") + 1]) * 1024 / 1e9 if "VmHWM:" in words else 0.0


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


# ── the convolution alone ────────────────────────────────────────────────────────────────────────


def _convolution(what: str, activity: Volume, density: Volume) -> Convolution:
    """The engine on these maps, again and again: its first call makes the spectrum, the others reuse it."""
    load = os.getloadavg()[0]
    runs: list[tuple[Shape, Shape, float]] = []

    def timed(source: Float32, spectrum: Spectrum, output: Shape, *others: Any) -> Any:
        began = time.perf_counter()
        result = convolve(source, spectrum, output, *others)
        z, y, x = source.shape
        runs.append(((z, y, x), output, time.perf_counter() - began))
        return result

    with patch.object(dvk, "convolve", timed):
        for _ in range(1 + CONVOLUTIONS):
            dvk.dvk_dose_rate(DoseRequest(activity, density, nuclide("Lu-177")))
    seconds = [second for _source, _output, second in runs[1:]]
    _say(f"convolution, {what}: {min(seconds):.2f} s")
    return Convolution(what, runs[0][0], runs[0][1], seconds, load)


def _maps(study: StudyFiles) -> tuple[Volume, Volume]:
    """Activity on the union lattice and density in the body's box, as `compute_dosimetry` has them."""
    hu = read_ct(study.ct)
    spect = read_spect([p for p in (study.nm,) if p is not None], ())
    lattice = union_grid(hu.grid, active_box(spect.activity))
    activity, _report = activity_onto(spect.activity, lattice, hu.grid)
    return activity, hu_to_density(hu, SCHNEIDER_2000).boxed(crop_box(body_mask(hu)))


def _filled() -> tuple[Volume, Volume]:
    """A field without air or empty voxels: nothing can be pruned."""
    grid = FULL_SIZE.ct
    ones = np.ones(grid.shape, np.float32)
    return Volume(ones, grid, "Bq/mL"), Volume(ones, grid, "g/cm3")


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def _page(
    cases: Sequence[Case], convolutions: Sequence[Convolution], arguments: argparse.Namespace
) -> Iterator[str]:
    first, *others = cases
    total = [case.times.ready_to_done for case in others]
    child = [case.memory.child for case in others]
    yield "# One full-size case"
    yield ""
    yield f"CT 512 x 512 x 130, SPECT 128 x 128 x 81, 13 ROIs, DVK; {len(others)} runs, and one before them"
    yield "that makes the voxel kernel which they find, as a node does once for each size of voxel. Made by"
    yield "`make bench`."
    yield f"{arguments.date}, {arguments.machine}. The load averages tell of other work on the machine."
    yield ""
    yield "| | median (lowest to highest) | wanted |"
    yield "|---|---|---|"
    yield f"| READY to DONE, s | {_spread(total, 1)} | < {CASE_S:g} |"
    yield f"| the same, with the kernel made | {first.times.ready_to_done:.1f} | < {CASE_S:g} |"
    yield f"| peak memory of the computing process, GB | {_spread(child, 2)} | < {CHILD_GB:g} |"
    yield f"| the same, with the kernel made | {first.memory.child:.2f} | < {CHILD_GB:g} |"
    for one in convolutions:
        spread = _spread(one.seconds, 2)
        yield f"| convolution of {one.what}, spectrum cached, s | {spread} | < {CONVOLUTION_S:g} |"
    yield ""
    yield from _case_table(cases)
    yield ""
    yield from _convolution_table(convolutions)


def _case_table(cases: Sequence[Case]) -> Iterator[str]:
    yield "## Each run"
    yield ""
    yield "Seconds. The node looks for work once a second: waiting for that is part of the figures."
    yield ""
    runs = range(1, len(cases))
    yield f"| | kernel made | {' | '.join(f'run {n}' for n in runs)} |"
    yield f"|---|{'---|' * len(cases)}"
    rows: list[tuple[str, list[float]]] = [
        ("READY to COMPUTING", [c.times.claim for c in cases]),
        ("start and end of the computing process", [c.times.process for c in cases]),
        *((step, [c.times.steps[step] for c in cases]) for step in cases[0].times.steps),
        ("deliver: ENCODED to DONE", [c.times.deliver for c in cases]),
        ("**READY to DONE**", [c.times.ready_to_done for c in cases]),
        ("peak memory, computing process, GB", [c.memory.child for c in cases]),
        ("peak memory, listening process, GB", [c.memory.node for c in cases]),
        ("load average before", [c.load for c in cases]),
    ]
    for name, values in rows:
        yield f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


def _convolution_table(convolutions: Sequence[Convolution]) -> Iterator[str]:
    yield "## The convolution alone"
    yield ""
    yield f"On the CPU, {CONVOLUTIONS} times with the same spectrum, from the box that holds activity to the"
    yield "box that holds the body; both (x, y, z)."
    yield ""
    yield "| | source | result | lowest, s | median, s | load average before |"
    yield "|---|---|---|---|---|---|"
    for one in convolutions:
        low, middle = min(one.seconds), statistics.median(one.seconds)
        boxes = f"{_voxels(one.source)} | {_voxels(one.result)}"
        yield f"| {one.what} | {boxes} | {low:.2f} | {middle:.2f} | {one.load:.2f} |"


def _voxels(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _say(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    main()
