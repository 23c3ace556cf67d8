"""An outage of the database in the log: a line when it begins, now and then, and when it ends."""

from __future__ import annotations

import logging

import pytest

from dicomnode.errors import LedgerUnavailable
from dicomnode.outage import REMIND_EVERY_S, Outage

GONE = LedgerUnavailable("the ledger does not answer: connection refused", "Check [node] database_url")


class Database:
    def __init__(self) -> None:
        self.answers = False
        self.now = 1000.0
        self.outage = Outage("postgresql://node@db/dicomnode", self.ask, lambda: 7, lambda: self.now)

    def ask(self) -> None:
        if not self.answers:
            raise GONE


@pytest.fixture
def database(caplog: pytest.LogCaptureFixture) -> Database:
    caplog.set_level(logging.INFO)
    return Database()


def test_every_stage_fails_at_every_tick_and_a_line_comes_every_ten_minutes(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1500):
        database.outage.failed("flush", GONE)
        database.outage.failed("deliver", GONE)
        database.now += 1.0
    first, second, third = caplog.messages
    assert "postgresql://node@db/dicomnode" in first
    assert "acknowledged all the same" in first
    assert "for 10 min now; 7 received objects wait for it" in second
    assert "for 20 min now" in third
    assert REMIND_EVERY_S == 600


def test_it_is_back_when_every_stage_that_failed_is_content_and_the_database_answers(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A stage that had nothing to do says nothing about the database."""
    database.outage.ended_without("indexer")
    assert caplog.messages == []
    for stage in ("flush", "deliver"):
        database.outage.failed(stage, GONE)
    caplog.clear()
    for stage in ("flush", "deliver"):
        database.outage.ended_without(stage)
    assert caplog.messages == [], "it does not answer yet"
    database.outage.failed("deliver", GONE)
    database.answers = True
    database.outage.ended_without("flush")
    assert caplog.messages == [], "reading works, and deliver could not write"
    database.now += 95.0
    database.outage.ended_without("deliver")
    assert caplog.messages == [
        "the ledger answers again (postgresql://node@db/dicomnode), after 95 s: everything goes on"
    ]
    database.outage.ended_without("deliver")
    assert len(caplog.messages) == 1
    database.outage.failed("flush", GONE)
    assert "acknowledged all the same" in caplog.messages[-1], "the next outage is one of its own"
