"""The tests' own arrangements."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[1]


def test_what_begins_first_is_there() -> None:
    """A file that was renamed would be the last one again."""
    assert [path for path in LONGEST if not (ROOT / path).exists()] == []
