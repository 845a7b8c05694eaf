"""The dashboard's queries and the alerts of deploy/, as the tests use them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.harness import REPOSITORY

DASHBOARDS = REPOSITORY / "deploy" / "grafana" / "dashboards"
ALERTS = REPOSITORY / "deploy" / "prometheus" / "alerts.yml"
VARIABLES = {"$namespace": ".*", "$instance": ".*", "$__rate_interval": "3m", "$__range": "3m", "$__interval": "15s"}

# What an hour shows must show within seconds here. Each rule names what is shortened in its expression.
FAST: dict[str, dict[str, str]] = {
    "TypelessDown": {},
    "TypelessProcessDown": {},
    "TypelessRestarting": {"[15m]": "[30s]"},
    "TypelessNotServing": {},
    "TypelessServiceNotServing": {},
    "TypelessEventLoopSlow": {"[5m]": "[15s]"},
    "TypelessErrors": {"[5m]": "[15s]"},
    "TypelessRefusesCalls": {"[5m]": "[15s]"},
    "TypelessLiveFinalsSlow": {"[5m]": "[15s]"},
    "TypelessEngineStalled": {"> 60": "> 2"},
    "TypelessQueueWaitLong": {"[5m]": "[15s]", "> 5": "> 1"},
    "TypelessHeldAudioNearLimit": {"> 0.9": "> 0.005"},
    "TypelessDatabaseUnavailable": {},
    "TypelessKeysStale": {"> 60": "> 5"},
    "TypelessTokenKeysUnavailable": {},
    "TypelessRedisUnavailable": {},
    "TypelessStorageAlmostFull": {},
    "TypelessNoWorker": {},
    "TypelessJobsWaitLong": {"> 3600": "> 3"},
    "TypelessJobsFail": {"[30m]": "[20s]"},
}


def queries() -> Iterator[tuple[str, str]]:
    """The title of the panel and the expression of each query of the dashboards, with their variables replaced."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in _panels(json.loads(path.read_text("utf-8"))["panels"]):
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for name, value in VARIABLES.items():
                    expression = expression.replace(name, value)
                assert "$" not in expression, expression
                yield panel["title"], expression


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def rules() -> dict[str, Any]:
    """The rules as an operator has them."""
    found: dict[str, Any] = yaml.safe_load(ALERTS.read_text("utf-8"))
    return found


def fast_rules() -> dict[str, Any]:
    """The same, which fire and clear within seconds."""
    found = rules()
    for group in found["groups"]:
        for rule in group["rules"]:
            for slow, fast in FAST[rule["alert"]].items():
                assert slow in rule["expr"], f"{rule['alert']}: {slow}"
                rule["expr"] = re.sub(rf"{re.escape(slow)}(?![\d.])", fast, rule["expr"])
            rule.pop("keep_firing_for", None)
            rule.pop("for", None)
    return found


def alerts() -> list[str]:
    return [rule["alert"] for group in rules()["groups"] for rule in group["rules"]]
