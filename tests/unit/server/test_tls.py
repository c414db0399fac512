"""Key files that cannot serve are refused when the server starts, with what is wrong and what to do."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from crossrank.errors import SetupError
from crossrank_server.process.tls import read_tls_files

CA = trustme.CA()
NOW = datetime.now(timezone.utc)
GOOD = CA.issue_cert("127.0.0.1")
OTHER = CA.issue_cert("127.0.0.1")
EXPIRED = CA.issue_cert("127.0.0.1", not_before=NOW - timedelta(2), not_after=NOW - timedelta(1))
FUTURE = CA.issue_cert("127.0.0.1", not_before=NOW + timedelta(1), not_after=NOW + timedelta(2))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], str]:
    def write_file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write_file


def chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)


def encrypted(leaf: trustme.LeafCert) -> bytes:
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


def test_without_files_there_is_no_tls():
    assert read_tls_files("", "", "") is None


def test_good_files_make_a_context_of_version_1_2_that_asks_callers_for_nothing(write):
    files = read_tls_files(write("c", chain(GOOD)), write("k", GOOD.private_key_pem.bytes()))
    assert files is not None
    assert files.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert files.context.verify_mode == ssl.CERT_NONE
    assert files.client_ca is None


def test_with_authorities_callers_need_a_certificate(write):
    files = read_tls_files(
        write("c", chain(GOOD)), write("k", GOOD.private_key_pem.bytes()), write("ca", CA.cert_pem.bytes())
    )
    assert files is not None
    assert files.context.verify_mode == ssl.CERT_REQUIRED
    assert len(files.context.get_ca_certs()) == 1


KEY = GOOD.private_key_pem.bytes()


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "message"),
    [
        (chain(GOOD), None, None, r"--tls-cert alone is not enough: TLS needs both"),
        (None, KEY, None, r"--tls-key alone is not enough"),
        (None, None, CA.cert_pem.bytes(), r"--tls-client-ca alone is not enough"),
        (chain(OTHER), KEY, None, r"--tls-key .*/key is not the key of --tls-cert .*/cert"),
        (chain(EXPIRED), EXPIRED.private_key_pem.bytes(), None, r"--tls-cert .* expired on 20\d\d-.* UTC: renew it"),
        (chain(FUTURE), FUTURE.private_key_pem.bytes(), None, r"is valid from 20\d\d-.* the clock here says"),
        (b"not PEM", KEY, None, r"--tls-cert .* holds no certificate in PEM"),
        (KEY, KEY, None, r"--tls-cert .* holds no certificate in PEM"),
        (b"", KEY, None, r"--tls-cert .* holds no certificate in PEM"),
        (chain(GOOD), b"not PEM", None, r"--tls-key .*: .*; both must be PEM, the key unencrypted"),
        (chain(GOOD), encrypted(GOOD), None, r"--tls-key .* asks for a passphrase; decrypt it"),
        (chain(GOOD), KEY, b"not PEM", r"--tls-client-ca .* holds no certificate in PEM"),
        (chain(GOOD), KEY, chain(EXPIRED), r"--tls-client-ca .* expired on"),
    ],
)
def test_files_that_cannot_serve_are_refused(write, cert, key, client_ca, message):
    paths = [
        write(name, content) if content is not None else ""
        for name, content in (("cert", cert), ("key", key), ("ca", client_ca))
    ]
    with pytest.raises(SetupError, match=message):
        read_tls_files(*paths)


@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key", "--tls-client-ca"])
def test_a_file_that_is_missing_or_a_directory_is_named(write, tmp_path: Path, flag: str):
    for bad, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        paths = {
            "--tls-cert": write("cert", chain(GOOD)),
            "--tls-key": write("key", KEY),
            "--tls-client-ca": write("ca", CA.cert_pem.bytes()),
        }
        paths[flag] = str(bad)
        with pytest.raises(SetupError, match=f"{flag} {bad} cannot be read: {reason}"):
            read_tls_files(*paths.values())
