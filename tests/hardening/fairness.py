"""A hundred callers of different greed on a full server: those who wait as it says get the same."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
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
    """Seconds of audio that each caller got answered: of those who wait as refusals say, and of those who do not."""

    obedient_s: list[float] = field(default_factory=list)
    impatient_s: list[float] = field(default_factory=list)
    n_lost: int = 0

    @property
    def index(self) -> float:
        """Jain's index of those who wait: 1 if all shares are equal, 1/n if one caller has everything."""
        shares = self.obedient_s
        return sum(shares) ** 2 / (len(shares) * sum(one**2 for one in shares))

    @property
    def gain(self) -> float:
        """The share of a caller who does not wait, of that of one who does."""
        return statistics.mean(self.impatient_s) / statistics.mean(self.obedient_s)


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
                    await asyncio.sleep(min(IMPATIENCE_S, wait_s) if _is_impatient(index) else wait_s)

        async with asyncio.TaskGroup() as group:
            for index in range(len(KEYS)):
                for number in range(GREED[index % len(GREED)]):
                    group.create_task(go_on(index, number))
            await asyncio.sleep(seconds * WARM_PART)
            before_s = [one.audio_s for one in answers]
            await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
            got_s = [one.audio_s - before for one, before in zip(answers, before_s, strict=True)]
    obedient_s = [one for index, one in enumerate(got_s) if not _is_impatient(index)]
    impatient_s = [one for index, one in enumerate(got_s) if _is_impatient(index)]
    return Shares(obedient_s, impatient_s, sum(sum(one.lost.values()) for one in answers))


def _is_impatient(index: int) -> bool:
    return index % 3 == 0
