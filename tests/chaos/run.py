"""All episodes of a run, in random order."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.harness import Orthanc
from tests.chaos.disk_full import disk_full, small_disk, watermark_of_this_disk
from tests.chaos.episode import Episode, Kind, Outcome
from tests.chaos.journal import Entry, Journal
from tests.chaos.kills import kill
from tests.chaos.outages import outage
from tests.chaos.site import Site, program, running
from tests.chaos.verdict import Verdict, judge

_DO: dict[Kind, Callable[[Site, Episode], Outcome]] = {
    Kind.KILL: kill,
    Kind.DISK_FULL: disk_full,
    Kind.OUTAGE: outage,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many episodes of each kind, and the seed of everything that is random."""

    kills: int
    disk_full: int
    outages: int
    seed: int

    def episodes(self) -> list[Episode]:
        """Kills and outages mixed, on one node; then the full disk, on another."""
        mixed = [Kind.KILL] * self.kills + [Kind.OUTAGE] * self.outages
        random.Random(self.seed).shuffle(mixed)
        kinds = mixed + [Kind.DISK_FULL] * self.disk_full
        return [Episode(number, kind, self.seed) for number, kind in enumerate(kinds)]


def run(plan: Plan, folder: Path) -> tuple[list[Entry], Verdict]:
    """Do what of the plan the journal in `folder` does not hold.

    returns: every episode, and the verdict over all studies at the end.
    """
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder / "numba"))
    journal = Journal(folder / f"journal-{plan.seed}.jsonl")
    done = {entry.number: entry for entry in journal.read()}
    episodes = plan.episodes()
    progress = _Progress(len(episodes), len(done))
    final = Verdict()
    with _pacs(folder / "pacs") as orthanc:
        for kinds, site_of in (((Kind.KILL, Kind.OUTAGE), _plain), ((Kind.DISK_FULL,), _small)):
            mine = [episode for episode in episodes if episode.kind in kinds]
            if not mine:
                continue
            with site_of(folder, orthanc) as site:
                for episode in mine:
                    if episode.number not in done:
                        done[episode.number] = entry = _one(site, episode)
                        journal.write(entry)
                        progress.tell(entry)
                studies = {u: a for e in mine for u, a in done[e.number].studies.items()}
                final.add(judge(site, studies))
                final.findings += _surprises(site)
    return [done[episode.number] for episode in episodes], final


def _one(site: Site, episode: Episode) -> Entry:
    began = time.monotonic()
    try:
        outcome = _DO[episode.kind](site, episode)
    except AssertionError as error:  # waited in vain
        outcome = Outcome(episode, "broken off", (), findings=[str(error)[:1000]])
        site.mend()
    verdict = judge(site, {m.study_uid: m.acked for m in outcome.modalities})
    for modality in outcome.modalities:
        site.forget(modality.files)
    return Entry.of(outcome, verdict, time.monotonic() - began)


def _surprises(site: Site) -> Sequence[str]:
    """Errors that the node did not expect, in its log."""
    lines = site.node.log().splitlines()
    found = [before for before, line in itertools.pairwise(lines) if line.startswith("Traceback")]
    log = f"{site.node.folder.name}/node.log"
    return [f"{found.count(text)} tracebacks in {log} behind: {text[:200]}" for text in sorted(set(found))]


@contextlib.contextmanager
def _pacs(folder: Path) -> Iterator[Orthanc]:
    orthanc = Orthanc(program("Orthanc"), folder)
    orthanc.start()
    try:
        yield orthanc
    finally:
        orthanc.stop()


@contextlib.contextmanager
def _plain(folder: Path, orthanc: Orthanc) -> Iterator[Site]:
    with running(folder / "node", orthanc) as site:
        yield site


@contextlib.contextmanager
def _small(folder: Path, orthanc: Orthanc) -> Iterator[Site]:
    with small_disk(folder / "node-on-a-small-disk" / "data") as watermark_gb:
        min_free_gb = watermark_of_this_disk(folder) if watermark_gb is None else watermark_gb
        with running(folder / "node-on-a-small-disk", orthanc, min_free_gb) as site:
            yield site


class _Progress:
    """A line for each episode, with how long the rest will take."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = self._before = done
        self._began = time.monotonic()

    def tell(self, entry: Entry) -> None:
        self._done += 1
        each_s = (time.monotonic() - self._began) / (self._done - self._before)
        left_min = each_s * (self._total - self._done) / 60
        print(
            f"[{self._done:3d}/{self._total}] {entry.kind}: {entry.detail}; recovered in "
            f"{entry.recovery_s:.1f} s; {each_s:.1f} s an episode, {left_min:.0f} min left",
            flush=True,
        )
        for finding in entry.findings:
            print(f"    WRONG: {finding}", flush=True)
