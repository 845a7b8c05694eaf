"""Stores over each database that is supported, every test with an empty one; and the servers that stores need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from typeless_grpc.audio.formats import AudioFormat, Encoding
from typeless_grpc.engine.interface import DecodeOptions
from typeless_grpc.jobs.job import Chunk, Failure, Job, NewJob
from typeless_grpc.jobs.store import Run
from typeless_grpc.sources.checked import CheckedSources, SourceOptions
from typeless_grpc.speech.transcript import Segment, Transcript
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.fake_queue import FakeQueue
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.job_table import JobStoreOptions, JobTable
from typeless_grpc.stores.jobs import SqlJobStore
from typeless_grpc.stores.maintenance import JobMaintenance
from typeless_grpc.stores.runs import SqlRunStore
from typeless_grpc.stores.uploads import SqlUploadStore, UploadOptions

PCM = AudioFormat(Encoding.PCM_S16LE, 16_000, 1)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.RedisServer]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis: servers.RedisServer) -> str:
    return redis.url


@pytest.fixture(scope="session")
def redis_sentinel_url(redis: servers.RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.redis_sentinel(tmp_path_factory.mktemp("sentinel"), redis) as url:
        yield url


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.redis_cluster(tmp_path_factory.mktemp("cluster")) as url:
        yield url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of a database over each that is supported."""
    if "database" in metafunc.fixturenames:
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(str(tmp_path / "storage"))


@dataclass(frozen=True)
class Stores:
    database: Database
    files: Files
    queue: FakeQueue
    uploads: SqlUploadStore
    jobs: SqlJobStore
    runs: SqlRunStore
    maintenance: JobMaintenance

    @classmethod
    def over(cls, database: Database, files: Files, *, uploads: dict[str, Any] | None = None, **options: Any) -> Stores:
        queue = FakeQueue()
        kept = SqlUploadStore(database, files, UploadOptions(**uploads or {}))
        table = JobTable(database, files, queue, JobStoreOptions(**options))
        runs = SqlRunStore(table, CheckedSources(kept, SourceOptions()))
        return cls(database, files, queue, kept, SqlJobStore(table), runs, JobMaintenance(table))

    def submit(self, **values: Any) -> Job:
        """File a job with a bit of audio."""
        content = values.pop("content", b"\0\0" * 1600)
        return self.jobs.submit(new_job(**values), content)


@pytest.fixture
def stores(database: Database, files: Files) -> Stores:
    return Stores.over(database, files)


def new_job(**values: Any) -> NewJob:
    defaults: dict[str, Any] = {
        "owner": "ann",
        "caller": "ann",
        "uri": "",
        "format": PCM,
        "options": DecodeOptions(),
        "uploads_of": "ann",
    }
    return NewJob(**defaults | values)


def chunk(index: int, *texts: str, is_last: bool = False, **values: Any) -> Chunk:
    """Return the index-th second of a recording, with its text."""
    segments = tuple(Segment(index, index + 1.0, text, "en", 0.9, 0.1) for text in texts)
    transcript = Transcript(segments, (), "en", 0.9, 1.0, 1.0, "tiny")
    return Chunk(index, (index + 1) * 16_000, is_last, transcript, **values)


FAULT = Failure("EngineFailed", "ENGINE_FAILED", "The engine failed.", 1.0)


def claimed(stores: Stores, job: Job, worker: str = "w1") -> Run:
    run = stores.runs.claim(job.job_id, worker)
    assert run is not None
    return run


def done(stores: Stores, job: Job) -> Job:
    run = claimed(stores, job)
    stores.runs.keep_chunk(run, chunk(0, "hello", is_last=True, progress=1.0))
    stores.runs.complete(run)
    return stores.jobs.get(job.job_id, None)
