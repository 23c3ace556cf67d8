"""`dicomnode check`: would this node work, and if not, what is to be done?

Each finding names the setting it is about. `--config-only` asks nothing of the network, so that a
PACS that is down never keeps the node from receiving.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dicomnode.audit.syslog import LONGEST_QUEUE
from dicomnode.audit.trail import tls_context
from dicomnode.commands import own_certificate
from dicomnode.config import Config, Peer
from dicomnode.contexts import PUSH_MODEL, STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE
from dicomnode.errors import NodeError
from dicomnode.ledger import Ledger
from dicomnode.lock import is_held
from dicomnode.network.send import echo, open_association
from dicomnode.privacy import FOLDER_MODE, is_open_to_others
from dicomnode.reception.spool import QUARANTINE, SPOOL
from dicomnode.results import RESULTS
from models.weights import shipped
from pipeline.convolve import has_cuda_driver
from pipeline.decay import NUCLIDES
from pipeline.dose_rate import NetworkSettings
from pipeline.errors import PipelineError
from pipeline.kernels import REACH_MM, radial_kernel
from pipeline.network import LARGEST_SPACING_MM, manifest_of, require_correction, require_installed, unfit

_NETWORK_NEEDS_GB = 8.0  # address space, most of it reserved and never used

FOLDERS = (SPOOL, QUARANTINE, RESULTS)
Level = Literal["ok", "warning", "problem"]
# What is proposed to a peer beside Verification, each over an association of its own.
PROPOSED_FOR_COMMITMENT = (PUSH_MODEL,)
PROPOSED_FOR_FETCH = {
    "move": (STUDY_ROOT_FIND, STUDY_ROOT_MOVE),
    "get": (STUDY_ROOT_FIND, STUDY_ROOT_GET),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


def check(config: Config, *, network: bool) -> Iterator[Finding]:
    """Look at everything; findings come as they are made."""
    yield from _data_dir(config)
    yield from _kernels()
    yield from _intentions(config)
    yield from _audit(config)
    yield from _tls(config)
    if {"dvk", "cnn"} & set(config.dose.engines):
        yield from _device(config)
    yield from _weights(config)
    if "mc" in config.dose.engines:
        yield from _montecarlo(config)
    if config.dose.executor == "dask":
        yield from _cluster(config, ask=network)
    if network:
        yield from _port(config)
        yield from _ledger(config)
        yield from _peers(config)


def _data_dir(config: Config) -> Iterator[Finding]:
    path = config.node.data_dir
    subject = "[node] data_dir"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        # A command that root typed once may have left a folder that the service cannot write.
        for folder in (path, *(path / name for name in FOLDERS if (path / name).exists())):
            probe = folder / f".check-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
    except OSError as error:
        remedy = "Create it, or give it to the account that runs the node"
        where = Path(error.filename or path).parent if error.filename != str(path) else path
        yield Finding("problem", subject, f"{where} cannot be written: {error.strerror}", remedy)
        return
    folders = (path, *(path / name for name in FOLDERS if (path / name).exists()))
    if open_folders := [str(folder) for folder in folders if is_open_to_others(folder)]:
        text = f"every account of this machine can look into {', '.join(open_folders)}: patients' data"
        yield Finding("warning", subject, text, f"chmod o-rwx {' '.join(open_folders)}")
    free_gb = shutil.disk_usage(path).free / 1e9
    needed = config.receive.min_free_gb
    if free_gb < needed:
        text = f"{path} has {free_gb:.1f} GB free; below [receive] min_free_gb = {needed:g} all is refused"
        # No problem of the configuration: the node starts, refuses, and goes on by itself.
        yield Finding("warning", subject, text, "Make room, or lower min_free_gb")
    else:
        yield Finding("ok", subject, f"{path}, {free_gb:.0f} GB free")


def _kernels() -> Iterator[Finding]:
    for nuclide in NUCLIDES:
        try:
            total_kev = float(radial_kernel(nuclide).energy_within(REACH_MM))
        except (PipelineError, OSError) as error:
            yield Finding("problem", f"kernel {nuclide.name}", str(error), "Install the package again")
        else:
            text = f"{total_kev:.1f} keV per decay within {REACH_MM / 10:g} cm"
            yield Finding("ok", f"kernel {nuclide.name}", text)


def _intentions(config: Config) -> Iterator[Finding]:
    """Settings that are valid each by itself but leave something out."""
    if not config.deliver.to:
        text = "no destination: results stay in data_dir/results"
        kept = config.retention
        if kept.inputs_days or kept.results_days or kept.quota_gb:
            text += ", and [retention] removes neither them nor what they were made from"
        yield Finding("warning", "[deliver] to", text, "Name one or more [[peers]]")
    if not any("store" in p.may for p in config.peers):
        text = "no peer may store: nothing can be received"
        yield Finding("problem", "[[peers]]", text, 'Add an entry with may = ["echo", "store"]')
    if not config.camera:
        text = "no camera: only SPECT in Bq/mL (real-world value mapping) or PET in BQML can be computed"
        yield Finding("warning", "[[camera]]", text, "Add each camera with its calibration factor")
    if not (config.notify.command or config.notify.email_to):
        text = "nobody hears of HELD and FAILED cases"
        yield Finding("warning", "[notify]", text, "Set command or email_to")
    if config.notify.command and shutil.which(config.notify.command[0]) is None:
        text = f"{config.notify.command[0]!r} is not found or not executable"
        yield Finding("problem", "[notify] command", text, "Give the full path of the program")


def _tls(config: Config) -> Iterator[Finding]:
    """Certificates and keys: readable, ours alone, valid for a while yet."""
    for remark in own_certificate.remarks(config, time.time()):
        level: Level = "problem" if remark.wrong else "warning" if remark.remedy else "ok"
        yield Finding(level, remark.subject, remark.text, remark.remedy)


def _audit(config: Config) -> Iterator[Finding]:
    """Whether the audit trail can be written; whether a collector listens shows when the node starts.

    No problems: a destination that fails stops nothing, and the service is started after this check.
    """
    audit = config.audit
    if audit.file is not None and not os.access(
        audit.file if audit.file.exists() else audit.file.parent, os.W_OK
    ):
        remedy = "Create its folder and give it to the account that runs the node"
        text = f"{audit.file} cannot be written; the node runs, and {LONGEST_QUEUE:,} messages wait at most"
        yield Finding("warning", "[audit] file", text, remedy)
    if audit.syslog_host and audit.syslog_transport == "tls":
        try:
            tls_context(audit)
        except OSError as error:
            files = ", ".join(
                str(path) for path in (audit.ca, audit.certificate, audit.key) if path is not None
            )
            text = f"{files} cannot be used: {error}; the node runs, without a syslog collector"
            remedy = "Give PEM files that belong together"
            yield Finding("warning", "[audit] ca, certificate, key", text, remedy)


def _device(config: Config) -> Iterator[Finding]:
    wanted = config.dose.device
    has_torch = importlib.util.find_spec("torch") is not None
    has_gpu = has_torch and has_cuda_driver() and _cuda_answers()
    if wanted == "cuda" and not has_gpu:
        missing = "no CUDA device answers" if has_torch else "torch is not installed"
        remedy = 'Install the driver and dicomnode[gpu], or set device = "auto"'
        yield Finding("problem", "[dose] device", f'"cuda", but {missing}', remedy)
    else:
        yield Finding("ok", "[dose] device", "CUDA" if has_gpu and wanted != "cpu" else "CPU")


def _montecarlo(config: Config) -> Iterator[Finding]:
    """Its tables are there and it can be compiled; where it will run."""
    # Here alone: a node that does not use it need not be able to load it.
    from pipeline.montecarlo.cuda import why_unavailable
    from pipeline.montecarlo.data import load_physics
    from pipeline.montecarlo.decay_data import load_source

    try:
        tables = load_physics().sha256[:12]
        decays = ", ".join(f"{n.name} ({load_source(n.name).evaluation})" for n in NUCLIDES)
    except (PipelineError, OSError) as error:
        yield Finding("problem", "engine mc", str(error), "Install the package again")
        return
    yield Finding("ok", "engine mc", f"physics tables {tables}; decay data: {decays}")
    missing = None if config.dose.device == "cpu" else why_unavailable()
    if missing is not None and config.dose.device == "cuda":
        text = f'"cuda", but {missing}: the Monte Carlo will run on the CPU'
        yield Finding("warning", "[dose] device", text, 'Install numba-cuda, or set device = "auto"')
    else:
        on = "CPU" if missing is not None or config.dose.device == "cpu" else "CUDA"
        yield Finding("ok", "[dose] device", f"Monte Carlo on {on}")


def _weights(config: Config) -> Iterator[Finding]:
    """The network's weights of each camera are there, unaltered, and for its resolution."""
    wanted = "cnn" in config.dose.engines
    # What no case will ask for must not keep the node from starting.
    wrong: Level = "problem" if wanted else "warning"
    approved = [camera for camera in config.camera if camera.cnn_weights]
    if wanted and not approved:
        text = "no [[camera]] has cnn_weights: engine cnn leaves every case to dvk"
        remedy = "Approve weights for a camera, or take cnn out of [dose] engines"
        yield Finding("warning", "engine cnn", text, remedy)
    if wanted:
        yield from _network_runs()
        yield from _network_has_room(config)
    for camera in approved:
        subject = f'[[camera]] "{camera.name}"'
        if not Path(camera.cnn_weights).is_absolute() and camera.cnn_weights not in shipped():
            text = f"{camera.cnn_weights!r} is neither the name of shipped weights nor an absolute path"
            remedy = f"Shipped are {', '.join(shipped()) or 'none'}; write the whole path of others"
            yield Finding(wrong, f"{subject} cnn_weights", text, remedy)
            continue
        try:
            manifest = manifest_of(camera.cnn_weights)
            require_correction(manifest)
        except PipelineError as error:
            yield Finding(wrong, f"{subject} cnn_weights", error.reason, error.remedy)
            continue
        settings = NetworkSettings(
            camera.cnn_weights,
            camera.resolution_fwhm_mm,
            camera.name,
            sha256=camera.cnn_weights_sha256,
        )
        reason = unfit(manifest, settings, manifest.nuclide)
        if reason:
            remedy = "Approve weights that are made for this resolution, and their sum, or none"
            yield Finding(wrong, f"{subject} cnn_weights", reason, remedy)
        else:
            text = f"{manifest.name} {manifest.version} for {manifest.nuclide}, SHA-256 {manifest.sha256}"
            yield Finding("ok", f"{subject} cnn_weights", text)


