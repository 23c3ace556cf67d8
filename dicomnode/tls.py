"""TLS after BCP 195: certificates, contexts, and a connection that both sides speak over.

PS3.15 B.12, BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile: TLS 1.2 with ECDHE and GCM
alone, TLS 1.3, nothing older, no compression, no renegotiation. Files are looked at for every connection:
new ones are taken up without a restart, bad new ones leave the old in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dicomnode.config import Peer, Tls
from dicomnode.errors import ConfigurationError

log = logging.getLogger(__name__)

# RFC 9325 4.2. Those of TLS 1.3 are all sound and need no list. Level 2: RSA of 2048 bits at least, no SHA-1.
TLS_1_2_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
_CIPHERS = ":".join(("@SECLEVEL=2", *TLS_1_2_CIPHERS))
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_READ_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the other side has shown."""

    subject: str
    names: frozenset[str]
    """DNS names, addresses and common names, in lower case."""
    sha256: str

    @classmethod
    def of(cls, decoded: Any, der: bytes) -> Certificate:
        """From what `ssl` tells."""
        subject = [pair for rdn in decoded.get("subject", ()) for pair in rdn]
        names = {value for key, value in subject if key == "commonName"}
        names |= {v for kind, v in decoded.get("subjectAltName", ()) if kind in ("DNS", "IP Address")}
        text = ", ".join(f"{key}={value}" for key, value in subject)
        return cls(text, frozenset(name.lower() for name in names), hashlib.sha256(der).hexdigest())

    def mismatch(self, peer: Peer) -> str:
        """Why it is not the one that a [[peers]] entry describes; empty when it is."""
        if peer.certificate_name and peer.certificate_name.lower() not in self.names:
            return f"its certificate ({self.subject}) does not bear the name {peer.certificate_name!r}"
        wanted = peer.certificate_sha256.replace(":", "").lower()
        if wanted and wanted != self.sha256:
            return f"its certificate ({self.subject}) has the fingerprint {self.sha256}, not {wanted}"
        return ""


# ── contexts ─────────────────────────────────────────────────────────────────────────────────────


def server_context(settings: Tls) -> ssl.SSLContext:
    """For those who call us. Raises ConfigurationError."""
    context = _context(settings, ssl.PROTOCOL_TLS_SERVER)
    # Without tickets a client is asked for its certificate at every connection.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED if settings.require_client_certificate else ssl.CERT_OPTIONAL
    if settings.ca is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def client_context(settings: Tls) -> ssl.SSLContext:
    """For those we call; their certificate and name are checked. Raises ConfigurationError."""
    context = _context(settings, ssl.PROTOCOL_TLS_CLIENT)
    # Devices still come with a common name and no subjectAltName.
    context.hostname_checks_common_name = True
    return context


def _context(settings: Tls, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[settings.minimum_version]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if settings.certificate is not None and settings.key is not None:
        _load("key", settings.key, lambda: None)
        subject = f"key {settings.key} or certificate"
        _load(subject, settings.certificate, lambda: _load_chain(context, settings))
    if settings.ca is not None:
        ca = settings.ca
        _load("ca", ca, lambda: context.load_verify_locations(ca))
    if settings.crl is not None:
        crl = settings.crl
        _load("crl", crl, lambda: context.load_verify_locations(crl))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _load_chain(context: ssl.SSLContext, settings: Tls) -> None:
    def no_password() -> str:
        raise ConfigurationError(
            f"[tls] key {settings.key} is encrypted",
            "Store it without a password, readable by the node alone",
        )

    assert settings.certificate is not None
    context.load_cert_chain(settings.certificate, settings.key, no_password)


def _load(name: str, path: Path, load: Callable[[], object]) -> None:
    """Load a file into a context. Raises ConfigurationError that says what is wrong with it."""
    try:
        path.open("rb").close()  # OpenSSL would not say which file it cannot read
        load()
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"[tls] key does not match certificate {path}", "Put the key there that it was requested with"
            ) from None
        raise ConfigurationError(
            f"[tls] {name} {path} cannot be used: {error.reason or error}", "It must be a PEM file"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"[tls] {name} {path} cannot be read: {error.strerror}",
            "Name the right file, and let the account that runs the node read it",
        ) from None


