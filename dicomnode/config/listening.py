"""Tables of the listening side: who we are, who may call, and what they may ask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from dicomnode.config.section import AETitle, Port, Seconds, Section

Right = Literal["echo", "store", "find", "move", "get", "commit"]
# Nobody is given the last one by `may`: it follows from `commitment = true`.
AnyRight = Literal["echo", "store", "find", "move", "get", "commit", "report"]
Role = Literal["receive", "work"]
# n, r and p of scrypt, salt and hash, as `dicomnode hash-password` prints them.
PASSWORD_HASH = re.compile(r"scrypt\$\d{4,7}\$\d{1,2}\$\d{1,2}\$[0-9a-f]{32,64}\$[0-9a-f]{64}")


class Node(Section):
    """[node]: who we are and where our data lies."""

    ae_title: AETitle = Field("DICOMNODE", description="our AE title; peers must call it exactly")
    bind: str = Field("0.0.0.0", description="address to listen on")
    port: Port = Field(11112, description="TCP port to listen on")
    data_dir: Path = Field(Path("/var/lib/dicomnode"), description="spool, results, ledger, quarantine")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in data_dir")
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9_-]{0,32}$", description="of this node, where several share data_dir"
    )
    roles: tuple[Role, ...] = Field(
        ("receive", "work"), min_length=1, description="work: assemble, compute, deliver; one node at a time"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG may log patient data"
    )

    @model_validator(mode="after")
    def _sharing_needs_a_server(self) -> Node:
        if self.name and not self.database_url.startswith("postgresql"):
            raise ValueError(
                "name is set, but database_url is not postgresql://...: nodes that share data_dir share one "
                "PostgreSQL database; leave name empty where there is one node"
            )
        return self

    @property
    def ledger_url(self) -> str:
        """The database's URL with its default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir / 'ledger.sqlite3'}"

    @property
    def has_ledger(self) -> bool:
        """Whether the node has made its ledger; of another database than ours that is not known here."""
        return bool(self.database_url) or (self.data_dir / "ledger.sqlite3").exists()


class Tls(Section):
    """[tls]: associations over TLS, as listener and as caller (PS3.15 B.12)."""

    port: Port | None = Field(None, description="TCP port to listen on; unset: none; 2762 is registered")
    only: bool = Field(False, description="listen on no other port")
    certificate: Path | None = Field(None, description="PEM, ours, with what leads to the CA behind it")
    key: Path | None = Field(None, description="PEM, its private key, readable by the service alone")
    ca: Path | None = Field(None, description="PEM, who signs the certificates of peers")
    crl: Path | None = Field(None, description="PEM, certificates that the CA has revoked; unset: none")
    require_client_certificate: bool = Field(True, description="of a peer that calls; false: encryption only")
    minimum_version: Literal["1.2", "1.3"] = Field("1.2", description="older ones are never spoken")
    handshake_timeout_s: Seconds = Field(10.0, description="for a TLS connection to be agreed upon")

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: set both, or neither")
        if self.port is None:
            if self.only:
                raise ValueError("only = true needs a port")
            return self
        if self.certificate is None:
            raise ValueError("port is set but certificate and key are not: name the files")
        if self.require_client_certificate and self.ca is None:
            raise ValueError("port is set but ca is not: name it, or set require_client_certificate = false")
        return self


class Peer(Section):
    """[[peers]]: a system that may call us, or that we send to."""

    name: str = Field(min_length=1, max_length=64, description="how messages and [deliver] name it")
    ae_title: AETitle
    host: str = Field("", description="host name or address; needed to send to it")
    port: Port | None = Field(None, description="its port; needed to send to it")
    may: tuple[Right, ...] = Field(("echo", "store"), description="what it may ask of us")
    check_host: bool = Field(False, description="also require that it calls from `host`")
    max_associations: int | None = Field(
        None, ge=1, description="of it at the same time; unset: [receive] max_associations_per_peer"
    )
    tls: bool = Field(False, description="send to it over TLS, with the certificate of [tls]")
    require_tls: bool = Field(False, description="it may call the TLS port only")
    certificate_name: str = Field(
        "", description="name that its certificate must bear (DNS name, address or CN); sending: else `host`"
    )
    certificate_sha256: str = Field(
        "",
        pattern=r"^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$|^$",
        description="fingerprint that its certificate must have",
    )
    user: str = Field("", description="user name that it must give when it calls us (user identity)")
    password_hash: str = Field("", description="of the password it must give: `dicomnode hash-password`")
    send_user: str = Field("", description="user name that we give when we call it")
    send_password_file: Path | None = Field(None, description="file with the password that goes with it")
    rejection_notes: bool = Field(
        False, description="as destination: is sent a note that rejects the results that new ones replace"
    )
    commitment: bool = Field(
        False, description="as destination: results are done when it has committed to keep them"
    )
    _tls_files: Tls | None = PrivateAttr(None)

    @property
    def rights(self) -> tuple[AnyRight, ...]:
        """What it may ask of us: `may`, and to report on what it was asked to commit to."""
        return (*self.may, "report") if self.commitment else self.may

    @property
    def tls_files(self) -> Tls | None:
        """[tls] of the configuration that the peer is part of."""
        return self._tls_files

    @property
    def calls_over_tls_only(self) -> bool:
        """A certificate can be checked only where there is one."""
        return self.require_tls or bool(self.certificate_name or self.certificate_sha256)

    @model_validator(mode="after")
    def _identity_whole(self) -> Peer:
        if self.password_hash and not self.user:
            raise ValueError("password_hash is set but user is empty: name the user")
        if self.password_hash and not PASSWORD_HASH.fullmatch(self.password_hash):
            raise ValueError("password_hash is none: make it with `dicomnode hash-password`")
        if self.send_password_file is not None and not self.send_user:
            raise ValueError("send_password_file is set but send_user is empty: name the user")
        return self


class Receive(Section):
    """[receive]: the listening side."""

    max_pdu: int = Field(131072, ge=4096, le=1048576, description="bytes; larger is faster")
    max_associations: int = Field(50, ge=1, le=1000, description="at the same time, all peers together")
    max_associations_per_peer: int = Field(25, ge=1, le=1000, description="of one peer at the same time")
    max_object_gb: float = Field(4.0, gt=0, le=64, description="larger objects are refused with 0xA703")
    min_free_gb: float = Field(5.0, ge=0, description="below it objects are refused with 0xA700")
    acse_timeout_s: Seconds = Field(30.0, description="for an association to be negotiated or released")
    dimse_timeout_s: Seconds = Field(60.0, description="for the next part of a message, or for an answer")
    message_timeout_s: Seconds = Field(900.0, description="for a whole message, however it trickles in")
    network_timeout_s: Seconds = Field(120.0, description="of silence, then the association is aborted")


class Query(Section):
    """[query]: what peers may find and retrieve (C-FIND, C-MOVE, C-GET)."""

    max_matches: int = Field(
        20000, ge=1, le=65535, description="a query or retrieval of more is refused with 0xA700"
    )
    timeout_s: Seconds = Field(60.0, description="for each answer of the destination of a C-MOVE")
