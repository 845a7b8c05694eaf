"""The common parts of other contracts: audio whose first bytes decide its format, hints, and names of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from typeless_grpc.audio.joined import begins_file
from typeless_grpc.errors import InvalidInput
from typeless_grpc.pb.v1 import audio_pb2
from typeless_grpc.servicers.models import Usable
from typeless_grpc.servicers.options import MAX_HOTWORD_CHARACTERS, MAX_HOTWORDS


@dataclass(frozen=True)
class ModelNames:
    """Maps names of models. models: set by the operator. refuses_unknown: else other names mean the default model."""

    models: Mapping[str, str] = field(default_factory=dict)
    refuses_unknown: bool = False

    def model(self, name: str, *, is_known: bool) -> str:
        """Return the name of our model, "" for the default one. is_known: whether it is one of ours already."""
        if name in self.models:
            return self.models[name]
        return name if is_known or self.refuses_unknown else ""


class NamedModels:
    """Finds the models of this server by the names of another contract."""

    def __init__(self, usable: Usable, names: ModelNames) -> None:
        self.usable, self._names = usable, names

    def use(self, names: ModelNames) -> None:
        """Apply these names from the next call on."""
        self._names = names

    async def model(self, name: str) -> str:
        """Return the name of our model, "" for the default one."""
        is_known = bool(name) and await self.usable.knows(name)
        return self._names.model(name, is_known=is_known)


@dataclass(frozen=True)
class DeclaredAudio:
    """What a request says about its audio. encoding: of raw samples; None for a container.

    names_encoding: whether the request names the encoding; if not, samples are raw only if it has a rate.
    """

    encoding: audio_pb2.AudioEncoding.ValueType | None
    sample_rate_hz: int
    n_channels: int
    names_encoding: bool = True

    def format(self, head: bytes | None) -> audio_pb2.AudioFormat | None:
        """Return the format of audio that begins with head; None for a container.

        head: None if the bytes are not here. The format is then raw if there is a rate, unless the bytes turn out to be
        those of a container.
        """
        is_declared = self.sample_rate_hz > 0 or (self.names_encoding and head is not None)
        if self.encoding is None or not is_declared or begins_file(head or b""):
            return None
        return audio_pb2.AudioFormat(
            encoding=self.encoding, sample_rate_hertz=self.sample_rate_hz, channel_count=self.n_channels
        )


def phrases(hints: Iterable[tuple[str, float]]) -> list[str]:
    """Return the phrases that our bounds admit. hints: each with its boost; a negative one means "not this"."""
    wanted = (phrase.strip() for phrase, boost in hints if boost >= 0)
    return [phrase for phrase in wanted if 0 < len(phrase) <= MAX_HOTWORD_CHARACTERS][:MAX_HOTWORDS]


@dataclass(frozen=True)
class Paths:
    """The paths of the fields of a request.

    config: path of its configuration. audio: path of its audio. names: maps the paths of our messages to those of the
    configuration.
    """

    config: str
    audio: str
    names: Mapping[str, str]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Make errors name fields by their path in the other contract."""
        try:
            yield
        except InvalidInput as error:
            raise error.moved(self._of) from error

    def _of(self, path: str) -> str:
        inner = path.removeprefix("audio.").removeprefix("config.")
        for ours, theirs in self.names.items():
            if inner == ours or inner.startswith((f"{ours}[", f"{ours}.")):
                return f"{self.config}.{theirs}"
        if path.startswith("config."):
            return f"{self.config}.{inner}"
        return self.audio if path in ("audio", "audio.content") else path
