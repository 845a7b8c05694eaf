"""Writes the tables of docs/reliability.md that `make hardening` fills, between two markers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.harness import REPOSITORY

PAGE = REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- hardening:begin -->", "<!-- hardening:end -->"
BUSY = 0.5  # of the cores, by other programs


@dataclass(frozen=True)
class Row:
    """One figure, and what it must be. is_good: None for a figure without a bound."""

    what: str
    measured: str
    bound: str = ""
    is_good: bool | None = None


@dataclass(frozen=True)
class Table:
    """The figures of one part."""

    title: str
    rows: Sequence[Row]

    @property
    def problems(self) -> list[str]:
        """The figures that are out of their bounds."""
        bad = [row for row in self.rows if row.is_good is False]
        return [f"{self.title}: {row.what}: {row.measured}; bound: {row.bound}" for row in bad]

    def text(self) -> str:
        """The table in Markdown."""
        lines = ["| What | Measured | Bound |", "| --- | --- | --- |"]
        return "\n".join([*lines, *(f"| {row.what} | {row.measured} | {row.bound} |" for row in self.rows)])


def machine() -> str:
    """The machine, and whether it had anything else to do."""
    n_cores = psutil.cpu_count() or 1
    also = "" if psutil.getloadavg()[0] < BUSY * n_cores else ", while other programs used them"
    return f"{n_cores} cores{also}; {platform.system()}, Python {platform.python_version()}"


def write(tables: Sequence[Table], described: str, page: Path = PAGE) -> None:
    """Replace what is between the markers. A table that was not made this time stays as it is."""
    head, rest = page.read_text("utf-8").split(BEGIN, 1)
    old, tail = rest.split(END, 1)
    sections = {part.partition("\n")[0]: part.strip() for part in old.strip().removeprefix("### ").split("\n### ")}
    sections.pop("", None)
    sections |= {one.title: f"{one.title}\n\nMeasured on {described}.\n\n{one.text()}" for one in tables}
    body = "\n\n".join(f"### {section}" for section in sections.values())
    page.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}", "utf-8")
