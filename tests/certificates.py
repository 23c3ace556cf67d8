"""A certificate authority for the tests, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        """As `openssl x509 -fingerprint -sha256` prints it."""
        shown = _openssl("x509", "-in", str(self.certificate), "-noout", "-fingerprint", "-sha256")
        return shown.partition("=")[2].strip()

    def encrypt_key(self, to: Path) -> None:
        """The key, under a password."""
        _openssl("pkey", "-in", str(self.key), "-aes128", "-passout", "pass:secret", "-out", str(to))


class Authority:
    """Signs certificates; its own is `ca`."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.crt"
        self._key = folder / "ca.key"
        _new_key(self._key)
        _openssl(
            *("req", "-x509", "-new", "-key", str(self._key), "-out", str(self.ca), "-days", "30"),
            *("-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def issue(self, name: str, *names: str, days: int = 365, bits: int = 0) -> Pair:
        """A certificate with that common name, for these DNS names and 127.0.0.1.

        days: below 0 it has expired. bits: of an RSA key; 0: an elliptic curve.
        """
        stem = f"{name.replace(' ', '_')}{days}"
        pair = Pair(self._folder / f"{stem}.crt", self._folder / f"{stem}.key")
        request, extensions = self._folder / f"{stem}.csr", self._folder / f"{stem}.ext"
        _new_key(pair.key, bits)
        _openssl(
            "req", "-new", "-key", str(pair.key), "-out", str(request), "-subj", f"/O=Hospital/CN={name}"
        )
        alternatives = ",".join(["IP:127.0.0.1", *(f"DNS:{n}" for n in names)])
        extensions.write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key)),
            *("-out", str(pair.certificate), "-extfile", str(extensions), "-CAcreateserial"),
            *("-days", str(days)),
        )
        return pair

    def revoke(self, *pairs: Pair) -> Path:
        """A list of revoked certificates."""
        index, settings = self._folder / "index.txt", self._folder / "ca.cnf"
        index.write_text("")
        settings.write_text(
            f"[ca]\ndefault_ca=it\n[it]\ndatabase={index}\ndefault_md=sha256\ndefault_crl_days=30\n"
        )
        signer = ("ca", "-config", str(settings), "-cert", str(self.ca), "-keyfile", str(self._key))
        for pair in pairs:
            _openssl(*signer, "-revoke", str(pair.certificate))
        crl = self._folder / "ca.crl"
        _openssl(*signer, "-gencrl", "-out", str(crl))
        return crl


def _new_key(path: Path, bits: int = 0) -> None:
    kind = (
        ("RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}")
        if bits
        else ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    )
    _openssl("genpkey", "-algorithm", *kind, "-out", str(path))
    path.chmod(0o600)


def _openssl(*arguments: str) -> str:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
