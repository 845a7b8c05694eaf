"""What one UploadAudio call does with the threads of everybody; the calls themselves are in tests/service."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.conftest import Stores
from typeless_grpc.jobs.store import Upload
from typeless_grpc.pb.v1 import uploads_pb2
from typeless_grpc.servicers.uploads import Receiving


async def test_the_check_of_a_whole_upload_holds_up_no_other_call(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    store, digest = stores.uploads, stores.uploads.digest
    reading, go_on = threading.Event(), threading.Event()

    def slow(upload: Upload) -> bytes:
        reading.set()
        assert go_on.wait(30)
        return digest(upload)

    monkeypatch.setattr(store, "digest", slow)
    upload = store.append(store.create("", ""), [b"abc"])
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as hashing:
        receiving = Receiving(store, executor, hashing)
        await receiving.begin(uploads_pb2.UploadHeader(upload_id=upload.upload_id, offset=3))
        receiving.finish(uploads_pb2.UploadFinish(sha256=hashlib.sha256(b"abc").digest()))
        ending = asyncio.create_task(receiving.end())
        assert await asyncio.to_thread(reading.wait, 30)
        async with asyncio.timeout(30):
            other = asyncio.get_running_loop().run_in_executor(executor, store.get, upload.upload_id, None)
            assert (await other).size_bytes == 3
        go_on.set()
        assert (await ending).is_complete