def _network_runs() -> Iterator[Finding]:
    try:
        require_installed()
    except PipelineError as error:
        yield Finding("problem", "engine cnn", error.reason, error.remedy)


def _network_has_room(config: Config) -> Iterator[Finding]:
    spacing, limit_gb = config.dose.grid_spacing_mm, config.dose.memory_limit_gb
    if spacing is not None and max(spacing) > LARGEST_SPACING_MM:
        text = f"{max(spacing):g} mm; above {LARGEST_SPACING_MM:g} mm engine cnn leaves every case to dvk"
        yield Finding("warning", "[dose] grid_spacing_mm", text, "Set a finer grid, or leave it unset")
    if limit_gb is not None and limit_gb < _NETWORK_NEEDS_GB:
        text = f"{limit_gb:g} GB; engine cnn needs {_NETWORK_NEEDS_GB:g} GB of address space for torch alone"
        yield Finding("warning", "[dose] memory_limit_gb", text, "Raise it, or leave it unset")


def _cuda_answers() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _cluster(config: Config, *, ask: bool) -> Iterator[Finding]:
    """The Dask cluster is installed, reached by nobody else, and has workers."""
    subject, settings = "[cluster] scheduler", config.cluster
    try:
        from dicomnode.computing.cluster import workers
    except ModuleNotFoundError as error:
        yield Finding("problem", subject, f"{error.name} is not installed", "`pip install 'dicomnode[dask]'`")
        return
    host = urlsplit(settings.scheduler).hostname or ""
    if settings.ca is None and host not in ("localhost", "127.0.0.1", "::1"):
        text = f"{settings.scheduler} is without TLS: whoever reaches it runs programs on its machines"
        yield Finding("warning", subject, text, "Set tls://, ca, certificate and key, or keep others away")
    if not ask:
        return
    try:
        fit = workers(settings)
    except NodeError as error:
        yield Finding("problem", subject, error.reason, error.remedy)
        return
    wanted = ", ".join(f"{name} = {amount:g}" for name, amount in settings.resources.items()) or "nothing"
    if len(fit) < config.dose.at_once:
        text = f"{len(fit)} worker(s) offer {wanted}, fewer than [dose] at_once = {config.dose.at_once}"
        yield Finding(
            "warning" if fit else "problem", subject, text, "Start `dicomnode worker` on more machines"
        )
    else:
        yield Finding("ok", subject, f"{settings.scheduler}, {len(fit)} worker(s) offer {wanted}")


