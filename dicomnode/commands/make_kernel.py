"""`dicomnode make-kernel NUCLIDE`: a radial point kernel from the node's own Monte Carlo, as a file."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dicomnode import __version__
from dicomnode.errors import ConfigurationError
from pipeline.dose_rate import percent
from pipeline.montecarlo.decay_data import load_source, read_source
from pipeline.montecarlo.point_kernel import PointKernel, density_of, medium_named, point_kernel, table

DEFAULT_UNCERTAINTY = 0.01


def make_kernel(
    nuclide: str,
    console: Console,
    *,
    medium: str,
    density: float | None,
    decays: float | None,
    uncertainty: float | None,
    seed: int,
    to: Path | None,
    decay_data: Path | None,
    today: date,
) -> Path:
    """Compute a kernel and write it. to: None for NUCLIDE_MEDIUM.csv in this folder.

    raises: InputRejected for a nuclide, medium or number that cannot be; ConfigurationError when the file
        cannot be written, before anything is computed.
    """
    source = load_source(nuclide) if decay_data is None else read_source(decay_data)
    material = medium_named(medium)
    if decays is None and uncertainty is None:
        uncertainty = DEFAULT_UNCERTAINTY
    path = to or Path(f"{source.nuclide}_{material.name}.csv")
    _require_writable(path)
    console.print(
        f"{source.nuclide} (decay data: {source.evaluation}) in {material.name.replace('_', ' ')} of "
        f"{density_of(material, density):g} g/cm3"
    )
    with _bar(console) as bar:
        task = bar.add_task("start", total=1.0)
        kernel = point_kernel(
            source,
            medium,
            density,
            decays=decays,
            uncertainty=uncertainty,
            seed=seed,
            progress=lambda what, part: bar.update(task, description=what, completed=part),
        )
    path.write_text(table(kernel, f"dicomnode {__version__}", today), encoding="utf-8")
    console.print(_told(kernel))
    console.print(str(path), highlight=False)
    return path


def _told(kernel: PointKernel) -> str:
    total = float(kernel.energy_kev.sum())
    electrons = float(kernel.electron_kev.sum())
    return (
        f"{total:.2f} keV per decay within {kernel.edges_cm[-1]:g} cm, {electrons:.2f} of it by electrons; "
        f"{kernel.decays:.3g} decays, mean uncertainty of a shell {percent(kernel.uncertainty)} (k=1)"
    )


def _require_writable(path: Path) -> None:
    existed = path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}", "Name another with --out"
        ) from None
    if not existed:
        path.unlink()


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:10}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
