"""What callers see while one process is killed or restarted, or one link is cut or silent.

All callers of `tests.cluster.load` go through the proxy. What each test measured is shown at the end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from tests.cluster.installation import Installation
from tests.cluster.load import Expected, Load, Numbers, Seen, uninterrupted

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

BEFORE_S, LASTS_S = 5.0, 10.0
N_SLOTS = 2 * 3  # of the workers; what is in them may be decoded again
LONG_S = 50  # of streams whose server never comes back


@pytest.fixture(scope="module")
def expected(installation: Installation) -> Expected:
    return uninterrupted(installation)


def kill(name: str, installation: Installation) -> None:
    """`kill -9`, and a supervisor that starts it again."""
    installation.kill(name)
    installation.restart(name)


def restart(names: list[str], installation: Installation) -> None:
    """Stop as an operator would, and start again, one after the other."""
    for name in names:
        installation.stop_one(name)
        installation.restart(name)


def unplug(name: str, installation: Installation) -> None:
    _last(installation.network.unplugged(name))


def disorder(name: str, installation: Installation) -> None:
    with installation.network.disordered(name) as link:
        time.sleep(LASTS_S)
    assert min(link.n_packets["late"], link.n_packets["twice"]) > 100, link.n_packets


def cut(one: str, other: str, installation: Installation) -> None:
    _last(installation.network.cut(one, other))


def black_hole(one: str, other: str, installation: Installation) -> None:
    _last(installation.network.black_hole(one, other))


def _last(fault: AbstractContextManager[None]) -> None:
    with fault:
        time.sleep(LASTS_S)


LINKS = [
    ("proxy", "server-1"),
    ("server-1", "engine-1"),
    ("server-1", "postgresql"),
    ("server-1", "redis"),
    ("worker-1", "engine-1"),
    ("worker-1", "postgresql"),
]
SHORT = ("kill server-1", "black hole server-1 postgresql")
FAULTS: dict[str, Callable[[Installation], None]] = {
    **{
        f"kill {one}": partial(kill, one)
        for one in ("server-1", "engine-1", "worker-1", "proxy", "postgresql", "redis")
    },
    **{f"restart {name}": partial(restart, [name]) for name in ("postgresql", "redis")},
    "restart both servers": partial(restart, ["server-1", "server-2"]),
    **{f"unplug {name}": partial(unplug, name) for name in ("server-1", "engine-1", "worker-1", "postgresql")},
    "disorder server-1": partial(disorder, "server-1"),
    **{f"cut {one} {other}": partial(cut, one, other) for one, other in LINKS},
    **{f"black hole {one} {other}": partial(black_hole, one, other) for one, other in LINKS},
}


def cases() -> Iterator[object]:
    for name in FAULTS:
        yield pytest.param(name, id=name, marks=[pytest.mark.short] if name in SHORT else [])


@pytest.mark.parametrize("name", list(cases()))
def test_nothing_is_lost_or_done_twice(
    installation: Installation, expected: Expected, numbers: Numbers, measured: list[str], name: str
):
    installation.until_well()
    with Load(installation, numbers, expected) as load:
        time.sleep(BEFORE_S)
        FAULTS[name](installation)
        seen = load.finish()
    measured.append(summary(name, seen))
    load.check(n_repeats=2 * N_SLOTS)
    if "proxy" not in name:
        assert not seen.failures_with_retries, [str(one) for one in seen.failures_with_retries]


def test_streams_leave_a_machine_that_is_lost_for_good(
    installation: Installation, numbers: Numbers, measured: list[str]
):
    """It closes no connection, and comes back only after they have ended."""
    expected = uninterrupted(installation, LONG_S)
    with Load(installation, numbers, expected, LONG_S) as load:
        time.sleep(BEFORE_S)
        with installation.network.unplugged("server-1"):
            seen = load.finish()
    measured.append(summary("lose server-1", seen))
    load.check(n_repeats=2 * N_SLOTS)
    installation.until_well()


def summary(name: str, seen: Seen) -> str:
    failures, despite_retries = (
        dict(Counter(failed.reason or f"{failed.code.name}: {failed.message[:60]}" for failed in group))
        for group in (seen.failures, seen.failures_with_retries)
    )
    return (
        f"{name}: {seen.n_answers} answers, the longest after {seen.longest_call_s:.1f} s; "
        f"no caller without one for more than {seen.longest_gap_s:.1f} s; latest final after "
        f"{max(seen.lags_s, default=0):.1f} s, last job {seen.jobs_after_s:.1f} s after the last stream; "
        f"failures {failures}, despite retries {despite_retries}"
    )
