"""No call waits long for a database or a Redis that swallows packets: no reset, no answer."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.faults.conftest import Cluster, check_once, check_whole, ended, submit, wait_until
from tests.faults.node import SHORT
from tests.postgres import USER, Postgres
from tests.servers import redis_server
from tests.silence import SilentProxy
from typeless_grpc.access.keys import new_key
from typeless_grpc.access.principal import Role
from typeless_grpc.access.quota import Quota
from typeless_grpc.client import CallFailed, Jobs, RetryPolicy
from typeless_grpc.errors import SourceUnavailable
from typeless_grpc.stores.buckets import RedisBuckets
from typeless_grpc.stores.database import Database
from typeless_grpc.stores.postgresql import TIMEOUTS as DEFAULTS
from typeless_grpc.stores.sql_access import SqlAccessStore

pytestmark = pytest.mark.timeout(400)

MARGIN_S = 5.0  # for a busy machine
# A call waits for a connection of the pool, finds it dead, and tries a new one.
LONGEST_S = SHORT.pool_s + SHORT.answer_s + SHORT.connect_s + MARGIN_S


def test_by_default_a_call_waits_twenty_seconds_and_the_server_gives_up_first():
    assert DEFAULTS.pool_s + DEFAULTS.answer_s + DEFAULTS.connect_s == 20
    for timeouts in (DEFAULTS, SHORT):
        assert timeouts.lock_s < timeouts.statement_s < timeouts.answer_s


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[SilentProxy]:
    postgres.empty_database()
    between = SilentProxy(postgres.port)
    yield between
    between.close()


@pytest.fixture
def url(proxy: SilentProxy) -> str:
    return f"postgresql://{USER}@127.0.0.1:{proxy.port}/postgres"


def took_s(call: Callable[[], Any]) -> float:
    """Return how long a call took, which ends with SourceUnavailable."""
    began_s = time.monotonic()
    with pytest.raises(SourceUnavailable):
        call()
    return time.monotonic() - began_s


def ask(database: Database) -> None:
    with database.reading() as connection:
        connection.exec_driver_sql("SELECT 1")


def test_a_database_that_swallows_packets_is_given_up_and_found_again(url: str, proxy: SilentProxy):
    database = Database(url, SHORT)
    ask(database)
    proxy.fall_silent()
    assert took_s(lambda: ask(database)) < LONGEST_S
    assert took_s(lambda: ask(database)) < SHORT.connect_s - 0.1, "later callers do not wait for the same"
    proxy.speak()
    wait_until(lambda: _answers(database), timeout_s=LONGEST_S)
    database.close()


def _answers(database: Database) -> bool:
    try:
        ask(database)
    except SourceUnavailable:
        return False
    return True


def test_an_answer_that_is_swallowed_within_a_transaction_is_given_up(url: str, proxy: SilentProxy):
    database = Database(url, SHORT)

    def write() -> None:
        with database.writing() as connection:
            connection.exec_driver_sql("SELECT 1")
            proxy.fall_silent()
            connection.exec_driver_sql("SELECT 2")

    assert took_s(write) < SHORT.answer_s + MARGIN_S
    database.close()


@pytest.mark.parametrize(
    ("statement", "longest_s"),
    [
        ("UPDATE typeless.jobs SET version = version + 1", SHORT.lock_s),
        ("SELECT pg_sleep(60)", SHORT.statement_s),
    ],
    ids=["a lock that is never released", "a statement without end"],
)
def test_a_database_that_is_busy_is_given_up(postgres: Postgres, statement: str, longest_s: float):
    holder = Database(postgres.empty_database())
    holder.create_tables()
    database = Database(postgres.url, SHORT)

    def write() -> None:
        with database.writing() as connection:
            connection.exec_driver_sql(statement)

    with holder.engine.connect() as connection:
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql("LOCK TABLE typeless.jobs")
        assert took_s(write) < longest_s + MARGIN_S
    for one in (database, holder):
        one.close()


def test_more_callers_than_connections_all_fail_in_time(url: str, proxy: SilentProxy):
    database = Database(url, SHORT)
    n_callers = 60
    with ThreadPoolExecutor(n_callers) as pool:
        list(pool.map(lambda _: ask(database), range(n_callers)))
        proxy.fall_silent()
        waits_s = list(pool.map(lambda _: took_s(lambda: ask(database)), range(n_callers)))
    assert max(waits_s) < LONGEST_S
    database.close()


async def test_a_key_that_was_revoked_during_the_silence_is_known_after_it(
    url: str, proxy: SilentProxy, postgres: Postgres
):
    store, elsewhere = (SqlAccessStore(one, time.time, SHORT) for one in (url, postgres.url))
    await store.open()
    await elsewhere.open()
    key = await store.add_key(new_key("n", Role.USER, time.time(), None)[0], max_keys=10_000)
    seen = (await store.changes(0)).revision
    proxy.fall_silent()
    await elsewhere.revoke_key(key.key_id)
    began_s = time.monotonic()
    with pytest.raises(SourceUnavailable) as caught:
        await store.changes(seen)
    assert time.monotonic() - began_s < LONGEST_S
    assert caught.value.reason == "KEY_STORE_UNAVAILABLE"
    proxy.speak()
    time.sleep(1.1)  # noqa: ASYNC251 - within it nobody tries to connect
    assert [one.is_revoked for one in (await store.changes(seen)).keys] == [True]
    for one in (store, elsewhere):
        await one.close()


async def test_a_redis_that_swallows_packets_is_given_up_in_the_time_of_the_settings(tmp_path: Path):
    quota = Quota(10, 600, 10)
    with redis_server(tmp_path) as server:
        proxy = SilentProxy(server.port)
        buckets = RedisBuckets(f"redis://127.0.0.1:{proxy.port}/0", timeout_s=1.0)
        assert (await buckets.take("a", quota, 1)).is_allowed
        proxy.fall_silent()
        for _ in range(3):  # on the connection that was there, and on new ones
            began_s = time.monotonic()
            with pytest.raises(SourceUnavailable):
                await buckets.take("a", quota, 1)
            assert time.monotonic() - began_s < 1.0 + MARGIN_S
        proxy.speak()
        assert (await buckets.take("a", quota, 1)).remaining <= 8
        began_s = time.monotonic()
        proxy.fall_silent()
        await buckets.close()
        assert time.monotonic() - began_s < 1.0 + MARGIN_S
        proxy.close()


def test_jobs_continue_after_a_silence_and_no_call_waits_for_its_end(url: str, proxy: SilentProxy, tmp_path: Path):
    cluster = Cluster(tmp_path, url, SHORT)
    try:
        node = cluster.start(max_concurrent_jobs=3)
        ids = submit(node, range(1, 13))
        wait_until(lambda: cluster.n_done() > 6)
        proxy.fall_silent()
        with ThreadPoolExecutor(40) as pool:
            waits_s = list(pool.map(lambda _: _refused_s(node.port), range(40)))
        assert max(waits_s) < LONGEST_S
        proxy.speak()
        for number, job in ended(node, ids).items():
            check_whole(job, number)
        check_once(cluster, ids, n_crashes=1)
    finally:
        cluster.stop()


def test_a_server_can_be_stopped_during_the_silence(url: str, proxy: SilentProxy, tmp_path: Path):
    cluster = Cluster(tmp_path, url, SHORT)
    try:
        node = cluster.start(max_concurrent_jobs=3)
        submit(node, range(1, 13))
        wait_until(lambda: cluster.n_done() > 6)
        proxy.fall_silent()
        node.signal(signal.SIGTERM)
        assert node.wait(90) == 0  # a pause of DBOS between two attempts is waited for
    finally:
        cluster.stop()


def _refused_s(port: int) -> float:
    began_s = time.monotonic()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(CallFailed) as caught:
        Jobs(channel, RetryPolicy(max_attempts=1)).get("nobody")
    assert caught.value.reason == "STORE_UNAVAILABLE"
    return time.monotonic() - began_s
