"""Tokens of an identity provider, from its HTTP endpoint to the servicer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.harness import request
from tests.service.access import USER, guarded, outcome
from typeless_grpc.engine.scripted import ScriptedEngine

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
INFO, CONFIG = "/typeless.v1.ServerService/GetServerInfo", "/typeless.v1.AdminService/GetConfig"


@pytest.fixture
def jwks_url() -> Iterator[str]:
    """An identity provider that publishes one key, "one"."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE.public_key()))
    body = json.dumps({"keys": [key | {"kid": "one", "use": "sig", "alg": "RS256"}]}).encode()

    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jwks.json"
        server.shutdown()
        thread.join()


def bearer(lifetime_s: float = 60, **claims: Any) -> tuple[str, str]:
    usual = {"iss": "https://id.example", "aud": "typeless", "sub": "ada", "exp": time.time() + lifetime_s}
    return ("authorization", "Bearer " + jwt.encode(usual | claims, PRIVATE, "RS256", headers={"kid": "one"}))


async def test_tokens_are_accepted_beside_keys(jwks_url: str):
    engine = ScriptedEngine()
    settings = {"jwt_issuer": "https://id.example", "jwt_audience": "typeless", "jwt_jwks_url": jwks_url}
    async with guarded(engine, require_auth=True, **settings) as served:
        await served.transcription.Transcribe(request(), metadata=(bearer(),))
        outcomes = {
            "token": await outcome(served, INFO, bearer()),
            "key as bearer": await outcome(served, INFO, ("authorization", f"Bearer {USER}")),
            "admin's token": await outcome(served, CONFIG, bearer(roles=["admin"])),
            "user's token": await outcome(served, CONFIG, bearer()),
            "expired": await outcome(served, INFO, bearer(-120)),
            "other audience": await outcome(served, INFO, bearer(aud="another")),
            "as a key": await outcome(served, INFO, ("x-api-key", bearer()[1].removeprefix("Bearer "))),
        }
    assert [call.ticket.caller for call in engine.calls] == ["token:ada"]
    assert {name: failed.reason if failed else None for name, failed in outcomes.items()} == {
        "token": None,
        "key as bearer": None,
        "admin's token": None,
        "user's token": "ADMIN_KEY_REQUIRED",
        "expired": "TOKEN_EXPIRED",
        "other audience": "TOKEN_INVALID",
        "as a key": "KEY_INVALID",
    }


async def test_without_an_issuer_a_token_is_a_wrong_key():
    async with guarded() as served:
        failed = await outcome(served, INFO, bearer())
    assert failed is not None
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")
