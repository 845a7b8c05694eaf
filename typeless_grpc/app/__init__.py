"""The composition root: settings in, a server out. The only package that names concrete classes.

`root.py` puts the parts together; each of the others wires one of them.
"""

from typeless_grpc.app.access import open_registry
from typeless_grpc.app.background import keep_jobs
from typeless_grpc.app.memory import share_heaps
from typeless_grpc.app.models import catalog
from typeless_grpc.app.root import App, Listening, build, build_worker, listen, warnings

__all__ = [
    "App",
    "Listening",
    "build",
    "build_worker",
    "catalog",
    "keep_jobs",
    "listen",
    "open_registry",
    "share_heaps",
    "warnings",
]
