"""What is looked at before an association is accepted: certificate, user, presentation contexts."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.network.identity import USERNAME, USERNAME_AND_PASSCODE, Offered
from dicomnode.network.service import Service
from dicomnode.network.transport import AcceptedAssociation
from dicomnode.tls import TlsConnection

if TYPE_CHECKING:
    from dicomnode.config import Peer


def contexts_for(assoc: Association, services: Sequence[Service]) -> list[PresentationContext]:
    """What these services support, once for each abstract syntax."""
    offers: dict[str, list[PresentationContext]] = {}
    for service in services:
        for context in service.contexts():
            offers.setdefault(str(context.abstract_syntax), []).append(context)
    proposed = assoc.requestor.role_selection
    peer_as_scp = {str(uid) for uid, item in proposed.items() if item.scp_role}
    merged = [_merged(uid, contexts) for uid, contexts in offers.items()]
    # Without role selection a peer is SCU (PS3.7 D.3.3.4), whatever the services say.
    return [c for c in merged if c.scu_role is not False or str(c.abstract_syntax) in peer_as_scp]


def _merged(uid: str, contexts: Sequence[PresentationContext]) -> PresentationContext:
    """One context for what several services support of the same abstract syntax."""
    syntaxes = dict.fromkeys(syntax for context in contexts for syntax in context.transfer_syntax)
    merged = build_context(uid, list(syntaxes))
    if any(context.scp_role is not None for context in contexts):
        merged.scu_role = any(context.scu_role is not False for context in contexts)
        merged.scp_role = any(context.scp_role is True for context in contexts)
    return merged


def is_open(assoc: AcceptedAssociation) -> bool:
    """Whether it holds its place: negotiated, or about to be."""
    ended = assoc.is_released or assoc.is_aborted or assoc.is_rejected
    return assoc.is_alive() and assoc.dul.is_alive() and not ended


def no_longer(before: Peer, now: Peer | None) -> str:
    """What an association's peer had when it was admitted and has no more; empty when there is nothing.

    now: its entry since [[peers]] was read again; None where it is gone.
    """
    if now is None:
        return "[[peers]] has no entry with its AE title any more"
    lost = [right for right in before.rights if right not in now.rights]
    return f"[[peers]] {now.name!r} may not {', '.join(lost)} any more" if lost else ""


def wrong_certificate(assoc: AcceptedAssociation, peer: Peer) -> str:
    """Why a peer may not call over this connection; empty when it may."""
    wire = assoc.wire
    if not isinstance(wire, TlsConnection):
        return "it may call over TLS only ([tls] port)" if peer.calls_over_tls_only else ""
    certificate = wire.certificate()
    if certificate is None:
        has_wish = peer.certificate_name or peer.certificate_sha256
        return "it shows no certificate" if has_wish else ""
    return certificate.mismatch(peer)


def offered_user(assoc: Association) -> Offered | None:
    """Who the peer says its user is; None when it says nothing."""
    item = assoc.requestor.user_identity
    if item is None:
        return None
    return Offered(item.user_identity_type or 0, item.primary_field or b"", item.secondary_field or b"")


def acknowledge_user(assoc: Association) -> None:
    """The positive response that a peer has asked for (PS3.7 D.3.3.7.2): empty for names and passwords."""
    item = assoc.requestor.user_identity
    if item is None or not item.positive_response_requested:
        return
    if item.user_identity_type in (USERNAME, USERNAME_AND_PASSCODE):
        answer = UserIdentityNegotiation()
        answer.server_response = b""
        assoc.acceptor.add_negotiation_item(answer)


def addresses(host: str) -> set[str]:
    """Every address of a host; none when its name cannot be resolved."""
    try:
        return {unmapped(str(entry[4][0])) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def unmapped(address: str) -> str:
    """An IPv4 address as it is written everywhere, not as a socket that listens on `::` shows it.

    Such a one speaks of ::ffff:192.0.2.7 (RFC 4291 2.5.5.2). Anything else is returned as it is.
    """
    try:
        ipv4 = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    except ValueError:
        return address
    return address if ipv4 is None else str(ipv4)
