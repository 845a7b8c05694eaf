"""Turns the bytes of an input into values: numbers, texts, messages, and parts of a stream."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

CORPUS = Path(__file__).parent / "corpus"
_EDGES = (0, 1, -1, 2, 7, 8, 100, 16_000, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**63 - 1, -(2**63))
_TEXTS = (
    "",
    "en",
    "de",
    "auto",
    "zh-Hant",
    "tiny",
    "\0",
    "a" * 5000,
    "\u202e",
    "🎙",
    "upload://x",
    "file:///",
    " ",
    "%",
)
_FLOATS = (0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), -float("inf"), 1e-45, 3.4e38)
_DEPTH = 4


def recordings(*, is_damaged: bool = True) -> Iterator[bytes]:
    """The recordings of the corpus, with or without the damaged and the joined ones."""
    for path in sorted(CORPUS.iterdir()):
        if is_damaged or (not path.name.endswith("-damaged") and not path.name.startswith(("joined-", "recording-"))):
            yield path.read_bytes()


class Source:
    """Takes values from the front of an input; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def rest(self) -> bytes:
        """What has not been taken yet."""
        return self._data[self._at :]

    def bytes(self, n_bytes: int) -> bytes:
        """The next bytes; fewer at the end."""
        taken = self._data[self._at : self._at + n_bytes]
        self._at += n_bytes
        return taken

    def number(self, below: int) -> int:
        """A number from 0."""
        n_bytes = max(1, ((below - 1).bit_length() + 7) // 8)
        return int.from_bytes(self.bytes(n_bytes), "little") % below

    def chosen(self, among: Sequence[Any]) -> Any:
        """One of several."""
        return among[self.number(len(among))]

    def text(self, n_most: int = 64) -> str:
        """Text, usual or not; never a lone surrogate, which protobuf does not carry."""
        if (kind := self.number(4)) == 0:
            return str(self.chosen(_TEXTS))
        size = self.number(n_most)
        return self.bytes(size).decode("latin-1" if kind == 1 else "utf-8", "replace")

    def parts(self, data: bytes) -> Iterator[bytes]:
        """The data, cut anywhere; sizes repeat."""
        sizes = [self.number(2048) + 1 if self.number(2) else self.number(8) + 1 for _ in range(self.number(6) + 1)]
        at = index = 0
        # A long input in parts of one byte takes too long for one execution.
        least = max(1, len(data) // 400)
        while at < len(data):
            size = max(least, sizes[index % len(sizes)])
            yield data[at : at + size]
            at, index = at + size, index + 1

    def read_into(self, message: Message) -> bool:
        """Set some fields of a message, or parse all that is left; return whether that was possible."""
        if self.number(2):
            self.fill(message)
            return True
        try:
            message.ParseFromString(self.rest)
        except DecodeError:
            return False
        return True

    def fill(self, message: Message, depth: int = _DEPTH) -> Message:
        """Set some fields of a message."""
        for field in message.DESCRIPTOR.fields:
            if not self._data[self._at :] or self.number(3) == 0:
                continue
            self._set(message, field, depth)
        return message

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(self.number(3)):
                target[self.text()] = self.text()
        elif field.message_type is not None:
            if depth and field.is_repeated:
                for _ in range(self.number(4)):
                    self.fill(target.add(), depth - 1)
            elif depth:
                target.SetInParent()
                self.fill(target, depth - 1)
        elif field.is_repeated:
            target.extend(self._value(field) for _ in range(self.number(5)))
        else:
            setattr(message, field.name, self._value(field))

    def _value(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if kind == field.CPPTYPE_STRING:
            return self.bytes(self.number(200)) if field.type == field.TYPE_BYTES else self.text(200)
        if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            return self._float()
        if kind == field.CPPTYPE_BOOL:
            return bool(self.number(2))
        if kind == field.CPPTYPE_ENUM:
            return self.number(12) if self.number(8) else self._within(-(2**31), 2**31 - 1)
        low, high = {
            field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
            field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
            field.CPPTYPE_UINT32: (0, 2**32 - 1),
            field.CPPTYPE_UINT64: (0, 2**64 - 1),
        }[kind]
        return self._within(low, high)

    def _within(self, low: int, high: int) -> int:
        value = self.chosen(_EDGES) if self.number(2) else self.number(2**16)
        return int(min(max(value, low), high))

    def _float(self) -> float:
        if self.number(2):
            return float(self.chosen(_FLOATS))
        return float(struct.unpack("<f", self.bytes(4).ljust(4, b"\0"))[0])


def field_exists(message: Descriptor, path: str) -> bool:
    """Whether a message has the field at a path such as "audio.format.encoding", "items[3].audio" or "labels[a.b]"."""
    here: Descriptor | None = message
    while path:
        name = path.partition(".")[0].partition("[")[0]
        field = here.fields_by_name.get(name) if here is not None else None
        if field is None:
            return False
        here, path = field.message_type, path[len(name) :]
        if here is not None and here.GetOptions().map_entry:
            return True  # what follows is a key of the caller
        path = path[path.index("]") + 1 :] if path.startswith("[") and "]" in path else path
        path = path.removeprefix(".")
    return True
