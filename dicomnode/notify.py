"""Tells a person of HELD and FAILED cases: a command, an e-mail, or both; and reminds.

The message names the case and the Study Instance UID, not the patient. A command or a relay that
fails is logged and tried again at a later tick; it never stops the node.
"""

from __future__ import annotations

import logging
import os
import smtplib
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from dicomnode.config import Notify
from dicomnode.ledger import Ledger
from dicomnode.privacy import without_identity
from dicomnode.records import Case
from dicomnode.states import State

COMMAND_TIMEOUT_S = 30.0
SMTP_TIMEOUT_S = 30.0
# After a failing command or relay; not at every tick, which may be every second.
RETRY_S = 300.0

Way = Callable[[Case, float, Notify], bool]
"""Sends one message. returns: whether it was taken."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pending:
    """A message that not every way has taken yet."""

    took: set[str] = field(default_factory=set)
    not_before: float = 0.0


class Notifier:
    """The stage: one message for each case that newly needs a person, and reminders."""

    def __init__(self, settings: Notify, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._pending: dict[tuple[int, float], _Pending] = {}

    def tick(self, now: float) -> None:
        """Tell of every case whose message is due."""
        ways = _ways(self._settings)
        if not ways:
            return
        cases = due(self._ledger.cases(State.HELD, State.FAILED), now, self._settings)
        # A case that moved on has a new time: what was pending of its old state is forgotten.
        keys = {case.id: (case.id, case.updated_at) for case in cases}
        self._pending = {key: self._pending.get(key, _Pending()) for key in keys.values()}
        for case in cases:
            if not 0 < self._pending[keys[case.id]].not_before - now <= RETRY_S:
                self._tell(case, now, ways, self._pending[keys[case.id]])

    def _tell(self, case: Case, now: float, ways: dict[str, Way], pending: _Pending) -> None:
        for name, way in ways.items():
            # A way that took the message does not repeat it because another one fails.
            if name not in pending.took and way(case, now, self._settings):
                pending.took.add(name)
        if pending.took == ways.keys():
            self._ledger.notified(case.id, now)
        else:
            pending.not_before = now + RETRY_S


def due(cases: Iterable[Case], now: float, settings: Notify) -> list[Case]:
    """Those that nobody was told of, or not for remind_every_h."""
    remind_s = settings.remind_every_h * 3600
    return [
        case
        for case in cases
        if case.state in (State.HELD, State.FAILED)
        # A time to come is a clock that was set back: better told twice than never.
        and (case.notified_at is None or not 0 <= now - case.notified_at < remind_s)
    ]


def message(case: Case) -> str:
    """What a person reads, without the patient's name or numbers."""
    lines = [
        f"Case {case.id} is {case.state}.",
        f"Study Instance UID: {case.study_instance_uid}",
        f"Reason: {without_identity(case.reason, case)}",
        f"Remedy: {without_identity(case.remedy, case)}",
        f"The whole story: dicomnode show {case.id}",
    ]
    return "\n".join(lines) + "\n"


def _ways(settings: Notify) -> dict[str, Way]:
    ways: dict[str, Way] = {}
    if settings.command:
        ways["command"] = _run
    if settings.email_to:
        ways["email"] = _mail
    return ways


def _run(case: Case, _now: float, settings: Notify) -> bool:
    """The command of the administrator's choice, never through a shell."""
    program = settings.command[0]
    environment = os.environ | {
        "CASE": str(case.id),
        "STATE": str(case.state),
        "REASON": without_identity(case.reason, case),
        "REMEDY": without_identity(case.remedy, case),
    }
    # systemd takes messages from the node alone, not from its children.
    environment.pop("NOTIFY_SOCKET", None)
    try:
        done = subprocess.run(
            settings.command,
            input=message(case).encode(),
            env=environment,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.error("[notify] command %s did not end within %g s: stopped", program, COMMAND_TIMEOUT_S)
        return False
    except OSError as error:
        log.error("[notify] command %s cannot be run: %s", program, error.strerror)
        return False
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        log.error("[notify] command %s ended with exit status %d: %s", program, done.returncode, said)
    return done.returncode == 0


def _mail(case: Case, now: float, settings: Notify) -> bool:
    mail = EmailMessage()
    mail["From"] = settings.email_from
    mail["To"] = ", ".join(settings.email_to)
    mail["Subject"] = f"dicomnode: case {case.id} is {case.state}"
    mail["Date"] = formatdate(now)
    mail["Message-ID"] = make_msgid(domain="dicomnode.invalid")
    # Automatic absences are not to answer, RFC 3834.
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message(case))
    try:
        with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=SMTP_TIMEOUT_S) as relay:
            refused = relay.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:
        log.error("[notify] mail relay %s port %d: %s", settings.smtp_host, settings.smtp_port, error)
        return False
    for address, (code, text) in refused.items():
        log.error("[notify] the mail relay refused %s: %d %s", address, code, text.decode(errors="replace"))
    return not refused
