"""What an administrator types, reads and gets as exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dicomnode import __version__
from dicomnode.__main__ import app, main
from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.ledger import Ledger
from dicomnode.lock import Lock
from dicomnode.records import Quarantined
from dicomnode.states import Event, State
from tests import small_study
from tests.dicomnode.results_on_disk import encoded_case, instance


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def write_config(tmp_path: Path, more: str = "") -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\n[receive]\nmin_free_gb = 0.1\n{more}')
    return path


@pytest.fixture
def ledger(settings: Path, tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}")
    yield ledger
    ledger.close()


def told(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, list(arguments))


def words(result: Result) -> str:
    return " ".join(result.output.split())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a process of its own: errors go through `main`."""
    return subprocess.run(
        [sys.executable, "-m", "dicomnode", *arguments],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "COLUMNS": "250"},
    )  # fmt: skip


def peers(port: int) -> str:
    return f"""
[[peers]]
name = "camera"
ae_title = "CAMERA"
[[peers]]
name = "PACS"
ae_title = "STANDIN"
host = "127.0.0.1"
port = {port}
[deliver]
to = ["PACS"]
[notify]
command = ["true"]
"""


def test_version() -> None:
    assert __version__ in told("--version").output


def test_check_echoes_every_peer_and_is_content(tmp_path: Path) -> None:
    with StandinPacs(tmp_path / "pacs") as pacs:
        result = told("check", "--config", str(write_config(tmp_path, peers(pacs.port))))
    assert result.exit_code == 0, result.output
    assert '"PACS" STANDIN at 127.0.0.1' in words(result)
    assert "answers C-ECHO" in words(result)


def test_check_names_a_dead_peer_and_fails_but_not_with_config_only(tmp_path: Path) -> None:
    with StandinPacs(tmp_path / "pacs") as pacs:
        port = pacs.port
    config = str(write_config(tmp_path, peers(port)))
    result = told("check", "--config", config)
    assert result.exit_code == 1
    assert '[[peers]] "PACS"' in words(result)
    assert "cannot be reached" in words(result)
    assert "its host and port in [[peers]]" in words(result)
    assert told("check", "--config-only", "--config", config).exit_code == 0


def test_check_tells_every_intention_that_cannot_be_met(settings: Path) -> None:
    result = told("check", "--config", str(settings))
    assert result.exit_code == 1
    for text in ("no peer may store", "no destination", "no camera", "nobody hears of HELD and FAILED"):
        assert text in words(result)


def test_check_tells_of_a_retention_that_keeps_what_nobody_gets(settings: Path) -> None:
    told_before = words(told("check", "--config-only", "--config", str(settings)))
    settings.write_text(settings.read_text() + "\n[retention]\nquota_gb = 500\n")
    told_now = words(told("check", "--config-only", "--config", str(settings)))
    assert ["[retention] removes neither" in text for text in (told_before, told_now)] == [False, True]


