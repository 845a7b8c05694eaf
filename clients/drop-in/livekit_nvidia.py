"""LiveKit's plugin for NVIDIA, unchanged, against this server: `python livekit_nvidia.py RECORDING.wav` (16 kHz, mono).

TYPELESS_SERVER is HOST:PORT (default localhost:50051), TYPELESS_API_KEY a key, if the server has keys.
"""

import asyncio
import os
import sys
import wave

from livekit import rtc
from livekit.agents import stt
from livekit.plugins import nvidia

CHUNK_S = 0.05


async def main(path: str) -> None:
    recognizer = nvidia.STT(
        server=os.environ.get("TYPELESS_SERVER", "localhost:50051"),
        api_key=os.environ.get("TYPELESS_API_KEY", ""),
        use_ssl=False,
    )
    stream = recognizer.stream()

    async def speak() -> None:
        with wave.open(path) as recording:
            rate_hz = recording.getframerate()
            while data := recording.readframes(round(CHUNK_S * rate_hz)):
                stream.push_frame(rtc.AudioFrame(data, rate_hz, 1, len(data) // 2))
                await asyncio.sleep(CHUNK_S)
        stream.end_input()

    speaking = asyncio.create_task(speak())
    async for event in stream:
        if event.type in (stt.SpeechEventType.INTERIM_TRANSCRIPT, stt.SpeechEventType.FINAL_TRANSCRIPT):
            kind = "final:" if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT else "interim:"
            print(kind, event.alternatives[0].text.strip(), f"{event.alternatives[0].confidence:.2f}")
    await speaking


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