class ServerCertificates:
    """The listening side's context, made anew when its files have changed."""

    def __init__(self, settings: Tls) -> None:
        """Raises ConfigurationError when the files cannot be used."""
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._context = server_context(settings)

    def context(self) -> ssl.SSLContext:
        """For the next connection. Bad new files are told once, and the old ones stay in use."""
        with self._lock:
            now = self._signature()
            if now != self._seen:
                self._seen = now
                try:
                    self._context = server_context(self._settings)
                    log.info("the files of [tls] have changed and are in use")
                except ConfigurationError as error:
                    log.error("the files of [tls] have changed, the old ones stay in use: %s", error)
            return self._context

    def _signature(self) -> tuple[object, ...]:
        s = self._settings
        return tuple(_stamp(path) for path in (s.certificate, s.key, s.ca, s.crl) if path is not None)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def caller(peer: Peer) -> tuple[ssl.SSLContext, str, list[str]]:
    """To call a peer that has `tls`: context, name for SNI, and where the reason stands when it fails.

    The certificate must come from [tls] ca and bear `certificate_name`, or else `host`, and have the
    fingerprint where one is set. Raises ConfigurationError.
    """
    if peer.tls_files is None:
        raise ConfigurationError(f"[[peers]] {peer.name!r} has tls = true, but there is no [tls]", "Add it")
    context = client_context(peer.tls_files)
    # A name that stands in the entry need not be a host name.
    context.check_hostname = not peer.certificate_name
    failures: list[str] = []

    class Checked(ssl.SSLSocket):
        """Says why it cannot be spoken with; pynetdicom would log it and no more."""

        def connect(self, addr: Any) -> None:
            self.do_handshake_on_connect = False  # who cannot be reached at all is another matter
            super().connect(addr)
            try:
                self.do_handshake()
                shown = Certificate.of(self.getpeercert(), self.getpeercert(binary_form=True) or b"")
                reason = shown.mismatch(peer)
            except ssl.SSLError as error:
                reason = str(getattr(error, "verify_message", "") or error.reason or error)
            except OSError as error:
                reason = f"{error.strerror or error} in the middle of the handshake"
            if reason:
                failures.append(reason)
                raise ConnectionAbortedError(f"TLS with {peer.name} failed: {reason}")

    context.sslsocket_class = Checked
    return context, peer.host, failures


# ── a connection ─────────────────────────────────────────────────────────────────────────────────


class TlsConnection:
    """TLS over a connected socket, for one thread; the part of `socket.socket` that the transport uses.

    Records are read as many at a time as the network has brought: Python's own SSLSocket makes two
    system calls for each of 16 KiB, and does not know the kernel's timeouts.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._encrypted = memoryview(bytearray(_READ_BYTES))

    def handshake(self, timeout_s: float) -> None:
        """Agree. Raises TimeoutError, ssl.SSLError, or OSError when the other side goes away."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                self._flush()  # the alert says why
                raise
            else:
                self._flush()
                return
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no TLS handshake within {timeout_s:g} s")
            self._socket.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                if not self._receive():
                    raise ConnectionResetError("closed in the middle of the TLS handshake")

    def certificate(self) -> Certificate | None:
        """The other side's, checked against the CA; None when it showed none."""
        decoded, der = self._tls.getpeercert(), self._tls.getpeercert(binary_form=True)
        return Certificate.of(decoded, der) if decoded and der else None

    @property
    def version(self) -> str:
        """Protocol and cipher suite, for the log."""
        cipher = self._tls.cipher()
        return f"{self._tls.version()} {cipher[0] if cipher else ''}"

    def pending(self) -> bool:
        """Whether there is something to read although the socket may be silent."""
        return bool(self._tls.pending() or self._incoming.pending)

    def recv_into(self, buffer: memoryview) -> int:
        """As of a socket: at least a byte, 0 at the end."""
        count = 0
        while count < len(buffer):
            try:
                got = cast(int, self._tls.read(len(buffer) - count, cast(Any, buffer[count:])))
            except ssl.SSLWantReadError:
                if count:
                    return count
                self._flush()
                if not self._receive():
                    return 0  # without close_notify: PDUs know their own end
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return count
            if not got:
                return count
            count += got
        return count

    def send(self, data: bytes) -> int:
        """All of it. returns: its length."""
        view = memoryview(data)
        while view:
            # In pieces: what is written waits encrypted in memory.
            written = self._tls.write(view[:_READ_BYTES])
            self._flush()
            view = view[written:]
        return len(data)

    def fileno(self) -> int:
        """Of the socket, to wait for it."""
        return self._socket.fileno()

    def settimeout(self, timeout_s: float | None) -> None:
        """Of the socket."""
        self._socket.settimeout(timeout_s)

    def shutdown(self, how: int) -> None:
        """Of the socket; from any thread."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Of the socket."""
        self._socket.close()

    def _receive(self) -> bool:
        """Take what the network has brought. returns: False at the end."""
        count = self._socket.recv_into(self._encrypted)
        if count == 0:
            self._incoming.write_eof()
            return False
        self._incoming.write(self._encrypted[:count])
        return True

    def _flush(self) -> None:
        while self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())
