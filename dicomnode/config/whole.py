"""The whole of config.toml: its tables, and what they must agree on."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from dicomnode.config.computing import Assemble, Cluster, Density, Dose, MonteCarlo, Network
from dicomnode.config.keeping import Audit, Retention
from dicomnode.config.listening import Node, Peer, Query, Receive, Tls
from dicomnode.config.problems import nearest, problems
from dicomnode.config.section import Section
from dicomnode.config.sending import Commitment, Deliver, Encode, Fetch, Notify
from dicomnode.errors import ConfigurationError
from pipeline.activity import Camera

# Reading, resampling, compiling and encoding need their part of an attempt's time.
LARGEST_SHARE_OF_TIMEOUT = 0.75


class Config(Section):
    """The whole of config.toml."""

    node: Node = Node()
    peers: tuple[Peer, ...] = ()
    tls: Tls = Tls()
    receive: Receive = Receive()
    assemble: Assemble = Assemble()
    camera: tuple[Camera, ...] = ()
    density: Density = Density()
    dose: Dose = Dose()
    cluster: Cluster = Cluster()
    montecarlo: MonteCarlo = MonteCarlo()
    network: Network = Network()
    encode: Encode = Encode()
    deliver: Deliver = Deliver()
    commitment: Commitment = Commitment()
    fetch: Fetch = Fetch()
    query: Query = Query()
    notify: Notify = Notify()
    retention: Retention = Retention()
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _peers_agree(self) -> Config:
        for kind, values in (
            ("name", [p.name for p in self.peers]),
            ("ae_title", [p.ae_title for p in self.peers]),
        ):
            for value in {v for v in values if values.count(v) > 1}:
                raise ValueError(f"two [[peers]] have the {kind} {value!r}: give each its own")
        self._addressed("[deliver] to", self.deliver.to)
        return self

    def _addressed(self, setting: str, names: Sequence[str]) -> tuple[Peer, ...]:
        """The peers that a setting names. Raises ValueError for one that cannot be called."""
        known = {p.name: p for p in self.peers}
        for name in names:
            if name not in known:
                raise ValueError(f"{setting} names {name!r}, {nearest(name, list(known), 'peer')}")
            if not known[name].host or known[name].port is None:
                raise ValueError(f"{setting} names {name!r}, whose [[peers]] entry lacks host or port")
        return self._named(names)

    @model_validator(mode="after")
    def _tls_has_what_peers_need(self) -> Config:
        for peer in self.peers:
            if peer.tls and self.tls.ca is None:
                raise ValueError(f"[[peers]] {peer.name!r} has tls = true, but [tls] ca is not set: name it")
            if peer.calls_over_tls_only and peer.may and self.tls.port is None:
                raise ValueError(
                    f"[[peers]] {peer.name!r} may call over TLS only, but [tls] port is not set: "
                    "set it, or set its may = []"
                )
            peer._tls_files = self.tls
        if self.tls.port is not None and self.tls.port == self.node.port:
            raise ValueError(f"[tls] port and [node] port are both {self.tls.port}: give each its own")
        return self

    @model_validator(mode="after")
    def _fetch_is_of_peers(self) -> Config:
        for peer in self._addressed("[fetch] ask", self.fetch.ask):
            if self.fetch.by == "move" and "store" not in peer.may:
                raise ValueError(
                    f'[fetch] ask names {peer.name!r}, which may not "store": by = "move" has it call us; '
                    'add "store" to its may, or set by = "get"'
                )
        return self

    @model_validator(mode="after")
    def _commitment_is_of_destinations(self) -> Config:
        for peer in self.peers:
            if peer.commitment and peer.name not in self.deliver.to:
                raise ValueError(
                    f"[[peers]] {peer.name!r} has commitment = true, but [deliver] to does not name it: "
                    "only what is sent to a peer can be committed to"
                )
        return self

    @model_validator(mode="after")
    def _cluster_is_named(self) -> Config:
        if self.dose.executor == "dask" and not self.cluster.scheduler:
            raise ValueError('[dose] executor is "dask", but [cluster] scheduler is empty: name it')
        return self

    @model_validator(mode="after")
    def _montecarlo_ends_in_time(self) -> Config:
        timeout_s, limit_s = self.dose.timeout_s, self.montecarlo.time_limit_s
        if "mc" in self.dose.engines and limit_s > LARGEST_SHARE_OF_TIMEOUT * timeout_s:
            raise ValueError(
                f"[montecarlo] time_limit_s = {limit_s:g} is too close to [dose] timeout_s = {timeout_s:g}, "
                "at which an attempt is killed: "
                f"set time_limit_s to {LARGEST_SHARE_OF_TIMEOUT * timeout_s:g} at most, "
                f"or timeout_s to {math.ceil(limit_s / LARGEST_SHARE_OF_TIMEOUT)} at least"
            )
        return self

    def destinations(self) -> tuple[Peer, ...]:
        """The peers that get every result, in the order of [deliver] to."""
        return self._named(self.deliver.to)

    def rejection_note_takers(self) -> tuple[str, ...]:
        """The names of the destinations that are told which results the new ones replace."""
        return tuple(peer.name for peer in self.destinations() if peer.rejection_notes)

    def committing(self) -> tuple[str, ...]:
        """The names of the destinations that are asked to commit to keep the results."""
        return tuple(peer.name for peer in self.destinations() if peer.commitment)

    def sources(self) -> tuple[Peer, ...]:
        """The peers that are asked for what a study lacks, in the order of [fetch] ask."""
        return self._named(self.fetch.ask)

    def _named(self, names: Sequence[str]) -> tuple[Peer, ...]:
        return tuple(next(p for p in self.peers if p.name == name) for name in names)

    @property
    def sha256(self) -> str:
        """Identifies the settings that a result came from."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load(path: Path) -> Config:
    """Read and validate. Raises ConfigurationError with every problem on a line of its own."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", "Name the file with --config or DICOMNODE_CONFIG"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}", "Save it as UTF-8") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    return parse(data, str(path))


def parse(data: dict[str, Any], source: str = "config.toml") -> Config:
    """Validate a table that was read from `source`."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        told = problems(error, data, Config)
        lines = "\n".join(f"  {problem}" for problem in told)
        raise ConfigurationError(f"{source} has {len(told)} problem(s):\n{lines}") from None


def with_engines(config: Config, engines: list[str]) -> Config:
    """The same settings with other engines. raises: ConfigurationError for one that does not exist."""
    changed = config.model_dump()
    changed["dose"]["engines"] = tuple(engines)
    return parse(changed, "--engine")
