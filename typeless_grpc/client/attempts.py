"""Repeats a call as a `RetryState` decides: one loop for threads, one for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from typeless_grpc.client.errors import CallFailed
from typeless_grpc.client.retry import RetryPolicy, RetryState

T = TypeVar("T")


def repeat(call: Callable[[], T], policy: RetryPolicy) -> T:
    """Make a call until it succeeds. Raises CallFailed as soon as the policy allows no other attempt."""
    state = RetryState(policy)
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            time.sleep(wait_s(state, error))


async def repeat_async(call: Callable[[], Awaitable[T]], policy: RetryPolicy) -> T:
    """The same for asyncio."""
    state = RetryState(policy)
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            await asyncio.sleep(wait_s(state, error))


def wait_s(state: RetryState, error: grpc.RpcError, policy: RetryPolicy | None = None) -> float:
    """Return the seconds until the next attempt after an error of gRPC. Raises CallFailed if there is none."""
    failed = CallFailed.of(error)
    try:
        return state.wait_s(failed, policy)
    except CallFailed:
        raise failed from error