def _port(config: Config) -> Iterator[Finding]:
    node = config.node
    subject, where = "[node] port", f"{node.bind}:{node.port}"
    if is_held(node.data_dir, node.name):
        yield Finding("ok", subject, f"{where}; the node runs")
        return
    try:
        family = socket.AF_INET6 if ":" in node.bind else socket.AF_INET
        with socket.create_server((node.bind, node.port), family=family):
            yield Finding("ok", subject, f"{where} is free")
    except OSError as error:
        remedy = f"See who has it (`ss -ltnp sport = :{node.port}`), or set another port or bind"
        yield Finding("problem", subject, f"{where} cannot be used: {error.strerror or error}", remedy)


def _ledger(config: Config) -> Iterator[Finding]:
    if not config.node.has_ledger:
        # Made here, it might belong to another account than the node's.
        yield Finding("ok", "[node] database_url", "the node makes it at its first start")
        return
    try:
        ledger = Ledger.open(config.node.ledger_url)
        count = len(ledger.cases())
        ledger.close()
    except NodeError as error:
        yield Finding("problem", "[node] database_url", error.reason, error.remedy)
    else:
        yield Finding("ok", "[node] database_url", f"{count} case(s)")


def _peers(config: Config) -> Iterator[Finding]:
    for peer in config.peers:
        subject = f'[[peers]] "{peer.name}"'
        if not peer.host or peer.port is None:
            yield Finding("ok", subject, "calls us; no host and port to echo")
            continue
        where = f"{peer.ae_title} at {peer.host}:{peer.port}"
        try:
            echo(peer, config.node.ae_title, timeout_s=10.0)
        except NodeError as error:
            remedy = (
                error.remedy or "Start it, or correct host, port and ae_title; does it know our AE title?"
            )
            yield Finding("problem", subject, error.reason, remedy)
        else:
            yield Finding("ok", subject, f"{where} answers C-ECHO")
            yield from _takes(config, peer)


