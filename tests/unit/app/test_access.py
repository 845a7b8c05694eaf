from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from typeless_grpc.app.access import open_access
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.config import Settings
from typeless_grpc.errors import InvalidInput
from typeless_grpc.stores import memory_access
from typeless_grpc.stores.sql_access import SqlAccessStore
from typeless_grpc.telemetry.metrics import Metrics


@pytest.mark.parametrize("url", ["redis://h:pa/ss@host", "redis+sentinel://host:port/name", "redis+cluster://host:"])
async def test_an_invalid_redis_url_fails_the_start_and_not_the_first_call(url: str):
    settings = Settings(redis_url=url)
    with pytest.raises(InvalidInput) as caught:
        async with open_access(settings, Metrics(), Reloads(settings)):
            pass
    assert (caught.value.reason, caught.value.message) == ("CONFIG_INVALID", "redis_url: is not the URL of a Redis")


async def test_a_database_that_is_unavailable_at_the_end_is_a_log_line_and_not_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def is_unavailable(_store: SqlAccessStore, uses: Mapping[str, float]) -> None:
        assert list(uses) == ["k1"]
        raise memory_access.unavailable()

    monkeypatch.setattr(SqlAccessStore, "record_uses", is_unavailable)
    settings = Settings(data_dir=tmp_path, auth_enabled=True)
    async with open_access(settings, Metrics(), Reloads(settings)) as access:
        access.registry.ring.used("k1", 1.0)
    assert "last used is not stored" in caplog.text
