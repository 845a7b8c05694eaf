"""Transcription in the background: states of jobs, their runs, and the worker. `stores/` keeps the jobs."""
