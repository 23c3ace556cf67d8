"""Many modalities at once: is every case DONE, is anything lost, how fast and how large is the receiver?

Each modality has its own AE title and its own study (many CT slices of 512 x 512, one SPECT) and sends it by
DCMTK's storescu while all the others do. They send to Orthanc with SyncStorageArea, then to the node
(`dicomnode serve`, which computes and delivers what comes, into another Orthanc), then to Orthanc again:
so that a machine that changes its speed does not decide. TCP_NODELAY=1 for all.

    python -m tests.bench.load_bench [--modalities 20] [--slices 600] [--keep FOLDER] [--write PAGE]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom import dcmread

from dicomnode.ledger import Ledger
from dicomnode.reception.spool_file import split_file
from dicomnode.records import Case
from dicomnode.states import State
from tests.acceptance.harness import NODE_AE, Node, Orthanc, acknowledged, until
from tests.bench.load_memory import Memory
from tests.bench.load_study import COLUMNS, Pushed, size_bytes, write_studies
from tests.bench.machine import machine

MODALITIES, SLICES = 20, 600
RSS_LIMIT_MB = 300
SPACING_MM = 3.0
MAX_PDU = 131072
RESULTS = {"RTDOSE": 1, "SEG": 1, "SR": 1}
ENDS = (State.DONE, State.HELD, State.FAILED)
# A modality that waits for its turn on a busy machine has not ended its study.
QUIET_S = 10.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the modalities saw. acknowledged: files answered with 0x0000."""

    seconds: float
    megabytes: float
    acknowledged: int
    failed: int
    """Modalities whose storescu ended with an error."""

    @property
    def rate(self) -> float:
        """MB/s from the first association to the last release."""
        return self.megabytes / self.seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it in the node."""

    transfer: Transfer
    memory: Memory
    states: dict[str, int]
    lost: int
    """Acknowledged objects that are not in the spool with the bytes that were sent, or not in their case."""
    delivered: int
    """Studies of which the PACS holds exactly the results."""
    compute_s: tuple[float, ...]
    done_s: float
    """From the first association to the last case's end."""


@dataclass
class LoadNode(Node):
    """A node that knows every modality."""

    modalities: tuple[str, ...] = ()

    def write_config(self) -> None:
        """As for the acceptance tests, but it waits for modalities that have to wait."""
        self.extra = f'grid_spacing_mm = [{SPACING_MM}, {SPACING_MM}, {SPACING_MM}]\ngrid_field = "spect"\n'
        self.extra += "".join(f'[[peers]]\nname = "{ae}"\nae_title = "{ae}"\n' for ae in self.modalities)
        super().write_config()
        text = self.config.read_text().replace("quiet_s = 1.0", f"quiet_s = {QUIET_S}")
        text = text.replace("max_wait_s = 2.0", f"max_wait_s = {60 * QUIET_S}")
        room = f"[receive]\nmax_associations = {2 * len(self.modalities) + 10}\n"
        self.config.write_text(text.replace("[receive]\n", room))


