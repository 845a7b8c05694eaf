"""Traces with OpenTelemetry. Only `app/tracing.py` imports this package, and only if traces are on.

`setup.py` makes the tracer from OpenTelemetry's own variables. Each other module turns one kind of report into spans:
`calls.py` of calls, `jobs.py` of runs, and `work.py` of audio, batches, streams and texts. Spans of work are made when
it has ended, with its times, so that nothing is done during the work itself.
"""
