"""What several files of these tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.demo.standin_pacs import StandinPacs
from tests.ports import free_port


@pytest.fixture
def down(tmp_path: Path) -> Iterator[StandinPacs]:
    """A PACS that does not listen on its port; a test may start it."""
    pacs = StandinPacs(tmp_path / "down", "DOWN", port=free_port())
    yield pacs
    pacs.stop()
