"""Fixtures of all suites: an environment without settings, the shared recordings, and servers with real models."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the server; read when NumPy is imported

import pytest
import pytest_asyncio
import structlog
from hypothesis import HealthCheck, settings

from tests.postgres import Postgres, start_or_skip
from typeless_grpc.client import AsyncClient
from typeless_grpc.stores.database import Database, sqlite_url

# A shell lets its background jobs ignore SIGINT, and what they start: the commands under test could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

# A cached logger would keep the settings of the test that first used it.
configure_structlog = structlog.configure
structlog.configure = lambda **options: configure_structlog(**options | {"cache_logger_on_first_use": False})


# Log lines go through Python's logging to pytest, which shows those of failed tests.
def log_to_pytest() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


log_to_pytest()

# Properties test results, not how fast they come on a shared machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `--hypothesis-profile=hardening` tries many times as many examples of the state machines (tests/states).
settings.register_profile("hardening", settings.get_profile("unhurried"), max_examples=2_000)
settings.load_profile("unhurried")

# Variables that a test run may take from outside; any other would change what is tested.
KEPT = {"TYPELESS_DATA_DIR", "TYPELESS_SHARED_AUDIO"}


# Suites that wait more than they compute, and have long files.
WAITING = ("faults", "wire")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the suites that wait, so that none of their files is left when the other processes have ended."""
    items.sort(key=lambda item: item.path.relative_to(Path(__file__).parent).parts[0] not in WAITING)


@pytest.fixture(autouse=True)
def the_log_is_pytests() -> Iterator[None]:
    """Undo what a command that ran in this process has set."""
    yield
    logging.getLogger("typeless_grpc").setLevel(logging.NOTSET)
    log_to_pytest()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("TYPELESS_") and name not in KEPT]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Open an empty database: SQLite, unless the test is parametrized with "postgresql"."""
    kind = getattr(request, "param", "sqlite")
    url = (
        request.getfixturevalue("postgres").empty_database()
        if kind == "postgresql"
        else sqlite_url(tmp_path / "jobs.db")
    )
    opened = Database(url)
    opened.create_tables()
    yield opened
    opened.close()


@dataclass(frozen=True)
class Recordings:
    """Recordings beside the repository, with a manifest."""

    folder: Path

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the manifest's rows of these kinds."""
        lines = (self.folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] in kinds]

    def bytes_of(self, file: str) -> bytes:
        return (self.folder / file).read_bytes()


@pytest.fixture(scope="session")
def recordings() -> Recordings:
    """The shared recordings: TYPELESS_SHARED_AUDIO, or ../shared/audio beside the repository; skips without them."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "audio"
    folder = Path(os.environ.get("TYPELESS_SHARED_AUDIO") or beside)
    if not (folder / "manifest.jsonl").is_file():
        pytest.skip(f"no shared recordings in {folder}; TYPELESS_SHARED_AUDIO can name another place")
    return Recordings(folder)


@asynccontextmanager
async def served(model: str, directory: Path) -> AsyncIterator[str]:
    """Serve a model, warm, with its own directory for jobs; yield its address. Skips if the model is not here."""
    from typeless_grpc.app.models import catalog
    from typeless_grpc.app.starting import build
    from typeless_grpc.config import Settings

    # It runs no jobs: only one server in a process can, and these live for the whole test run.
    own = {"database_url": f"sqlite:///{directory}/jobs.db", "storage_url": str(directory), "max_concurrent_jobs": 0}
    settings = Settings(port=0, model=model, rate_limit_enabled=False, **own)
    if catalog(settings).find(model) is None:
        pytest.skip(f"model {model} is not on this machine: typeless models pull {model}")
    async with build(settings) as app:
        await app.warm()
        yield f"127.0.0.1:{app.port}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny_en_address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a server with the real tiny.en, shared by all tests."""
    async with served("tiny.en", tmp_path_factory.mktemp("tiny.en")) as address:
        yield address


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny_en(tiny_en_address: str) -> AsyncIterator[AsyncClient]:
    """A client of a server with the real tiny.en, shared by all tests."""
    async with AsyncClient(tiny_en_address) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def base(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    """A client of a server with the real base, shared by all tests."""
    async with (
        served("base", tmp_path_factory.mktemp("base")) as address,
        AsyncClient(address) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run; skips if it is not installed."""
    server = start_or_skip()
    yield server
    server.remove()
