"""Mixed traffic of several callers, which counts for itself what it does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from tests.harness import AUDIO
from tests.system.stack import ADMIN_KEY, KEY
from typeless_grpc.audio.decode import DecodeLimits, decode
from typeless_grpc.audio.formats import SAMPLE_RATE_HZ, AudioFormat
from typeless_grpc.pb.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    audio_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    transcription_pb2,
    transcription_pb2_grpc,
    uploads_pb2,
    uploads_pb2_grpc,
)

RAW = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hertz=SAMPLE_RATE_HZ)
BLOCK_S = 0.1
FILES = ("en_two_sentences.flac", "en_short.wav", "en_short.mp3", "en_numbers.ogg", "en_names.ogg")


@dataclass
class Tally:
    """What the callers saw. calls: by method and code. audio_s: by kind of call. keys: calls by x-api-key."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    audio_s: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    jobs: list[str] = field(default_factory=list)
    n_jobs_run: int = 0


def samples(file: str) -> Any:
    return decode((AUDIO / file).read_bytes(), AudioFormat(), DecodeLimits(max_duration_s=600)).samples


class Traffic:
    """Callers of one server, for so many seconds."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float, seed: int) -> None:
        self.tally = Tally()
        self._until_s = time.monotonic() + seconds
        self._random = random.Random(seed)
        self._transcription = transcription_pb2_grpc.TranscriptionServiceStub(channel)
        self._jobs = jobs_pb2_grpc.JobsServiceStub(channel)
        self._uploads = uploads_pb2_grpc.UploadServiceStub(channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._server = server_pb2_grpc.ServerServiceStub(channel)
        self._models = models_pb2_grpc.ModelServiceStub(channel)
        self._files = {name: (AUDIO / name).read_bytes() for name in (*FILES, "en_minute.ogg")}
        self._seconds = {name: len(samples(name)) / SAMPLE_RATE_HZ for name in self._files}

    async def run(self) -> None:
        """Run all callers until the time is over and their last calls have ended."""
        kinds: list[tuple[int, Callable[[], Awaitable[None]], float]] = [
            (2, self.transcribe, 0.3),
            (1, self.transcribe_in_a_batch, 1.0),
            (2, self.speak, 0.2),
            (1, self.stream_a_file, 3.0),
            (1, self.run_a_job, 1.0),
            (1, self.cancel_a_job, 4.0),
            (1, self.upload, 2.0),
            (1, self.administer, 1.0),
            (1, self.make_mistakes, 1.0),
            (1, self.give_up, 2.0),
            (1, self.exceed_a_quota, 5.0),
        ]
        async with asyncio.TaskGroup() as group:
            for n, kind, pause_s in kinds:
                for _ in range(n):
                    group.create_task(self._repeat(kind, pause_s))

    async def _repeat(self, kind: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while time.monotonic() < self._until_s:
            await kind()
            await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.5))

    # ---- kinds of callers -------------------------------------------------------------------------------------

    async def transcribe(self) -> None:
        name = self._random.choice(FILES)
        request = transcription_pb2.TranscribeRequest(audio=self._file(name))
        if await self._unary("TranscriptionService/Transcribe", self._transcription.Transcribe, request) is not None:
            self.tally.audio_s["transcribe"] += self._seconds[name]

    async def transcribe_in_a_batch(self) -> None:
        names = self._random.choices(FILES, k=3)
        items = [transcription_pb2.BatchItem(audio=self._file(name)) for name in names]
        items.insert(1, transcription_pb2.BatchItem(audio=audio_pb2.AudioSource(content=b"no recording")))
        request = transcription_pb2.BatchTranscribeRequest(items=items)
        method = "TranscriptionService/BatchTranscribe"
        if await self._unary(method, self._transcription.BatchTranscribe, request) is not None:
            self.tally.audio_s["batch"] += sum(self._seconds[name] for name in names)

    async def speak(self) -> None:
        """Stream speech at the pace of a speaker, with interims."""
        data = (samples("en_two_sentences.flac") * 32767).astype("<i2").tobytes() + bytes(2 * SAMPLE_RATE_HZ)
        n_bytes = round(BLOCK_S * SAMPLE_RATE_HZ) * 2
        blocks = [data[start : start + n_bytes] for start in range(0, len(data), n_bytes)]
        config = transcription_pb2.StreamConfig(
            format=RAW, interim_results=True, interim_interval=Duration(nanos=400_000_000)
        )
        await self._stream(config, blocks, BLOCK_S)

    async def stream_a_file(self) -> None:
        data = self._files["en_minute.ogg"]
        blocks = [data[start : start + 65_536] for start in range(0, len(data), 65_536)]
        await self._stream(transcription_pb2.StreamConfig(mode=transcription_pb2.STREAM_MODE_FILE), blocks, 0.0)

    async def run_a_job(self) -> None:
        name = self._random.choice(FILES)
        request = jobs_pb2.SubmitJobRequest(audio=self._file(name))
        answer = await self._unary("JobsService/SubmitJob", self._jobs.SubmitJob, request)
        if answer is None:
            return
        job_id = answer.job.job_id
        self.tally.jobs.append(job_id)
        events = self._jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id), metadata=self._key(KEY))
        n_events = 0
        with self._counted("JobsService/WatchJob"):
            async for _ in events:
                n_events += 1
        if not n_events:
            return
        found = await self._unary("JobsService/GetJob", self._jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job_id))
        if found is not None and found.job.state == jobs_pb2.JOB_STATE_COMPLETED:
            self.tally.audio_s["job"] += self._seconds[name]
            self.tally.n_jobs_run += 1
        await self._unary("JobsService/DeleteJob", self._jobs.DeleteJob, jobs_pb2.DeleteJobRequest(job_id=job_id))

    async def cancel_a_job(self) -> None:
        request = jobs_pb2.SubmitJobRequest(
            audio=audio_pb2.AudioSource(content=bytes(64_000), format=RAW), labels={"for": "cancelling"}
        )
        answer = await self._unary("JobsService/SubmitJob", self._jobs.SubmitJob, request)
        if answer is not None:
            job_id = answer.job.job_id
            cancel = jobs_pb2.CancelJobRequest(job_id=job_id)
            await self._unary("JobsService/CancelJob", self._jobs.CancelJob, cancel)
            found = await self._unary("JobsService/GetJob", self._jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job_id))
            if found is not None and found.job.progress == 1.0:  # its only chunk was stored before the cancellation
                self.tally.audio_s["job"] += 2.0
        await self._unary("JobsService/ListJobs", self._jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=10))
        await self._unary("JobsService/GetQueueStats", self._jobs.GetQueueStats, jobs_pb2.GetQueueStatsRequest())

    async def upload(self) -> None:
        data = self._files["en_numbers.ogg"]

        async def requests() -> AsyncIterator[uploads_pb2.UploadAudioRequest]:
            yield uploads_pb2.UploadAudioRequest(header=uploads_pb2.UploadHeader(filename="numbers.ogg"))
            yield uploads_pb2.UploadAudioRequest(chunk=data)
            finish = uploads_pb2.UploadFinish(sha256=hashlib.sha256(data).digest())
            yield uploads_pb2.UploadAudioRequest(finish=finish)

        answer = None
        with self._counted("UploadService/UploadAudio"):
            answer = await self._uploads.UploadAudio(requests(), metadata=self._key(KEY))
            self.tally.audio_s["uploaded bytes"] += len(data)
        if answer is None:
            return
        request = transcription_pb2.TranscribeRequest(
            audio=audio_pb2.AudioSource(uri=f"upload://{answer.upload.upload_id}")
        )
        if await self._unary("TranscriptionService/Transcribe", self._transcription.Transcribe, request) is not None:
            self.tally.audio_s["transcribe"] += self._seconds["en_numbers.ogg"]

    async def administer(self) -> None:
        every = admin_pb2.ListApiKeysRequest()
        await self._unary("AdminService/ListApiKeys", self._admin.ListApiKeys, every, ADMIN_KEY)
        await self._unary("AdminService/GetConfig", self._admin.GetConfig, admin_pb2.GetConfigRequest(), ADMIN_KEY)
        await self._unary("ServerService/GetServerInfo", self._server.GetServerInfo, server_pb2.GetServerInfoRequest())
        await self._unary("ModelService/ListModels", self._models.ListModels, models_pb2.ListModelsRequest())

    async def make_mistakes(self) -> None:
        audio = self._file("en_short.wav")
        transcribe = "TranscriptionService/Transcribe"
        wrong = transcription_pb2.TranscribeRequest(audio=audio)
        await self._unary(transcribe, self._transcription.Transcribe, wrong, "a wrong key")
        for options in ({"language": "xx"}, {"model": "nobody-has-this"}, {"decoding": {"beam_size": 99}}):
            request = transcription_pb2.TranscribeRequest(
                audio=audio, options=transcription_pb2.TranscriptionOptions(**options)
            )
            await self._unary(transcribe, self._transcription.Transcribe, request)
        empty = transcription_pb2.TranscribeRequest()
        await self._unary(transcribe, self._transcription.Transcribe, empty)
        await self._unary("AdminService/ListApiKeys", self._admin.ListApiKeys, admin_pb2.ListApiKeysRequest())
        await self._unary("JobsService/GetJob", self._jobs.GetJob, jobs_pb2.GetJobRequest(job_id="no-such-job"))
        with self._counted("TranscriptionService/StreamTranscribe"):
            # The first message must be the configuration.
            first = transcription_pb2.StreamTranscribeRequest(audio=b"\0\0")
            async for _ in self._transcription.StreamTranscribe(_each([first]), metadata=self._key(KEY)):
                pass

    async def give_up(self) -> None:
        """Cancel calls in the middle."""
        # So long that it cannot be done before the cancellation arrives.
        long = audio_pb2.AudioSource(content=5 * self._files["en_minute.ogg"])
        request = transcription_pb2.TranscribeRequest(audio=long)
        with self._counted("TranscriptionService/Transcribe", gives_up=True):
            call = self._transcription.Transcribe(request, metadata=self._key(KEY))
            await asyncio.sleep(0.3)
            call.cancel()
            await call
        call = self._transcription.StreamTranscribe(metadata=self._key(KEY))
        with self._counted("TranscriptionService/StreamTranscribe", gives_up=True):
            config = transcription_pb2.StreamConfig(format=RAW)
            await call.write(transcription_pb2.StreamTranscribeRequest(config=config))
            await call.read()
            call.cancel()
            await call.read()

    async def exceed_a_quota(self) -> None:
        """A key of its own with one call a minute, and then two calls."""
        answer = await self._unary(
            "AdminService/CreateApiKey", self._admin.CreateApiKey, admin_pb2.CreateApiKeyRequest(), ADMIN_KEY
        )
        assert answer is not None
        limit = admin_pb2.UpdateRateLimitRequest(
            key_id=answer.api_key.key_id,
            rate_limit=admin_pb2.RateLimit(group="transcribe", amount=1, period_seconds=60),
        )
        await self._unary("AdminService/UpdateRateLimit", self._admin.UpdateRateLimit, limit, ADMIN_KEY)
        request = transcription_pb2.TranscribeRequest(audio=self._file("en_short.wav"))
        method = "TranscriptionService/Transcribe"
        for _ in range(2):
            if await self._unary(method, self._transcription.Transcribe, request, answer.secret) is not None:
                self.tally.audio_s["transcribe"] += self._seconds["en_short.wav"]

    # ---- calls ------------------------------------------------------------------------------------------------

    async def _unary(self, method: str, call: Any, request: Any, key: str = KEY) -> Any:
        """The answer of a call; None if it failed."""
        with self._counted(method, key):
            return await call(request, metadata=self._key(key))
        return None

    async def _stream(self, config: transcription_pb2.StreamConfig, blocks: Iterable[bytes], pause_s: float) -> None:
        async def requests() -> AsyncIterator[transcription_pb2.StreamTranscribeRequest]:
            yield transcription_pb2.StreamTranscribeRequest(config=config)
            for block in blocks:
                yield transcription_pb2.StreamTranscribeRequest(audio=block)
                if pause_s:
                    await asyncio.sleep(pause_s)

        with self._counted("TranscriptionService/StreamTranscribe"):
            async for response in self._transcription.StreamTranscribe(requests(), metadata=self._key(KEY)):
                if response.HasField("completed"):
                    audio = response.completed.transcript.audio_duration
                    self.tally.audio_s["stream"] += audio.seconds + audio.nanos / 1e9

    @contextlib.contextmanager
    def _counted(self, method: str, key: str = KEY, *, gives_up: bool = False) -> Any:
        """Count a call with its code. gives_up: the caller cancels it."""
        code = "OK"
        try:
            yield
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:
            if not gives_up:
                raise
            code = "CANCELLED"
        finally:
            self.tally.calls[f"/typeless.v1.{method}", code] += 1
            self.tally.keys[key] += 1

    def _file(self, name: str) -> audio_pb2.AudioSource:
        return audio_pb2.AudioSource(content=self._files[name])

    def _key(self, key: str) -> tuple[tuple[str, str], ...]:
        return (("x-api-key", key),)


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
