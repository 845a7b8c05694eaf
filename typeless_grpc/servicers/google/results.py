"""Converts our transcripts and events to Google's results: pure functions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from typeless_grpc.pb.v1 import transcript_pb2, transcription_pb2
from typeless_grpc.servicers.compat.pool import copy
from typeless_grpc.servicers.google.messages import Version
from typeless_grpc.speech.transcript import joined


class Results:
    """The results of one recording or stream, whose texts can be joined as they are: later ones begin with a space."""

    def __init__(
        self,
        version: Version,
        languages: Iterable[str],
        *,
        separates_channels: bool,
        has_word_times: bool,
        has_word_confidences: bool,
    ) -> None:
        """languages: the tags of the request, which results repeat: "en-US" rather than "en"."""
        self._tags = {tag.lower().partition("-")[0]: tag for tag in languages}
        self._version, self._separates_channels = version, separates_channels
        self._has_word_times, self._has_word_confidences = has_word_times, has_word_confidences
        self._last: dict[int, str] = {}  # the newest final text of each channel

    def recognized(self, segments: Iterable[transcript_pb2.Segment]) -> list[Any]:
        """Return the results of a recording: one for each segment."""
        return [self._finished(self._version.message("SpeechRecognitionResult"), one) for one in segments]

    def final(self, segment: transcript_pb2.Segment) -> Any:
        """Return the result with a final segment of a stream."""
        result = self._finished(self._version.message("StreamingRecognitionResult"), segment)
        result.is_final = True
        return result

    def interim(self, interim: transcription_pb2.InterimResult) -> Any:
        """Return the result with an interim. Its language is known only if there is one to choose from."""
        text = interim.stable_text + interim.unstable_text
        language = next(iter(self._tags.values())) if len(self._tags) == 1 else ""
        result = self._version.message("StreamingRecognitionResult", language_code=language)
        result.alternatives.add(transcript=self._continued(text, 0), confidence=interim.confidence)
        result.stability = len(interim.stable_text) / max(1, len(text))
        self._set_end(result, interim.end_offset)
        return result

    def _finished(self, result: Any, segment: transcript_pb2.Segment) -> Any:
        text = segment.text.strip()
        result.alternatives.add(
            transcript=self._continued(text, segment.channel),
            confidence=segment.confidence,
            words=[self._word(word) for word in segment.words],
        )
        self._last[segment.channel] = text
        if self._separates_channels:
            result.channel_tag = segment.channel + 1
        result.language_code = self._tags.get(segment.language, segment.language)
        self._set_end(result, segment.end_offset)
        return result

    def _continued(self, text: str, channel: int) -> str:
        """Return the text with the space that separates it from the one before."""
        last = self._last.get(channel, "")
        return text if not last else joined([last, text]).removeprefix(last)

    def _set_end(self, result: Any, offset: Duration) -> None:
        copy(offset, result.result_end_offset if self._version.is_v2 else result.result_end_time)

    def _word(self, word: transcript_pb2.Word) -> Any:
        message = self._version.message("WordInfo", word=word.text)
        if self._has_word_confidences:
            message.confidence = word.confidence
        if self._has_word_times:
            start, end = ("start_offset", "end_offset") if self._version.is_v2 else ("start_time", "end_time")
            copy(word.start_offset, getattr(message, start))
            copy(word.end_offset, getattr(message, end))
        return message


def set_billed(version: Version, response: Any, audio: Duration, request_id: str) -> None:
    """Set the length of the audio, rounded up to whole seconds as Google does, and the id of the call."""
    seconds = math.ceil(audio.seconds + audio.nanos / 1e9)
    if version.is_v2:
        response.metadata.total_billed_duration.seconds = seconds
        response.metadata.request_id = request_id
    else:
        response.total_billed_time.seconds = seconds
        response.request_id = zlib.crc32(request_id.encode())  # a number in this version
