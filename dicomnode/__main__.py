"""The command line. Each command is thin: it reads config.toml and calls the module that does it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dicomnode import __version__
from dicomnode.commands import model_commands
from dicomnode.commands.terminal import log_to_stderr, out
from dicomnode.computing import compiled_code
from dicomnode.config import Config, RejectionReason, load, with_engines
from dicomnode.errors import ConfigurationError, NodeError
from dicomnode.states import Event, State
from models.errors import ModelRejected
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from dicomnode.ledger import Ledger
    from dicomnode.records import Case

app = typer.Typer(
    help="A DICOM node for radionuclide therapy: SPECT/CT in, voxel dose-rate maps back to PACS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Rich's own markup would take the names of config.toml's sections for styles, and leave them out.
    rich_markup_mode="markdown",
)

OPTIONAL = ("torch",)
# What the commands of a cluster need, and the extra that brings it.
EXTRAS = {"dask": "dask", "distributed": "dask"}
CONFIG_PATHS = (Path("config.toml"), Path("/etc/dicomnode/config.toml"))

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="config.toml; else DICOMNODE_CONFIG, ./config.toml, /etc/dicomnode/"),
]
CaseArgument = Annotated[str, typer.Argument(help="case number, Study Instance UID, or the end of that UID")]


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the node until SIGTERM."""
    from dicomnode.daemon import serve as run

    settings = _load(config)
    log_to_stderr(settings.node.log_level)
    run(settings, lambda: _load(config))


@app.command()
def worker(config: ConfigOption = None) -> None:
    """Compute for a node on a Dask cluster ([cluster]) until SIGTERM; the node's data_dir must be here."""
    settings = _load(config)
    log_to_stderr(settings.node.log_level)
    compiled_code.find_place(settings.node.data_dir)
    from dicomnode.computing.cluster_worker import serve as run

    run(settings)


@app.command()
def check(
    config: ConfigOption = None,
    config_only: Annotated[bool, typer.Option(help="ask nothing of the network or the database")] = False,
) -> None:
    """Validate config.toml, disk, device, kernels; echo every peer. Exit status 1 when a problem is found."""
    settings = _load(config)
    # Before anything that numba compiles is imported.
    compiled_code.find_place(settings.node.data_dir)
    from dicomnode.commands.check import check as examine

    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    table = Table("", "", "", "what to do", box=None, show_header=False)
    problems = 0
    for finding in examine(settings, network=not config_only):
        level = Text(finding.level, style=colours[finding.level])
        # As text: the brackets of [[peers]] are no markup.
        table.add_row(level, Text(finding.subject), Text(finding.text), Text(finding.remedy))
        problems += finding.level == "problem"
    out.print(table)
    if problems:
        out.print(f"{problems} problem(s)")
        raise typer.Exit(1)


@app.command()
def cases(
    config: ConfigOption = None,
    state: Annotated[
        list[State] | None, typer.Option(help="only cases in this state; repeat for more")
    ] = None,
) -> None:
    """List the cases."""
    from dicomnode.commands.show import case_list

    ledger = _ledger(_load(config))
    out.print(case_list(ledger.cases(*(state or ()))))


@app.command()
def show(case: CaseArgument, config: ConfigOption = None) -> None:
    """Tell the story of one case: what came, what was decided and why, what was sent, what to do."""
    from dicomnode.commands.show import case_story

    ledger = _ledger(_load(config))
    out.print(case_story(ledger, ledger.find_case(case)))


