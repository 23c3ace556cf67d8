"""Who is told of HELD and FAILED cases: by a real command and through a real SMTP exchange."""

from __future__ import annotations

import logging
import socketserver
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from dicomnode.config import Notify
from dicomnode.ledger import Ledger
from dicomnode.notify import RETRY_S, Notifier, due, message, without_identity
from dicomnode.records import Case
from dicomnode.states import Event, State
from tests.dicomnode.results_on_disk import instance

DAY_S = 24 * 3600.0
WRITE = """
import os, pathlib, sys
with pathlib.Path(sys.argv[1]).open("a") as out:
    out.write(repr({k: os.environ.get(k) for k in ("CASE", "STATE", "REASON", "REMEDY", "NOTIFY_SOCKET")}))
    out.write("\\n" + sys.stdin.read() + "END\\n")
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    yield opened
    opened.close()


def held(ledger: Ledger, study: str = "1.2.3", now: float = 1.0) -> Case:
    (case_id,) = ledger.add_instances([instance(study)], 0.0)
    reason = "SPECT of patient PAT-0001 has no CT"
    return ledger.apply(case_id, Event.REJECT, now, reason=reason, remedy="Push the CT of ACC-7")


def writing_to(path: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", WRITE, str(path))


class Relay(socketserver.ThreadingTCPServer):
    """As much of RFC 5321 as one message needs."""

    def __init__(self, refuse: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.refuse = refuse
        self.mails: list[bytes] = []
        self.recipients: list[str] = []


class _Session(socketserver.StreamRequestHandler):
    server: Relay

    def handle(self) -> None:
        self.wfile.write(b"220 relay\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            if verb == b"RCPT" and self.server.refuse and self.server.refuse in line:
                self.wfile.write(b"550 no such mailbox\r\n")
                continue
            if verb == b"RCPT":
                self.server.recipients.append(line.decode().strip())
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.server.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")))
            self.wfile.write(b"250 ok\r\n")


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def mailing(relay: Relay, *to: str, **settings: object) -> Notify:
    values = {"email_to": to, "smtp_host": "127.0.0.1", "smtp_port": relay.server_address[1], **settings}
    return Notify.model_validate(values)


# ── when ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_case_is_due_at_once_then_daily_and_only_while_a_person_must_act(ledger: Ledger) -> None:
    settings = Notify(remind_every_h=24.0)
    case = held(ledger)
    collecting = ledger.case(*ledger.add_instances([instance("1.2.4")], 0.0))
    assert due([case, collecting], 2.0, settings) == [case]
    ledger.notified(case.id, 2.0)
    told = ledger.case(case.id)
    assert due([told], 2.0 + DAY_S - 1, settings) == []
    assert due([told], 2.0 + DAY_S, settings) == [told]


def test_nobody_set_means_nobody_is_told(ledger: Ledger) -> None:
    case = held(ledger)
    Notifier(Notify(), ledger).tick(2.0)
    assert ledger.case(case.id).notified_at is None


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_the_command_gets_reason_and_remedy_once_a_day(ledger: Ledger, tmp_path: Path) -> None:
    case = held(ledger)
    out = tmp_path / "out"
    notifier = Notifier(Notify(command=writing_to(out)), ledger)
    for now in (2.0, 3.0, 2.0 + DAY_S, 3.0 + DAY_S):
        notifier.tick(now)
    text = out.read_text()
    assert text.count("END") == 2
    assert f"Case {case.id} is HELD." in text
    assert "'STATE': 'HELD'" in text
    assert "'REASON': 'SPECT of patient [Patient ID] has no CT'" in text
    assert "Remedy: Push the CT of [Accession Number]" in text
    assert ledger.case(case.id).notified_at == 2.0 + DAY_S


def test_nothing_in_a_message_is_run_by_a_shell(ledger: Ledger, tmp_path: Path) -> None:
    case = held(ledger)
    ledger.apply(case.id, Event.RETRY, 2.0)
    evil = f"$(touch {tmp_path}/evil); `touch {tmp_path}/evil`"
    ledger.apply(case.id, Event.REJECT, 3.0, reason=evil)
    out = tmp_path / "out"
    Notifier(Notify(command=writing_to(out)), ledger).tick(4.0)
    assert evil in out.read_text()
    assert not (tmp_path / "evil").exists()


def test_the_command_cannot_speak_to_systemd_for_the_node(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    held(ledger)
    Notifier(Notify(command=writing_to(tmp_path / "out")), ledger).tick(2.0)
    assert "'NOTIFY_SOCKET': None" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("command", "logged"),
    [
        ((sys.executable, "-c", "import sys; sys.exit('no pager')"), "ended with exit status 1: no pager"),
        (("/no/such/program",), "cannot be run: No such file or directory"),
    ],
)
def test_a_command_that_fails_is_logged_and_tried_again_later(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, command: tuple[str, ...], logged: str
) -> None:
    case = held(ledger)
    notifier = Notifier(Notify(command=command), ledger)
    for now in (2.0, 3.0, 2.0 + RETRY_S):
        notifier.tick(now)
    assert caplog.text.count(logged) == 2
    assert ledger.case(case.id).notified_at is None


def test_a_command_that_hangs_is_stopped(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomnode.notify.COMMAND_TIMEOUT_S", 0.2)
    case = held(ledger)
    hang = (sys.executable, "-c", "import threading; threading.Event().wait(60)")
    Notifier(Notify(command=hang), ledger).tick(2.0)
    assert "did not end within 0.2 s" in caplog.text
    assert ledger.case(case.id).notified_at is None


# ── the e-mail ───────────────────────────────────────────────────────────────────────────────────


def test_the_mail_names_case_study_reason_and_remedy_but_no_patient(ledger: Ledger, relay: Relay) -> None:
    case = held(ledger)
    Notifier(mailing(relay, "physics@hospital.example", "pacs@hospital.example"), ledger).tick(2.0)
    (raw,) = relay.mails
    mail = message_from_bytes(raw, policy=default)
    assert mail["Subject"] == f"dicomnode: case {case.id} is HELD"
    assert len(relay.recipients) == 2
    text = mail.get_content()
    assert "Study Instance UID: 1.2.3" in text
    assert "has no CT" in text
    assert "Push the CT" in text
    assert b"PAT-0001" not in raw
    assert b"ACC-7" not in raw
    assert ledger.case(case.id).notified_at == 2.0


def test_a_relay_that_is_down_is_logged_and_tried_again(
    ledger: Ledger, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    case = held(ledger)
    settings = mailing(relay, "physics@hospital.example")
    notifier = Notifier(settings.model_copy(update={"smtp_host": "no-such-host.invalid"}), ledger)
    notifier.tick(2.0)
    assert "mail relay no-such-host.invalid port" in caplog.text
    assert ledger.case(case.id).notified_at is None
    Notifier(settings, ledger).tick(3.0)
    assert len(relay.mails) == 1


def test_an_address_that_the_relay_refuses_is_named(
    ledger: Ledger, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    relay.refuse = b"typo@"
    held(ledger)
    Notifier(mailing(relay, "typo@hospital.example", "physics@hospital.example"), ledger).tick(2.0)
    assert "refused typo@hospital.example: 550 no such mailbox" in caplog.text
    assert len(relay.mails) == 1


def test_the_way_that_works_is_not_repeated_because_the_other_fails(ledger: Ledger, relay: Relay) -> None:
    case = held(ledger)
    notifier = Notifier(mailing(relay, "physics@hospital.example", command=("/no/such/program",)), ledger)
    notifier.tick(2.0)
    notifier.tick(2.0 + RETRY_S)
    assert len(relay.mails) == 1
    assert ledger.case(case.id).notified_at is None


def test_a_case_that_is_held_anew_is_told_by_every_way_again(ledger: Ledger, relay: Relay) -> None:
    case = held(ledger)
    notifier = Notifier(mailing(relay, "physics@hospital.example", command=("/no/such/program",)), ledger)
    notifier.tick(2.0)
    ledger.apply(case.id, Event.RETRY, 3.0)
    ledger.apply(case.id, Event.REJECT, 4.0, reason="still no CT")
    notifier.tick(5.0)
    assert len(relay.mails) == 2


# ── the text ─────────────────────────────────────────────────────────────────────────────────────


def test_a_short_patient_id_is_no_reason_to_mangle_numbers(ledger: Ledger) -> None:
    (case_id,) = ledger.add_instances([instance(patient_id="2", accession_number="")], 0.0)
    assert without_identity("2 slices are missing", ledger.case(case_id)) == "2 slices are missing"


def test_an_identifier_inside_a_longer_word_stays(ledger: Ledger) -> None:
    case = held(ledger)
    assert without_identity("PAT-00011 and PAT-0001.", case) == "PAT-00011 and [Patient ID]."


def test_the_message_says_where_the_story_is(ledger: Ledger) -> None:
    case = held(ledger)
    assert case.state is State.HELD
    assert message(case).endswith(f"dicomnode show {case.id}\n")


def test_success_is_logged_nowhere_as_an_error(
    ledger: Ledger, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    held(ledger)
    with caplog.at_level(logging.ERROR):
        Notifier(mailing(relay, "physics@hospital.example"), ledger).tick(2.0)
    assert caplog.text == ""
