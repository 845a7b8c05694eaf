"""The parts of `make hardening` with a server of their own: each returns its table."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hardening import fairness, leaks, load, soak
from tests.hardening.load import quantile
from tests.hardening.report import Row, Table
from tests.hardening.server import MODEL, Server, running
from typeless_grpc.config import Settings

N_LEAK_CALLS = 20_000
LOAD_S, REAL_LOAD_S, FAIRNESS_S, SOAK_MINUTES = 600.0, 120.0, 240.0, 8.0
QUIET_S = 15.0
LEAK_SLOWDOWN = 0.02  # of the model that waits: leaks need many calls, and no work
COUNTED = (
    *("memory, MB", "Python objects", "asyncio tasks", "threads"),
    *("descriptors", "child processes", "temporary files", "file locks"),
)


@contextmanager
def server(**settings: Any) -> Iterator[Server]:
    """A server in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory, running(Path(directory), **settings) as started:
        yield started


def leak(scale: float) -> Table:
    """Make calls of every kind, and break half of them."""
    with server(slowdown=LEAK_SLOWDOWN, **leaks.SETTINGS) as started:
        done = asyncio.run(leaks.run(started, max(200, round(scale * N_LEAK_CALLS))))
    for failure in done.failures[:20]:
        print(failure)
    return Table("Leaks", list(_leak_rows(done)))


def _leak_rows(done: leaks.Broken) -> Iterator[Row]:
    n_kinds = len({kind for kind, _ in done.calls})
    yield Row("Calls; kinds", f"{done.n_calls:,}; {n_kinds}")
    yield Row("Of them cancelled, or reset with their connection, at a random moment", f"{done.n_broken:,}")
    yield Row("Failures of the others", str(len(done.failures)), "0", not done.failures)
    assert done.before is not None
    assert done.after is not None
    left = done.left_behind()
    for name in COUNTED:
        before, after = done.before.numbers[name], done.after.numbers[name]
        what = f"{name[0].upper()}{name[1:]}, before and afterwards"
        bound = f"at most {done.allowed(name):g} more"
        yield Row(what, f"{before:,.0f}; {after:,.0f}", bound, name not in left)
    rest = sorted(set(left) - set(COUNTED))
    what = "Open streams, sessions, held audio, queued work, rows and files of jobs and uploads that are left"
    yield Row(what, ", ".join(rest) or "none", "none", not rest)


def flood(scale: float) -> Table:
    """Offer ten times the load, to a model that waits as long as base computes."""
    with server() as started:
        done = asyncio.run(load.run(started, max(10.0, scale * LOAD_S), quiet_s=QUIET_S))
    return Table("Ten times the load", list(_load_rows(done, has_cores=True)))


def flood_of_a_model(scale: float) -> Table:
    """Offer the same to tiny.en, which takes the cores that the server and its callers need, too."""
    with server(slowdown=None, model_dirs={MODEL: Settings().data_dir / "models" / MODEL}) as started:
        seconds = max(10.0, scale * REAL_LOAD_S)
        done = asyncio.run(load.run(started, seconds, quiet_s=QUIET_S, speech=load.spoken_english()))
    return Table("Ten times the load, with a model on the same cores", list(_load_rows(done, has_cores=False)))


def _if(has_cores: bool, row: Row) -> Row:
    """The row, without its bound if a model takes the cores: then it says how fast the machine is."""
    return row if has_cores else Row(row.what, row.measured)


