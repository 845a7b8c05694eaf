"""The two modes of a stream, LIVE and FILE, and the parts of each. The type of the segmentation options chooses one."""

from __future__ import annotations

from typing import Protocol

from typeless_grpc.engine.interface import Recognition
from typeless_grpc.speech.transcript import Segment
from typeless_grpc.streaming import finals
from typeless_grpc.streaming.decoding import Decoder
from typeless_grpc.streaming.dependencies import Dependencies, StreamOptions
from typeless_grpc.streaming.endpoint import Endpointer, EndpointOptions
from typeless_grpc.streaming.file_decoding import FileDecoder
from typeless_grpc.streaming.live_decoding import LiveDecoder
from typeless_grpc.streaming.planner import Planner, PlanOptions
from typeless_grpc.streaming.progress import FileProgress, NoProgress, ProgressHost, ProgressReporter
from typeless_grpc.streaming.requests import SegmentationOptions
from typeless_grpc.streaming.samples import SampleBuffer
from typeless_grpc.streaming.segmentation import Segmenter
from typeless_grpc.streaming.session import Mode, Session
from typeless_grpc.streaming.utterances import Utterance


class StreamMode(Mode, Protocol):
    """What differs between the modes, for a session and its driver."""

    @property
    def name(self) -> str:
        """The name of the mode for observers."""
        ...

    def decoder(self, dependencies: Dependencies, options: StreamOptions, samples: SampleBuffer) -> Decoder:
        """Return the decoder of a new stream."""
        ...

    def progress(self, host: ProgressHost, session: Session, dependencies: Dependencies) -> ProgressReporter:
        """Return what reports the progress of a new stream."""
        ...

    def max_backlog_s(self, options: StreamOptions) -> float:
        """Return the engine's backlog from which on the stream takes no more audio."""
        ...


class LiveMode:
    """Somebody speaks: short utterances with interims, each decoded as soon as it may be over. See `StreamMode`."""

    name = "live"

    def __init__(self, options: EndpointOptions) -> None:
        self.segmentation = options

    def segmenter(self) -> Segmenter:
        """See `StreamMode`."""
        return Endpointer(self.segmentation)

    def segments(self, utterance: Utterance, recognition: Recognition | None, committed: str) -> list[Segment]:
        """See `StreamMode`: one segment, which begins with the stable prefix of the interims."""
        return finals.live_segments(utterance, recognition, committed)

    def decoder(self, dependencies: Dependencies, options: StreamOptions, samples: SampleBuffer) -> Decoder:
        """See `StreamMode`."""
        return LiveDecoder(dependencies, options, samples)

    def progress(self, host: ProgressHost, session: Session, dependencies: Dependencies) -> ProgressReporter:
        """See `StreamMode`."""
        return NoProgress()

    def max_backlog_s(self, options: StreamOptions) -> float:
        """See `StreamMode`. Without a bound, because speakers do not wait."""
        return float("inf")


class FileMode:
    """A recording is uploaded: chunks as for `Transcribe`, as fast as the engine decodes them. See `StreamMode`."""

    name = "file"

    def __init__(self, options: PlanOptions) -> None:
        self.segmentation = options

    def segmenter(self) -> Segmenter:
        """See `StreamMode`."""
        return Planner(self.segmentation)

    def segments(self, utterance: Utterance, recognition: Recognition | None, committed: str) -> list[Segment]:
        """See `StreamMode`: the engine's own segments."""
        return finals.file_segments(utterance, recognition)

    def decoder(self, dependencies: Dependencies, options: StreamOptions, samples: SampleBuffer) -> Decoder:
        """See `StreamMode`."""
        return FileDecoder(dependencies, options, samples)

    def progress(self, host: ProgressHost, session: Session, dependencies: Dependencies) -> ProgressReporter:
        """See `StreamMode`."""
        return FileProgress(host, session, dependencies.clock)

    def max_backlog_s(self, options: StreamOptions) -> float:
        """See `StreamMode`."""
        return options.max_backlog_s


def mode_of(segmentation: SegmentationOptions) -> StreamMode:
    """Return the mode of a stream that is segmented like this."""
    return LiveMode(segmentation) if isinstance(segmentation, EndpointOptions) else FileMode(segmentation)
