"""Where a model runs, and how much memory it takes there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ctranslate2

from typeless_grpc.engine.pool import Footprint
from typeless_grpc.errors import InvalidInput

# Bytes of one weight in memory, by CTranslate2's compute type; 2 for the others.
BYTES_PER_WEIGHT = {"int8": 1, "int8_float32": 1, "int8_float16": 1, "int8_bfloat16": 1, "float32": 4}
BYTES_PER_STORED_WEIGHT = 2  # converted models are stored as float16


@dataclass(frozen=True)
class Device:
    """name: "cpu" or "cuda". compute_type: one of CTranslate2's."""

    name: str
    compute_type: str


def n_gpus() -> int:
    """Return the number of GPUs that CTranslate2 can use."""
    return int(ctranslate2.get_cuda_device_count())


def choose_device(device: str, compute_type: str) -> Device:
    """Resolve "auto": a GPU with float16 if there is one, else the CPU with int8.

    Raises InvalidInput if the machine has no such device, or the device no such compute type.
    """
    has_gpu = n_gpus() > 0
    name = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    if name == "cuda" and not has_gpu:
        raise InvalidInput(
            "device", "there is no CUDA device that CTranslate2 can use: set auto or cpu", reason="CONFIG_INVALID"
        )
    supported = ctranslate2.get_supported_compute_types(name)
    if compute_type == "auto":
        preferred = ("float16", "int8_float16", "float32") if name == "cuda" else ("int8", "float32")
        return Device(name, next(kind for kind in preferred if kind in supported))
    if compute_type not in supported:
        known = ", ".join(sorted(supported))
        raise InvalidInput("compute_type", f"'{compute_type}' is none of {known} ({name})", reason="CONFIG_INVALID")
    return Device(name, compute_type)


def footprint(directory: Path, device: Device) -> Footprint:
    """Return the memory that the model in a directory takes, estimated from the size of its file.

    On a CPU, CTranslate2 holds the whole file in memory while it converts the weights.
    """
    try:
        stored_bytes = (directory / "model.bin").stat().st_size
    except OSError:  # loading the model will fail with the reason
        return Footprint()
    loaded = round(stored_bytes * BYTES_PER_WEIGHT.get(device.compute_type, 2) / BYTES_PER_STORED_WEIGHT)
    return Footprint(loaded, loaded + stored_bytes if device.name == "cpu" else stored_bytes)
