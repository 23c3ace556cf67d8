"""What `dicomnode check` says of certificates, keys and passwords."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dicomnode.commands.own_certificate import Remark, remarks
from dicomnode.config import Config
from tests.certificates import Authority, Pair

NOW = time.time()
DAY_S = 86400.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def look(authority: Authority, pair: Pair, now: float = NOW, **tls: Any) -> list[Remark]:
    settings = {"port": 2762, "certificate": pair.certificate, "key": pair.key, "ca": authority.ca, **tls}
    return list(remarks(Config.model_validate({"tls": settings}), now))


def test_a_sound_certificate_is_named_with_its_end(authority: Authority) -> None:
    pair = authority.issue("node", "localhost")
    (remark,) = look(authority, pair)
    assert (remark.wrong, remark.remedy) == (False, "")
    assert remark.text.startswith("organizationName=Hospital, commonName=node, until 20")
    assert remark.text.endswith(pair.sha256.replace(":", "").lower())


def test_nothing_is_said_where_tls_is_not_used() -> None:
    assert list(remarks(Config(), NOW)) == []


@pytest.mark.parametrize(("days", "text"), [(20, "expires in 20 days"), (40, "")])
def test_a_certificate_that_ends_soon_is_told(authority: Authority, days: int, text: str) -> None:
    """A month is what a hospital needs to get another one."""
    pair = authority.issue("soon", days=days)
    (remark,) = look(authority, pair, now=NOW)
    assert (text in remark.text) if text else not remark.remedy


def test_an_expired_certificate_is_told_and_keeps_nobody_from_starting(authority: Authority) -> None:
    """The port without TLS may be what the modalities use."""
    (remark,) = look(authority, authority.issue("old", days=-1))
    assert "certificate has expired" in remark.text
    assert remark.remedy
    assert not remark.wrong


def test_files_that_cannot_be_used_are_a_problem(authority: Authority, tmp_path: Path) -> None:
    pair, other = authority.issue("a"), authority.issue("b")
    (remark,) = look(authority, Pair(pair.certificate, other.key))
    assert remark.wrong
    assert "key does not match certificate" in remark.text
    (remark,) = look(authority, Pair(tmp_path / "missing", pair.key))
    assert remark.wrong
    assert "cannot be read: No such file" in remark.text


def test_a_key_that_others_read_is_told(authority: Authority) -> None:
    pair = authority.issue("open")
    pair.key.chmod(0o640)
    open_, _ = look(authority, pair)
    assert open_.subject == "[tls] key"
    assert "(mode 0640)" in open_.text
    assert open_.remedy == f"chmod 600 {pair.key}"


def test_a_certificate_of_another_authority_is_told(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other CA")
    told, _ = look(authority, other.issue("node"))
    assert "does not lead to [tls] ca" in told.text


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ({"user": "nm1"}, "in clear"),
        ({"user": "nm1", "require_tls": True, "certificate_name": "nm1"}, ""),
        ({"require_tls": True}, "every certificate of [tls] ca may use its AE title"),
        ({"send_user": "us", "send_password_file": "missing", "tls": True}, "cannot be read"),
        ({"send_user": "us", "send_password_file": "open", "tls": True}, "is open to others"),
    ],
)
def test_what_a_peers_entry_leaves_open_is_told(
    authority: Authority, tmp_path: Path, peer: dict[str, Any], text: str
) -> None:
    (tmp_path / "open").write_text("secret")
    (tmp_path / "open").chmod(0o644)
    if "send_password_file" in peer:
        peer = {**peer, "send_password_file": tmp_path / peer["send_password_file"]}
    pair = authority.issue("node")
    tls = {"port": 2762, "certificate": pair.certificate, "key": pair.key, "ca": authority.ca}
    config = Config.model_validate({"tls": tls, "peers": [{"name": "X", "ae_title": "X", **peer}]})
    said = [remark.text for remark in remarks(config, NOW) if 'peers]] "X"' in remark.subject]
    assert (len(said) == 1 and text in said[0]) if text else said == []
    assert "secret" not in "".join(said)
