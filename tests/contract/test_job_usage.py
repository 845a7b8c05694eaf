"""Usage of jobs, over each database: counted once, however often work is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tests.contract.conftest import FAULT, Stores, chunk, claimed, new_job
from typeless_grpc.access.usage import DailyUsage, Usage, UsageQuery
from typeless_grpc.errors import RateLimited
from typeless_grpc.jobs.store import RunLost
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.files import Files
from typeless_grpc.stores.job_usage import JobUsage

ALL = UsageQuery(n_most=100)


def used(stores: Stores) -> dict[str, Usage]:
    """From caller to the usage of all days."""
    sums: dict[str, Usage] = {}
    for row in page(stores):
        sums[row.caller] = sums.get(row.caller, Usage()) + row.usage
    return sums


def page(stores: Stores) -> Sequence[DailyUsage]:
    return JobUsage(stores.database, 400).page(ALL)


def test_a_job_counts_with_its_submission_and_its_audio_with_each_chunk(stores: Stores):
    job = stores.submit(owner="key:k1")
    assert used(stores) == {"key:k1": Usage(jobs=1)}
    run = claimed(stores, job)
    for n in range(3):
        stores.runs.keep_chunk(run, chunk(n, "hello", is_last=n == 2))
        assert used(stores) == {"key:k1": Usage(jobs=1, audio_us=(n + 1) * 1_000_000)}
    stores.runs.complete(run)
    stores.jobs.delete(job.job_id, None)
    assert used(stores) == {"key:k1": Usage(jobs=1, audio_us=3_000_000)}


def test_a_job_whose_runs_crash_and_fail_counts_its_audio_once(stores: Stores):
    job = stores.submit(owner="key:k1")
    crashed = claimed(stores, job)
    stores.runs.keep_chunk(crashed, chunk(0, "one"))
    reassigned = claimed(stores, job)
    for write in (chunk(0, "one"), chunk(1, "two")):  # the run that is taken for dead continues
        with pytest.raises(RunLost):
            stores.runs.keep_chunk(crashed, write)
    stores.runs.keep_chunk(reassigned, chunk(1, "two"))
    with pytest.raises(RunLost):
        stores.runs.keep_chunk(reassigned, chunk(1, "two"))
    stores.runs.retry(reassigned, FAULT, 0.0)
    last = claimed(stores, job)
    stores.runs.keep_chunk(last, chunk(2, "three", is_last=True))
    stores.runs.complete(last)
    assert used(stores) == {"key:k1": Usage(jobs=1, audio_us=3_000_000)}


def test_each_separate_channel_counts(stores: Stores):
    run = claimed(stores, stores.submit(owner="key:k1"))
    stores.runs.keep_chunk(run, chunk(0, "one", n_channels=2))
    stores.runs.keep_chunk(run, chunk(1, "two", is_last=True, n_channels=2))
    assert used(stores) == {"key:k1": Usage(jobs=1, audio_us=4_000_000)}


def test_a_job_that_is_submitted_again_counts_once(stores: Stores):
    new = new_job(owner="key:k1", request_id="r", fingerprint="f")
    first = stores.jobs.submit(new, b"\0\0" * 16)
    again = stores.jobs.submit(new, b"\0\0" * 16)
    assert again.job_id == first.job_id
    assert used(stores) == {"key:k1": Usage(jobs=1)}


def test_a_refused_job_does_not_count(database: Database, files: Files):
    stores = Stores.over(database, files, max_pending=1)
    stores.submit(owner="key:k1")
    with pytest.raises(RateLimited):
        stores.submit(owner="key:k1")
    assert used(stores) == {"key:k1": Usage(jobs=1)}


def test_callers_are_keys_tokens_and_all_others_together(stores: Stores):
    for owner in ("key:k1", "token:ann", "address:192.0.2.1", "address:192.0.2.2"):
        stores.submit(owner=owner)
    assert used(stores) == {"key:k1": Usage(jobs=1), "token:ann": Usage(jobs=1), "": Usage(jobs=2)}


def test_without_keys_nothing_is_counted(stores: Stores):
    run = claimed(stores, stores.submit(owner=""))
    stores.runs.keep_chunk(run, chunk(0, is_last=True))
    assert used(stores) == {}


def test_usage_is_counted_on_its_day_and_deleted_after_its_retention(stores: Stores):
    midnight = datetime(2025, 2, 1, tzinfo=UTC)
    for minutes in (-1, 0, 1):
        usage = JobUsage(stores.database, 400, lambda at=midnight + timedelta(minutes=minutes): at.timestamp())
        with stores.database.writing() as connection:
            usage.submitted(connection, "key:k1")
    days = [(row.day.isoformat(), row.usage.jobs) for row in page(stores)]
    assert days == [("2025-01-31", 1), ("2025-02-01", 2)]
    now = datetime(2025, 2, 4, tzinfo=UTC)
    JobUsage(stores.database, 3, now.timestamp).delete_old()
    assert [row.day.isoformat() for row in page(stores)] == ["2025-02-01"]


def test_maintenance_deletes_usage_that_is_older_than_the_setting(database: Database, files: Files):
    stores = Stores.over(database, files, usage_retention_days=10)
    now = datetime.now(UTC)
    for days in (0, 9, 12):
        usage = JobUsage(database, 400, (now - timedelta(days=days)).timestamp)
        with database.writing() as connection:
            usage.submitted(connection, "key:k1")
    stores.maintenance.delete_old_usage()
    assert [(now.date() - row.day).days for row in page(stores)] == [9, 0]
