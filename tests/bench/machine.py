"""What the tables say about the machine that they were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Cores, architecture, vector unit and memory; no name and no address."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpuinfo = Path("/proc/cpuinfo")
    vectors = ", AVX-512" if cpuinfo.exists() and "avx512f" in cpuinfo.read_text() else ""
    return f"{os.cpu_count()}-core {platform.machine()}{vectors}, {round(memory_gib)} GiB"
