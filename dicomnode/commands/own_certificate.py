"""What `dicomnode check` says of [tls]: would our certificate be believed, and until when?

The standard library shows a certificate only after a handshake, so the files are tried on each other:
one side shows the certificate, the other believes it and nothing else.
"""

from __future__ import annotations

import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicomnode.config import Config, Peer, Tls
from dicomnode.errors import ConfigurationError
from dicomnode.network.identity import password_to_send
from dicomnode.tls import Certificate, client_context, server_context

SOON_DAYS = 30
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing about [tls] or a peer's use of it. wrong: the node cannot work with it."""

    subject: str
    text: str
    remedy: str = ""
    wrong: bool = False


def remarks(config: Config, now: float) -> Iterator[Remark]:
    """Everything that there is to say; nothing where TLS is not used. now: seconds since the epoch."""
    tls = config.tls
    if tls.certificate is not None or tls.ca is not None:
        yield from _files(tls, now)
    for peer in config.peers:
        yield from _of_peer(config, peer)


def _files(tls: Tls, now: float) -> Iterator[Remark]:
    try:
        context = server_context(tls)
        client_context(tls)
    except ConfigurationError as error:
        yield Remark("[tls]", error.reason.removeprefix("[tls] "), error.remedy, wrong=True)
        return
    if tls.key is not None:
        yield from _read_by_others("[tls] key", tls.key)
    if tls.certificate is not None:
        yield from _certificate(context, tls.certificate, tls.ca, now)


def _certificate(context: ssl.SSLContext, path: Path, ca: Path | None, now: float) -> Iterator[Remark]:
    subject = "[tls] certificate"
    try:
        certificate, ends = shown(context, path)
    except ssl.SSLCertVerificationError as error:
        remedy = "Ask the CA for a new one (docs/operation.md, TLS), and put it there; no restart is needed"
        # No problem that keeps the node from starting: the port without TLS may be in use.
        yield Remark(subject, f"no peer believes {path}: {error.verify_message}", remedy)
        return
    if ca is not None:
        try:
            shown(context, ca)
        except ssl.SSLCertVerificationError as error:
            text = f"{path} does not lead to [tls] ca {ca}: {error.verify_message}"
            yield Remark(subject, text, "Add the certificates between them to the file; peers may need them")
    days = (ends - now) / _DAY_S
    until = time.strftime("%Y-%m-%d", time.gmtime(ends))
    if days < SOON_DAYS:
        text = f"{certificate.subject} expires in {days:.0f} days, on {until}"
        yield Remark(subject, text, "Ask the CA for a new one and put it there; no restart is needed")
    else:
        yield Remark(subject, f"{certificate.subject}, until {until}, SHA-256 {certificate.sha256}")


def shown(server: ssl.SSLContext, trusted: Path) -> tuple[Certificate, float]:
    """The server's certificate, as one sees it who trusts that file alone, and when it ends.

    Raises ssl.SSLCertVerificationError: expired, not yet valid, not for this purpose, of another CA.
    """
    server.verify_mode = ssl.CERT_NONE
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(trusted)
    # A certificate that is trusted itself need not come from a CA.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (asking, answering, asking):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    decoded, der = asking.getpeercert(), asking.getpeercert(binary_form=True)
    assert decoded is not None
    assert der is not None
    return Certificate.of(decoded, der), float(ssl.cert_time_to_seconds(str(decoded["notAfter"])))


def _of_peer(config: Config, peer: Peer) -> Iterator[Remark]:
    subject = f'[[peers]] "{peer.name}"'
    if peer.send_password_file is not None:
        yield from _password_file(subject, peer)
    if (peer.send_user or peer.user) and not (peer.tls or peer.calls_over_tls_only):
        text = "user names and passwords go over the network in clear"
        yield Remark(subject, text, "Set tls = true to send, and require_tls = true for its calls")
    if peer.require_tls and not (peer.certificate_name or peer.certificate_sha256):
        text = "every certificate of [tls] ca may use its AE title"
        yield Remark(subject, text, "Set certificate_name or certificate_sha256")
    if not config.tls.require_client_certificate and (peer.certificate_name or peer.certificate_sha256):
        text = (
            "its certificate is checked, but [tls] require_client_certificate = false lets others in without"
        )
        yield Remark(subject, text, "Set require_client_certificate = true")


def _password_file(subject: str, peer: Peer) -> Iterator[Remark]:
    assert peer.send_password_file is not None
    try:
        password_to_send(peer)
    except ConfigurationError as error:
        yield Remark(subject, error.reason.partition(" send_")[2] or error.reason, error.remedy, wrong=True)
        return
    yield from _read_by_others(f"{subject} send_password_file", peer.send_password_file)


def _read_by_others(subject: str, path: Path) -> Iterator[Remark]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Remark(subject, f"{path} is open to others (mode {mode:04o})", f"chmod 600 {path}")
