"""`dicomnode evaluate`: DVK, Monte Carlo on the SPECT and networks against a truth, as Markdown and figures.

::

    OUT/evaluation.md       tables, and every VOI in which a network is worse than DVK by more than noise
    OUT/evaluation.json     every figure of every VOI (`pipeline.learning.results`)
    OUT/figures/*.png       errors of all patients; slices, profiles and histograms of some
    OUT/patients/test       virtual patients, where no data were named: kept, and not made twice
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dicomnode import __version__
from dicomnode.errors import ConfigurationError
from pipeline.convolve import usable_device
from pipeline.errors import InputRejected
from pipeline.learning import figures, foreign, report, results
from pipeline.learning.comparison import tally
from pipeline.learning.evaluation import Method, classical_methods, evaluate, network_method
from pipeline.learning.example import Example
from pipeline.learning.results import DVK, MC, NETWORK_NAMES, Evaluation
from pipeline.network import load_weights
from pipeline.vois import judged_vois

if TYPE_CHECKING:
    from models.weights import Weights

REPORT, FIGURES_OF_ALL, PICTURES = "evaluation.md", "evaluation.json", "figures"


def evaluate_weights(
    names: Sequence[str],
    data: Path | None,
    to: Path,
    console: Console,
    *,
    device: str = "cpu",
    patients: int = 5,
    first: int = 0,
    pictures: int = 2,
    today: date,
    kernel_cache: Path | None = None,
) -> Path:
    """Evaluate weights and write the account of it, which appears only when all of it is known.

    names: of shipped weights, or folders; the first is judged by what is asked of weights.
    data: a folder as `pipeline.learning.foreign` describes; None: so many virtual `patients` of the family
        that training never sees, from number `first`, made in `to`: minutes each; an interrupted run goes on
        with those that are there.
    pictures: of so many patients. device: as a DoseRequest has it. returns: the page.
    raises: InputRejected for weights or data that cannot be used; ConfigurationError where `to` cannot be
        written.
    """
    found = [load_weights(name) for name in names]
    if not found:
        raise InputRejected("no weights are named", "Name some with --weights")
    nuclide = _one_nuclide(found)
    _require_writable(to)
    used, notes = usable_device(device)
    for note in notes:
        console.print(note)
    # Before an hour is spent on the first patient: what the last one lacks.
    sources = foreign.sources(
        _virtual_patients(to / "patients", range(first, first + patients), used, console)
        if data is None
        else data
    )
    methods = network_methods(found, used)
    judged = next(iter(methods))
    part = to / f".evaluation.{os.getpid()}.part"
    drawn = _Drawn(part / PICTURES, (DVK, MC, judged), pictures)
    try:
        evaluation = evaluate(
            _of_nuclide(foreign.read_all(sources, nuclide, used, kernel_cache), nuclide),
            classical_methods() | methods,
            lambda what, before: console.print(f"{what} ({before + 1:.0f} of {len(sources)})"),
            drawn.look,
        )
        drawn.errors(evaluation)
        machine = f"{_machine()}, {used}; dicomnode {__version__}"
        _write(
            part,
            evaluation,
            report.evaluation_section(evaluation, today.isoformat(), machine, judged, drawn.links),
        )
        shutil.copytree(part, to, dirs_exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or to} cannot be read or written: {error.strerror or error}",
            "See to its rights and to the room on that disk",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _tell(evaluation, judged, console)
    console.print(str(to / REPORT), highlight=False)
    return to / REPORT


def network_methods(found: Sequence[Weights], device: str) -> dict[str, Method]:
    """A method for each of the weights, named by architecture; by their own name too where two share one.

    Where that is not enough (versions of one name), they are numbered in the order in which they were given.
    """
    methods: dict[str, Method] = {}
    for weights in found:
        manifest = weights.manifest
        name = NETWORK_NAMES[manifest.architecture]
        if name in methods:
            name = f"{name} {manifest.name}"
        first, number = name, 1
        while name in methods:
            number += 1
            name = f"{first} ({number})"
        methods[name] = network_method(weights.network, manifest.voxel_mm, device)
    return methods


@dataclass(slots=True, eq=False)
class _Drawn:
    """Draws the first patients while they are in memory, and remembers where."""

    folder: Path
    shown: tuple[str, ...]
    most: int
    links: list[str] = field(default_factory=list)
    count: int = 0

    def look(self, example: Example, maps: Mapping[str, NDArray[np.float32]]) -> None:
        """Slices, profiles and histograms of a patient."""
        self.count += 1
        if self.count > self.most:
            return
        scene = figures.Scene(
            f"{example.patient_id} ({example.family})",
            example.grid,
            example.truth,
            example.spect,
            example.density,
            {name: maps[name] for name in self.shown if name in maps},
            judged_vois(example.vois),
        )
        stem = "".join(c if c.isalnum() else "-" for c in example.patient_id)
        for draw in (figures.slices, figures.profiles, figures.histograms):
            draw(scene, self._path(f"{stem}-{draw.__name__}.png"))

    def errors(self, evaluation: Evaluation) -> None:
        """The picture of all patients."""
        figures.errors(evaluation, self._path("errors.png"))
        self.links.insert(0, self.links.pop())

    def _path(self, name: str) -> Path:
        self.links.append(f"{PICTURES}/{name}")
        return self.folder / name


def _virtual_patients(folder: Path, numbers: range, device: str, console: Console) -> Path:
    """Patients of the held-out family by number; those that are there are kept. returns: their folder."""
    # The Monte Carlo compiles: only where patients are made.
    from pipeline.learning import generate
    from pipeline.simulate.camera import medium_energy_lu177

    if not numbers:
        raise InputRejected("--patients is 0: there is nobody to evaluate on", "Set it to 1 or more")
    console.print(f"{len(numbers)} virtual patients in {folder}: minutes each", highlight=False)
    chosen = generate.plan(0, 0, numbers.stop)[numbers.start :]
    generate.generate(chosen, folder, generate.Settings(), medium_energy_lu177(), device=device)
    return folder / "test"


def _one_nuclide(found: Sequence[Weights]) -> str:
    nuclides = {weights.manifest.nuclide: weights.manifest.name for weights in found}
    if len(nuclides) > 1:
        said = ", ".join(f"{name} for {nuclide}" for nuclide, name in nuclides.items())
        raise InputRejected(f"the weights are for different nuclides: {said}", "Evaluate them one by one")
    return next(iter(nuclides))


def _of_nuclide(examples: Iterable[Example], nuclide: str) -> Iterator[Example]:
    """The same examples. raises: InputRejected for one that says that it is of another nuclide."""
    for example in examples:
        given = example.meta.get("nuclide", nuclide)
        if given != nuclide:
            raise InputRejected(
                f"patient {example.patient_id} is of {given}, and the weights are for {nuclide}",
                f"Correct nuclide in his {foreign.SETTINGS_FILE}, or evaluate on patients of {nuclide}",
            )
        yield example


def _require_writable(to: Path) -> None:
    try:
        to.mkdir(parents=True, exist_ok=True)
        probe = to / f".evaluation.{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"--out {to} cannot be written: {error.strerror}", "Name a folder that this account may write"
        ) from error


def _write(folder: Path, evaluation: Evaluation, page: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results.save(evaluation, folder / FIGURES_OF_ALL)
    (folder / REPORT).write_text(f"# Evaluation\n\n{page}", encoding="utf-8")


def _tell(evaluation: Evaluation, method: str, console: Console) -> None:
    """The table of what is asked, and in how many VOIs the network is worse."""
    console.print(report.targets_table(evaluation, method))
    counts = tally(evaluation, "mean_error", method)
    console.print(
        f"by mean dose-rate error, {method} is better than DVK in {counts.better} VOIs, worse within noise "
        f"in {counts.worse_within_noise}, worse by more in {counts.worse}: these are named in the page"
    )


def _machine() -> str:
    """Cores and architecture; no name and no address."""
    return f"{os.cpu_count()}-core {platform.machine()}"
