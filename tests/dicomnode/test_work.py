"""Whose turn it is to work: one node at a time, and the next one goes on from what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from dicomnode.errors import LedgerUnavailable
from dicomnode.ledger import Ledger
from dicomnode.reception.intake import Intake
from dicomnode.work import LOOK_EVERY_S, Work


class Site:
    """A ledger that the test lets answer, and what the node is told."""

    def __init__(self, folder: Path) -> None:
        self.free: bool | None = True
        self.now = 0.0
        self.told: list[str] = []
        self.work = Work(
            cast(Ledger, self),
            cast(Intake, self),
            folder,
            lambda now: self.told.append("recover"),
            lambda: self.told.append("let go"),
            lambda: self.now,
        )

    def has_work(self) -> bool:
        if self.free is None:
            raise LedgerUnavailable("the ledger does not answer")
        return self.free

    def adopt(self, nodes: Any, now: float) -> None:
        self.told.append(f"adopt {nodes}")

    def tick(self) -> None:
        self.now += LOOK_EVERY_S
        self.work.tick(0.0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_was_left_is_recovered_once_when_the_work_comes(site: Site) -> None:
    site.tick()
    site.tick()
    assert site.told == ["recover"]


def test_a_stage_rests_where_another_node_works(site: Site) -> None:
    ticks: list[float] = []
    stage = site.work.of(ticks.append)
    site.free = False
    site.tick()
    stage(1.0)
    assert ticks == []
    site.free = True
    site.tick()
    stage(2.0)
    assert ticks == [2.0]


def test_a_node_that_loses_the_work_lets_its_jobs_go(site: Site) -> None:
    site.tick()
    site.free = False
    site.tick()
    site.tick()
    assert site.told == ["recover", "let go"]


def test_after_an_absence_of_the_database_what_others_may_have_left_is_recovered(site: Site) -> None:
    site.tick()
    site.free = None
    with pytest.raises(LedgerUnavailable):
        site.tick()
    site.free = True
    site.tick()
    assert site.told == ["recover", "recover"]


def test_what_a_killed_node_left_is_taken_up_by_the_one_that_works(site: Site, tmp_path: Path) -> None:
    nodes = tmp_path / "shared" / "nodes"
    nodes.mkdir(parents=True)
    (nodes / "a").write_text("123\n")
    site.free = False
    site.tick()
    assert site.told == []
    site.free = True
    site.tick()
    site.tick()
    assert site.told == ["recover", "adopt ['a']"]
