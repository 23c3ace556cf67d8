"""The commands that make and judge the network's weights: train, evaluate, convert-weights, make-phantom.

None of them needs a running node or a config.toml. What they call is imported when they are called.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from dicomnode.commands.terminal import log_to_stderr, out
from dicomnode.computing import compiled_code
from dicomnode.config import Config

app = typer.Typer()

DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto")]


@app.command()
def train(
    folder: Annotated[
        Path, typer.Argument(help="where examples, networks, evaluation and weights go", file_okay=False)
    ],
    hours: Annotated[float, typer.Option(help="for all stages: 45 % generation, 45 % training")] = 2.0,
    device: DeviceOption = "auto",
    stage: Annotated[
        list[str] | None, typer.Option(help="only this: generate, train, evaluate, publish; repeat for more")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="your own truth: PATIENT/activity.npz and density.npz", file_okay=False),
    ] = None,
    camera: Annotated[
        Path | None, typer.Option(help="TOML file; else a medium-energy camera", dir_okay=False)
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="dblurdosenet, no-residual, 2d; repeat for more, the first is published"),
    ] = None,
    name: Annotated[str, typer.Option(help="of the published weights")] = "dblurdosenet-lu177",
    patients: Annotated[str | None, typer.Option(help="generate only these: first:end, such as 0:24")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="of the processor, for each process; else all")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="of the loop, NAME=VALUE, such as noise_weight=10; repeat for more (models/training.py)"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="of training, per architecture; else its share of the hours"),
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="shipped name or folder of weights to go on from, for your own camera")
    ] = None,
    crowded_from: Annotated[
        int | None, typer.Option(min=0, help="virtual patients from this number on have many lesions")
    ] = None,
    mix: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="part of what is learnt in what is published; the rest is --start-from"
        ),
    ] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="processes that generate at once")] = 1,
    pause_minutes: Annotated[
        float | None, typer.Option(help="end this call after so long; the next goes on")
    ] = None,
) -> None:
    """Make weights: generate virtual patients, train, evaluate, publish. Goes on where it was interrupted."""
    compiled_code.find_place(Config().node.data_dir)
    from dicomnode.commands.train import train as make

    log_to_stderr("INFO")
    make(
        folder,
        out,
        hours=hours,
        device=device,
        stages=stage or [],
        data=data,
        camera=camera,
        architectures=architecture or [],
        name=name,
        patients=patients,
        threads=threads,
        settings=setting or [],
        steps=steps,
        start_from=start_from,
        mix=mix,
        crowded_from=crowded_from,
        workers=workers,
        pause_minutes=pause_minutes,
        today=date.today(),
    )


@app.command()
def evaluate(
    weights: Annotated[
        list[str], typer.Option(help="shipped name or folder; repeat to compare; the first is judged")
    ],
    to: Annotated[Path, typer.Option("--out", help="folder for tables and figures")],
    data: Annotated[
        Path | None, typer.Option(help="foreign truth (NPZ, NIfTI); else virtual patients are made")
    ] = None,
    device: DeviceOption = "cpu",
    patients: Annotated[int, typer.Option(min=1, help="virtual patients, without --data")] = 5,
    first: Annotated[
        int,
        typer.Option(min=0, help="the first one's number: those that a training was judged by begin at 0"),
    ] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="draw so many patients")] = 2,
) -> None:
    """Judge weights against a truth: tables, figures, and every VOI in which they are worse than DVK."""
    compiled_code.find_place(Config().node.data_dir)
    from dicomnode.commands.evaluate import evaluate_weights

    evaluate_weights(
        weights,
        data,
        to,
        out,
        device=device,
        patients=patients,
        first=first,
        pictures=pictures,
        today=date.today(),
    )


@app.command("convert-weights")
def convert_weights(
    checkpoint: Annotated[Path, typer.Argument(help="a PyTorch checkpoint that you trust", dir_okay=False)],
    folder: Annotated[Path, typer.Argument(help="a new folder for weights, manifest and model card")],
    nuclide: Annotated[str, typer.Option(help="such as Lu-177")],
    voxel_mm: Annotated[
        tuple[float, float, float],
        typer.Option(help="(z, y, x) that it was trained on, such as 3 0.9766 0.9766"),
    ],
    camera: Annotated[str, typer.Option(help="camera and collimator of its training images")],
    resolution_fwhm_mm: Annotated[
        tuple[float, float],
        typer.Option(help="its lowest and highest planar FWHM, point source in air at 10 cm"),
    ],
    name: Annotated[str | None, typer.Option(help="else the folder's")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="dblurdosenet, no-residual or 2d, where the keys do not tell")
    ] = None,
    version: Annotated[str, typer.Option(help="of these weights")] = "1",
    source: Annotated[str, typer.Option(help="where it comes from, for the model card")] = "",
) -> None:
    """Turn a checkpoint into weights that the node takes; the only place where a pickled file is opened."""
    from dicomnode.commands.convert_weights import convert

    convert(
        checkpoint,
        folder,
        out,
        name=name,
        nuclide=nuclide,
        voxel_mm=voxel_mm,
        camera=camera,
        resolution_fwhm_mm=resolution_fwhm_mm,
        architecture=architecture,
        version=version,
        source=source,
        today=date.today(),
    )


@app.command("make-phantom")
def make_phantom(
    folder: Annotated[
        Path,
        typer.Argument(
            help="DICOM files of a diagnostic PET/CT, with its ROIs", exists=True, file_okay=False
        ),
    ],
    to: Annotated[
        Path, typer.Option("--out", help="folder of patients, as train --data takes it", file_okay=False)
    ],
    name: Annotated[str | None, typer.Option(help="a pseudonym; else one made of the images' UIDs")] = None,
    activity_mbq: Annotated[float, typer.Option(help="in the field, to which all is scaled")] = 1000.0,
    nuclide: Annotated[str, typer.Option(help="of the therapy")] = "Lu-177",
    rescale: Annotated[
        list[str] | None, typer.Option(help='factor on a VOI\'s activity: "left kidney=1.5"; repeat for more')
    ] = None,
    series: Annotated[
        list[str] | None, typer.Option(help="UID of the PET or CT series to use, where several fit; repeat")
    ] = None,
    centre_mm: Annotated[
        float | None, typer.Option(help="patient z of the 390 mm field's middle; else where most activity is")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a phantom of that name")] = False,
) -> None:
    """Turn a diagnostic PET/CT (Ga-68 DOTATATE) into a virtual patient for train --data."""
    from dicomnode.commands.make_phantom import make_phantom as make

    make(
        folder,
        to,
        out,
        name=name,
        activity_mbq=activity_mbq,
        nuclide=nuclide,
        rescale=rescale or [],
        series=series or [],
        centre_mm=centre_mm,
        overwrite=overwrite,
    )
