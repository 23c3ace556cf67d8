"""docs/conformance.md, section Security: TLS, users, limits, from the code that decides them (PS3.2 A.7)."""

from __future__ import annotations

from dicomnode.config import Receive, Tls
from dicomnode.network import identity
from dicomnode.network.listener import MAX_WAITING
from dicomnode.network.messages import MAX_COMMAND_SET_BYTES, MAX_OTHER_MESSAGE_BYTES, MAX_WAITING_MESSAGES
from dicomnode.network.transport import MAX_MISPLACED_REQUESTS
from dicomnode.network.wire import MAX_PDU_BYTES
from dicomnode.query.identifier import MAX_BYTES
from dicomnode.query.objects import LARGEST_BYTES
from dicomnode.reception.elements import MAX_DEPTH
from dicomnode.tls import TLS_1_2_CIPHERS

_TLS = """\
## Security

### Secure transport connection

BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12), as acceptor (`[tls] port`; 2762
is registered for it) and as requestor (`tls` of a `[[peers]]` entry).

| | |
|---|---|
| versions | TLS 1.2 and 1.3 (`[tls] minimum_version`); nothing older; no plain TCP on a port of TLS |
| cipher suites of TLS 1.2 | {ciphers} |
| cipher suites of TLS 1.3 | all of RFC 8446 but the CCM suites |
| keys | RSA from 2048 bits, ECDSA from P-256; no SHA-1 (OpenSSL security level 2) |
| never | compression, renegotiation, session tickets |
| acceptor | asks for a certificate that `[tls] ca` has signed and, with `crl`, not revoked; without one no \
association unless `require_client_certificate = false` |
| requestor | shows the certificate of `[tls]`; the peer's must come from `[tls] ca` and bear \
`certificate_name`, or else its `host` |
| a peer's own certificate | `certificate_name` (DNS name, address or common name) and `certificate_sha256` \
of its entry are checked in both roles |
| key management | PEM files of the site; new files are taken up at the next connection, without a restart |

A peer with `require_tls`, `certificate_name` or `certificate_sha256` is rejected on the port without TLS.

### User identity

User identity negotiation (PS3.7 D.3.3.7), types 1 (user name) and 2 (user name and passcode), where a peer's
entry has `user`; with `password_hash`, type 2. The positive response is given when it is asked for. A missing
or wrong identity is rejected with 1, 1, 1 (no reason given). Of other peers, and of types 3 to 5, the item
is ignored and no response given. As requestor: `send_user`, with `send_password_file` type 2. Passwords are
kept as salted scrypt hashes and never logged.

### Rights

| `may` | a peer may |
|---|---|
| `echo` | ask for Verification |
| `store` | send objects |
| `find` | query everything that is held, of every patient and whoever sent it |
| `move` | have any of it sent to any peer with `host` and `port`, itself included |
| `get` | retrieve any of it over its own association |
| `commit` | ask for storage commitment; the answer tells whether an object whose UID it knows is held. To \
report on what it was asked itself it needs `commitment = true` |

Presentation contexts of other services are refused with result 3 (abstract syntax not supported), and the log
names the peer and what it asked for. A request whose class is not its presentation context's is answered with
0x0122 (C-STORE: 0xA900), a command that is not of that class with 0x0211; number {misplaced} ends
the association.
An open association is aborted (A-ABORT, source 0) when the configuration is read again and its peer is no
longer in it, or has lost one of the rights that it had.
Rights are not by patient or study: what a peer may see in part only, it should ask a PACS for.

### Limits

| what | limit | then |
|---|---|---|
| connections without an association | {waiting} on each port | the oldest of the busiest address is closed |
| TLS handshake | `[tls] handshake_timeout_s` = {handshake:g} s | closed |
| A-ASSOCIATE-RQ, whole | `[receive] acse_timeout_s` = {acse:g} s | closed |
| another PDU, or no DICOM at all, before an association | | A-ABORT 2, 1 or 2 |
| a value that cannot be read; an unknown PDU; one out of turn | | A-ABORT 2, 6; 2, 1; 2, 2 |
| associations | `max_associations` = {associations}, of a peer {of_peer} | A-ASSOCIATE-RJ 2, 3, 2 |
| a PDU | {pdu} bytes; `network_timeout_s` = {network:g} s | A-ABORT; closed |
| silence between messages | `network_timeout_s` | A-ABORT |
| silence within a message | `dimse_timeout_s` = {dimse:g} s | A-ABORT |
| a whole message | `message_timeout_s` = {message:g} s | A-ABORT |
| a data set of C-STORE, also inflated | `max_object_gb` = {object:g} GB | 0xA703; the association goes on |
| any other message | {other} bytes; its command set {command} | A-ABORT |
| an Identifier | {identifier} bytes | 0xC000 |
| an object that is converted for a receiver | {converted} bytes, decoded | that sub-operation fails |
| passwords that are being checked | {passwords} | A-ASSOCIATE-RJ 2, 3, 1 |
| requests without waiting for answers; N-EVENT-REPORTs also on associations of the node's \
| {unread} | A-ABORT |
| nesting of sequences | {depth} | 0xC000 |"""


def security() -> str:
    """The section."""
    receive, tls = Receive(), Tls()
    return _TLS.format(
        ciphers=", ".join(TLS_1_2_CIPHERS),
        waiting=MAX_WAITING,
        handshake=tls.handshake_timeout_s,
        acse=receive.acse_timeout_s,
        associations=receive.max_associations,
        of_peer=receive.max_associations_per_peer,
        pdu=f"{MAX_PDU_BYTES:,}",
        network=receive.network_timeout_s,
        dimse=receive.dimse_timeout_s,
        message=receive.message_timeout_s,
        object=receive.max_object_gb,
        other=f"{MAX_OTHER_MESSAGE_BYTES:,}",
        command=f"{MAX_COMMAND_SET_BYTES:,}",
        identifier=f"{MAX_BYTES:,}",
        converted=f"{LARGEST_BYTES:,}",
        misplaced=MAX_MISPLACED_REQUESTS + 1,
        unread=MAX_WAITING_MESSAGES,
        depth=MAX_DEPTH,
        passwords=identity.MAX_WAITING,
    )
