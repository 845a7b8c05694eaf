"""`typeless keys usage`: its table, CSV and JSON, without a server and at one."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.harness import request
from tests.service.access import ADMIN, USER, guarded
from typeless_grpc.access.keys import ApiKey, digest_of
from typeless_grpc.access.principal import Role
from typeless_grpc.access.usage import DailyUsage, Usage, UsageBatch
from typeless_grpc.cli.commands import app
from typeless_grpc.stores.database import Database, sqlite_url
from typeless_grpc.stores.job_usage import JobUsage
from typeless_grpc.stores.sql_access import SqlAccessStore
from typeless_grpc.stores.sql_access import sqlite_url as access_url

JANUARY, FEBRUARY = date(2025, 1, 31), date(2025, 2, 1)
KEY = ApiKey("k0123", 'night, "shift"', "tl_", Role.USER, digest_of("secret"), 0.0)
PAST = [
    DailyUsage(JANUARY, "key:k0123", Usage(10, 1, 3_600_500_000)),
    DailyUsage(FEBRUARY, "", Usage(7, 7)),
    DailyUsage(FEBRUARY, "key:k0123", Usage(1, 0, 500_000)),
    DailyUsage(FEBRUARY, "key:kgone", Usage(1)),
    DailyUsage(FEBRUARY, "token:ann@example.org", Usage(4, 0, 60_000_000)),
]
SINCE = ("--local", "--since", "2025-01-01")


def usage(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["keys", "usage", *arguments], env=environment)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with the usage of calls and of jobs."""
    monkeypatch.setenv("TYPELESS_DATA_DIR", str(tmp_path))

    async def fill() -> None:
        store = SqlAccessStore(access_url(tmp_path / "access.sqlite3"), time.time)
        await store.open()
        await store.add_key(KEY, max_keys=10)
        await store.add_usage(UsageBatch("past", 1, PAST))
        await store.close()

    asyncio.run(fill())
    jobs = Database(sqlite_url(tmp_path / "jobs" / "jobs.db"))
    jobs.create_tables()
    noon = datetime(2025, 1, 31, 12, tzinfo=UTC)
    with jobs.writing() as connection:
        for _ in range(2):
            JobUsage(jobs, 400, noon.timestamp).submitted(connection, "key:k0123")
    jobs.close()
    return tmp_path


def text_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_a_table_has_names_and_totals(data_dir: Path):
    assert text_of(usage(*SINCE)) == [
        " day         key    name                      calls  failed    audio  jobs",
        ' 2025-01-31  k0123  night, "shift"               10       1  1:00:00     2',
        " 2025-02-01  -      (callers without a key)       7       7  0:00:00     0",
        " 2025-02-01  -      token of ann@example.org      4       0  0:01:00     0",
        ' 2025-02-01  k0123  night, "shift"                1       0  0:00:00     0',
        " 2025-02-01  kgone  -                             1       0  0:00:00     0",
        " total                                           23       8  1:01:01     2",
    ]


def test_csv_has_seconds(data_dir: Path):
    assert text_of(usage(*SINCE, "--csv")) == [
        "day,key_id,display_name,token_subject,calls,failed_calls,audio_s,jobs",
        '2025-01-31,k0123,"night, ""shift""",,10,1,3600.5,2',
        "2025-02-01,,,,7,7,0.0,0",
        "2025-02-01,,,ann@example.org,4,0,60.0,0",
        '2025-02-01,k0123,"night, ""shift""",,1,0,0.5,0',
        "2025-02-01,kgone,,,1,0,0.0,0",
    ]


def test_csv_by_key_has_no_day(data_dir: Path):
    assert text_of(usage(*SINCE, "--csv", "--by", "key", "--key", "k0123")) == [
        "key_id,display_name,token_subject,calls,failed_calls,audio_s,jobs",
        'k0123,"night, ""shift""",,11,1,3601.0,2',
    ]


def test_json_by_month(data_dir: Path):
    found = json.loads("\n".join(text_of(usage(*SINCE, "--json", "--by", "month", "--key", "k0123"))))
    row = {"key_id": "k0123", "display_name": 'night, "shift"', "token_subject": ""}
    assert found == [
        {"month": "2025-01", **row, "calls": 10, "failed_calls": 1, "audio_s": 3600.5, "jobs": 2},
        {"month": "2025-02", **row, "calls": 1, "failed_calls": 0, "audio_s": 0.5, "jobs": 0},
    ]


def test_days_are_inclusive_and_the_default_is_the_last_month(data_dir: Path):
    assert len(json.loads(usage("--local", "--json", "--since", "2025-01-31", "--until", "2025-01-31").stdout)) == 1
    assert json.loads(usage("--local", "--json").stdout) == []
    assert text_of(usage("--local", "--csv")) == [
        "day,key_id,display_name,token_subject,calls,failed_calls,audio_s,jobs"
    ]
    assert text_of(usage("--local")) == [" day  key  name  calls  failed  audio  jobs"]


def test_without_jobs_no_database_of_jobs_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_DATA_DIR", str(tmp_path))
    assert json.loads(usage("--local", "--json").stdout) == []
    assert not (tmp_path / "jobs").exists()


def test_more_rows_than_a_page_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYPELESS_DATA_DIR", str(tmp_path))

    async def fill() -> None:
        store = SqlAccessStore(access_url(tmp_path / "access.sqlite3"), time.time)
        await store.open()
        rows = [DailyUsage(JANUARY + timedelta(days=n // 50), f"key:k{n % 50:02}", Usage(n)) for n in range(2500)]
        await store.add_usage(UsageBatch("past", 1, rows))
        await store.close()

    asyncio.run(fill())
    rows = list(csv.DictReader(io.StringIO(usage(*SINCE, "--csv").stdout)))
    assert [int(row["calls"]) for row in rows] == list(range(2500))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--since", "soon"), "soon"),
        (("--since", "2025-02-01", "--until", "2025-01-31"), "is before --since"),
        (("--json", "--csv"), "excludes --csv"),
        (("--by", "week"), "week"),
        (("--server", "host:1"), "uses the store of this machine"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_impossible_request_is_a_line(data_dir: Path, arguments: tuple[str, ...], text: str):
    done = usage("--local", *arguments)
    assert done.exit_code == 2
    assert text in done.stderr


async def test_a_server_lists_usage_to_admins(data_dir: Path):
    async with guarded(data_dir=str(data_dir)) as served:
        for _ in range(2):
            await served.transcription.Transcribe(request(1.5), metadata=(("x-api-key", USER),))
        at = ("--server", served.target, "--json")
        listed = await asyncio.to_thread(usage, *at, TYPELESS_API_KEY=ADMIN)
        refused = await asyncio.to_thread(usage, *at, TYPELESS_API_KEY=USER)
    assert refused.exit_code == 1
    assert "ADMIN_KEY_REQUIRED" in refused.stderr
    row = next(row for row in json.loads(listed.stdout) if row["display_name"] == "TYPELESS_API_KEYS")
    assert (row["calls"], row["failed_calls"], row["audio_s"], row["jobs"]) == (2, 0, 3.0, 0)
