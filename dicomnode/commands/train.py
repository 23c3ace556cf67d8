"""`dicomnode train OUT`: weights of one's own, from nothing or from a hospital's truth."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from dicomnode import __version__
from dicomnode.errors import ConfigurationError

MINUTE_S = 60.0


def train(
    folder: Path,
    console: Console,
    *,
    hours: float,
    device: str,
    stages: Sequence[str],
    data: Path | None,
    camera: Path | None,
    architectures: Sequence[str],
    name: str,
    patients: str | None,
    threads: int | None,
    settings: Sequence[str],
    steps: int | None,
    start_from: str | None,
    mix: float,
    crowded_from: int | None,
    workers: int,
    pause_minutes: float | None,
    today: date,
) -> None:
    """Run the stages of a recipe in `folder`. patients: ``first:end`` of those that are generated.
    settings: of the loop, NAME=VALUE each.

    raises: InputRejected and ModelRejected for what a person must put right, before anything is half-written.
    """
    # While several processes share the machine, waiting threads must not take the others' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Drawing patients is many small matrix products, for which threads cost more than they bring.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from models import weights
    from pipeline.learning import recipe as recipes
    from pipeline.simulate.camera import from_toml, medium_energy_lu177

    used = _device(device)
    recipe = recipes.Recipe(
        hours=hours,
        data=data,
        architectures=tuple(architectures) or ("dblurdosenet",),
        name=name,
        device=used,
        threads=threads,
        steps=steps,
        learning=_learning(settings),
        start_from=None if start_from is None else weights.find(start_from),
        mix=mix,
        crowded_from=crowded_from,
        workers=workers,
        pause_s=None if pause_minutes is None else pause_minutes * MINUTE_S,
        software=f"dicomnode {__version__}",
        chosen=_interval(patients),
    )
    work = recipes.Work(
        recipe if used != "cpu" else recipes.smaller(recipe),
        medium_energy_lu177() if camera is None else from_toml(camera),
        folder,
        today.isoformat(),
        f"{platform.machine()}, {os.cpu_count()} cores, {used}",
        tell=lambda line: console.print(line, highlight=False),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written: {error.strerror}", "Name another folder"
        ) from None
    recipes.run(work, stages or recipes.STAGES)


def _device(wanted: str) -> str:
    """raises: ConfigurationError for a device that there is not."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not torch.cuda.is_available():
        raise ConfigurationError(f"there is no device {wanted!r} here", "Use --device cpu, or auto")
    return wanted


def _learning(given: Sequence[str]) -> dict[str, Any]:
    """Settings of the loop, as their types want them; the recipe knows which there are."""
    from models import training

    types = get_type_hints(training.Settings)
    settings: dict[str, Any] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign:
            raise ConfigurationError(f"--setting {one} has no value", "Give NAME=VALUE, such as voi_weight=0")
        wanted = types.get(name, str)
        try:
            settings[name] = TypeAdapter(wanted).validate_python(
                value.split(",") if get_origin(wanted) is tuple else value
            )
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ConfigurationError(f"--setting {one}: {said}", "See models/training.py") from None
    return settings


def _interval(patients: str | None) -> tuple[int, int] | None:
    if patients is None:
        return None
    first, _, end = patients.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise ConfigurationError(f"--patients {patients} is no interval", "Give first:end, such as 0:24")
    return int(first), int(end)
