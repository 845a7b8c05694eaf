"""The alerts of deploy/ with durations and thresholds that a test can wait for."""

from __future__ import annotations

from typing import Any

from tests.dashboards import hurried_rules

PACE = 30
# What an alert tolerates for minutes must be too much after seconds.
THRESHOLDS = {
    "TypelessEngineStalled": ("> 60", "> 2"),
    "TypelessQueueWaitLong": ("> 5", "> 1"),
    "TypelessHeldAudioNearLimit": ("> 0.9", "> 0.005"),
    "TypelessKeysStale": ("> 60", "> 5"),
    "TypelessJobsWaitLong": ("> 3600", "> 3"),
}


def impatient_rules() -> dict[str, Any]:
    """The rules, which fire at once and clear within seconds."""
    found = hurried_rules(PACE, shortest_s=1)
    for rule in found["groups"][0]["rules"]:
        rule.pop("for", None)
        patient, impatient = THRESHOLDS.get(rule["alert"], ("", ""))
        assert patient in rule["expr"], f"{rule['alert']} has no {patient}"
        rule["expr"] = rule["expr"].replace(patient, impatient) if patient else rule["expr"]
    return found
