"""A transcript as a file: plain text, subtitles, JSON, a table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from webvtt import Caption, WebVTT

from typeless_grpc.speech.transcript import OutputFormat, Rendition, Segment, Transcript
from typeless_grpc.text.cues import Cue, cues


def rendered(transcript: Transcript, format: OutputFormat) -> Rendition:
    """Return the whole file, to be saved as UTF-8. It ends with a line break unless it is empty."""
    return Rendition(format, _WRITERS[format](transcript))


def _text(transcript: Transcript) -> str:
    """Return one line per segment."""
    return "".join(f"{_flat(segment.text)}\n" for segment in transcript.segments)


def _webvtt(transcript: Transcript) -> str:
    """Return the cues, with WebVTT's markup characters escaped."""
    captions = [
        Caption(_clock(cue.start_ms), _clock(cue.end_ms), [_escaped(line) for line in cue.lines])
        for cue in _cues(transcript)
    ]
    return _written(captions, "vtt")


def _srt(transcript: Transcript) -> str:
    """Return the cues. SRT has no escapes, so characters that players read as markup or a time become look-alikes."""
    captions = [
        Caption(_clock(cue.start_ms), _clock(cue.end_ms), [_plain(line) for line in cue.lines])
        for cue in _cues(transcript)
    ]
    return _written(captions, "srt")


def _cues(transcript: Transcript) -> list[Cue]:
    return cues(transcript.segments, audio_s=transcript.audio_s)


def _written(captions: list[Caption], format: str) -> str:
    file = WebVTT()
    file.captions.extend(captions)
    written = io.StringIO()
    file.write(written, format=format)
    content = written.getvalue()
    return content if not content or content.endswith("\n") else content + "\n"


def _clock(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(line: str) -> str:
    return line.replace("-->", "→").replace("<", "‹").replace(">", "›")


def _flat(text: str) -> str:
    """Return the text on one line, without a tab, which separates the fields of a table."""
    return " ".join(text.split("\n")).replace("\r", " ").replace("\t", " ")


def _tsv(transcript: Transcript) -> str:
    """Start and end in milliseconds and the text, as Whisper's own writer has it; `channel` where there are several."""
    several = any(segment.channel for segment in transcript.segments)
    header = ["start", "end", *(["channel"] if several else []), "text"]
    rows = [
        [str(_ms(one.start_s)), str(_ms(one.end_s)), *([str(one.channel)] if several else []), _flat(one.text)]
        for one in transcript.segments
    ]
    return "".join("\t".join(row) + "\n" for row in [header, *rows])


def _json(transcript: Transcript) -> str:
    """Return one object; its schema is docs/transcript.schema.json."""
    value: dict[str, Any] = {
        "text": transcript.text,
        "language": transcript.language,
        "language_probability": round(transcript.language_probability, 6),
        "audio_duration": _seconds(transcript.audio_s),
        "speech_duration": _seconds(transcript.speech_s),
        "model": transcript.model,
        "segments": [_segment(segment, index) for index, segment in enumerate(transcript.segments)],
    }
    if transcript.raw_text:
        value["raw_text"] = transcript.raw_text
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _segment(segment: Segment, index: int) -> dict[str, Any]:
    """Return a segment as it stands in the JSON output."""
    value: dict[str, Any] = {
        "index": index,
        "start": _seconds(segment.start_s),
        "end": _seconds(segment.end_s),
        "text": segment.text,
        "channel": segment.channel,
        "language": segment.language,
        "confidence": round(segment.confidence, 6),
        "no_speech_probability": round(segment.no_speech_probability, 6),
    }
    if segment.words:
        value["words"] = [
            {
                "text": word.text,
                "start": _seconds(word.start_s),
                "end": _seconds(word.end_s),
                "confidence": round(word.confidence, 6),
            }
            for word in segment.words
        ]
    return value


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _seconds(seconds: float) -> float:
    return round(seconds, 3)


_WRITERS: Mapping[OutputFormat, Callable[[Transcript], str]] = {
    OutputFormat.TEXT: _text,
    OutputFormat.SRT: _srt,
    OutputFormat.WEBVTT: _webvtt,
    OutputFormat.JSON: _json,
    OutputFormat.TSV: _tsv,
}
