"""Settings of the services for clients of other speech services."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from typeless_grpc.config.values import Group, NamesByName, Reloadable

_UNKNOWN = (
    "What to do with names of models that this server does not know, from {}'s clients: use the default model, or "
    "refuse them with NOT_FOUND."
)
ModelsByName = Annotated[dict[str, str], NoDecode, NamesByName]


class RivaSettings(Group):
    """The service nvidia.riva.asr.RivaSpeechRecognition: see docs/drop-in.md."""

    riva_enabled: bool = Field(True, description="Serve clients of NVIDIA Riva, on the same port.")
    riva_models: Reloadable[ModelsByName] = Field(
        {},
        description="Models for names that Riva's clients send: `parakeet-1.1b=base,whisper-large-v3=large-v3`.",
    )
    riva_unknown_models: Reloadable[Literal["default", "refuse"]] = Field(
        "default", description=_UNKNOWN.format("Riva")
    )


class GoogleSettings(Group):
    """The services google.cloud.speech.*.Speech and google.longrunning.Operations: see docs/drop-in.md."""

    google_enabled: bool = Field(True, description="Serve clients of Google Cloud Speech, on the same port.")
    google_models: Reloadable[ModelsByName] = Field(
        {}, description="Models for names that Google's clients send: `latest_long=large-v3,telephony=base`."
    )
    google_unknown_models: Reloadable[Literal["default", "refuse"]] = Field(
        "default", description=_UNKNOWN.format("Google")
    )
