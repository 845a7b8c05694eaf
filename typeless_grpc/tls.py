"""TLS from files, which are read again when they change. New connections use the new certificate."""

from __future__ import annotations

import errno
import os
import ssl
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. client_ca: authorities that must have signed clients' certificates; None if clients need none."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class TlsReloader:
    """Holds the certificates in force. grpc calls it before every handshake, from its own thread."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises SourceUnavailable if they cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamp()
        try:
            self._current = self._read()
        except (OSError, ValueError) as error:
            # Errors of the ssl module are OSErrors.
            raise SourceUnavailable(f"The TLS files cannot be used: {_reason(error)}", reason="TLS_UNUSABLE") from error

    def expires_s(self) -> float:
        """Return the Unix time at which the server's certificate expires."""
        return self._expires_s

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a port."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self.changed,  # type: ignore[arg-type] # None is "no change", which the types do not know
            require_client_authentication=self._files.client_ca is not None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new certificates if the files have changed and fit together, else None. Never raises."""
        with self._lock:
            if (stamp := self._stamp()) == self._seen:
                return None
            self._seen = stamp
            try:
                self._current = self._read()
            except (OSError, ValueError) as error:
                # A new certificate may arrive before its key. The change of the key is noticed later.
                log.warning("changed TLS files cannot be used; the old ones stay in force", error=_reason(error))
                return None
        log.info("TLS files reloaded")
        return self._current

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Read all files and check that certificate and key are a pair; grpc would notice only at each handshake."""
        files = self._files
        for file in (files.cert, files.key, files.client_ca):
            if file is not None:
                _check(file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key, password=_no_password)
        ca = None
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            ca = files.client_ca.read_bytes()
        chain = files.cert.read_bytes()
        self._expires_s = x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
        return grpc.ssl_server_certificate_configuration([(files.key.read_bytes(), chain)], ca)

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(file) for file in (self._files.cert, self._files.key, self._files.client_ca) if file)


def _check(file: Path) -> None:
    """Raise OSError for a file whose reading could block or never end, because handshakes wait for it."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def _no_password() -> str:
    """Refuse an encrypted key, for which OpenSSL would ask on the terminal, and wait."""
    raise OSError(errno.EINVAL, "the key is encrypted")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return a value that changes with the file's content, or with its link's target, as Kubernetes swaps secrets."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _reason(error: Exception) -> str:
    """Return what is wrong, without the files' content."""
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
