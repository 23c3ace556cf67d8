"""Associations: who may call, what for, and how many at once.

::

    A-ASSOCIATE-RQ ── peer known? called by our name? over TLS? its certificate? its user? too many?
                          │ yes ──▶ contexts of the services that it may use
                          └ no ───▶ A-ASSOCIATE-RJ, one line in the log

What is asked over an association is answered by services (`dicomnode.service`); C-ECHO is answered here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any, cast

from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from dicomnode.audit.trail import SILENT, Audit, Party
from dicomnode.contexts import echo_contexts
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.network.admission import (
    acknowledge_user,
    addresses,
    contexts_for,
    is_open,
    no_longer,
    offered_user,
    wrong_certificate,
)
from dicomnode.network.identity import TOO_MANY, IdentityCheck
from dicomnode.network.listener import POLL_S, Server
from dicomnode.network.messages import Limits
from dicomnode.network.service import Service
from dicomnode.network.transport import AcceptedAssociation
from dicomnode.reception.incoming import Incoming

if TYPE_CHECKING:
    from dicomnode.config import Node, Peer, Receive, Right, Tls

log = logging.getLogger(__name__)

# A-ASSOCIATE-RJ result, source, reason (PS3.8 table 9-21).
_CALLING_NOT_RECOGNIZED = (1, 1, 3)
_CALLED_NOT_RECOGNIZED = (1, 1, 7)
_LIMIT_EXCEEDED = (2, 3, 2)
# PS3.7 D.3.3.7 names no reason for a wrong user.
_NO_REASON = (1, 1, 1)
_TEMPORARY = (2, 3, 1)
# Of what a peer proposes in vain: storescu and others propose every class there is.
_NAMED = 5
_Refusal = tuple[str, tuple[int, int, int]]
_Handler = Callable[[Event], Any]


class Echo:
    """Verification (PS3.4 Annex A); pynetdicom's own handler answers 0x0000."""

    @property
    def right(self) -> Right:
        """What `config.Peer.may` must hold."""
        return "echo"

    def contexts(self) -> list[PresentationContext]:
        """Verification."""
        return echo_contexts()

    def handlers(self) -> list[evt.EventHandlerType]:
        """None of our own."""
        return []

    def stop(self) -> None:
        """An echo is answered until the association ends."""


