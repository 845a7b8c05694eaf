"""What callers see while one process is killed, one link is cut or silent, or one store restarts.

All callers of `tests.cluster.load` go through the proxy. What each test measured is shown at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.cluster.installation import Installation
from tests.cluster.load import Load, Numbers, Seen, uninterrupted

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

BEFORE_S, LASTS_S = 5.0, 10.0
N_SLOTS = 2 * 3  # of the workers; what is in them may be decoded again
Fault = Callable[[Installation], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def expected(installation: Installation) -> dict[int, dict[str, list[Any]]]:
    return uninterrupted(installation)


@pytest.fixture(scope="session")
def numbers() -> Numbers:
    return Numbers()


@contextlib.contextmanager
def killed(installation: Installation, name: str) -> Iterator[None]:
    """`kill -9`, and a supervisor that starts it again."""
    installation.kill(name)
    installation.restart(name)
    yield


def kill(name: str) -> Fault:
    return lambda installation: killed(installation, name)


def cut(one: str, other: str) -> Fault:
    return lambda installation: installation.network.cut(one, other)


def black_hole(one: str, other: str) -> Fault:
    return lambda installation: installation.network.black_hole(one, other)


LINKS = [
    ("proxy", "server-1"),
    ("server-1", "engine-1"),
    ("server-1", "postgresql"),
    ("server-1", "redis"),
    ("worker-1", "engine-1"),
    ("worker-1", "postgresql"),
]
SHORT = ("kill server-1", "black hole server-1 postgresql")
FAULTS: dict[str, Fault] = {
    **{f"kill {name}": kill(name) for name in ("server-1", "engine-1", "worker-1", "proxy", "postgresql", "redis")},
    **{f"cut {one} {other}": cut(one, other) for one, other in LINKS},
    **{f"black hole {one} {other}": black_hole(one, other) for one, other in LINKS},
}


def cases() -> Iterator[object]:
    for name in FAULTS:
        yield pytest.param(name, id=name, marks=[pytest.mark.short] if name in SHORT else [])


@pytest.mark.parametrize("name", list(cases()))
def test_nothing_is_lost_or_done_twice(
    installation: Installation,
    expected: dict[int, dict[str, list[Any]]],
    numbers: Numbers,
    measured: list[str],
    name: str,
):
    load = Load(installation, numbers, expected)
    time.sleep(BEFORE_S)
    began_s = time.monotonic()
    with FAULTS[name](installation):
        time.sleep(max(0.0, LASTS_S - (time.monotonic() - began_s)) if "kill" not in name else 0.0)
    seen = load.finish()
    measured.append(summary(name, seen))
    load.check(n_repeats=2 * N_SLOTS)
    installation.until_well()


def summary(name: str, seen: Seen) -> str:
    failures = Counter(failed.reason or f"{failed.code.name}: {failed.message[:60]}" for failed in seen.failures)
    return (
        f"{name}: {seen.n_answers} answers, the longest after {seen.longest_call_s:.1f} s; "
        f"no caller without one for more than {seen.longest_gap_s:.1f} s; latest final after "
        f"{max(seen.lags_s, default=0):.1f} s; failures {dict(failures)}"
    )
