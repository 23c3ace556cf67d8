"""The network over one volume: one window per slice against the streaming form, with the same weights.

Each form runs in a process of its own, one after the other, so that the peak of its memory is its own. One
window per slice takes minutes: without --whole it is timed on slices spread over the volume and scaled to all
of them. Random weights: the time does not depend on them.

    python -m tests.bench.network_bench [--shape 130 512 512] [--threads 2] [--slices 6 | --whole]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.bench.machine import machine

FORMS = ("one window per slice", "streaming, exact", "streaming, fast")
LEAST_RATIO, MOST_GB, TOLERANCE = 3.0, 2.5, 1e-4  # what the exact form must reach


@dataclass(frozen=True)
class Measured:
    """seconds: for the whole volume. cpu_s: of all threads. peak_gb: resident, of the process."""

    form: str
    seconds: float
    cpu_s: float
    peak_gb: float
    slices: int
    load: float


def main() -> None:
    """Run the forms, or in a child one of them, and print the table."""
    arguments = _arguments()
    if arguments.form:
        _child(arguments)
        return
    with TemporaryDirectory(prefix="network-bench-") as folder:
        results = [_started(form, arguments, Path(folder)) for form in FORMS]
        differences = [_difference(Path(folder), form) for form in FORMS]
    print(_page(results, differences, arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The network over one volume, form by form")
    parser.add_argument("--shape", type=int, nargs=3, default=(130, 512, 512), help="z y x")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slices", type=int, default=6, help="so many windows are timed and scaled")
    parser.add_argument("--whole", action="store_true", help="time the windows of every slice")
    parser.add_argument("--device", default="cpu", help="of the streaming forms")
    parser.add_argument("--machine", default=machine(), help="how the table describes the machine")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _started(form: str, arguments: argparse.Namespace, folder: Path) -> Measured:
    print(f"{form} ...", file=sys.stderr)
    command = [sys.executable, "-m", "tests.bench.network_bench", "--form", form, "--out", str(folder)]
    command += ["--shape", *map(str, arguments.shape), "--threads", str(arguments.threads)]
    command += ["--slices", str(arguments.slices), "--device", arguments.device]
    command += ["--whole"] if arguments.whole else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


# ── in the child ─────────────────────────────────────────────────────────────────────────────────


def _child(arguments: argparse.Namespace) -> None:
    import torch

    from models.dblurdosenet import build

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    network = build("dblurdosenet").eval()
    rng = np.random.default_rng(1)
    shape = tuple(arguments.shape)
    spect = rng.gamma(0.5, 300, shape).astype(np.float32)
    density = rng.normal(1000, 200, shape).astype(np.float32)
    load = os.getloadavg()[0]
    run: Callable[..., tuple[float, float, dict[int, Any]]]
    run = _windowed if arguments.form == FORMS[0] else _streaming
    seconds, cpu_s, found = run(network, spect, density, arguments)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    np.savez(_file(arguments.out, arguments.form), **{str(z): array for z, array in found.items()})
    scale = shape[0] / len(found) if arguments.form == FORMS[0] else 1.0
    slices = len(found) if arguments.form == FORMS[0] else shape[0]
    measured = Measured(arguments.form, seconds * scale, cpu_s * scale, peak_gb, slices, load)
    print(json.dumps(asdict(measured)))


def _chosen(depth: int, arguments: argparse.Namespace) -> list[int]:
    count = depth if arguments.whole else min(arguments.slices, depth)
    return [int(z) for z in np.linspace(0, depth - 1, count).round()]


def _windowed(network: Any, spect: Any, density: Any, arguments: argparse.Namespace) -> Any:
    """The network as published, window after window."""
    import torch

    def window(volume: Any, z: int) -> Any:
        indices = np.clip(np.arange(z - 5, z + 6), 0, len(volume) - 1)
        return torch.from_numpy(volume[indices].transpose(1, 2, 0)[None, None].copy())

    def correction(z: int) -> Any:
        with torch.inference_mode():
            return network.correction(window(spect, z), window(density, z))[0, 0].numpy()

    correction(0)  # the first call prepares what the others reuse
    chosen = _chosen(len(spect), arguments)
    return _timed(lambda: {z: correction(z) for z in chosen})


def _streaming(network: Any, spect: Any, density: Any, arguments: argparse.Namespace) -> Any:
    from models.streaming import Streaming

    precision: Any = "exact" if arguments.form == FORMS[1] else "fast"
    streaming = Streaming(network, arguments.device, precision)
    if arguments.device != "cpu":
        streaming.residual(spect[:16], density[:16])  # the GPU's context and its choice of algorithms
    seconds, cpu_s, found = _timed(lambda: streaming.residual(spect, density))
    return seconds, cpu_s, {z: found[z] for z in _chosen(len(spect), arguments)}


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    cpu, began = time.process_time(), time.perf_counter()
    found = work()
    return time.perf_counter() - began, time.process_time() - cpu, found


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def _file(folder: Path, form: str) -> Path:
    return folder / f"{FORMS.index(form)}.npz"


def _difference(folder: Path, form: str) -> float:
    """From the windows, largest, as part of their largest residual."""
    with np.load(_file(folder, FORMS[0])) as windows, np.load(_file(folder, form)) as found:
        largest = max(float(np.abs(windows[z]).max()) for z in windows)
        return max(float(np.abs(windows[z] - found[z]).max()) for z in windows) / largest


def _page(results: list[Measured], differences: list[float], arguments: argparse.Namespace) -> str:
    z, y, x = arguments.shape
    first, exact = results[0], results[1]
    how = "every slice" if first.slices == z else f"{first.slices} slices, scaled to {z}"
    lines = [
        f"{x} x {y} x {z} voxels, {arguments.threads} threads, {arguments.machine}; windows timed on {how}.",
        "",
        "| | s | CPU s | times faster | by CPU s | peak memory, GB | largest difference | load before |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one, difference in zip(results, differences, strict=True):
        lines.append(
            f"| {one.form} | {one.seconds:.1f} | {one.cpu_s:.1f} | {first.seconds / one.seconds:.2f} | "
            f"{first.cpu_s / one.cpu_s:.2f} | {one.peak_gb:.2f} | {difference:.1e} | {one.load:.1f} |"
        )
    good = (
        first.seconds / exact.seconds >= LEAST_RATIO
        and exact.peak_gb < MOST_GB
        and differences[1] <= TOLERANCE
    )
    lines += [
        "",
        f"Wanted of the exact form: {LEAST_RATIO:g} times faster, under {MOST_GB} GB, within {TOLERANCE:g} "
        f"of the largest residual: {'reached' if good else 'missed'}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