class Receiver:
    """The listening side. services: what is offered, beside C-ECHO. clock: seconds since the epoch.

    tls: [tls]; with a port, it is listened on too.
    """

    def __init__(
        self,
        node: Node,
        peers: Sequence[Peer],
        receive: Receive,
        services: Sequence[Service],
        clock: Callable[[], float] = time.time,
        tls: Tls | None = None,
        audit: Audit = SILENT,
    ) -> None:
        self._node = node
        self._audit = audit
        self._tls = tls if tls is not None and tls.port is not None else None
        self._peers = {peer.ae_title.strip(): peer for peer in peers}
        self._receive = receive
        self._services: tuple[Service, ...] = (Echo(), *services)
        self._clock = clock
        self._servers: list[Server] = []
        # With the entry that each was admitted by: what a peer has gained since, it does not use yet.
        self._admitted: dict[AcceptedAssociation, Peer] = {}
        self._identity = IdentityCheck()
        self._running = 0
        self._stopping = False
        self._changed = threading.Condition()
        # By the intervention's name, so that `configure` can replace them while associations are open.
        self._answering: dict[str, _Handler] = {}
        self._extending: list[tuple[Service, _Handler]] = []

    def configure(self, peers: Sequence[Peer], receive: Receive, services: Sequence[Service]) -> None:
        """Other peers, limits and services from the next association or request on.

        Who has lost its entry or a right loses its open associations too; all others go on.
        """
        self._receive = receive
        self._services = (Echo(), *services)
        self._handlers()
        with self._changed:
            self._peers = {peer.ae_title.strip(): peer for peer in peers}
            judged = [(assoc, self._no_longer(peer)) for assoc, peer in self._admitted.items()]
        for assoc, reason in judged:
            if reason and is_open(assoc):
                self._abort(assoc, reason)

    def _no_longer(self, admitted: Peer) -> str:
        return no_longer(admitted, self._peers.get(admitted.ae_title.strip()))

    def _abort(self, assoc: AcceptedAssociation, reason: str) -> None:
        """End an association. An object that is being stored is stored, and not acknowledged any more."""
        party = Party.calling(assoc)
        log.warning("association of %r at %s aborted: %s", party.ae_title, party.address, reason)
        self._audit.refused(party, f"association aborted: {reason}", restricted=True)
        assoc.abort(block=False)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: nothing more is accepted."""
        return self._stopping

    @property
    def tls_port(self) -> int | None:
        """Where TLS is listened for; None where it is not."""
        return next((s.server_address[1] for s in self._servers if s.certificates is not None), None)

    def start(self) -> int:
        """Listen, in threads of its own. returns: the port, of TLS when there is no other.

        Raises OSError when a port is taken, ConfigurationError when the files of [tls] cannot be used.
        """
        limits = Limits(
            self._receive.dimse_timeout_s,
            self._receive.message_timeout_s,
            functools.partial(Incoming, self._node.data_dir, int(self._receive.max_object_gb * 1e9)),
        )
        handlers = [(evt.EVT_REQUESTED, self._admit), *self._handlers()]
        wanted: list[tuple[int, Tls | None]] = []
        if self._tls is None or not self._tls.only:
            wanted.append((self._node.port, None))
        if self._tls is not None and self._tls.port is not None:
            wanted.append((self._tls.port, self._tls))
        try:
            for port, tls in wanted:
                address = (self._node.bind, port)
                # pynetdicom wants one context; every association gets its own from `_admit`.
                server = Server(self._entity(), address, echo_contexts(), handlers, limits, tls, self._audit)
                self._servers.append(server)
        except BaseException:
            for server in self._servers:
                server.server_close()
            self._servers = []
            raise
        for server in self._servers:
            self._listen(server)
        return int(self._servers[0].server_address[1])

    def _listen(self, server: Server) -> None:
        name = "receive" if server.certificates is None else "receive-tls"
        threading.Thread(target=server.serve_forever, args=(POLL_S,), name=name, daemon=True).start()
        over = " over TLS" if server.certificates is not None else ""
        log.info(
            "listening as %s on %s:%d%s",
            self._node.ae_title,
            self._node.bind,
            server.server_address[1],
            over,
        )

    def _entity(self) -> AE:
        ae = AE(self._node.ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = self._receive.max_pdu
        ae.acse_timeout = self._receive.acse_timeout_s
        ae.dimse_timeout = self._receive.dimse_timeout_s
        ae.network_timeout = self._receive.network_timeout_s
        # pynetdicom counts silent connections too; `_admit` counts associations.
        ae.maximum_associations = 1_000_000
        return ae

    def stop(self, timeout_s: float = 30.0) -> bool:
        """No new associations; running requests finish and are answered, then peers are aborted.

        returns: False when something still ran after `timeout_s`.
        """
        if not self._servers:
            return True
        end = time.monotonic() + timeout_s
        self._stopping = True
        for service in self._services:
            service.stop()
        for server in self._servers:
            server.shutdown()
            server.waiting.hang_up()
        with self._changed:
            idle = self._changed.wait_for(lambda: self._running == 0, timeout_s)
        open_associations = [assoc for server in self._servers for assoc in server.active_associations]
        for assoc in open_associations:
            assoc.abort(block=False)
        for assoc in open_associations:
            assoc.join(max(0.0, end - time.monotonic()))
        self._servers = []
        return idle and not any(assoc.is_alive() for assoc in open_associations)

    # ── what the services do ─────────────────────────────────────────────────────────────────

    def _handlers(self) -> list[evt.EventHandlerType]:
        """Of all services. Raises ValueError when two want the same intervention."""
        handlers: list[evt.EventHandlerType] = []
        extended: list[tuple[Service, _Handler]] = []
        answering: dict[str, _Handler] = {}
        for service in self._services:
            for event, handler, *arguments in cast(list[Any], service.handlers()):
                if event is evt.EVT_SOP_EXTENDED:
                    extended.append((service, handler))
                elif event.is_notification:
                    handlers.append((event, handler, *arguments))
                elif event.name in answering:
                    raise ValueError(f"two services handle {event.name}")
                else:
                    answering[event.name] = handler
                    handlers.append((event, self._counted(event.name), *arguments))
        if extended:
            handlers.append((evt.EVT_SOP_EXTENDED, self._extended))
        self._answering, self._extending = answering, extended
        return handlers

    def _counted(self, name: str) -> _Handler:
        """The handler of an intervention; `stop` waits until it has ended."""

        def call(event: Event, *arguments: Any) -> Any:
            with self._one_more():
                answer = self._answering[name](event, *arguments)
            return self._counted_to_its_end(answer) if isinstance(answer, GeneratorType) else answer

        return call

    def _counted_to_its_end(self, answers: Iterator[Any]) -> Iterator[Any]:
        """C-FIND, C-MOVE and C-GET yield their answers one by one."""
        with self._one_more():
            yield from answers

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        """What `stop` waits for."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _extended(self, event: Event) -> dict[str, bytes]:
        """SOP Class Extended Negotiation (PS3.7 D.3.3.5), of the services that the peer may use."""
        peer = self._admitted.get(cast(AcceptedAssociation, event.assoc))
        usable = [] if peer is None else self._usable(peer)
        answers = [handler(event) or {} for service, handler in self._extending if service in usable]
        return dict(ChainMap(*answers))

    # ── associations ─────────────────────────────────────────────────────────────────────────

    def _admit(self, event: Event) -> None:
        """Reject the association, or give it the contexts that its peer has a right to."""
        assoc = cast(AcceptedAssociation, event.assoc)
        request = cast(A_ASSOCIATE, assoc.requestor.primitive)
        calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        where = f"{calling!r} at {assoc.requestor.address}"
        try:
            peer = self._peers.get(calling)
            refusal = self._refusal(assoc, peer, called) or self._no_room(assoc, cast("Peer", peer))
            contexts = [] if refusal or peer is None else contexts_for(assoc, self._usable(peer))
        except Exception:
            # pynetdicom would go on with the contexts of the server.
            log.exception("the association of %s could not be judged", where)
            refusal = "an error of ours", _TEMPORARY
        if refusal is not None:
            reason, code = refusal
            log.warning("association from %s rejected: %s", where, reason)
            no_room = code in (_LIMIT_EXCEEDED, _TEMPORARY)
            tell = self._audit.turned_away if no_room else self._audit.refused
            tell(Party(calling, assoc.requestor.address or ""), reason)
            assoc.acse.send_reject(*code)
            assoc.kill()
            return
        if peer is not None and peer.user:
            acknowledge_user(assoc)
        assoc.acceptor.supported_contexts = contexts
        self._tell_what_is_refused(assoc, where, contexts)

    def _refusal(self, assoc: AcceptedAssociation, peer: Peer | None, called: str) -> _Refusal | None:
        if called != self._node.ae_title.strip():
            return f"it calls {called!r}, our AE title is {self._node.ae_title!r}", _CALLED_NOT_RECOGNIZED
        if peer is None:
            return "no [[peers]] entry has its AE title", _CALLING_NOT_RECOGNIZED
        if peer.check_host and assoc.requestor.address not in addresses(peer.host):
            return f"[[peers]] {peer.name!r} may call from {peer.host!r} only", _CALLING_NOT_RECOGNIZED
        reason = wrong_certificate(assoc, peer) or self._identity.refusal(peer, offered_user(assoc))
        code = _TEMPORARY if reason == TOO_MANY else _NO_REASON
        return (f"[[peers]] {peer.name!r}: {reason}", code) if reason else None

    def _no_room(self, assoc: AcceptedAssociation, peer: Peer) -> _Refusal | None:
        """Take the association's place, unless there is none."""
        if self._stopping:
            return "the node is stopping", _TEMPORARY
        of_peer = peer.max_associations or self._receive.max_associations_per_peer
        with self._changed:
            if reason := self._no_longer(peer):  # `configure` came in between, and has not seen this one
                return reason, _CALLING_NOT_RECOGNIZED
            self._admitted = {a: p for a, p in self._admitted.items() if is_open(a)}
            if len(self._admitted) >= self._receive.max_associations:
                text = f"{len(self._admitted)} associations are open ([receive] max_associations)"
                return text, _LIMIT_EXCEEDED
            if [p.ae_title for p in self._admitted.values()].count(peer.ae_title) >= of_peer:
                return f"{of_peer} associations of it are open (max_associations of a peer)", _LIMIT_EXCEEDED
            self._admitted[assoc] = peer
        return None

    def _usable(self, peer: Peer) -> list[Service]:
        """The services that a known peer may use."""
        return [service for service in self._services if service.right in peer.rights]

    def _tell_what_is_refused(
        self, assoc: AcceptedAssociation, where: str, contexts: Sequence[PresentationContext]
    ) -> None:
        """One line for what a peer asked and may not; what nobody may is no news."""
        accepted = {context.abstract_syntax for context in contexts}
        proposed = {context.abstract_syntax for context in assoc.requestor.requested_contexts}
        asked = proposed - accepted
        as_scp = {uid for uid, item in assoc.requestor.role_selection.items() if item.scp_role}
        rights: dict[str, set[str]] = {}
        offered: set[object] = set()
        for service in self._services:
            for context in service.contexts():
                # A class of which the peer must be SCP (C-GET) is not meant by one that wants to send it.
                if context.scu_role is False and context.abstract_syntax not in as_scp:
                    continue
                offered.add(context.abstract_syntax)
                if context.abstract_syntax in asked:
                    rights.setdefault(service.right, set()).add(UID(str(context.abstract_syntax)).name)
        for right, names in rights.items():
            log.warning("%s asked to %s (%s), which it may not", where, right, ", ".join(sorted(names)))
            calling = cast(A_ASSOCIATE, assoc.requestor.primitive).calling_ae_title.strip()
            party = Party(calling, assoc.requestor.address or "")
            self._audit.refused(party, f"asked to {right}, which it may not", restricted=True)
        if unknown := asked - offered:
            classes = sorted(UID(str(uid)).name for uid in unknown)
            more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
            said = ", ".join(classes[:_NAMED]) + more
            # storescu proposes every class there is, whatever it sends.
            level = logging.DEBUG if proposed & accepted else logging.INFO
            log.log(level, "%s asked for what the node does not offer: %s", where, said)
