"""Whether a proxy sends all calls of a stream to one server."""

from __future__ import annotations

import grpc.aio

from tests.clients.serving import KEY
from typeless_grpc.client import StreamOptions
from typeless_grpc.client.ledger import Ledger
from typeless_grpc.client.options import RawFormat
from typeless_grpc.pb.v1 import transcription_pb2_grpc

N_STREAMS = 12


async def check_affinity(target: str) -> None:
    """Open sessions, each on a new connection, break their calls, and resume them on others."""
    for _ in range(N_STREAMS):
        ledger = Ledger(StreamOptions(raw_format=RawFormat("pcm_s16le", 16_000)))
        for is_resumed in (False, True):
            async with grpc.aio.insecure_channel(target) as channel:
                stub = transcription_pb2_grpc.TranscriptionServiceStub(channel)
                call = stub.StreamTranscribe(metadata=(*ledger.metadata, ("x-api-key", KEY)))
                await call.write(ledger.opening())
                response = await call.read()
                assert response.started.resumed is is_resumed
                ledger.take(response)
                call.cancel()
