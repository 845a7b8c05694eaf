"""Settings of models, and of how speech is decoded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from typeless_grpc.config.values import ExpandedPath, Group, NamedDirectories, Reloadable, SplitAtCommas


class EngineSettings(Group):
    """Which models are served, on what device, and with how much parallelism."""

    model: str = Field(
        "base", min_length=1, description="Default model: a name from the catalogue, or the path of a model directory."
    )
    model_dirs: NamedDirectories = Field(
        default_factory=dict,
        description="Names for directories with converted models: `calls=/models/calls,notes=/models/notes`.",
    )
    model_download: bool = Field(
        True,
        description="Download the default model at the start if it is missing. Disable it on machines without "
        "internet access.",
    )
    user_models: Reloadable[Annotated[tuple[str, ...], NoDecode, SplitAtCommas]] = Field(
        (),
        description="Models that users' calls may load besides the default one, separated by commas. Users can call"
        " other models only while an admin keeps them loaded. Empty allows every installed model; name "
        "some if you do not trust all callers, because each loaded model takes memory and time from the"
        " others.",
    )
    max_model_memory_bytes: Reloadable[int] = Field(
        4 * 1024**3,
        ge=0,
        description="Memory of all loaded models, in bytes. To load another model, the server unloads idle ones, "
        "least recently used first. If that does not free enough, or the machine has too little memory,"
        " the load is refused.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run. auto uses a GPU if the machine has one."
    )
    compute_type: str = Field(
        "auto",
        description="CTranslate2 compute type (int8, float16, float32, …). auto is float16 on a GPU and int8 on a CPU.",
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of one inference. 0 is half of the cores (or of the container's CPU quota), at "
        "most 4.",
    )
    engine_workers: int = Field(
        0,
        ge=0,
        le=16,
        description="Batches decoded in parallel, each with `cpu_threads` threads. 0 is as many as the cores allow,"
        " at least 2; on a GPU or a single core it is 1.",
    )
    max_batch: int = Field(
        8,
        ge=1,
        le=64,
        description="Audio windows decoded in one batch. More raises throughput with many callers and delays the "
        "first result.",
    )
    engine_stall_s: Reloadable[float] = Field(
        60.0,
        ge=1,
        le=3600,
        description="If work waits and no batch ends for this many seconds, health checks report NOT_SERVING. Raise"
        " it for slow models.",
    )
    encoder_window: Literal["auto", "full"] = Field(
        "auto",
        description="Audio that the encoder processes for each window. auto is the length of the speech; full is 30"
        " s as in faster-whisper.",
    )
    beam_size: int = Field(
        1,
        ge=1,
        le=10,
        description="Beams for requests that set none. More is slower and slightly more accurate.",
    )
    decode_threads: int = Field(
        2, ge=1, le=64, description="Recordings converted to samples in parallel, one thread each."
    )
    profanity_file: Reloadable[ExpandedPath | None] = Field(
        None, description="File with the words that `mask_profanity` masks. Replaces the built-in list."
    )
