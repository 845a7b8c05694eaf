"""The messages of NVIDIA Riva's contract (protos/riva)."""

from __future__ import annotations

from typing import Any

from typeless_grpc.servicers.compat.pool import class_of, loaded

_PACKAGE = "nvidia.riva.asr"
SERVICE = f"{_PACKAGE}.RivaSpeechRecognition"
POOL = loaded("riva.binpb")


def _message(name: str) -> Any:
    return class_of(POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


RecognizeRequest = _message("RecognizeRequest")
RecognizeResponse = _message("RecognizeResponse")
StreamingRecognizeRequest = _message("StreamingRecognizeRequest")
StreamingRecognizeResponse = _message("StreamingRecognizeResponse")
ConfigRequest = _message("RivaSpeechRecognitionConfigRequest")
ConfigResponse = _message("RivaSpeechRecognitionConfigResponse")
Alternative = _message("SpeechRecognitionAlternative")
WordInfo = _message("WordInfo")
AudioEncoding: dict[str, int] = {
    value.name: value.number for value in POOL.FindEnumTypeByName("nvidia.riva.AudioEncoding").values
}