@app.command()
def retry(
    case: Annotated[
        str | None, typer.Argument(help="case number, Study Instance UID, or the end of that UID")
    ] = None,
    config: ConfigOption = None,
    resend: Annotated[bool, typer.Option(help="send the existing results again, compute nothing")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="with --resend: each case that FAILED while it was sent")
    ] = False,
    rejection_reason: Annotated[
        RejectionReason | None,
        typer.Option(help="why archives are to reject the results that are replaced; else as [deliver] says"),
    ] = None,
) -> None:
    """Take up a HELD, FAILED or DONE case again: from its inputs, or with --resend from its results."""
    if (case is None) is not every or (every and not resend):
        raise ConfigurationError(
            "`dicomnode retry` takes one case, or --all with --resend",
            "`dicomnode cases --state FAILED` lists those that failed",
        )
    settings = _load(config)
    ledger = _ledger(settings)
    now = time.time()
    if resend:
        if rejection_reason is not None:
            raise ConfigurationError(
                "--resend sends the rejection note that was written with the results",
                "Leave --rejection-reason out, or --resend: then the case is computed again",
            )
        for found in [ledger.find_case(case)] if case else ledger.failed_to_send():
            _resend(ledger, settings, found, now, skip=every)
        return
    found = ledger.find_case(case or "")
    reason = "a person asked to begin again"
    # Without its old digest the case is computed also when its inputs are the same.
    said = {} if rejection_reason is None else {"rejection_reason": rejection_reason}
    ledger.apply(found.id, Event.RETRY, now, reason=reason, inputs_sha256="", conflict="", attempts=0, **said)
    out.print(f"case {found.id}: begins again from what was received")
    if found.inputs_removed_at is not None:
        out.print("what was received was removed by [retention]: send the study again")


def _resend(ledger: Ledger, settings: Config, case: Case, now: float, skip: bool) -> None:
    """skip: a case of which nothing can be sent is told, and does not end the command."""
    try:
        ledger.resend(case.id, now, settings.deliver.to, settings.rejection_note_takers())
    except NodeError as error:
        if not skip:
            raise
        out.print(f"case {case.id}: {error}")
    else:
        out.print(f"case {case.id}: its results are sent again")


@app.command()
def discard(
    case: CaseArgument,
    series: Annotated[str, typer.Option(help="Series Instance UID of the objects that are not to be used")],
    config: ConfigOption = None,
) -> None:
    """Set a series of a case aside (it stays on disk, but is not used); then `retry`."""
    ledger = _ledger(_load(config))
    found = ledger.find_case(case)
    count = ledger.discard(found.id, series, time.time())
    if count == 0:
        raise ConfigurationError(
            f"case {found.id} has no series {series}", f"`dicomnode show {found.id}` lists them"
        )
    ended = found.state in (State.DONE, State.HELD, State.FAILED)
    follows = f"now: dicomnode retry {found.id}" if ended else "the case is looked at again"
    out.print(f"case {found.id}: {count} object(s) of that series are set aside; {follows}")


@app.command()
def retention(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what is due, remove nothing")] = False,
) -> None:
    """Remove what [retention] says is due, while no node runs: one does so by itself every minute."""
    from dicomnode.commands.show import removal_list
    from dicomnode.lock import Lock
    from dicomnode.reception.spool import Spool
    from dicomnode.retention import Retention

    settings = _load(config)
    ledger = _ledger(settings)
    lock = Lock(settings.node.data_dir)
    if not dry_run:
        try:
            # Also of nodes that share it. An object that comes again while it goes would be lost: what a
            # receiver holds is known in its own process.
            lock.take()
        except ConfigurationError:
            raise ConfigurationError(
                f"a node uses [node] data_dir {settings.node.data_dir}: it removes what is due by itself",
                "List it with --dry-run; `systemctl reload dicomnode` has the node take up other settings",
            ) from None
    spool = Spool(settings.node.data_dir, 0, node=settings.node.name)
    stage = Retention(settings.retention, ledger, spool)
    now = time.time()
    out.print(removal_list(stage.plan(now) if dry_run else stage.remove_due(now), dry_run=dry_run))
    spool.close()
    lock.release()


@app.command()
def compute(
    folder: Annotated[Path, typer.Argument(help="DICOM files of one study", exists=True, file_okay=False)],
    to: Annotated[Path, typer.Option("--out", help="folder for the results")],
    config: ConfigOption = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="instead of [dose] engines: dvk, mc, cnn; repeat for more")
    ] = None,
) -> None:
    """Compute a study from files on disk, without a network: the same numbers as the node's."""
    settings = _load(config, or_default=True)
    compiled_code.find_place(settings.node.data_dir)
    from dicomnode.commands.folder import compute_folder

    log_to_stderr("WARNING")
    compute_folder(folder, to, with_engines(settings, engine) if engine else settings, out)


