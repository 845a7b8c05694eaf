from __future__ import annotations

import subprocess
import sys

from opentelemetry.sdk.trace import TracerProvider

from typeless_grpc.client.propagation import trace_headers


def test_the_current_span_is_in_the_headers():
    with TracerProvider().get_tracer("test").start_as_current_span("span") as span:
        context = span.get_span_context()
        assert trace_headers() == (
            ("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"),
        )


def test_without_a_span_there_are_no_headers():
    assert trace_headers() == ()


def test_the_client_does_not_import_opentelemetry_by_itself():
    code = (
        "import sys; import typeless_grpc.client; from typeless_grpc.client.propagation import trace_headers;"
        "assert trace_headers() == (); print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
