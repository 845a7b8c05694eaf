"""Traces with OpenTelemetry. Only `app/tracing.py` imports this package, and only if traces are on.

`setup.py` makes the tracer from OpenTelemetry's own variables. Each other module turns one kind of report into spans:
`calls.py` of calls, `work.py` of batches, streams and texts, `jobs.py` of runs. Spans of work are made when it has
ended, with its times, so that nothing is done during the work itself.
"""
