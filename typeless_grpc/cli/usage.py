"""`typeless keys usage`: the usage of each key, by day, by month or in total."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import typer
from google.protobuf.duration_pb2 import Duration
from rich.table import Table

from typeless_grpc.cli.keys import AsJson, KeyStore, all_keys, cell, with_admin
from typeless_grpc.cli.output import print_table
from typeless_grpc.pb.v1 import admin_pb2

Period = Literal["day", "month", "key"]

DEFAULT_DAYS = 30
MIN_WIDTH = 100  # of the table


def usage(
    store: KeyStore,
    key: Annotated[str, typer.Option("--key", help="Id of a key, as `typeless keys list` shows it.")] = "",
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DAY", help="First day, in UTC; 30 days ago by default."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DAY", help="Last day, in UTC; today by default.")
    ] = None,
    by: Annotated[
        Period, typer.Option(help="One row for each key and day, for each key and month, or for each key.")
    ] = "day",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, audio in seconds.")] = False,
) -> None:
    """Print the calls, audio and jobs of each key.

    Revoked keys are included. Usage of tokens is by their subject. Callers without a key are one row.

    Example: typeless keys usage --since 2025-01-01 --by month --local
    """
    if as_json and as_csv:
        raise typer.BadParameter("excludes --csv", param_hint="--json")
    first = since or datetime.now(UTC) - timedelta(days=DEFAULT_DAYS)
    if until is not None and until.date() < first.date():
        raise typer.BadParameter("is before --since", param_hint="--until")
    request = admin_pb2.ListUsageRequest(
        key_id=key,
        first_day=first.date().isoformat(),
        last_day=until.date().isoformat() if until is not None else "",
        page_size=1000,
    )

    async def fetch(admin: Any) -> tuple[list[admin_pb2.DailyUsage], Mapping[str, str]]:
        found: list[admin_pb2.DailyUsage] = []
        while True:
            answer = await admin.ListUsage(request)
            found.extend(answer.usage)
            if not answer.next_page_token:
                return found, {key.key_id: key.display_name for key in await all_keys(admin)}
            request.page_token = answer.next_page_token

    rows = list(_rows(*with_admin(store, fetch), by))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif as_csv:
        _print_csv(rows, by)
    else:
        _print_table(rows, by)


def _rows(found: Iterable[admin_pb2.DailyUsage], names: Mapping[str, str], by: Period) -> Iterator[dict[str, Any]]:
    """Sum days up to the period, in the order of period and caller."""
    sums: dict[tuple[str, str, str], admin_pb2.DailyUsage] = {}
    for one in found:
        period = {"day": one.day, "month": one.day[: len("2025-01")], "key": ""}[by]
        total = sums.setdefault((period, one.key_id, one.token_subject), admin_pb2.DailyUsage())
        total.calls += one.calls
        total.failed_calls += one.failed_calls
        total.jobs += one.jobs
        microseconds = total.audio_duration.ToMicroseconds() + one.audio_duration.ToMicroseconds()
        total.audio_duration.FromMicroseconds(microseconds)
    for (period, key_id, subject), total in sorted(sums.items(), key=lambda item: item[0]):
        yield {
            **({by: period} if by != "key" else {}),
            "key_id": key_id,
            "display_name": names.get(key_id, ""),
            "token_subject": subject,
            "calls": total.calls,
            "failed_calls": total.failed_calls,
            "audio_s": _seconds(total.audio_duration),
            "jobs": total.jobs,
        }


def _seconds(duration: Duration) -> float:
    return duration.ToMicroseconds() / 1e6


def _print_csv(rows: Sequence[Mapping[str, Any]], by: Period) -> None:
    period = [by] if by != "key" else []
    columns = [*period, "key_id", "display_name", "token_subject", "calls", "failed_calls", "audio_s", "jobs"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    typer.echo(text.getvalue(), nl=False)


def _print_table(rows: Sequence[Mapping[str, Any]], by: Period) -> None:
    table = Table(box=None, show_footer=bool(rows))
    total = {name: sum(row[name] for row in rows) for name in ("calls", "failed_calls", "audio_s", "jobs")}
    if by != "key":
        table.add_column(by, "total", no_wrap=True)
    table.add_column("key", "total" if by == "key" else "", no_wrap=True)
    table.add_column("name", overflow="fold")
    for title, footer in zip(("calls", "failed", "audio", "jobs"), _numbers(total), strict=True):
        table.add_column(title, footer, justify="right", no_wrap=True)
    for row in rows:
        period = [row[by]] if by != "key" else []
        table.add_row(*map(cell, (*period, row["key_id"], _name(row), *_numbers(row))))
    print_table(table, min_width=MIN_WIDTH)


def _name(row: Mapping[str, Any]) -> str:
    if row["token_subject"]:
        return f"token of {row['token_subject']}"
    return str(row["display_name"]) if row["key_id"] else "(callers without a key)"


def _numbers(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    seconds = round(row["audio_s"])
    audio = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return str(row["calls"]), str(row["failed_calls"]), audio, str(row["jobs"])
