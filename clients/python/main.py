"""The five things that callers of typeless-grpc do most."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc

from typeless_grpc.client import CallFailed, Client, Options, RawFormat, StreamOptions

USAGE = """usage: main.py COMMAND FILE...
  transcribe FILE   print the text
  stream FILE       send raw samples (16 kHz, 16 bits, mono) at the pace of speech
  batch FILE...     several recordings in one call
  job FILE          transcribe in the background, print subtitles
  error FILE        send an invalid request, show the error details
TYPELESS_SERVER (localhost:50051) and TYPELESS_API_KEY are read from the environment."""

TIMEOUT_S = 600  # for all calls of one command
MAX_ATTEMPTS = 4

T = TypeVar("T")


def transcribe(client: Client, files: list[str], options: Options | None = None) -> None:
    response = with_retries(lambda: client.transcribe(files[0], options, timeout_s=TIMEOUT_S))
    print(response.transcript.text)


def stream(client: Client, files: list[str]) -> None:
    options = StreamOptions(raw_format=RawFormat("pcm_s16le", 16_000), interim_results=True)
    for response in client.stream(at_the_pace_of_speech(files[0]), options):
        match response.WhichOneof("event"):
            case "interim":
                print(f"interim: {response.interim.stable_text}{response.interim.unstable_text}")
            case "segment":
                print(f"final: {response.segment.text}")
            case "warning":
                print(f"warning: {response.warning.message}", file=sys.stderr)


def at_the_pace_of_speech(file: str) -> Iterator[bytes]:
    """A tenth of a second every tenth of a second."""
    with Path(file).open("rb") as samples:
        while block := samples.read(3200):
            yield block
            time.sleep(0.1)


def batch(client: Client, files: list[str]) -> None:
    names = [Path(file).name for file in files]
    response = with_retries(lambda: client.batch(files, names=names, timeout_s=TIMEOUT_S))
    for result in response.results:
        failed = result.WhichOneof("outcome") == "failure"
        print(f"{result.name}: {f'failed: {result.failure.reason}' if failed else result.transcript.text}")
    print(f"{response.summary.succeeded} of {response.summary.total} succeeded")


def job(client: Client, files: list[str]) -> None:
    # Large recordings are uploaded first, and a broken watch goes on by itself.
    submitted = with_retries(lambda: client.jobs.submit(files[0], Options(output_formats=["srt"])))
    last = submitted
    for change in client.jobs.watch(submitted.job_id):
        last = change.job
        state = type(last).DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[last.state].name
        print(f"{state.removeprefix('JOB_STATE_')} {last.progress:.0%}".replace("%", " %"), file=sys.stderr)
    if last.HasField("failure"):
        sys.exit(f"{last.failure.reason}: {last.failure.message}")
    for rendition in last.transcript.renditions:
        print(rendition.content, end="")


def error(client: Client, files: list[str]) -> None:
    transcribe(client, files, Options(beam_size=99))


def with_retries(call: Callable[[], T]) -> T:
    """Make a call, and repeat it after the time in RetryInfo, within the deadline. It must be safe to repeat."""
    deadline_s = time.monotonic() + TIMEOUT_S
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return call()
        except CallFailed as failed:
            wait_s = failed.retry_after_s
            if wait_s is None and failed.code is grpc.StatusCode.UNAVAILABLE:
                wait_s = 1.0  # without RetryInfo: no server was reached
            if wait_s is None or attempt == MAX_ATTEMPTS or time.monotonic() + wait_s > deadline_s:
                raise
            print(f"{failed.reason or failed.code.name}: trying again in {wait_s:.1f} s", file=sys.stderr)
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def explain(failed: CallFailed) -> None:
    """Print the full error details of a failed call."""
    lines = [f"{failed.code.name}: {failed.message}"]
    if failed.reason:
        lines.append(f"  reason: {failed.reason}")
    lines += [f"  field: {path}: {why}" for path, why in failed.fields]
    if failed.retry_after_s is not None:
        lines.append(f"  retry after: {failed.retry_after_s:.1f} s")
    print("\n".join(lines), file=sys.stderr)


COMMANDS = {"transcribe": transcribe, "stream": stream, "batch": batch, "job": job, "error": error}


def main(words: list[str]) -> int:
    if len(words) < 2 or words[0] not in COMMANDS:
        print(USAGE, file=sys.stderr)
        return 2
    # The key comes from TYPELESS_API_KEY. Over a network, add tls=Tls(): others can read plain text on the way.
    # retry=False, because `with_retries` reports its waits; otherwise the client repeats safe calls by itself.
    with Client(os.environ.get("TYPELESS_SERVER", "localhost:50051"), retry=False) as client:
        try:
            COMMANDS[words[0]](client, words[1:])
        except CallFailed as failed:
            explain(failed)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