def _takes(config: Config, peer: Peer) -> Iterator[Finding]:
    """Whether it takes what it will be asked for, as far as presentation contexts tell."""
    subject = f'[[peers]] "{peer.name}"'
    wanted: list[tuple[str, Sequence[str], str]] = []
    if peer.commitment:
        remedy = "Let it take storage commitment requests from us, or set commitment = false"
        wanted.append(("storage commitment", PROPOSED_FOR_COMMITMENT, remedy))
    if peer.name in config.fetch.ask:
        remedy = "Let it answer queries of ours, change [fetch] by, or take it out of [fetch] ask"
        by = config.fetch.by
        wanted.append((f"C-FIND and C-{by.upper()}", PROPOSED_FOR_FETCH[by], remedy))
    for what, uids, remedy in wanted:
        contexts = [(uid, "1.2.840.10008.1.2") for uid in uids]
        try:
            with open_association(peer, config.node.ae_title, 10.0, contexts) as association:
                refused = len(association.accepted_contexts) < len(uids)
        except NodeError as error:
            yield Finding("problem", subject, f"{what}: {error.reason}", remedy)
            continue
        if refused:
            yield Finding("problem", subject, f"it does not take {what}", remedy)
        else:
            yield Finding("ok", subject, f"it takes {what}")
