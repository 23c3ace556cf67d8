"""How many threads a computation may start."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use; `sched_getaffinity` exists on Linux alone."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
