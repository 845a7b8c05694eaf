"""TLS by the settings."""

from __future__ import annotations

from typeless_grpc.config import Settings
from typeless_grpc.tls import TlsFiles, TlsReloader


def tls_of(settings: Settings) -> TlsReloader | None:
    """Return the certificates of a port; None without TLS. Raises SourceUnavailable if they cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return TlsReloader(
        TlsFiles(cert=settings.tls_cert_file, key=settings.tls_key_file, client_ca=settings.tls_client_ca_file)
    )
