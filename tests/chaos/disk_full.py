"""The disk of data_dir without room: to the watermark, or to the last byte.

As root, data_dir lies on a file system of its own (tmpfs) that is filled to the brim. Without that right
only the watermark is reached, [receive] min_free_gb, by a large file on the disk as it is.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tests.acceptance.harness import push
from tests.chaos.episode import Episode, Outcome

if TYPE_CHECKING:
    from tests.chaos.site import Site

# Room for the small studies of a run, and for what compiled code and kernels take.
DISK_BYTES = 768 << 20
# [receive] min_free_gb on that disk.
WATERMARK_GB = 0.05
_BLOCK = 1 << 20
# The fill begins so long after a modality does, and lasts so long.
_LATEST_S = 5.0
_LONGEST_S = 2.0
# On the disk as it is: how far above the watermark it stands, so that other programs do not matter.
_MARGIN_BYTES = 4 << 30


class Fill(StrEnum):
    """How full."""

    WATERMARK = "to the watermark"
    BRIM = "to the last byte"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[float | None]:
    """A file system of its own at `folder`. yields: min_free_gb for it; None where we may not mount.

    One that an interrupted run has left there is taken up again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_mount():
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            yield None
            return
    try:
        yield WATERMARK_GB
    except KeyboardInterrupt:
        raise  # the run goes on later, with what lies there
    except BaseException:
        _unmount(folder)
        raise
    _unmount(folder)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False)


def watermark_of_this_disk(folder: Path) -> float:
    """min_free_gb that a file of some gigabytes takes the disk below."""
    return max(0.1, (shutil.disk_usage(folder).free - _MARGIN_BYTES) / 1e9)


def disk_full(site: Site, episode: Episode) -> Outcome:
    """One study while the disk fills at some moment and is freed again."""
    dice = random.Random(episode.seed)
    own = site.node.data_dir.is_mount()
    fill = dice.choice(list(Fill)) if own else Fill.WATERMARK
    files = site.study(episode.name)
    modality = site.modality(files)
    before = dice.random() < 0.4
    detail = f"{fill}, {'before it is sent' if before else 'later'}"
    outcome = Outcome(episode, detail, (modality,))
    if not before:
        modality.start()
        time.sleep(dice.uniform(0, _LATEST_S))
    filler = site.node.data_dir / "filler"
    _fill(filler, fill, site.node.min_free_gb, own)
    try:
        if before:
            _refuses(site, outcome)
            modality.start()
        time.sleep(dice.uniform(0, _LONGEST_S))
    finally:
        filler.unlink()
    began = time.monotonic()
    outcome.drain(site, began)
    return outcome


def _refuses(site: Site, outcome: Outcome) -> None:
    """A full disk takes nothing, and says so."""
    modality = outcome.modalities[0]
    taken = push(site.storescu, site.node.port, modality.files.all[:3])
    if taken:
        outcome.findings.append(f"{modality.study_uid}: objects were acknowledged on a full disk")


def _fill(filler: Path, fill: Fill, min_free_gb: float, own: bool) -> None:
    free = shutil.disk_usage(filler.parent).free
    if not own:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * _MARGIN_BYTES)
        return
    wanted = free if fill is Fill.BRIM else free - int(min_free_gb * 1e9) + 4 * _BLOCK
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while wanted > 0:
            wanted -= file.write(bytes(min(wanted, _BLOCK)))
        while fill is Fill.BRIM:  # what others gave back meanwhile
            file.write(bytes(4096))
