"""A hundred callers of different greed on a full server: each gets the same."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from tests.hardening.load import Answers, Calls, channel
from tests.hardening.server import KEYS, Server

AUDIO_S = 1.0
GREED = (1, 2, 4, 8)  # calls at once of a caller
IMPATIENCE_S = 0.2  # of every third caller, which retries after this time whatever a refusal names
WARM_PART = 0.2  # of the time, before callers are counted


@dataclass
class Shares:
    """Seconds of audio that each caller got answered."""

    audio_s: list[float] = field(default_factory=list)
    n_lost: int = 0

    @property
    def index(self) -> float:
        """Jain's index: 1 if all shares are equal, 1/n if one caller has everything."""
        return sum(self.audio_s) ** 2 / (len(self.audio_s) * sum(one**2 for one in self.audio_s))


async def run(server: Server, seconds: float) -> Shares:
    """Let all callers call for so long."""
    answers, began_s = [Answers() for _ in KEYS], time.monotonic()
    ends_s = began_s + seconds
    async with contextlib.AsyncExitStack() as stack:
        keyed = [await stack.enter_async_context(channel(server, key)) for key in KEYS]

        async def go_on(index: int, number: int) -> None:
            calls = Calls(keyed[index], answers[index], 100 * index + number, AUDIO_S, batch_every=0)
            while time.monotonic() < ends_s:
                wait_s = await calls.call()
                if wait_s is not None:
                    await asyncio.sleep(min(IMPATIENCE_S, wait_s) if index % 3 == 0 else wait_s)

        async with asyncio.TaskGroup() as group:
            for index in range(len(KEYS)):
                for number in range(GREED[index % len(GREED)]):
                    group.create_task(go_on(index, number))
            await asyncio.sleep(seconds * WARM_PART)
            before_s = [one.audio_s for one in answers]
            await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
            shares = Shares([one.audio_s - before for one, before in zip(answers, before_s, strict=True)])
    shares.n_lost = sum(sum(one.lost.values()) for one in answers)
    return shares
