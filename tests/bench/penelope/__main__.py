"""python -m tests.bench.penelope {list,run,collect} --work FOLDER      (with pyPenred's interpreter)"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

from tests.bench.penelope.cases import Case, Particle, cases
from tests.bench.penelope.collect import load_batches, write_references
from tests.bench.penelope.penred import run_to_file

INPUTS = Path(__file__).parents[2] / "reference" / "penelope" / "inputs.json"
PARTICLES: tuple[Particle, ...] = ("electron", "gamma")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=("list", "run", "collect"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the batches")
    parser.add_argument("--only", default="", help="runs whose name holds this, e.g. slabs/lung")
    parser.add_argument("--particle", choices=PARTICLES, help="only these")
    parser.add_argument("--repeat", type=int, default=1, help="batches that each run is to have")
    parser.add_argument("--native", action="store_true", help="PENELOPE's own mean excitation energies")
    options = parser.parse_args()
    inputs = json.loads(INPUTS.read_text())
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in cases() if options.only in case.name]
    if options.do == "collect":
        write_references(load_batches(options.work), inputs, INPUTS.parent)
        return
    for case, particle, seed, path in _missing(chosen, options):
        if options.do == "list":
            print(f"{case.name} {particle} batch {seed}: to do")
            continue
        # A process of its own: PENELOPE keeps state, and its memory is not given back.
        process = multiprocessing.get_context("spawn").Process(
            target=run_to_file, args=(case, particle, seed, inputs, path, options.native)
        )
        process.start()
        process.join()


def _missing(chosen: list[Case], options: argparse.Namespace) -> Iterator[tuple[Case, Particle, int, Path]]:
    for seed in range(1, options.repeat + 1):
        for case in chosen:
            for particle in PARTICLES:
                wanted = options.particle in (None, particle) and case.histories(particle) > 0
                native = "-native" if options.native else ""
                path = options.work / f"{case.name.replace('/', '-')}-{particle}-{seed}{native}.json"
                if wanted and not path.exists():
                    yield case, particle, seed, path


if __name__ == "__main__":
    main()
