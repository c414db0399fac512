"""Read the TLS files of both protocols and check them before the first caller does, at start-up and on SIGHUP."""

from __future__ import annotations

import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from crossrank.errors import SetupError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_log = logging.getLogger("crossrank")


@dataclass(frozen=True)
class TlsFiles:
    """Hold the contents of the PEM files, checked.

    Attributes:
        cert: The certificate, and the intermediate ones.
        key: Its private key.
        client_ca: Authorities of the certificates that callers must present; None asks for no certificate.
        context: The same as Python's ssl takes it, for HTTP.
    """

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Tls:
    """Hold the TLS files in use, which can be replaced while the server runs.

    Args:
        cert: Path of `--tls-cert`.
        key: Path of `--tls-key`.
        client_ca: Path of `--tls-client-ca`, or empty.
        files: Their contents, as `read_tls_files` returns them.

    Attributes:
        files: The contents in use.
    """

    def __init__(self, cert: str, key: str, client_ca: str, files: TlsFiles) -> None:
        self._paths = (cert, key, client_ca)
        self.files = files

    def reload(self) -> bool:
        """Read the files again and return True; where they cannot serve, keep those in use, and log why."""
        try:
            files = read_tls_files(*self._paths)
        except SetupError as error:
            _log.error("the TLS files are not read again, those in use stay: %s", error.message)
            return False
        assert files is not None
        self.files = files
        _log.info("the TLS files are read again, for new connections: %s", ", ".join(filter(None, self._paths)))
        return True


def open_tls(cert: str, key: str, client_ca: str = "") -> Tls | None:
    """Return the files that the settings name; None where they name none: no TLS.

    Args:
        cert: Path of `--tls-cert`, or empty.
        key: Path of `--tls-key`, or empty.
        client_ca: Path of `--tls-client-ca`, or empty.

    Raises:
        SetupError: See `read_tls_files`.
    """
    files = read_tls_files(cert, key, client_ca)
    return None if files is None else Tls(cert, key, client_ca, files)


def reload_tls(tls: Tls | None) -> bool:
    """Read the TLS files again, where there are some; return whether others are in use now. The log says which."""
    if tls is None:
        _log.info("SIGHUP would read TLS files again, and there are none (--tls-cert): it is ignored")
        return False
    return tls.reload()


def on_hangup(reload: Callable[[], object]) -> None:
    """Call a function in the main thread on each SIGHUP from now on; Windows has none."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: reload())
        # It is blocked in workers that begin.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def read_tls_files(cert: str, key: str, client_ca: str = "") -> TlsFiles | None:
    """Read and check the files that the settings name; return None where they name none: no TLS.

    Args:
        cert: Path of `--tls-cert`, or empty.
        key: Path of `--tls-key`, or empty.
        client_ca: Path of `--tls-client-ca`, or empty.

    Raises:
        SetupError: One is missing, unreadable, no PEM, expired, or does not belong to the others.
    """
    if not (cert or key or client_ca):
        return None
    if not (cert and key):
        given = ", ".join(
            flag for flag, path in (("--tls-cert", cert), ("--tls-key", key), ("--tls-client-ca", client_ca)) if path
        )
        raise SetupError(f"{given} alone is not enough: TLS needs both --tls-cert and --tls-key")
    cert_pem, key_pem = _read("--tls-cert", cert), _read("--tls-key", key)
    client_ca_pem = _read("--tls-client-ca", client_ca) if client_ca else None
    _check_validity("--tls-cert", cert, cert_pem)
    if client_ca_pem is not None:
        _check_validity("--tls-client-ca", client_ca, client_ca_pem)
    return TlsFiles(cert_pem, key_pem, client_ca_pem, _context(cert, key, client_ca_pem))


def _context(cert: str, key: str, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A handshake costs the server more than the client.
    context.options |= ssl.OP_NO_RENEGOTIATION

    def refuse_passphrase() -> str:
        raise SetupError(f"--tls-key {key} asks for a passphrase; decrypt it, e.g. with openssl pkey -in {key}")

    try:
        context.load_cert_chain(cert, key, password=refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SetupError(f"--tls-key {key} is not the key of --tls-cert {cert}: give those of one pair") from None
        raise SetupError(
            f"--tls-cert {cert} with --tls-key {key}: {error.reason or error}; both must be PEM, the key unencrypted"
        ) from None
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(flag: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise SetupError(f"{flag} {path} cannot be read: {error.strerror or error}") from None


def _check_validity(flag: str, path: str, pem: bytes) -> None:
    now = datetime.now(timezone.utc)
    for certificate in _certificates(flag, path, pem):
        name = certificate.subject.rfc4514_string() or "a certificate without a subject"
        if certificate.not_valid_after_utc < now:
            raise SetupError(
                f"{flag} {path}: {name} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it"
            )
        if certificate.not_valid_before_utc > now:
            raise SetupError(
                f"{flag} {path}: {name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, and "
                f"the clock here says {now:%Y-%m-%d %H:%M}: set it right, or take another"
            )


def _certificates(flag: str, path: str, pem: bytes) -> list[Certificate]:
    try:
        from cryptography.x509 import load_pem_x509_certificates
    except ModuleNotFoundError as error:
        raise SetupError(f"{flag} needs {error.name}: pip install 'crossrank[tls]'") from None
    try:
        return load_pem_x509_certificates(pem)
    except ValueError:
        raise SetupError(
            f"{flag} {path} holds no certificate in PEM: it must begin with -----BEGIN CERTIFICATE-----"
        ) from None