@app.command("make-kernel")
def make_kernel(
    nuclide: Annotated[str, typer.Argument(help="such as Lu-177; any whose decay data are shipped")],
    medium: Annotated[
        str, typer.Option(help="as the Monte Carlo names them; icru: four-component soft tissue")
    ] = "soft_tissue",
    density: Annotated[
        float | None, typer.Option(help="g/cm3; else 1.04 of soft_tissue, the medium's own of others")
    ] = None,
    decays: Annotated[float | None, typer.Option(help="so many decays, and no other end")] = None,
    uncertainty: Annotated[
        float | None,
        typer.Option(help="mean relative uncertainty of a shell, k=1; 0.01 where nothing is said"),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="file; else NUCLIDE_MEDIUM.csv here")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the random numbers")] = 1,
    decay_data: Annotated[
        Path | None, typer.Option(help="your own decay data in the form of the shipped ones", dir_okay=False)
    ] = None,
) -> None:
    """Compute a radial point kernel by Monte Carlo: energy in shells around a point, in one medium."""
    from datetime import date

    compiled_code.find_place(Config().node.data_dir)
    from dicomnode.commands.make_kernel import make_kernel as make

    make(
        nuclide,
        out,
        medium=medium,
        density=density,
        decays=decays,
        uncertainty=uncertainty,
        seed=seed,
        to=to,
        decay_data=decay_data,
        today=date.today(),
    )


@app.command("hash-password")
def hash_password() -> None:
    """Ask for a password, or read it from a pipe, and print what stands in config.toml as password_hash."""
    from dicomnode.network.identity import hash_password as hashed

    if sys.stdin.isatty():
        password = typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise ConfigurationError("the password is empty", "Leave it out where the user name is enough")
    out.print(hashed(password))


app.add_typer(model_commands.app)


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--out", help="folder for pictures and results")] = Path("demo-output"),
) -> None:
    """A full-size virtual patient through the whole node: push, compute, deliver, table and pictures."""
    compiled_code.find_place(to)
    from dicomnode.demo import run

    log_to_stderr("WARNING")
    run(to, out)


def main() -> None:
    """Entry point: a failure that the node foresees is told in a sentence, not in a traceback."""
    try:
        app()
    except (NodeError, PipelineError, ModelRejected) as error:
        print(f"dicomnode: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except ModuleNotFoundError as error:
        # The commands on networks need what a node without one may leave out.
        if error.name in EXTRAS:
            remedy = f"`pip install 'dicomnode[{EXTRAS[error.name]}]'`"
            print(f"dicomnode: {error.name} is not installed. {remedy}", file=sys.stderr)  # noqa: T201
            sys.exit(1)
        if error.name not in OPTIONAL:
            raise
        from pipeline.network import HOW_TO_INSTALL

        print(f"dicomnode: {error.name} is not installed. {HOW_TO_INSTALL}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False,
) -> None:
    if version:
        out.print(f"dicomnode {__version__}")
        raise typer.Exit


def _load(path: Path | None, *, or_default: bool = False) -> Config:
    """The configuration: named, from the environment, or from the usual places."""
    named = path or (Path(os.environ["DICOMNODE_CONFIG"]) if "DICOMNODE_CONFIG" in os.environ else None)
    candidates = [named] if named is not None else [p for p in CONFIG_PATHS if p.exists()]
    if not candidates and or_default:
        return Config()
    return load(candidates[0] if candidates else CONFIG_PATHS[0])


def _ledger(config: Config) -> Ledger:
    """The ledger of a node that has run: a person's command must not make one that the node cannot open."""
    from dicomnode.ledger import Ledger

    if not config.node.has_ledger:
        raise ConfigurationError(
            f"there is no ledger in [node] data_dir {config.node.data_dir}",
            "Start the node first, or name its config.toml with --config",
        )
    return Ledger.open(config.node.ledger_url)


if __name__ == "__main__":
    main()
