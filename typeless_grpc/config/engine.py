"""Settings of models, and of how speech is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from typeless_grpc.access.address import is_loopback
from typeless_grpc.config.values import (
    ExpandedPath,
    Group,
    HostAndPort,
    NamedDirectories,
    Reloadable,
    SplitAtCommas,
    host_and_port,
)

MIN_ENGINE_KEY_CHARACTERS = 20


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
    approved_models_file: ExpandedPath | None = Field(
        None,
        description="File with the approved models, which `typeless models approve` writes. The default is "
        "`approved-models.json` in `data_dir`.",
    )
    require_approved_models: bool = Field(
        False,
        description="Refuse models that are neither known to typeless nor approved with `typeless models approve`. "
        "Files that differ from what is known or approved are always refused.",
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
        description="If work waits and no batch ends for this many seconds, health checks report NOT_SERVING, and an"
        " engine process is killed and started again. Raise it for slow models.",
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
    decoder_sandbox: Literal["process", "off"] = Field(
        "process",
        description="Where FFmpeg decodes containers. process is a process for each recording or stream, with bounded"
        " memory and CPU time, no files and no network (Linux only). off is the server's own process: for servers that"
        " run in a sandbox, such as gVisor, or read only audio that they trust.",
    )
    profanity_file: Reloadable[ExpandedPath | None] = Field(
        None, description="File with the words that `mask_profanity` masks. Replaces the built-in list."
    )

    engine_processes: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        1,
        description="Engine processes of this server. 1 starts none: the server's own process decodes. With more,"
        " they decode, and the server's own process does not. Each has a share of the cores, or a GPU (in turn), and"
        " its own copy of the models. A process that crashes or hangs is started again, and its calls are decoded"
        " again. auto is one for each GPU; without one, one for each 8 cores, but no more than half of the free memory"
        " holds.",
    )
    engine_address: Annotated[tuple[HostAndPort, ...], NoDecode, SplitAtCommas] = Field(
        (),
        description="Addresses of engines on other machines, separated by commas: `10.0.0.5:50052,10.0.0.6:50052`."
        " This server then loads no model. Start each with `typeless engine`, and set `model` to the same on all.",
    )
    engine_listen: HostAndPort | None = Field(
        None,
        description="Address that `typeless engine` listens on, HOST:PORT. Other machines can reach it only with"
        " `engine_key`. It uses TLS if `tls_cert_file` is set.",
    )
    engine_key: Reloadable[SecretStr] = Field(
        SecretStr(""),
        description=f"Secret of at least {MIN_ENGINE_KEY_CHARACTERS} characters that an engine on an address shares"
        " with the servers that use it. After a reload, an engine accepts the key before, too, until the next reload.",
    )
    engine_ca_file: ExpandedPath | None = Field(
        None,
        description="PEM file with the certificate authority of the engines at `engine_address`. Enables TLS to them.",
    )

    @field_validator("engine_address")
    @classmethod
    def _check_engine_addresses(cls, addresses: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        if addresses and others.data.get("engine_processes", 1) != 1:
            raise ValueError("a server uses either engine_address or engine_processes")
        if len(set(addresses)) < len(addresses):
            raise ValueError("names an address twice")
        return addresses

    @field_validator("engine_key")
    @classmethod
    def _check_engine_key(cls, key: SecretStr, others: ValidationInfo) -> SecretStr:
        listen = others.data.get("engine_listen")
        if 0 < len(key) < MIN_ENGINE_KEY_CHARACTERS:
            raise ValueError(f"has fewer than {MIN_ENGINE_KEY_CHARACTERS} characters")
        if not key and listen and not is_loopback(host_and_port(listen)[0]):
            raise ValueError("must be set if engine_listen can be reached from other machines")
        return key

    @field_validator("engine_ca_file")
    @classmethod
    def _check_engine_ca_file(cls, file: Path | None, others: ValidationInfo) -> Path | None:
        if file is not None and not others.data.get("engine_address", True):
            raise ValueError("has no effect without engine_address")
        return file
