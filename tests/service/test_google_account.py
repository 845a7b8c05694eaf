"""`typeless keys google-account`: the files that it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from typer.testing import CliRunner, Result

from typeless_grpc.access.tokens import SelfSigned, self_signed
from typeless_grpc.cli.commands import app

FILES = {"google-account.json": "600", "ca.pem": "644", "cert.pem": "644", "key.pem": "600"}


def google_account(domain: str, folder: Path, key: str = "") -> Result:
    command = ["keys", "google-account", domain, "-o", str(folder)]
    return CliRunner().invoke(app, command, env={"TYPELESS_API_KEY": key})


@pytest.mark.parametrize("key", ["a-key", ""])
def test_the_account_carries_the_key_as_its_id(tmp_path: Path, key: str):
    made = google_account("example.com:50051", tmp_path, key)
    assert made.exit_code == 0
    account = json.loads((tmp_path / "google-account.json").read_text())
    assert account["universe_domain"] == "example.com:50051"
    email = account["client_email"]
    headers = {"kid": account["private_key_id"]}
    token = jwt.encode({"iss": email, "sub": email}, account["private_key"], "RS256", headers=headers)
    assert self_signed(token) == SelfSigned(email, key or None)
    assert "a-key" not in made.output


def test_the_certificate_is_good_for_the_speech_host_of_the_domain_alone(tmp_path: Path):
    google_account("Example.com", tmp_path)
    ca, own = (x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca.pem", "cert.pem"))
    policy = PolicyBuilder().store(Store([ca]))
    policy.build_server_verifier(x509.DNSName("speech.example.com")).verify(own, [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("example.com")).verify(own, [])
    key = load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    assert key.public_key() == own.public_key()


def test_files_are_private_new_and_named_in_lines_for_a_shell(tmp_path: Path):
    folder = tmp_path / "a folder"
    made = google_account("example.com", folder)
    assert {file.name: f"{file.stat().st_mode & 0o777:o}" for file in folder.iterdir()} == FILES
    assert f"{folder.stat().st_mode & 0o777:o}" == "700"
    assert made.stdout.splitlines() == [
        "export GOOGLE_CLOUD_UNIVERSE_DOMAIN=example.com",
        f"export GOOGLE_APPLICATION_CREDENTIALS='{folder}/google-account.json'",
        f"export GRPC_DEFAULT_SSL_ROOTS_FILE_PATH='{folder}/ca.pem'",
    ]
    before = (folder / "key.pem").read_bytes()
    again = google_account("example.com", folder)
    assert (again.exit_code, "exists already" in again.stderr) == (1, True)
    assert (folder / "key.pem").read_bytes() == before


@pytest.mark.parametrize(
    "domain", ["", "-a.com", "a..com", "a_b", "a:b", "a b", "a.com:", "é.com", "a" * 64, "a." * 130 + "a"]
)
def test_what_is_no_domain_is_refused(tmp_path: Path, domain: str):
    made = google_account(domain, tmp_path / "out")
    assert (made.exit_code, (tmp_path / "out").exists()) == (2, False)
