"""The queries of deploy/: of the Grafana dashboard, the alerts and the autoscaler, as Prometheus gets them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.harness import REPOSITORY

DASHBOARD = REPOSITORY / "deploy/grafana/dashboards/typeless.json"
ALERTS = REPOSITORY / "deploy/prometheus/alerts.yml"
ADAPTER = REPOSITORY / "deploy/helm/typeless/files/prometheus-adapter.yaml"
# Alerts whose threshold is how long something may last.
LONG_WAITS = ("TypelessEngineStalled", "TypelessKeysStale", "TypelessJobsWaitLong")
METRIC = r"\b(?:typeless|grpc_server|process|python)_\w+|\bup\b"


@dataclass(frozen=True)
class Query:
    """where: a panel's or an alert's name."""

    where: str
    expression: str

    def __str__(self) -> str:
        return self.where


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return found


def dashboard_queries(*, window: str = "1m", instance: str = ".*", namespace: str = ".*") -> list[Query]:
    """Each query of each panel, with the variables filled in. window: `$__rate_interval`; four scrapes or more."""
    variables = {"$__rate_interval": window, "$instance": instance, "$namespace": namespace}
    found = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in variables.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']} has a variable that nothing fills in: {expression}"
            found.append(Query(f"{panel['title']} ({target['legendFormat']})", expression))
    return found


def alerts() -> list[dict[str, Any]]:
    """The rules of all alerts."""
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alert_queries() -> list[Query]:
    return [Query(rule["alert"], rule["expr"]) for rule in alerts()]


def adapter_queries(matchers: str, group_by: str = "pod") -> list[Query]:
    """The autoscaler's queries as prometheus-adapter sends them: matchers are `namespace="a",pod=~"b|c"`."""
    found = []
    for rule in yaml.safe_load(ADAPTER.read_text("utf-8"))["rules"]["custom"]:
        series = re.match(METRIC, rule["seriesQuery"])
        assert series is not None
        filled = {"<<.Series>>": series[0], "<<.LabelMatchers>>": matchers, "<<.GroupBy>>": group_by}
        expression = rule["metricsQuery"]
        for name, value in filled.items():
            expression = expression.replace(name, value)
        found.append(Query(rule["name"]["as"], expression))
    return found


def hurried_rules(pace: float, *, shortest_s: int = 2, shortest_window_s: int = 10) -> dict[str, Any]:
    """The rules with their durations divided by pace, for tests that cannot wait.

    Of the thresholds, only those of `LONG_WAITS` change; they stay above the second in which a server reads its keys.
    """

    def shorter(duration: str, least_s: int) -> str:
        units = {"s": 1, "m": 60, "h": 3600}
        total_s = sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+)([smh])", duration))
        return f"{max(least_s, round(total_s / pace))}s"

    def hurried(rule: dict[str, Any]) -> dict[str, Any]:
        durations = {name: shorter(rule[name], shortest_s) for name in ("for", "keep_firing_for") if name in rule}
        windows = re.sub(r"(?<=\[)\w+(?=\])", lambda match: shorter(match[0], shortest_window_s), rule["expr"])
        if rule["alert"] in LONG_WAITS:
            windows = re.sub(r"\d+$", lambda match: str(max(5, round(int(match[0]) / pace))), windows)
        return rule | durations | {"expr": windows}

    return {"groups": [{"name": "typeless", "rules": [hurried(rule) for rule in alerts()]}]}


def metrics(expression: str) -> set[str]:
    """The names of the metrics in an expression."""
    return set(re.findall(METRIC, re.sub(r'"[^"]*"', '""', expression)))


def selectors(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """The (operator, value) of each label that an expression selects a metric by."""
    for name, inside in re.findall(rf"({METRIC})(?:\{{([^}}]*)\}})?", expression):
        found = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', inside)
        yield name, {label: (operator, value) for label, operator, value in found}


def grouping(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    found = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",") if label.strip()}