def test_a_wrong_config_is_a_sentence_and_not_a_traceback(tmp_path: Path) -> None:
    done = run("check", "--config", str(write_config(tmp_path, "prot = 7\n")))
    assert done.returncode == 1
    assert "[receive] has no setting 'prot'. Did you mean 'port' of [node]?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_config_says_how_to_name_one(tmp_path: Path) -> None:
    done = run("cases", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 1
    assert "Name the file with --config or DICOMNODE_CONFIG" in done.stderr


def test_cases_and_show_tell_the_story(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    ledger.apply(1, Event.REJECT, 20.0, reason="SPECT without CT", remedy="Send the CT")
    listed = told("cases", "--config", str(settings))
    assert "HELD" in listed.output
    assert "SPECT without CT" in listed.output
    shown = words(told("show", "1", "--config", str(settings)))
    for text in (
        "reason: SPECT without CT",
        "remedy: Send the CT",
        "PAT-0001 (issuer HOSPITAL)",
        "COLLECTING REJECT HELD",
    ):
        assert text in shown
    assert words(told("show", "1.2.3", "--config", str(settings))) == shown


def test_cases_can_be_filtered_by_state(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    assert "PAT-0001" in told("cases", "--state", "COLLECTING", "--config", str(settings)).output
    assert "PAT-0001" not in told("cases", "--state", "DONE", "--config", str(settings)).output


def test_show_of_an_unknown_case_says_how_to_list_them(settings: Path, ledger: Ledger) -> None:
    done = run("show", "99", "--config", str(settings))
    assert done.returncode == 1
    assert "no case matches '99'. `dicomnode cases` lists them" in done.stderr


def test_retry_takes_a_held_case_up_again(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    ledger.apply(1, Event.REJECT, 20.0, reason="r", remedy="m")
    assert told("retry", "1", "--config", str(settings)).exit_code == 0
    assert ledger.case(1).state is State.COLLECTING


def test_retry_says_why_the_replaced_results_are_rejected_and_show_tells(
    settings: Path, ledger: Ledger
) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    again = ("retry", "1", "--config", str(settings))
    assert told(*again, "--rejection-reason", "patient_safety").exit_code == 0
    assert told(*again).exit_code == 0
    assert ledger.case(1).rejection_reason == "patient_safety", "it holds until it was sent"
    assert "for reasons of patient safety" in words(told("show", "1", "--config", str(settings)))
    assert told(*again, "--rejection-reason", "nonsense").exit_code == 2
    refused = run(*again, "--rejection-reason", "quality", "--resend")
    assert refused.returncode == 1
    assert "Leave --rejection-reason out" in refused.stderr
    assert ledger.case(1).rejection_reason == "patient_safety"


def test_show_names_the_file_of_an_object_that_was_set_aside_in_one_piece(
    settings: Path, ledger: Ledger
) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    path = f"quarantine/{'0123456789abcdef' * 4}.dcm"
    item = Quarantined("1.1", "1.2.3", "CAMERA", "CUT_SHORT", "pixel data cut short", 0xC022, path, 3.0)
    ledger.quarantine(item)
    shown = told("show", "1", "--config", str(settings)).stdout
    assert sum(line.endswith(f"  {path}") for line in shown.splitlines()) == 1
    assert "0xC022" in shown


def test_retry_of_a_computing_case_is_refused_in_a_sentence(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    for event in (Event.COMPLETE, Event.CLAIM):
        ledger.apply(1, event, 20.0)
    done = run("retry", "1", "--config", str(settings))
    assert done.returncode == 1
    assert "a case that is COMPUTING cannot begin again. Wait until it has ended" in done.stderr
    assert "Traceback" not in done.stderr


def test_retention_removes_nothing_beside_a_node_that_runs(
    settings: Path, ledger: Ledger, tmp_path: Path
) -> None:
    with_node = Lock(tmp_path / "data")
    with_node.take()
    refused = run("retention", "--config", str(settings))
    listed = run("retention", "--dry-run", "--config", str(settings))
    with_node.release()
    assert refused.returncode == 1
    assert "it removes what is due by itself" in refused.stderr
    assert listed.stdout == "nothing is due\n"
    assert run("retention", "--config", str(settings)).stdout == "nothing is due\n"


def test_resend_sends_the_existing_results_again(tmp_path: Path) -> None:
    config = write_config(tmp_path, peers(11112))
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}")
    case = encoded_case(ledger, tmp_path / "data", ("PACS",))
    attempt = ledger.begin(case.id, Event.SEND, "deliver", 20.0)
    run_ = ledger.latest_run(case.id)
    assert run_ is not None
    for _, delivery in ledger.deliveries(run_.id):
        ledger.answered(delivery, 21.0, status=0, detail="", delivered=True)
    assert ledger.delivered(attempt, run_, 22.0).state is State.DONE
    assert told("retry", str(case.id), "--resend", "--config", str(config)).exit_code == 0
    assert ledger.case(case.id).state is State.SENDING
    assert all(d.delivered_at is None for _, d in ledger.deliveries(run_.id))
    ledger.close()


def test_resend_all_takes_up_each_case_that_failed_while_it_was_sent_and_no_other(tmp_path: Path) -> None:
    config = str(write_config(tmp_path, peers(11112)))
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}")
    sent, waiting, computed, removed = (
        encoded_case(ledger, tmp_path / "data", ("PACS",), study=f"1.2.{n}") for n in range(4)
    )
    for case in (sent, removed, waiting):
        attempt = ledger.begin(case.id, Event.SEND, "deliver", 20.0)
        event = Event.STUMBLE if case is waiting else Event.GIVE_UP
        ledger.end(attempt, event, 30.0, outcome="failed", reason="PACS refused")
    # It has older results, which are outdated, and failed when new ones were computed.
    ledger.add_instances([instance(computed.study_instance_uid, 2, 40.0)], 40.0)
    for event in (Event.COMPLETE, Event.CLAIM, Event.GIVE_UP):
        ledger.apply(computed.id, event, 50.0)
    ledger.apply(sent.id, Event.RECOVER, 60.0)  # the node was started since
    gone = ledger.latest_run(removed.id)
    assert gone is not None
    ledger.remove_results(removed.id, State.FAILED, 70.0)
    done = told("retry", "--all", "--resend", "--config", config)
    assert done.exit_code == 0
    assert f"case {sent.id}: its results are sent again" in words(done)
    assert f"case {removed.id}: the results of case {removed.id} were removed" in words(done)
    states = [ledger.case(case.id).state for case in (sent, waiting, computed, removed)]
    assert states == [State.SENDING, State.SENDING, State.FAILED, State.FAILED]
    assert ledger.case(waiting.id).attempts == waiting.attempts
    ledger.close()


@pytest.mark.parametrize("said", [(), ("--all",), ("--resend",), ("1", "--all", "--resend")])
def test_retry_takes_a_case_or_all_that_are_to_be_sent_again(settings: Path, said: tuple[str, ...]) -> None:
    refused = run("retry", *said, "--config", str(settings))
    assert refused.returncode == 1
    assert "takes one case, or --all with --resend" in refused.stderr


def test_discard_sets_a_series_aside(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", n) for n in (1, 2)], 10.0)
    result = told("discard", "1", "--series", "1.2.3.1", "--config", str(settings))
    assert "2 object(s)" in result.output
    assert ledger.instances(1) == []


def test_discard_stops_what_is_being_computed_with_the_series(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", n) for n in (1, 2)], 10.0)
    for event in (Event.COMPLETE, Event.CLAIM):
        ledger.apply(1, event, 20.0)
    result = told("discard", "1", "--series", "1.2.3.1", "--config", str(settings))
    assert ledger.case(1).state is State.COLLECTING
    assert "the case is looked at again" in words(result)


@pytest.mark.parametrize("command", [["cases"], ["show", "1"], ["retry", "1"], ["check"]])
def test_a_command_before_the_first_start_makes_no_ledger(settings: Path, command: list[str]) -> None:
    """Made by root, it would keep the service from starting."""
    done = run(*command, "--config", str(settings))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (settings.parent / "data" / "ledger.sqlite3").exists()


def test_show_never_cuts_what_a_person_copies(settings: Path, ledger: Ledger) -> None:
    study = "1.2.826.0.1.3680043.8.498.32757310532345872653827462938475647382"
    ledger.add_instances([instance(study, 1)], 10.0)
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["show", "1", "--config", str(settings)])
    assert "…" not in narrow.output


def test_check_names_a_port_that_another_program_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        path = tmp_path / "config.toml"
        path.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\nbind = "127.0.0.1"\nport = {port}\n')
        result = told("check", "--config", str(path))
    assert result.exit_code == 1
    assert f"127.0.0.1:{port} cannot be used" in words(result)


@pytest.mark.skipif(not socket.has_ipv6, reason="Python was built without IPv6")
def test_check_looks_at_the_port_of_an_ipv6_address_too(tmp_path: Path) -> None:
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    path = tmp_path / "config.toml"
    port = other.getsockname()[1]
    path.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\nbind = "::1"\nport = {port}\n')
    with other:
        assert "Address already in use" in words(told("check", "--config", str(path)))
    assert f"::1:{port} is free" in words(told("check", "--config", str(path)))


def test_discard_of_an_unknown_series_says_so(settings: Path, ledger: Ledger) -> None:
    ledger.add_instances([instance("1.2.3", 1)], 10.0)
    done = run("discard", "1", "--series", "9.9", "--config", str(settings))
    assert done.returncode == 1
    assert "case 1 has no series 9.9" in done.stderr


def test_compute_needs_no_configuration_and_no_network(tmp_path: Path) -> None:
    files = small_study.write(tmp_path / "study")
    (files.folder / "notes.txt").write_text("not DICOM")
    done = run("compute", str(files.folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "hot cube" in done.stdout
    assert "1 file(s) under" in done.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"SEG.dcm", "RTDOSE-dvk.dcm", "SR.dcm"}


def test_compute_says_what_is_missing(tmp_path: Path) -> None:
    files = small_study.write(tmp_path / "study", ct=None)
    done = run("compute", str(files.folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "SPECT without CT" in done.stderr
    assert "Send the CT" in done.stderr
    assert not (tmp_path / "out").exists()


def test_compute_wants_one_study(tmp_path: Path) -> None:
    for seed in ("a", "b"):
        small_study.write(tmp_path / "studies" / seed, seed)
    done = run("compute", str(tmp_path / "studies"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "must hold one study" in done.stderr


@pytest.mark.parametrize(("package", "foreseen"), [("torch", True), ("dicomnode.gone", False)])
def test_a_package_that_a_node_may_leave_out_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, foreseen: bool
) -> None:
    """What networks need is not installed with the node; any other missing module is a fault of ours."""

    def command() -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("dicomnode.__main__.app", command)
    with pytest.raises(SystemExit if foreseen else ModuleNotFoundError):
        main()
    assert ("torch is not installed. Install it" in capsys.readouterr().err) == foreseen


@pytest.mark.parametrize(
    ("command", "section"),
    [("retry", "[deliver]"), ("compute", "[dose]"), ("worker", "[cluster]"), ("retention", "[retention]")],
)
def test_a_commands_help_names_the_section_of_the_file(command: str, section: str) -> None:
    """In brackets, which Rich would take for a style and leave out."""
    assert section in told(command, "--help").output
