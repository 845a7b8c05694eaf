"""TLS from files, read again when they change: new connections get the new certificate, running calls keep theirs."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.telemetry.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. client_ca: whose certificates clients must show; None, they need none."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class TlsReloader:
    """The certificates in force. grpc asks before every handshake, from a thread of its own."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises SourceUnavailable if the files cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamp()
        try:
            self._current = self._read()
        except (OSError, ValueError) as error:
            # ssl's errors are OSErrors.
            raise SourceUnavailable(f"The TLS files cannot be used: {_reason(error)}", reason="TLS_UNUSABLE") from error

    def credentials(self) -> grpc.ServerCredentials:
        """What a port needs to speak TLS."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self.changed,  # type: ignore[arg-type] # None is "no change", which the types do not know
            require_client_authentication=self._files.client_ca is not None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates if the files have changed and fit together, else None; never raises."""
        with self._lock:
            if (stamp := self._stamp()) == self._seen:
                return None
            self._seen = stamp
            try:
                self._current = self._read()
            except (OSError, ValueError) as error:
                # A certificate without its key yet, say: the change that completes the pair is seen too.
                log.warning("changed TLS files cannot be used, the old ones stay", error=_reason(error))
                return None
        log.info("TLS files read again")
        return self._current

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Read all files, and check that certificate and key are a pair: grpc would fail at each handshake instead."""
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        ca = None
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            ca = files.client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([(files.key.read_bytes(), files.cert.read_bytes())], ca)

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(file) for file in (self._files.cert, self._files.key, self._files.client_ca) if file)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes with the file's content, and where a link leads elsewhere, as Kubernetes swaps its secrets."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _reason(error: Exception) -> str:
    """What is wrong, without what is in the files."""
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
