"""The alerts of deploy/ with durations and thresholds that a test can wait for."""

from __future__ import annotations

import re
from typing import Any

from tests.dashboards import hurried_rules

PACE = 30
# What an alert tolerates for minutes must be too much after seconds.
THRESHOLDS = {
    "TypelessEngineStalled": 2,
    "TypelessLiveFinalsSlow": 1,
    "TypelessQueueWaitLong": 1,
    "TypelessHeldAudioNearLimit": 0.005,
    "TypelessKeysStale": 5,
    "TypelessJobsWaitLong": 3,
}


# How far back two rules look: three restarts take more than a minute on a slow and busy machine, failing jobs do not.
WINDOWS_S = {"TypelessRestarting": 120, "TypelessJobsFail": 30}


def impatient_rules() -> dict[str, Any]:
    """The rules, which fire at once and clear within seconds."""
    found = hurried_rules(PACE, shortest_s=1)
    for rule in found["groups"][0]["rules"]:
        rule.pop("for", None)
        if (threshold := THRESHOLDS.get(rule["alert"])) is not None:
            rule["expr"], n_replaced = re.subn(r"> [1-9][\d.]*|> 0\.\d+", f"> {threshold}", rule["expr"])
            assert n_replaced == 1, f"{rule['alert']} has another form: {rule['expr']}"
        if (window_s := WINDOWS_S.get(rule["alert"])) is not None:
            rule["expr"] = re.sub(r"\[\d+s\]", f"[{window_s}s]", rule["expr"])
    return found
