"""Deprecated: the former module of the options of streams. Use `typeless_grpc.client`."""

import warnings

from typeless_grpc.client import Control, Item, StreamOptions

__all__ = ["Control", "Item", "StreamOptions"]

warnings.warn("typeless_grpc.client_stream is now typeless_grpc.client", DeprecationWarning, stacklevel=2)