def main() -> None:
    """Send, wait, look, and print the table. Exit status 1 when something is missing."""
    arguments = _arguments()
    # DCMTK, with which Orthanc listens too, obeys it; without it every answer waits for Nagle's algorithm.
    os.environ["TCP_NODELAY"] = "1"
    missing = [name for name in ("storescu", "Orthanc") if _program(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not found: apt-get install dcmtk orthanc")
    with _folder(arguments.keep) as work:
        _require_room(work, arguments.modalities, arguments.slices)
        studies = write_studies(work / "studies", arguments.modalities, arguments.slices)
        before = _to_orthanc(work, studies)
        outcome = _to_node(work, studies, arguments)
        after = _to_orthanc(work, studies)
    text = _report(arguments, outcome, [before, after])
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")
    if not _is_whole(outcome, studies):
        sys.exit("not every case is DONE and delivered, or something is lost")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Many modalities at once")
    parser.add_argument("--modalities", type=int, default=MODALITIES)
    parser.add_argument("--slices", type=int, default=SLICES, help="of each CT")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave everything there")
    parser.add_argument("--wait", type=float, default=7200.0, help="seconds for all cases to come to an end")
    parser.add_argument("--write", type=Path, help="also write the page, for example docs/bench-load.md")
    parser.add_argument("--machine", default=machine(), help="how the page describes the machine")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    return parser.parse_args()


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="load-bench-") as folder:
            yield Path(folder)
    else:
        if keep.exists() and any(keep.iterdir()):
            sys.exit(f"{keep} is not empty: name another folder, or remove it")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()


def _require_room(work: Path, modalities: int, slices: int) -> None:
    """The studies lie there once as files and once in the server that is measured."""
    wanted, free = 2.3 * size_bytes(modalities, slices), shutil.disk_usage(work).free
    if free < wanted:
        room = f"{free / 1e9:.1f} GB free and {wanted / 1e9:.1f} are needed"
        sys.exit(f"{work} has {room}: name a folder on another disk with --keep")


# ── sending ──────────────────────────────────────────────────────────────────────────────────────


def _send(work: Path, studies: Sequence[Pushed], port: int, called: str) -> Transfer:
    """Every modality at once, each on one association."""
    os.sync()
    began = time.perf_counter()
    senders = [_sender(work, study, port, called) for study in studies]
    failed = sum(sender.wait() != 0 for sender in senders)
    seconds = time.perf_counter() - began
    accepted = [_accepted(work, study) for study in studies]
    megabytes = sum(path.stat().st_size for files in accepted for path in files) / 1e6
    return Transfer(seconds, megabytes, sum(map(len, accepted)), failed)


def _sender(work: Path, study: Pushed, port: int, called: str) -> subprocess.Popen[bytes]:
    # -R: propose what is sent, as a modality does. Its words tell what was acknowledged.
    flags = ["-v", "-R", "-aet", study.ae_title, "-aec", called, "--max-pdu", str(MAX_PDU)]
    command = [_program("storescu") or "", *flags, "127.0.0.1", str(port), *map(str, study.files)]
    with _words(work, study).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _words(work: Path, study: Pushed) -> Path:
    return work / f"{study.ae_title}.log"


def _accepted(work: Path, study: Pushed) -> list[Path]:
    return acknowledged(_words(work, study).read_text(errors="replace"), study.files)


def _to_orthanc(work: Path, studies: Sequence[Pushed]) -> Transfer:
    """As durable as the node, and nothing else to do."""
    more: dict[str, object] = {
        "SyncStorageArea": True,
        "StorageCompression": False,
        "MaximumPduLength": MAX_PDU,
        "DicomThreadsCount": len(studies),
    }
    server = Orthanc(_program("Orthanc") or "", work / "orthanc", more=more)
    server.start()
    try:
        transfer = _send(work, studies, server.port, "ORTHANC")
    finally:
        server.stop()
    shutil.rmtree(server.folder)
    wanted = sum(len(study.files) for study in studies)
    if transfer.acknowledged != wanted:
        sys.exit(f"Orthanc acknowledged {transfer.acknowledged} of {wanted} objects: nothing to compare with")
    print(f"Orthanc: {transfer.rate:.0f} MB/s", file=sys.stderr)
    return transfer


# ── the node ─────────────────────────────────────────────────────────────────────────────────────


def _to_node(work: Path, studies: Sequence[Pushed], arguments: argparse.Namespace) -> Outcome:
    pacs = Orthanc(_program("Orthanc") or "", work / "pacs")
    node = LoadNode(work / "node", pacs.port, tick_s=1.0, modalities=tuple(s.ae_title for s in studies))
    pacs.start()
    try:
        node.start()
        assert node.process is not None
        with Memory(node.process.pid) as memory:
            began = time.time()
            transfer = _send(work, studies, node.port, NODE_AE)
            print(f"dicomnode: {transfer.rate:.0f} MB/s", file=sys.stderr)
            cases = _ended(node, len(studies), arguments.wait)
        delivered = sum(pacs.held(study.study.study_instance_uid) == RESULTS for study in studies)
        return Outcome(
            transfer,
            memory,
            {str(state): sum(case.state is state for case in cases) for state in {c.state for c in cases}},
            sum(_lost(work, node, study) for study in studies),
            delivered,
            _compute_s(node, cases),
            max((case.updated_at for case in cases), default=began) - began,
        )
    finally:
        node.stop()
        pacs.stop()


def _ended(node: LoadNode, wanted: int, wait_s: float) -> list[Case]:
    """The cases, once each has come to an end or the time is up."""
    with contextlib.closing(Ledger(f"sqlite:///{node.data_dir / 'ledger.sqlite3'}")) as ledger:
        with contextlib.suppress(AssertionError):
            until(lambda: len(ledger.cases(*ENDS)) == wanted, f"{wanted} cases end", wait_s, pause_s=1.0)
        return ledger.cases()


def _compute_s(node: LoadNode, cases: Sequence[Case]) -> tuple[float, ...]:
    with contextlib.closing(Ledger(f"sqlite:///{node.data_dir / 'ledger.sqlite3'}")) as ledger:
        attempts = [attempt for case in cases for attempt in ledger.attempts(case.id)]
    ended = [(a.started_at, a.ended_at) for a in attempts if a.stage == "compute" and a.outcome == "ok"]
    return tuple(end - start for start, end in ended if end is not None)


def _lost(work: Path, node: LoadNode, study: Pushed) -> int:
    """Of what was acknowledged: not on disk as it was sent, or unknown to the case."""
    case = node.case(study.study.study_instance_uid)
    with contextlib.closing(Ledger(f"sqlite:///{node.data_dir / 'ledger.sqlite3'}")) as ledger:
        known = {} if case is None else {i.sop_instance_uid: i.path for i in ledger.instances(case.id)}
    return sum(not _is_there(node, known, path) for path in _accepted(work, study))


def _is_there(node: LoadNode, known: dict[str, str], sent: Path) -> bool:
    ds = dcmread(sent)
    path = known.get(str(ds.SOPInstanceUID))
    if path is None or not (node.data_dir / path).exists():
        return False
    # It raises when the file's own checksum does not hold.
    _origin, data = split_file(memoryview((node.data_dir / path).read_bytes()))
    return bytes(data[-len(ds.PixelData) :]) == bytes(ds.PixelData)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def _is_whole(outcome: Outcome, studies: Sequence[Pushed]) -> bool:
    return (
        outcome.states == {str(State.DONE): len(studies)}
        and outcome.delivered == len(studies)
        and outcome.transfer.acknowledged == sum(len(study.files) for study in studies)
        and outcome.lost == 0
    )


def _report(arguments: argparse.Namespace, outcome: Outcome, orthanc: Sequence[Transfer]) -> str:
    transfer, memory = outcome.transfer, outcome.memory
    theirs = statistics.mean(other.rate for other in orthanc)
    wanted = arguments.modalities * (arguments.slices + 1)
    states = ", ".join(f"{count} {state}" for state, count in sorted(outcome.states.items()))
    rows = [
        ("durable throughput of the node, MB/s", f"{transfer.rate:.0f}", ""),
        ("of Orthanc, before and after, MB/s", ", ".join(f"{o.rate:.0f}" for o in orthanc), ""),
        ("node / Orthanc (mean)", f"{transfer.rate / theirs:.2f}", "≥ 1"),
        ("instances acknowledged", f"{transfer.acknowledged} of {wanted}", "all"),
        ("acknowledged and lost", str(outcome.lost), "0"),
        ("cases", states, f"{arguments.modalities} DONE"),
        (
            "studies with just RTDOSE, SEG and SR in PACS",
            str(outcome.delivered),
            str(arguments.modalities),
        ),
        ("peak resident memory of the receiver, MB", f"{memory.peak_mb:.0f}", f"≤ {RSS_LIMIT_MB}"),
        ("of its largest child (compute), MB", f"{memory.largest_child_mb:.0f}", ""),
        ("of all processes of the node at once, MB", f"{memory.together_mb:.0f}", ""),
        ("computing a case, s (median, longest)", _spread(outcome.compute_s), ""),
        ("from the first object to the last DONE, s", f"{outcome.done_s:.0f}", ""),
    ]
    gigabytes = transfer.megabytes / 1e3
    return "\n".join(
        [
            "# Load: many modalities at once",
            "",
            f"{arguments.modalities} modalities, each with a study of {arguments.slices} CT slices of "
            f"{COLUMNS} x {COLUMNS} and one SPECT,",
            f"{gigabytes:.1f} GB in all, sent at the same time by DCMTK `storescu`, one association each;",
            f'computed by DVK on the SPECT\'s field at {SPACING_MM:g} mm (`[dose] grid_field = "spect"`) and',
            "delivered into Orthanc. Compared with an Orthanc that gets the same with `SyncStorageArea` in",
            "the same run, before the node and after it. Every acknowledged object is looked for in the",
            "spool (checksum, pixels) and in the ledger. Made by `make load`.",
            "",
            f"{arguments.date}, {arguments.machine}.",
            "",
            "| | measured | wanted |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.0f}, {max(seconds):.0f}" if seconds else "none was computed"


if __name__ == "__main__":
    main()
