"""What a peer may ask of the node: every service of the listening side has this shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pynetdicom import evt
from pynetdicom.presentation import PresentationContext

if TYPE_CHECKING:
    from dicomnode.config import AnyRight


class Service(Protocol):
    """What a peer may ask of the node over an association.

    Its handlers are called only on associations of peers that have its right, but any of them may
    send any command: a handler still checks that the command fits its presentation context.
    """

    @property
    def right(self) -> AnyRight:
        """What `config.Peer.rights` must hold."""
        ...

    def contexts(self) -> list[PresentationContext]:
        """Supported of a peer with that right.

        `scu_role` and `scp_role` are the peer's roles (PS3.7 D.3.3.4). Without them it may be SCU alone,
        and needs no role selection. `scu_role=False, scp_role=True` is accepted only where the peer
        proposes to be SCP.
        """
        ...

    def handlers(self) -> list[evt.EventHandlerType]:
        """pynetdicom's events. An intervention belongs to one service, except EVT_SOP_EXTENDED: each
        service answers for its own classes there."""
        ...

    def stop(self) -> None:
        """Nothing more is begun; what runs is waited for by the receiver."""
        ...
