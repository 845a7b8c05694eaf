from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.contract.conftest import Stores
from tests.unit.idle import IdleEventLoop
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], IdleEventLoop]]:
    """Run the unit tests on a loop that tells when it is idle; see `until_idle`."""
    return {"idle": IdleEventLoop}


@pytest.fixture
def stores(database: Database, tmp_path: Path) -> Stores:
    return Stores.over(database, Files(str(tmp_path / "files")))
