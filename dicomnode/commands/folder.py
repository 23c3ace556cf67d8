"""`dicomnode compute FOLDER`: a study from files on disk, without a network; the same job as the node's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dicomnode import __version__
from dicomnode.computing.case_job import perform
from dicomnode.computing.job import Job, Outcome
from dicomnode.config import Config
from dicomnode.errors import ConfigurationError
from dicomnode.results.report_table import report_table
from dicomnode.selection import Header, Preferences, choose, digest, read_header


def compute_folder(folder: Path, out: Path, config: Config, console: Console) -> Outcome:
    """Choose the inputs among the files under `folder`, compute, write into `out`, print the report.

    raises: ConfigurationError, Rejected or InputRejected with what to do.
    """
    headers = _headers(folder, console)
    studies = sorted({h.text("StudyInstanceUID") for h in headers})
    if len(studies) != 1:
        found = ", ".join(studies) or "no DICOM file"
        raise ConfigurationError(
            f"{folder} must hold one study and holds {found}", "Give the folder of one study"
        )
    inputs = choose(headers, Preferences(config.assemble.prefer_ct, config.assemble.prefer_spect))
    used = {*inputs.ct, *inputs.spect, *inputs.rois, *inputs.registrations, *inputs.dose_reports}
    sha256 = digest(h.text("SOPInstanceUID") for h in headers if h.path in used)
    # The same files, settings and version give the same UIDs: computing twice makes no second object.
    made_from = f"folder {studies[0]} {sha256} {config.sha256} {__version__}"
    identity = hashlib.sha256(made_from.encode()).hexdigest()
    job = Job(inputs, config, out, identity, kernel_cache=_kernel_cache(config.node.data_dir))
    with _progress(console) as bar:
        task = bar.add_task("start", total=1.0)
        outcome = perform(job, lambda what, part: _advance(bar, task, what, part))
    report = next(r for r in outcome.results if r.kind == "SR")
    console.print(report_table(dcmread(report.path)), crop=False)
    for flag in json.loads(outcome.inputs_free_run.details_json).get("flags", ()):
        console.print(flag, style="yellow", highlight=False)
    for result in outcome.results:
        console.print(f"{result.kind:11} {result.path}", highlight=False)
    return outcome


def _kernel_cache(data_dir: Path) -> Path | None:
    """The node's, where this account may write to it."""
    folder = data_dir / "cache" / "kernels"
    return folder if os.access(folder, os.W_OK) else None


def _headers(folder: Path, console: Console) -> list[Header]:
    headers = []
    other = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            headers.append(read_header(path))
        except (InvalidDicomError, OSError):
            other += 1
    if other:
        console.print(f"{other} file(s) under {folder} are not DICOM and were left aside")
    return headers


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )


def _advance(bar: Progress, task: TaskID, what: str, part: float) -> None:
    bar.update(task, description=what, completed=part)
