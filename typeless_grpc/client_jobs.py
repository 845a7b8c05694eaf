"""Deprecated: the former module of the calls of jobs. Use `typeless_grpc.client`."""

import warnings

from typeless_grpc.client import AsyncJobs, Jobs, RetryPolicy

Retries = RetryPolicy

__all__ = ["AsyncJobs", "Jobs", "Retries"]

warnings.warn("typeless_grpc.client_jobs is now typeless_grpc.client", DeprecationWarning, stacklevel=2)
