"""Headers that continue the current trace of OpenTelemetry, if the program uses it.

This package does not depend on it.
"""

from __future__ import annotations

import sys


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return headers that continue the current trace, as OTEL_PROPAGATORS says (`traceparent` by default)."""
    if "opentelemetry.trace" not in sys.modules:  # then there is no current span, and nothing is imported for it
        return ()
    from opentelemetry import propagate

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return tuple((name.lower(), value) for name, value in headers.items())
