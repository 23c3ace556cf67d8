"""Which changes of config.toml a running node takes up, and which wait for its next start.

SIGHUP (`systemctl reload dicomnode`) reads the file again. A file with a mistake changes nothing. Of a
good one everything is taken up but what was settled when the node started: sockets, folders, the
database, where jobs run. Jobs that run end as they began, and so do associations that are open, but for those
of a peer that has lost its entry or a right: they are aborted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dicomnode.config import Config, parse
from dicomnode.errors import ConfigurationError

# Tables, or settings of a table, that are read at the start alone.
AT_START = (
    "node",
    "tls",
    "cluster",
    "audit",
    "receive.max_pdu",
    "receive.acse_timeout_s",
    "receive.dimse_timeout_s",
    "receive.message_timeout_s",
    "receive.network_timeout_s",
    "receive.max_object_gb",
    "assemble.tick_s",
    "dose.executor",
    "dose.memory_limit_gb",
)
LIVE_ALL_THE_SAME = ("node.log_level",)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The settings that hold from now on, and what has become of each change."""

    config: Config
    taken_up: tuple[str, ...]
    at_next_start: tuple[str, ...]


def reloaded(old: Config, new: Config) -> Reloaded:
    """What a node that runs with `old` makes of `new`.

    Raises ConfigurationError when what could be taken up makes no sense without the rest.
    """
    before, after = old.model_dump(), new.model_dump()
    taken_up, later = [], []
    for table, setting in _changes(before, after):
        name = f"{table}.{setting}" if setting else table
        if name not in LIVE_ALL_THE_SAME and (table in AT_START or name in AT_START):
            later.append(_shown(table, setting))
            after[table][setting] = before[table][setting]
        else:
            taken_up.append(_shown(table, setting))
    try:
        config = parse(after, "what could be taken up of it")
    except ConfigurationError as error:
        raise ConfigurationError(
            error.reason, f"Restart the node: it holds with {', '.join(later)}, which are read at the start"
        ) from None
    return Reloaded(config, tuple(taken_up), tuple(later))


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(table, setting) of each difference; (table, "") for a list of tables."""
    for table, settings in before.items():
        if isinstance(settings, dict):
            yield from ((table, name) for name, value in settings.items() if after[table][name] != value)
        elif after[table] != settings:
            yield table, ""


def _shown(table: str, setting: str) -> str:
    return f"[{table}] {setting}" if setting else f"[[{table}]]"
