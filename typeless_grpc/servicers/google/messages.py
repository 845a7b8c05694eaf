"""The messages of Google Cloud Speech's contracts: v1, v1p1beta1 and v2 (protos/google)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from typeless_grpc.servicers.compat.pool import class_of, loaded

POOL = loaded("google.binpb")


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
        return class_of(POOL.FindMessageTypeByName(f"google.cloud.speech.{self.name}.{name}"))(**fields)

    def enum(self, name: str) -> dict[int, str]:
        """Return the names of an enum's values, by number."""
        values = POOL.FindEnumTypeByName(f"google.cloud.speech.{self.name}.{name}").values
        return {value.number: value.name for value in values}


V1, V1P1BETA1, V2 = VERSIONS = (Version("v1"), Version("v1p1beta1"), Version("v2"))
