"""Who speaks on an association: user identity negotiation (PS3.7 D.3.3.7) and the hashes of passwords."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass

from dicomnode.config import Peer
from dicomnode.errors import ConfigurationError

USERNAME, USERNAME_AND_PASSCODE = 1, 2  # PS3.7 table D.3-14
_SALT_BYTES, _HASH_BYTES = 16, 32
_N, _R, _P = 1 << 14, 8, 1  # 16 MB and about 50 ms

# One at a time: twenty callers at once would take twenty times the memory.
_turn = threading.Lock()
# More than that do not wait for their turn: each of them is two threads.
MAX_WAITING = 16
TOO_MANY = "too many callers give passwords that are new"
"""The refusal that says nothing about the caller: it may call again at once."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What a peer said about its user. The password never leaves this module."""

    kind: int
    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"Offered(kind={self.kind}, user={self.user!r})"


def hash_password(password: str) -> str:
    """What stands in config.toml as password_hash; of the same password another one every time."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(password.encode(), _N, _R, _P, salt).hex()}"


class IdentityCheck:
    """Compares what peers offer with their entries. Remembers what was right, for peers that call often."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_HASH_BYTES)
        self._right: dict[str, bytes] = {}
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def refusal(self, peer: Peer, offered: Offered | None) -> str:
        """Why a peer is not who its [[peers]] entry says; empty when it is, or none is asked for."""
        if not peer.user:
            return ""
        if offered is None or offered.kind not in (USERNAME, USERNAME_AND_PASSCODE):
            return "it gives no user name (user identity negotiation)"
        is_user = hmac.compare_digest(offered.user, peer.user.encode())
        another = "it gives another user name"
        if not peer.password_hash:
            return "" if is_user else another
        if offered.kind != USERNAME_AND_PASSCODE:
            return "it gives no password" if is_user else another
        digest = hmac.digest(self._key, offered.password, "sha256")
        if is_user and hmac.compare_digest(self._right.get(peer.password_hash, b""), digest):
            return ""
        if not self._waiting.acquire(blocking=False):
            return TOO_MANY
        try:
            if not is_user:
                # As long as for a wrong password: the time tells nobody which user names there are.
                _verified(_nobodys(peer.password_hash), offered.password)
                return another
            if not _verified(peer.password_hash, offered.password):
                return "it gives a wrong password"
        finally:
            self._waiting.release()
        self._right[peer.password_hash] = digest
        return ""


def _verified(password_hash: str, password: bytes) -> bool:
    _, n, r, p, salt, wanted = password_hash.split("$")
    found = _scrypt(password, int(n), int(r), int(p), bytes.fromhex(salt))
    return hmac.compare_digest(found, bytes.fromhex(wanted))


def _nobodys(password_hash: str) -> str:
    """A hash that costs the same and that no password has."""
    *parameters, salt, _ = password_hash.split("$")
    return "$".join((*parameters, salt, bytes(_HASH_BYTES).hex()))


def password_to_send(peer: Peer) -> bytes:
    """Of send_password_file, without the end of its line. Raises ConfigurationError."""
    if peer.send_password_file is None:
        return b""
    try:
        return peer.send_password_file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(
            f"[[peers]] {peer.name!r} send_password_file {peer.send_password_file} cannot be read: "
            f"{error.strerror}",
            "Let the account that runs the node read it",
        ) from None


def _scrypt(password: bytes, n: int, r: int, p: int, salt: bytes) -> bytes:
    with _turn:
        return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=2 * 128 * n * r, dklen=_HASH_BYTES)