def _load_rows(done: load.Outcome, *, has_cores: bool) -> Iterator[Row]:
    """has_cores: the model leaves the cores to the server and the callers, so that times are those of the server."""
    answers = done.answers
    yield Row("Seconds", f"{done.seconds:g}")
    yield Row("Calls in a second: offered; served at most", f"{done.offered_a_second:.0f}; {done.calls_a_second:.1f}")
    ratio = done.goodput / done.peak
    yield Row("Goodput, of the peak", f"{100 * ratio:.0f} %", "at least 90 %", ratio >= 0.9)
    n_lost = sum(answers.lost.values())
    reasons = "".join(f", {reason}" for reason in answers.lost)
    yield Row(
        "Calls answered; refused; lost",
        f"{answers.n_answered:,}; {answers.n_refused:,}; {n_lost}{reasons}",
        "0 lost",
        not n_lost,
    )
    median_s, late_s = quantile(answers.refused_s, 0.5), quantile(answers.refused_s, 0.99)
    what, times = "Time of a refusal: median; 99th percentile", f"{1000 * median_s:.0f} ms; {1000 * late_s:.0f} ms"
    yield _if(has_cores, Row(what, times, "under 50 ms", late_s < 0.05))
    what = "Retries at the time that a refusal named; accepted at once"
    times = f"{done.n_retries}; {100 * done.true_hints:.0f} %"
    yield _if(has_cores, Row(what, times, "at least 75 %", done.true_hints >= 0.75))
    n_jobs_lost = done.n_jobs_lost
    yield Row("Jobs accepted; lost", f"{done.n_jobs}; {n_jobs_lost}", "0 lost", not n_jobs_lost)
    is_whole = not (done.n_finals_missing or done.stream_failures)
    yield Row("Finals of live streams missing", str(done.n_finals_missing), "0", is_whole)
    what = "From the last word to its final: without the flood; with it"
    times = f"{quantile(done.quiet_lags_s, 0.5):.2f} s; {quantile(done.lags_s, 0.5):.2f} s"
    yield _if(has_cores, Row(what, times, "at most twice", done.lag_ratio <= 2.0))
    what = "From the end of the flood until calls are as fast as before"
    yield _if(has_cores, Row(what, f"{done.recovery_s:.1f} s", "under 5 s", done.recovery_s < 5.0))


def share(scale: float) -> Table:
    """Let a hundred callers of different greed call a full server."""
    with server() as started:
        shares = asyncio.run(fairness.run(started, max(20.0, scale * FAIRNESS_S)))
    what = "Jain's index of callers who wait as refusals say, and have 1 to 8 calls at once"
    rows = [
        Row(what, f"{shares.index:.3f}", "over 0.95", shares.index > 0.95),
        Row("The share of callers who do not wait, of that of the others", f"{shares.gain:.1f}"),
        Row("Calls lost", str(shares.n_lost), "0", not shares.n_lost),
    ]
    return Table("Fairness", rows)


def soaked(scale: float, minutes: float | None = None) -> Table:
    """Offer seventy per cent of the load, for long."""
    minutes = minutes or max(0.5, scale * SOAK_MINUTES)
    with server(**soak.SETTINGS) as started:
        done = asyncio.run(soak.run(started, minutes))
    for failure in done.failures[:20]:
        print(failure)
    return Table("Soak", list(_soak_rows(done)))


def _soak_rows(done: soak.Soaked) -> Iterator[Row]:
    answers, growing = done.answers, done.growing()
    n_lost = sum(answers.lost.values()) + len(done.failures)
    yield Row("Minutes", f"{done.minutes:g}")
    kinds = f"{1 / soak.KIND_EVERY_S:g} of all other kinds"
    yield Row("Calls in a second", f"{done.calls_a_second:.1f}, and at most {kinds}")
    n_answered = answers.n_answered + done.n_kinds - len(done.failures)
    yield Row("Calls answered; refused; lost", f"{n_answered:,}; {answers.n_refused}; {n_lost}", "0 lost", not n_lost)
    n = done.n_unaccounted
    yield Row("Calls that the server began and has not ended", f"{n:.0f}", "0", not n)
    for name, what in {
        "memory_mb": "Memory, MB",
        "threads": "Threads",
        "tasks": "asyncio tasks",
        "descriptors": "Descriptors",
        "latency_s": "Median time of a call, ms",
    }.items():
        before, after = (value * (1000 if name == "latency_s" else 1) for value in done.quarters(name))
        what = f"{what}, in the second and in the last quarter"
        yield Row(what, f"{before:,.0f}; {after:,.0f}", "flat", name not in growing)
