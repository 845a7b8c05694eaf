from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.contract.conftest import Stores
from tests.unit.idle import IdleEventLoop
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.files import Files


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], IdleEventLoop]]:
    """Run the unit tests on a loop that tells when it is idle; see `until_idle`."""
    return {"idle": IdleEventLoop}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path / "jobs.db"))
    opened.create_tables()
    yield opened
    opened.close()


@pytest.fixture
def stores(database: Database, tmp_path: Path) -> Stores:
    return Stores.over(database, Files(str(tmp_path / "files")))
