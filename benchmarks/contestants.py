"""The programs that are compared: faster-whisper as users call it, and our server as a client calls it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import faster_whisper
import psutil

from benchmarks.recordings import Recording
from typeless_grpc.app.models import catalog
from typeless_grpc.client import Client, Options, RawFormat
from typeless_grpc.config import Settings

RAW = RawFormat("pcm_s16le", 16_000)


@dataclass(frozen=True)
class Output:
    """The text of a recording, and its words with their starts in seconds if they were requested."""

    text: str
    words: tuple[tuple[str, float], ...] = ()


class Contestant(Protocol):
    """Transcribes recordings; threads may share it."""

    name: str

    def transcribe(self, recording: Recording, *, words: bool = False) -> Output: ...


class FasterWhisper:
    """`WhisperModel.transcribe`, greedy, with the language given and all other defaults."""

    name = "faster-whisper"

    def __init__(self, model: str) -> None:
        self._model = whisper_model(model)

    def transcribe(self, recording: Recording, *, words: bool = False) -> Output:
        """Transcribe decoded audio."""
        segments, _ = self._model.transcribe(
            recording.audio, beam_size=1, language=recording.language, word_timestamps=words
        )
        return _output(list(segments))


class FasterWhisperBatched:
    """`BatchedInferencePipeline`, greedy, with the language given, in batches of eight."""

    name = "faster-whisper batched"

    def __init__(self, model: str) -> None:
        self._pipeline = faster_whisper.BatchedInferencePipeline(whisper_model(model))

    def transcribe(self, recording: Recording, *, words: bool = False) -> Output:
        """Transcribe decoded audio."""
        segments, _ = self._pipeline.transcribe(
            recording.audio, beam_size=1, language=recording.language, batch_size=8, word_timestamps=words
        )
        return _output(list(segments))


class Server:
    """Our server in a process of its own, called over gRPC."""

    def __init__(self, target: str, process: psutil.Process, name: str = "typeless") -> None:
        self.name = name
        self.target = target
        self.process = process
        self._client = Client(target)

    def transcribe(self, recording: Recording, *, words: bool = False) -> Output:
        """Transcribe decoded audio, sent as raw samples."""
        options = Options(language=recording.language, beam_size=1, word_timestamps=words)
        transcript = self._client.transcribe(recording.pcm, options, raw_format=RAW, timeout_s=600).transcript
        starts = [
            (word.text, word.start_offset.seconds + word.start_offset.nanos / 1e9)
            for segment in transcript.segments
            for word in segment.words
        ]
        return Output(transcript.text, tuple(starts))


@contextmanager
def server(
    model: str, *, module: str = "typeless_grpc.cli", name: str = "typeless", **settings: str
) -> Iterator[Server]:
    """Run a server on a free port while this is open.

    module: the Python module to run. name: in tables. settings: TYPELESS_* names in lower case; quotas are off unless
    set.
    """
    settings = {"rate_limit_enabled": "false", **settings}
    environment = {f"TYPELESS_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve", "--port", "0", "--model", model],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"takes calls on [^ ]*:(\d+):", line):
                yield Server(f"127.0.0.1:{found[1]}", psutil.Process(process.pid), name)
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


def model_directory(model: str) -> Path:
    """The directory of a model of the catalogue."""
    return catalog(Settings(model=model)).get(model)


def whisper_model(model: str) -> faster_whisper.WhisperModel:
    """faster-whisper's model object, int8 on all cores."""
    n_threads = os.cpu_count() or 1
    return faster_whisper.WhisperModel(
        str(model_directory(model)), device="cpu", compute_type="int8", cpu_threads=n_threads
    )


def _output(segments: list[faster_whisper.transcribe.Segment]) -> Output:
    words = [(word.word.strip(), float(word.start)) for segment in segments for word in segment.words or ()]
    return Output("".join(segment.text for segment in segments).strip(), tuple(words))
