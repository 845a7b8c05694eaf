"""Each alert of deploy/prometheus fires when its fault is made, and clears when it is mended.

The rules look back over seconds instead of minutes. promtool tests their true times, in tests/packages/. The faults of
the engine, which keep the machine busy, are in test_engine_alerts.py.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import grpc
import pytest

from tests.dashboards import alerts
from tests.identity_provider import IdentityProvider, bearer
from tests.system import faults, test_engine_alerts
from tests.system.firing import CLEARS_WITHIN_S, FIRES_WITHIN_S, check_alerts
from tests.system.stack import Stack, wait_until
from typeless_grpc.pb.v1 import server_pb2, server_pb2_grpc

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

FAULTS = (
    faults.stopped,
    faults.restarting,
    faults.bad_settings,
    faults.old_certificate,
    faults.no_database,
    faults.no_redis,
    faults.full_storage,
    faults.no_worker,
    faults.failing_jobs,
    faults.killed_decoders,
)


@pytest.mark.parametrize("fault", FAULTS)
def test_alerts_fire_with_their_fault_and_clear_after_it(stack: Stack, storage: Path, fault: faults.Fault):
    if fault is faults.full_storage and not os.path.ismount(storage):
        pytest.skip("only root can mount a small disk")
    check_alerts(stack, fault)


def test_the_keys_of_tokens(stack: Stack, provider: IdentityProvider):
    """An identity provider that is stopped makes its alert fire."""

    def call() -> None:
        with faults.channel(stack) as to, contextlib.suppress(grpc.RpcError):
            stub = server_pb2_grpc.ServerServiceStub(to)
            stub.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=(bearer(kid="unknown"),), timeout=10)

    name = "TypelessTokenKeysUnavailable"
    provider.is_unavailable = True
    with faults.repeated(call):
        wait_until(lambda: name in stack.prometheus.firing(), FIRES_WITHIN_S, f"{name} fires")
    provider.is_unavailable = False
    with faults.repeated(call):
        wait_until(lambda: name not in stack.prometheus.firing(), CLEARS_WITHIN_S, f"{name} clears")


def test_every_alert_has_its_fault():
    # A part of a server that dies while its stores answer cannot be made from outside; promtool tests the rule.
    tried = {*faults.FAULTS, "TypelessTokenKeysUnavailable", "TypelessServiceNotServing"}
    assert tried == {rule["alert"] for rule in alerts()}
    assert {*FAULTS, *test_engine_alerts.FAULTS} == set(faults.FAULTS.values())
