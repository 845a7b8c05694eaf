"""Settings of the service for clients of NVIDIA Riva."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from typeless_grpc.config.values import Group, NamesByName, Reloadable


class RivaSettings(Group):
    """The service nvidia.riva.asr.RivaSpeechRecognition: see docs/drop-in.md."""

    riva_enabled: bool = Field(True, description="Serve clients of NVIDIA Riva, on the same port.")
    riva_models: Reloadable[Annotated[dict[str, str], NoDecode, NamesByName]] = Field(
        {},
        description="Models for names that Riva's clients send: `parakeet-1.1b=base,whisper-large-v3=large-v3`.",
    )
    riva_unknown_models: Reloadable[Literal["default", "refuse"]] = Field(
        "default",
        description="What to do with names of models that this server does not know, from Riva's clients: use the "
        "default model, or refuse them with NOT_FOUND.",
    )
