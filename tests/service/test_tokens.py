"""Tokens of an identity provider, from its HTTP endpoint to the servicer."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.harness import request
from tests.identity_provider import bearer, identity_provider
from tests.service.access import USER, guarded, outcome
from typeless_grpc.engine.scripted import ScriptedEngine

INFO, CONFIG = "/typeless.v1.ServerService/GetServerInfo", "/typeless.v1.AdminService/GetConfig"


@pytest.fixture
def jwks_url() -> Iterator[str]:
    """Where an identity provider publishes its key."""
    with identity_provider() as provider:
        yield provider.jwks_url


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
