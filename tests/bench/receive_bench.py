"""Receiving against Orthanc: 600 CT slices of 0.5 MB over loopback, durable on both sides.

Both servers get the same files from DCMTK's storescu with the same flags, on one association and on
four at once, in turn, several rounds; the medians and their ratio are printed as a Markdown table.
Both get TCP_NODELAY=1 in their environment: Orthanc listens with DCMTK, which obeys it, and without
it every answer waits 40 ms for Nagle's algorithm. Orthanc's maximum PDU is set to ours.

    python -m tests.bench.receive_bench [--rounds 5] [--write docs/bench-receive.md]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.bench.machine import machine

SLICES = 600
ROWS = COLUMNS = 512
MAX_PDU = 131072
ASSOCIATIONS = (1, 4)
# Orthanc's rate that we must reach, by number of associations; the node's memory limit.
TARGETS = {1: 1.0, 4: 0.9}
RSS_LIMIT_MB = 200
ENVIRONMENT = os.environ | {"TCP_NODELAY": "1"}


@dataclass
class Outcome:
    """What one server did: MB/s by number of associations, and its peak memory."""

    rates: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in ASSOCIATIONS})
    peak_rss_mb: float = 0.0


def main() -> None:
    """Run the rounds and print the table."""
    arguments = _arguments()
    if arguments.serve:
        _serve(Path(arguments.serve[0]), int(arguments.serve[1]))
        return
    missing = [name for name in ("storescu", "Orthanc") if _program(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not found: apt-get install dcmtk orthanc")
    with tempfile.TemporaryDirectory(prefix="receive-bench-") as folder:
        work = Path(folder)
        files = make_slices(work / "ct", arguments.slices)
        outcomes = _rounds(work, files, arguments.rounds)
    text = _report(outcomes, arguments, sum(1 for _ in files))
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Receiving against Orthanc")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--write", type=Path, help="also write the page, for example docs/bench-receive.md")
    parser.add_argument("--machine", default=machine(), help="how the page describes the machine")
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat())
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_slices(folder: Path, count: int) -> list[Path]:
    """CT slices of one series: noise, so that nothing on the way can compress them."""
    folder.mkdir()
    random = np.random.default_rng(2)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    return [_slice(folder, random, index, study, series, frame) for index in range(count)]


def _slice(
    folder: Path, random: np.random.Generator, index: int, study: str, series: str, frame: str
) -> Path:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.FrameOfReferenceUID = frame
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "BENCH", "Bench"
    dataset.StudyDate, dataset.StudyTime, dataset.InstanceNumber = "20260101", "120000", index + 1
    dataset.ImagePositionPatient = [-250, -250, index]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.9766, 0.9766], 1
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = random.integers(-1000, 2000, (ROWS, COLUMNS), dtype=np.int16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{index:04d}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


# ── rounds ───────────────────────────────────────────────────────────────────────────────────────


def _rounds(work: Path, files: list[Path], rounds: int) -> dict[str, Outcome]:
    outcomes = {"dicomnode": Outcome(), "Orthanc": Outcome()}
    servers = {"dicomnode": _our_node, "Orthanc": _orthanc}
    for number in range(rounds):
        for associations in ASSOCIATIONS:
            # Alternate who is first: a machine that is shared changes its speed by the minute.
            for name in sorted(servers, reverse=bool(number % 2)):
                folder = work / "server"
                folder.mkdir()
                os.sync()
                with servers[name](folder) as (port, process):
                    rate = _push(files, associations, port)
                    peak = _peak_rss_mb(process.pid)
                _expect_all(name, folder, len(files))
                outcomes[name].rates[associations].append(rate)
                outcomes[name].peak_rss_mb = max(outcomes[name].peak_rss_mb, peak)
                print(f"round {number + 1}: {name}, {associations}: {rate:.0f} MB/s", file=sys.stderr)
                shutil.rmtree(folder)
    return outcomes


def _push(files: list[Path], associations: int, port: int) -> float:
    """Send every file over that many associations at once. returns: MB/s from first to last."""
    storescu = _program("storescu") or ""
    flags = ["-aet", "BENCH", "-aec", "NODE", "--max-pdu", str(MAX_PDU), "127.0.0.1", str(port)]
    shares = [[str(path) for path in files[start::associations]] for start in range(associations)]
    began = time.perf_counter()
    senders = [subprocess.Popen([storescu, *flags, *share], env=ENVIRONMENT) for share in shares]
    if any(sender.wait() for sender in senders):
        sys.exit("storescu failed")
    return sum(path.stat().st_size for path in files) / 1e6 / (time.perf_counter() - began)


def _expect_all(name: str, folder: Path, count: int) -> None:
    pattern = "spool/*/*.dcm" if name == "dicomnode" else "??/??/*"
    stored = sum(path.is_file() and path.stat().st_size > ROWS * COLUMNS * 2 for path in folder.glob(pattern))
    if stored != count:
        sys.exit(f"{name} stored {stored} of {count} slices: no figures from this run")


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _our_node(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = _free_port()
    command = [sys.executable, "-m", "tests.bench.receive_bench", "--serve", str(folder), str(port)]
    with _running(command, port) as process:
        yield port, process


@contextlib.contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = _free_port()
    settings = {
        "Name": "bench",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "SyncStorageArea": True,
        "StorageCompression": False,
        "Plugins": [],
        "HttpServerEnabled": False,
        "DicomAet": "NODE",
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "MaximumPduLength": MAX_PDU,
    }
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(settings))
    with _running([_program("Orthanc") or "", str(configuration)], port) as process:
        yield port, process


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(process, port)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _serve(folder: Path, port: int) -> None:
    """Our receiver as the daemon runs it: spool, ledger, a tick every second."""
    from dicomnode.config import Node, Peer, Receive
    from dicomnode.ledger import Ledger
    from dicomnode.network.receive import Receiver
    from dicomnode.reception.intake import Intake
    from dicomnode.reception.spool import Spool
    from dicomnode.reception.store import StoreService

    node = Node(ae_title="NODE", bind="127.0.0.1", port=port, data_dir=folder)
    receive = Receive(max_pdu=MAX_PDU, min_free_gb=0)
    spool = Spool(folder, int(receive.min_free_gb * 1e9))
    intake = Intake(spool, Ledger.open(node.ledger_url))
    intake.recover(time.time())
    receiver = Receiver(node, [Peer(name="bench", ae_title="BENCH")], receive, [StoreService(spool, intake)])
    receiver.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while signal.sigtimedwait({signal.SIGTERM}, 1.0) is None:
        intake.flush(time.time())
    receiver.stop()
    intake.flush(time.time())


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"{process.args!r} did not start to listen")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _peak_rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def _report(outcomes: dict[str, Outcome], arguments: argparse.Namespace, count: int) -> str:
    ours, theirs = outcomes["dicomnode"], outcomes["Orthanc"]
    lines = [
        "# Receiving, against Orthanc",
        "",
        f"{count} CT slices of 0.5 MB over loopback from DCMTK `storescu --max-pdu {MAX_PDU}`, every slice",
        "on disk before it is acknowledged: our receiver with its ledger against Orthanc with",
        "`SyncStorageArea` and the same maximum PDU; TCP_NODELAY=1 for all. In turn in one run;",
        f"median (lowest to highest) of {arguments.rounds} rounds. Made by `make bench`.",
        "",
        f"{arguments.date}, {arguments.machine}.",
        "",
        "| associations | dicomnode, MB/s | Orthanc, MB/s | ratio | wanted |",
        "|---|---|---|---|---|",
    ]
    for n in ASSOCIATIONS:
        ratio = statistics.median(ours.rates[n]) / statistics.median(theirs.rates[n])
        cells = [str(n), _spread(ours.rates[n]), _spread(theirs.rates[n]), f"{ratio:.2f}", f"≥ {TARGETS[n]}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Peak resident memory of our process: {ours.peak_rss_mb:.0f} MB (wanted: < {RSS_LIMIT_MB} MB).",
    ]
    return "\n".join(lines)


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


if __name__ == "__main__":
    main()
