"""The effect of hotwords: how many rare words are recognized without them, with them, and with wrong ones added.

A word is rare if it has three or more of Whisper's tokens and occurs in one recording only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

from tokenizers import Tokenizer

from benchmarks.contestants import RAW, model_directory
from benchmarks.recordings import Recording, normalized, wer
from typeless_grpc.client import Client, Options

RARE_TOKENS = 3
N_RECORDINGS = 30
N_DISTRACTORS = 20


def table(client: Client, recordings: list[Recording]) -> Iterator[str]:
    """The table, in Markdown."""
    rare = _rare_words(recordings)
    with_rare = [one for one in recordings if rare[one.path]][:N_RECORDINGS]
    others = [word for one in recordings for word in rare[one.path]]
    ways = {
        "none": lambda one: [],
        "the spoken ones": lambda one: rare[one.path],
        f"the spoken ones and {N_DISTRACTORS} others": lambda one: (
            rare[one.path] + [word for word in others if word not in rare[one.path]][:N_DISTRACTORS]
        ),
        f"{N_DISTRACTORS} others only": lambda one: [word for word in others if word not in rare[one.path]][
            :N_DISTRACTORS
        ],
    }
    n_words = sum(len(rare[one.path]) for one in with_rare)
    yield "\n## Hotwords\n"
    yield f"{n_words} rare words (three or more of Whisper's tokens, in one recording only) in {len(with_rare)}"
    yield "English utterances.\n"
    yield "| hotwords | rare words recognized | word error rate |"
    yield "| --- | --- | --- |"
    for name, choose in ways.items():
        print(f"hotwords: {name}", file=sys.stderr, flush=True)
        texts = [(one, _output(client, one, choose(one))) for one in with_rare]
        n_recognized = sum(word in normalized(text, "en").split() for one, text in texts for word in rare[one.path])
        yield f"| {name} | {n_recognized} of {n_words} ({n_recognized / n_words:.0%}) | {wer(texts):.1%} |"


def _output(client: Client, recording: Recording, words: list[str]) -> str:
    options = Options(language="en", beam_size=1, hotwords=words)
    return client.transcribe(recording.pcm, options, raw_format=RAW, timeout_s=600).transcript.text


def _rare_words(recordings: list[Recording]) -> dict[object, list[str]]:
    tokenizer = Tokenizer.from_file(str(model_directory("base") / "tokenizer.json"))
    words_of = {one.path: list(dict.fromkeys(normalized(one.reference, "en").split())) for one in recordings}
    times = Counter(word for words in words_of.values() for word in words)
    return {
        path: [
            word
            for word in words
            if times[word] == 1
            and word.isalpha()
            and len(tokenizer.encode(" " + word, add_special_tokens=False).ids) >= RARE_TOKENS
        ]
        for path, words in words_of.items()
    }
