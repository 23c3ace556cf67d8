"""The demonstration in order: patient → node → PACS → table, times and picture."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from dicomnode.demo.node import NodeProcess
from dicomnode.demo.patient import FULL_SIZE, Size, write_patient
from dicomnode.demo.received import Results, collect
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.demo.timeline import Timeline, timeline
from dicomnode.errors import NodeError
from dicomnode.results.report_table import report_table
from dicomnode.states import State
from dicomnode.virtual_study import StudyFiles
from pipeline.ct import read_ct
from pipeline.errors import PipelineError

COMPUTE_WITHIN_S = 600.0
REPORT_COLUMNS = 160
_WHAT_NOW = {
    State.COLLECTING: "waiting for the study to be quiet",
    State.READY: "complete, waiting for the engine",
    State.COMPUTING: "computing",
    State.ENCODED: "results are on disk",
    State.SENDING: "sending the results to the PACS",
    State.DONE: "delivered",
}


class Stages:
    """Shows what is being done, and remembers how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, done: str) -> Iterator[Callable[[str], None]]:
        """name: in `seconds`. done: the line that stays. yields: tells what is being done just now."""
        began = time.monotonic()
        with self._console.status(f"{name} ...") as status:
            yield lambda what: status.update(f"{name}: {what} ...")
        self.seconds[name] = time.monotonic() - began
        took = f" ({self.seconds[name]:.1f} s)"
        self._console.print(Text.assemble(("✓ ", "green"), done, (took, "dim")))


def run(to: Path, console: Console, size: Size = FULL_SIZE, quiet_s: float = 2.0) -> None:
    """The whole journey; `to` then holds the picture, report.txt, results/ and node.log.

    raises: NodeError or PipelineError, and says where the node's log is.
    """
    to.mkdir(parents=True, exist_ok=True)
    log = to / "node.log"
    began = time.monotonic()
    stages = Stages(console)
    with _terminable(), _log_named(log), tempfile.TemporaryDirectory(prefix="work-", dir=to) as folder:
        work = Path(folder)
        study = _make(work / "study", size, stages)
        with StandinPacs(work / "pacs") as pacs, NodeProcess(work, log, pacs, quiet_s=quiet_s) as node:
            stages_of_node = _through_the_node(node, study, stages)
            received = pacs.files().values()
        results = collect(received, to / "results")
        pictures = _draw(study, results, to, stages)
    times = times_table(stages.seconds, stages_of_node, time.monotonic() - began)
    told = Group(report_table(results.report), times)
    console.print(told, crop=False)
    _write_report(told, to / "report.txt")
    for path in (*pictures, to / "report.txt", *results.files, log):
        console.print(f"  {path}", highlight=False)


def _make(folder: Path, size: Size, stages: Stages) -> StudyFiles:
    with stages("make the patient", f"virtual patient: {size}") as tell:
        return write_patient(folder, size, tell=tell)


def _through_the_node(node: NodeProcess, study: StudyFiles, stages: Stages) -> Timeline:
    # The SPECT comes last: before it the study is incomplete, however slowly the slices come.
    files = [*study.ct, *(p for p in (study.rtstruct, study.nm) if p is not None)]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    with stages("push", f"{len(files)} objects, {megabytes:.0f} MB, pushed by C-STORE") as tell:
        node.push(files, lambda count: tell(f"{count} of {len(files)} objects"))
    with stages("node", "computed by the node and delivered to the PACS") as tell:
        uid = str(study.study.study_instance_uid)
        case = node.follow(uid, COMPUTE_WITHIN_S, lambda state: tell(_WHAT_NOW.get(state, str(state))))
    return timeline(node.ledger, case)


def _draw(study: StudyFiles, results: Results, to: Path, stages: Stages) -> tuple[Path, ...]:
    with stages("draw", "pictures of the received objects"):
        # matplotlib takes a second to import: nobody waits for it before the node works.
        from dicomnode.demo.picture import draw

        path = to / "dose-rate.png"
        draw(read_ct(study.ct), results.dose_rate, results.regions, results.dose, path)
        return (path,)


def times_table(seconds: dict[str, float], node: Timeline, total: float) -> Table:
    """Seconds of every stage; indented, the steps of the computing process."""
    table = Table(title="Times", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    for name, value in _rows(seconds, node):
        table.add_row(name, f"{value:.1f}", style="dim" if name.startswith(" ") else "")
    table.add_section()
    table.add_row("the whole demonstration", f"{total:.1f}", style="bold")
    return table


def _rows(seconds: dict[str, float], node: Timeline) -> Iterator[tuple[str, float]]:
    yield "make the virtual patient", seconds["make the patient"]
    yield "push the study", seconds["push"]
    yield "quiet period: last object → READY", node.quiet
    yield "compute and encode: READY → ENCODED", node.claim + node.compute
    yield "  start and end of the process", node.claim + node.process
    yield from ((f"  {step}", value) for step, value in node.steps.items())
    yield "deliver: ENCODED → DONE", node.deliver
    yield "read the results and draw", seconds["draw"]


def _write_report(told: Group, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        Console(file=file, width=REPORT_COLUMNS).print(told, crop=False)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demonstration as Ctrl-C does, and with it the node's process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _log_named(log: Path) -> Iterator[None]:
    """A failure tells where the node's log is."""
    try:
        yield
    except (NodeError, PipelineError) as error:
        place = f"The node's log is {log}" if log.exists() else ""
        remedy = ". ".join(text for text in (error.remedy, place) if text)
        raise NodeError(error.reason, remedy) from error
