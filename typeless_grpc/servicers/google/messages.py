"""The messages of Google Cloud Speech's contracts: v1, v1p1beta1 and v2 (protos/google)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from typeless_grpc.servicers.compat.pool import class_of, loaded

POOL = loaded("google.binpb")


@functools.cache
def message_class(name: str) -> Any:
    """Return the class of a message, by its full name."""
    return class_of(POOL.FindMessageTypeByName(name))


@functools.cache
def _enum(name: str) -> Mapping[int, str]:
    return {value.number: value.name for value in POOL.FindEnumTypeByName(name).values}


@dataclass(frozen=True)
class Version:
    """One version of the contract. name: "v1", "v1p1beta1" or "v2"."""

    name: str

    @property
    def is_v2(self) -> bool:
        """Whether it is the second version, whose messages differ."""
        return self.name == "v2"

    @property
    def service(self) -> ServiceDescriptor:
        """The service of speech recognition."""
        return POOL.FindServiceByName(f"google.cloud.speech.{self.name}.Speech")

    def message(self, name: str, **fields: Any) -> Any:
        """Return a new message."""
        return message_class(f"google.cloud.speech.{self.name}.{name}")(**fields)

    def enum(self, name: str) -> Mapping[int, str]:
        """Return the names of an enum's values, by number."""
        return _enum(f"google.cloud.speech.{self.name}.{name}")


V1, V1P1BETA1, V2 = VERSIONS = (Version("v1"), Version("v1p1beta1"), Version("v2"))
