"""The alerts of an engine that is slow, stuck or overloaded, and of a model that fails: see test_alerts.py."""

from __future__ import annotations

import pytest

from tests.system import faults
from tests.system.firing import check_alerts
from tests.system.stack import Stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

FAULTS = (faults.busy, faults.freezing, faults.broken_model, faults.crowded)


@pytest.mark.parametrize("fault", FAULTS)
def test_alerts_fire_with_their_fault_and_clear_after_it(stack: Stack, fault: faults.Fault):
    check_alerts(stack, fault)
