"""Builds the transcript of a whole stream from the finals of its utterances."""

from __future__ import annotations

from typeless_grpc.audio.formats import SAMPLE_RATE_HZ
from typeless_grpc.engine.interface import Recognition
from typeless_grpc.speech.languages import LanguageTally
from typeless_grpc.speech.transcript import Segment, Suppressed, Transcript, joined
from typeless_grpc.streaming import finals
from typeless_grpc.streaming.events import Completed
from typeless_grpc.streaming.utterances import Utterance


class TranscriptBuilder:
    """Builds the transcript of one stream. model: the requested one, until a hypothesis names the one that was used."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._segments: list[Segment] = []
        self._suppressed: list[Suppressed] = []
        self._languages = LanguageTally()
        self._n_speech_samples = 0
        self._raw_texts: list[str] = []
        self._n_chunks = 0
        self._queue_s = 0.0

    def count_speech(self, n_samples: int) -> None:
        """Count detected speech, decoded or not."""
        self._n_speech_samples += n_samples

    def add_segment(self, segment: Segment) -> int:
        """Append a segment, and return its index."""
        self._segments.append(segment)
        return len(self._segments) - 1

    def add_recognition(self, utterance: Utterance, recognition: Recognition) -> None:
        """Count what the engine reports of an utterance besides its segments."""
        transcript = recognition.transcript
        self._suppressed += finals.suppressed_in(utterance, recognition)
        if transcript.segments:
            seconds = (utterance.speech_end - utterance.speech_start) / SAMPLE_RATE_HZ
            self._languages.add(transcript.language, transcript.language_probability, seconds)
        self._queue_s += recognition.queue_s
        self._model = transcript.model
        self._raw_texts.append(transcript.raw_text)
        self._n_chunks += max(1, recognition.n_chunks)

    def completed(self, n_samples: int) -> Completed:
        """Return the event that ends a stream of so many samples."""
        language, probability = self._languages.main()
        audio_s = n_samples / SAMPLE_RATE_HZ
        transcript = Transcript(
            tuple(self._segments),
            tuple(self._suppressed),
            language,
            probability,
            audio_s,
            speech_s=min(self._n_speech_samples / SAMPLE_RATE_HZ, audio_s),
            model=self._model,
            raw_text=joined(self._raw_texts),
        )
        return Completed(transcript, self._n_chunks, self._queue_s)
