"""The Python client: `Client` for threads and `AsyncClient` for asyncio. It needs only grpcio and protobuf.

    >>> from typeless_grpc.client import Client
    >>> with Client("localhost:50051") as client:  # doctest: +SKIP
    ...     print(client.transcribe("meeting.flac").transcript.text)

Calls return the messages of the protos (`typeless_grpc.pb.v1`) and raise `CallFailed`. To record from a microphone,
see `typeless_grpc.client.microphone`; it needs the extra `[mic]`.
"""

from typeless_grpc.client.aio import AsyncClient
from typeless_grpc.client.channels import Tls, async_channel, channel
from typeless_grpc.client.errors import CallFailed
from typeless_grpc.client.jobs import AsyncJobs, Jobs
from typeless_grpc.client.options import Control, Item, Options, RawFormat, StreamOptions
from typeless_grpc.client.requests import AudioLike, batch_request, transcribe_request
from typeless_grpc.client.retry import RetryPolicy
from typeless_grpc.client.sync import Client
from typeless_grpc.client.target import DEFAULT_TARGET

__all__ = [
    "DEFAULT_TARGET",
    "AsyncClient",
    "AsyncJobs",
    "AudioLike",
    "CallFailed",
    "Client",
    "Control",
    "Item",
    "Jobs",
    "Options",
    "RawFormat",
    "RetryPolicy",
    "StreamOptions",
    "Tls",
    "async_channel",
    "batch_request",
    "channel",
    "transcribe_request",
]
