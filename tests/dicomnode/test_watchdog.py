"""sd_notify against a real datagram socket, as systemd would hold it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode import watchdog


def listening(address: str) -> socket.socket:
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(address)
    systemd.settimeout(5.0)
    return systemd


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    if request.param == "path":
        address = shown = str(tmp_path / "notify")
    else:
        shown = f"@dicomnode-test-{os.getpid()}"
        address = "\0" + shown[1:]
    monkeypatch.setenv("NOTIFY_SOCKET", shown)
    with listening(address) as bound:
        yield bound


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (watchdog.ready, "READY=1\nSTATUS=listening"),
        (watchdog.alive, "WATCHDOG=1"),
        (watchdog.stopping, "STOPPING=1\nSTATUS=stopping"),
        (lambda: watchdog.status("3 cases\nwait"), "STATUS=3 cases wait"),
    ],
)
def test_systemd_hears_each_word(systemd: socket.socket, say: Callable[[], None], expected: str) -> None:
    say()
    assert systemd.recv(1000).decode() == expected


def test_without_systemd_nothing_is_sent_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert watchdog.notify("READY=1") is False


def test_a_socket_that_is_gone_does_not_stop_the_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert watchdog.notify("READY=1") is False


def test_the_node_reports_three_times_per_watchdog_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "120000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog.interval_s() == 40.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog.interval_s() == 40.0


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("0", "ours"), ("120000000", "1"), ("x", "")])
def test_a_watchdog_that_is_off_or_not_for_us_is_told_rarely(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert watchdog.interval_s() == 60.0
