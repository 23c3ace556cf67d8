"""What the commands print on, and where their log goes."""

from __future__ import annotations

import logging
import os
import sys

from rich.console import Console

# A pipe has no width of its own: eighty columns would cut the tables.
out = Console(markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def log_to_stderr(level: str) -> None:
    """From this level on; other packages speak when they warn."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Their INFO is our DEBUG: an association and a font are no news.
    for name in ("alembic", "pynetdicom", "matplotlib", "highdicom"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    # It warns of every tick that a long stage skips, which is what it was asked to do.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
