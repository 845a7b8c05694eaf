"""Makes tests/fuzz/corpus: a short recording in every container, and damaged ones. Run it after a change of KINDS.

python -m tests.fuzz.make_corpus
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

from tests.harness import AUDIO
from tests.media import KINDS, media, tones

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 0.25
MAX_BYTES = 6_000
# From tests/audio, by their beginnings: other writers than FFmpeg, and what KINDS lacks.
RECORDINGS = ("en_short.m4a", "en_short.mp3", "en_short.ogg", "en_short.webm", "en_short.wma", "en_short_mulaw_8k.wav")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The data with a few bytes changed, a part left out or doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, min(len(changed), 400 if chance.random() < 0.7 else len(changed))))
        kind, size = chance.randrange(4), chance.randint(1, 32)
        if kind == 0:
            changed[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = changed[at : at + size]
        else:
            del changed[len(changed) - chance.randrange(1, len(changed) // 2) :]
    return bytes(changed)


def main() -> None:
    """Write the corpus anew; the same bytes each time, as far as FFmpeg's encoders are the same."""
    CORPUS.mkdir(exist_ok=True)
    for old in CORPUS.iterdir():
        old.unlink()
    files = {
        name.replace(", ", "-").replace(" ", "-"): media(kind, tones(kind.rate_hz, seconds=SECONDS, at_s=(0.1,)))
        for name, kind in KINDS.items()
    }
    files |= {f"recording-{Path(name).stem}{Path(name).suffix}": (AUDIO / name).read_bytes() for name in RECORDINGS}
    files = {name.replace(".", "-"): data[:MAX_BYTES] for name, data in files.items()}
    chance = random.Random(19)
    pairs = pairwise(sorted(files))
    joined = {f"joined-{a}-{b}": files[a][:3000] + files[b][:3000] for a, b in list(pairs)[::6]}
    for name, data in (files | joined).items():
        (CORPUS / name).write_bytes(data)
        if len(data) > 500 and name in files:
            (CORPUS / f"{name}-damaged").write_bytes(damaged(data, chance)[:MAX_BYTES])


if __name__ == "__main__":
    main()
