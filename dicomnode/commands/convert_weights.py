"""`dicomnode convert-weights CHECKPOINT FOLDER`: a network trained elsewhere, as weights that the node takes.

The one place where a pickled file is opened, and only because a person asks for it by name: PyTorch's
unpickler for plain tensors reads it, so that nothing in it runs. What is written is safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from rich.console import Console

from dicomnode import __version__
from dicomnode.errors import ConfigurationError
from models import weights
from models.dblurdosenet import build
from models.errors import ModelRejected
from pipeline.decay import nuclide as known_nuclide


def convert(
    checkpoint: Path,
    folder: Path,
    console: Console,
    *,
    name: str | None,
    nuclide: str,
    voxel_mm: Sequence[float],
    camera: str,
    resolution_fwhm_mm: Sequence[float],
    architecture: str | None,
    version: str,
    source: str,
    today: date,
) -> Path:
    """Convert and say what was found. name: None for the folder's. voxel_mm: (z, y, x).

    resolution_fwhm_mm: lowest and highest planar FWHM of the camera that the network was trained for, of a
    point source in air at 10 cm. source: where the
    checkpoint comes from and what it was trained with, for the model card.

    raises: ConfigurationError with the reason, where the checkpoint or an argument cannot be used; nothing is
        written then. InputRejected for a nuclide that is not known.
    """
    try:
        made = weights.convert(
            checkpoint,
            folder,
            architecture=architecture,
            name=name or folder.resolve().name,
            nuclide=known_nuclide(nuclide).name,
            voxel_mm=tuple(voxel_mm),
            camera={"name": camera, "resolution_fwhm_mm": list(resolution_fwhm_mm)},
            training={"source": source or "not stated", "checkpoint": checkpoint.name},
            version=version,
            date=today.isoformat(),
            software=f"dicomnode {__version__}",
        )
    except ModelRejected as error:
        raise ConfigurationError(error.reason, error.remedy) from None
    count = build(made.architecture, made.middle).parameters_in_all
    console.print(f"{made.architecture}, {made.middle} middle channels, {count:,} parameters")
    console.print(f"SHA-256 {made.sha256}", highlight=False)
    console.print(
        "Nobody has judged these weights yet: run `dicomnode evaluate` on your own truth before a [[camera]] "
        "entry names them."
    )
    console.print(str(folder), highlight=False)
    return folder
