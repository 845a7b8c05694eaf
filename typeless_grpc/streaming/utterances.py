"""Utterances: the parts of a stream's audio that are decoded, each by itself.

In LIVE mode an utterance is the speech between two silences. In FILE mode it is a chunk of the recording, as in
`Transcribe`. All positions are samples of the stream; ends are exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass

from typeless_grpc.engine.interface import DecodeOptions


@dataclass(frozen=True)
class Utterance:
    """An utterance that is over, or would be if its pause lasted.

    id: 0, 1, 2, … in the order of the audio. speech_start, speech_end: without padding. audio_start, audio_end: with.
    """

    id: int
    speech_start: int
    speech_end: int
    audio_start: int
    audio_end: int
    options: DecodeOptions


@dataclass(frozen=True)
class OpenUtterance:
    """An utterance that somebody is still speaking."""

    id: int
    audio_start: int
    speech_start: int
    options: DecodeOptions

    def until(self, speech_end: int, audio_end: int) -> Utterance:
        """Return the utterance that this becomes if it ends here."""
        return Utterance(
            self.id, self.speech_start, min(speech_end, audio_end), self.audio_start, audio_end, self.options
        )
