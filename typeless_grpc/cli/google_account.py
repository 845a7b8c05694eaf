"""`typeless keys google-account`: the files with which Google's speech clients call this server, code unchanged.

Google's clients call `speech.DOMAIN` over TLS if GOOGLE_CLOUD_UNIVERSE_DOMAIN is DOMAIN, and their credentials are a
service account of that domain. The account's key id carries an API key: see `typeless_grpc/access/tokens.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from typeless_grpc.cli.files import name_of
from typeless_grpc.cli.output import complain, fail, failures_as_lines
from typeless_grpc.client.channels import key_to_send

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

ACCOUNT, CA, CERTIFICATE, KEY = "google-account.json", "ca.pem", "cert.pem", "key.pem"
DAYS = 397  # as long as browsers and clients accept of a server
_DOMAIN = re.compile(
    r"(?=[^:]{1,245}(:|$))([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*(:\d{1,5})?"
)


def google_account(
    domain: Annotated[
        str, typer.Argument(help="Domain of this server: clients call speech.DOMAIN at port 443, or at DOMAIN's :PORT.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the files; created if missing.")],
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="TYPELESS_API_KEY",
            show_default=False,
            help="API key of the account's caller, for a server with keys. Prefer the variable, or "
            "TYPELESS_API_KEY_FILE.",
        ),
    ] = None,
) -> None:
    """Write a service account for Google's clients.

    For tests, it also writes a certificate for speech.DOMAIN. The files are google-account.json, and ca.pem, cert.pem
    and key.pem. Existing files are never replaced. The certificate is valid for 397 days. The private key of its
    authority is not kept, so nobody can sign another with it.

    Example: typeless keys google-account example.com -o google-account
    """
    domain = domain.lower()
    if not _DOMAIN.fullmatch(domain):
        raise typer.BadParameter("must be a domain such as example.com, or example.com:PORT", param_hint="DOMAIN")
    try:
        key = key_to_send(api_key)
    except ValueError as error:
        fail(str(error))
    with failures_as_lines():
        files = {ACCOUNT: _account(domain, key), **_certificate(f"speech.{domain.partition(':')[0]}")}
        _write(output, files)
    _explain(domain, output)


def _account(domain: str, api_key: str) -> bytes:
    """Return a service account's JSON. api_key: "" for a caller without a key."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from typeless_grpc.access.tokens import KEY_ACCOUNT, KEYLESS_ACCOUNT

    private_key = rsa.generate_private_key(65537, 2048)  # its signatures are not verified: the API key counts
    account = {
        "type": "service_account",
        "project_id": "typeless",
        "private_key_id": api_key or "none",
        "private_key": _private(private_key).decode(),
        "client_email": KEY_ACCOUNT if api_key else KEYLESS_ACCOUNT,
        "client_id": "0",
        "token_uri": f"https://oauth2.{domain}/token",  # clients require it, and never call it
        "universe_domain": domain,
    }
    return json.dumps(account, indent=2).encode() + b"\n"


def _certificate(host: str) -> dict[str, bytes]:
    """Return the certificate of a host, its key, and the authority that signed it, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])

    def usage(*, signs_certificates: bool) -> x509.KeyUsage:
        names = ("key_encipherment", "content_commitment", "data_encipherment", "key_agreement", "crl_sign")
        others = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
        return x509.KeyUsage(digital_signature=not signs_certificates, key_cert_sign=signs_certificates, **others)

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, now = named(f"typeless, for {host}"), datetime.now(UTC)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )

    ca = (
        builder(issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(host)], None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    certificate = (
        builder(named(host), own)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return {CA: ca.public_bytes(pem), CERTIFICATE: certificate.public_bytes(pem), KEY: _private(own)}


def _private(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """Write files that do not exist, those with secrets for their owner alone. Raises OSError."""
    from typeless_grpc.disk import make_directory

    make_directory(directory)
    for name in files:
        if os.path.lexists(directory / name):
            fail(f"{name_of(directory / name)} exists already: choose another directory")
    for name, content in files.items():
        mode = 0o600 if name in (ACCOUNT, KEY) else 0o644
        with open(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)


def _explain(domain: str, directory: Path) -> None:
    """Print what to set: for the server to stderr, for the client to stdout, which a shell can evaluate."""
    directory = directory.absolute()

    def path(name: str) -> str:
        return shlex.quote(str(directory / name))

    port = domain.partition(":")[2] or "443"
    complain(
        f"server: TYPELESS_TLS_CERT_FILE={path(CERTIFICATE)} TYPELESS_TLS_KEY_FILE={path(KEY)} TYPELESS_PORT={port}"
    )
    complain(f"clients, where speech.{domain.partition(':')[0]} is the server's address:")
    for name, value in (
        ("GOOGLE_CLOUD_UNIVERSE_DOMAIN", domain),
        ("GOOGLE_APPLICATION_CREDENTIALS", path(ACCOUNT)),
        ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", path(CA)),
    ):
        typer.echo(f"export {name}={value}")
