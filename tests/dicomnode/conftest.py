"""What several files of these tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.demo.standin_pacs import StandinPacs
from dicomnode.ledger import Ledger
from tests.ports import free_port
from tests.postgres import PostgresServer


@pytest.fixture
def down(tmp_path: Path) -> Iterator[StandinPacs]:
    """A PACS that does not listen on its port; a test may start it."""
    pacs = StandinPacs(tmp_path / "down", "DOWN", port=free_port())
    yield pacs
    pacs.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that the node runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger in such a database; a file whose tests need another has its own."""
    opened = Ledger.open(url)
    yield opened
    opened.close()
