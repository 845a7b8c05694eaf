"""Wires the interceptors of calls."""

from __future__ import annotations

from typeless_grpc.app.access import Access
from typeless_grpc.app.reloading import Reloads
from typeless_grpc.app.tracing import Tracers
from typeless_grpc.config import Settings
from typeless_grpc.engine.admission import Admission
from typeless_grpc.interceptors.accounting import AccountingInterceptor
from typeless_grpc.interceptors.arrival import ArrivalInterceptor, ArrivalOptions
from typeless_grpc.interceptors.deadline import DeadlineInterceptor
from typeless_grpc.interceptors.drain import DrainInterceptor
from typeless_grpc.interceptors.message_size import MessageSizeInterceptor
from typeless_grpc.interceptors.metadata import MetadataInterceptor
from typeless_grpc.interceptors.open_calls import OpenCallsInterceptor
from typeless_grpc.interceptors.request_id import RequestIdInterceptor
from typeless_grpc.interceptors.seam import Chain
from typeless_grpc.interceptors.slots import SlotInterceptor
from typeless_grpc.interceptors.status import StatusInterceptor
from typeless_grpc.server import ServerOptions
from typeless_grpc.telemetry.call_log import CallLog
from typeless_grpc.telemetry.metrics import Metrics


def chain(
    settings: Settings,
    access: Access,
    admission: Admission,
    drain: DrainInterceptor,
    metrics: Metrics,
    tracers: Tracers,
    options: ServerOptions,
    reloads: Reloads,
) -> Chain:
    """Return all interceptors in their order, which docs/architecture.md explains. options: of the server."""
    accounting = AccountingInterceptor(
        [metrics.calls, CallLog(), *access.observers, *tracers.calls], keeps_text=settings.log_text
    )
    metadata = MetadataInterceptor(settings.max_metadata_entries)
    open_calls = OpenCallsInterceptor(settings.max_open_calls)
    arrival = ArrivalInterceptor(arrival_options(settings, options))
    reloads.follow(lambda settings: settings.max_metadata_entries, metadata.use)
    reloads.follow(lambda settings: settings.max_open_calls, open_calls.use)
    reloads.follow(lambda settings: settings.log_text, lambda log_text: accounting.use(keeps_text=log_text))
    reloads.follow(lambda settings: arrival_options(settings, options), arrival.use)
    return Chain(
        [
            RequestIdInterceptor(),
            *tracers.interceptors,
            accounting,
            StatusInterceptor(),
            metadata,
            drain,
            open_calls,
            *access.interceptors,
            DeadlineInterceptor(access.rules, settings.max_call_s),
            SlotInterceptor(access.rules, admission.check),
            arrival,
            MessageSizeInterceptor(settings.max_message_bytes),
        ]
    )


def arrival_options(settings: Settings, options: ServerOptions) -> ArrivalOptions:
    """Return how many requests may arrive slowly, each counted as the largest that gRPC receives."""
    return ArrivalOptions(
        timeout_s=settings.request_arrival_timeout_s,
        max_slow=max(1, settings.max_unfinished_bytes // options.largest_received_bytes),
    )
