"""Words that this code base does not use, because the field has a better term: docs/glossary.md.

Terms are those with few false alarms. One that is the right word after all, in some file, goes into ALLOWED.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.harness import REPOSITORY

# Words of identifiers, and what to write instead.
IN_NAMES: Mapping[str, str] = {
    "asked": "requested, request, options",
    "away": "unavailable",
    "beat": "heartbeat",
    "beats": "heartbeats",
    "certain": "committed, stable, confirmed",
    "doubt": "low confidence, quality issue",
    "doubtful": "low confidence, quality issue",
    "gone": "expired, deleted, closed",
    "guess": "speculative",
    "guessed": "speculative",
    "hear": "decode, transcribe",
    "heard": "hypothesis, decoded, recognized",
    "hearing": "decoding; the decoder",
    "hears": "decodes, transcribes",
    "judgement": "hallucination filter",
    "keeper": "maintenance loop",
    "machinery": "dependencies",
    "patient": "less urgent",
    "patiently": "retry until available",
    "piece": "utterance, chunk, payload",
    "pieces": "utterances, chunks, payloads",
    "poisonous": "poison job",
    "promised": "stable, committed",
    "promising": "stable, committed",
    "reconsider": "second pass",
    "said": "emitted, released, final; text",
    "sure": "high confidence",
    "suspect": "quarantined",
    "suspects": "quarantined",
    "thorough": "with fallback",
    "told": "notified, reported",
    "whoever": "caller, owner",
}
# Phrases of comments, docstrings, messages and documents, and what to write instead.
IN_PROSE: Mapping[str, tuple[str, str]] = {
    "asked for": (r"asked for", "requested"),
    "away": (r"(?:is|are|was|were) away", "unavailable"),
    "doubtful": (r"doubt(?:s|ed|ful)", "low confidence"),
    "elsewhere": (r"(?:go|goes|going|went) on elsewhere", "reassigned"),
    "gone": (r"gone", "expired, deleted, closed"),
    "guess": (r"guess(?:es|ed)?", "speculative decode"),
    "heard": (r"hears?|heard", "decode, recognize; hypothesis"),
    "in line": (r"in line(?! \d)|the line before", "queued, the inference queue"),
    "judgement": (r"judge?ments?", "hallucination filter"),
    "keeper": (r"keeper", "maintenance loop"),
    "machinery": (r"machinery", "dependencies"),
    "make way": (r"(?:mak|giv)(?:e|es|ing) way|(?:made|gave) way", "yield, preempt"),
    "patiently": (r"patient(?:ly)?", "retry until available; less urgent"),
    "piece": (r"pieces?", "utterance, chunk, payload"),
    "poisonous": (r"poisonous", "poison job"),
    "reconsider": (r"reconsider(?:s|ed)?", "second pass"),
    "sign of life": (r"signs? of life", "heartbeat"),
    "taken up": (r"(?:take|takes|taken|took) up(?! to)", "resume"),
    "thorough": (r"thorough", "with fallback"),
    "told": (r"(?:is|are|was|were|be|being) told", "notified, reported"),
    "took away": (r"(?:took|taken) away", "lease lost, reassigned"),
    "what was said": (r"what (?:is|was) said", "the text, what was spoken"),
    "whoever": (r"whoever", "the caller, the owner"),
}
# A sentence whose subject hides: "Who sets `beam_size` has that instead." Questions are fine.
HIDDEN_SUBJECT = "Who …"
_HIDDEN_SUBJECT = re.compile(r"(?:^|[.:;] )Who(?:se)? (?!and |or )[^?.|]*\.(?:\s|$)")
# Terms that are the right word in one file, and why.
ALLOWED: Mapping[str, str] = {
    "docs/security.md": "guess",  # a secret
    "typeless_grpc/text/languages.py": "heard",  # a word of English, which it recognizes
}

THIS = Path(__file__).relative_to(REPOSITORY)
CODE = ("typeless_grpc", "tests", "benchmarks", "clients/python", "deploy")
# Decisions are dated, and never updated.
DOCUMENTS = ("*.md", "docs/*.md", "docs/measurements/*.md", "clients/**/*.md", "tests/**/*.md", "protos/**/*.proto")
# Other languages, and files without one.
OTHERS = (
    *(f"clients/**/*.{suffix}" for suffix in ("go", "java", "js", "rs", "ts", "yaml")),
    *(f"typeless_grpc/console/page/*.{suffix}" for suffix in ("css", "html", "js")),
    *(f"deploy/**/*.{suffix}" for suffix in ("conf", "service", "tpl", "txt", "yaml", "yml")),
    *("deploy/docker/Dockerfile", "Makefile", "pyproject.toml", ".ci/*", "tests/**/*.yml"),
)
# page.js is the bundle of clients/browser.
NOT_OURS = {"node_modules", "target", "build", "dist", "gen", "pb", "page.js"}


def names_and_prose(text: str) -> tuple[set[str], list[str]]:
    """The identifiers of a module, and its comments, docstrings and other strings of several words."""
    names: set[str] = set()
    prose: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            names.add(token.string)
        elif token.type == tokenize.COMMENT:
            prose.append(token.string.lstrip("# "))
    strings = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return names, [*prose, *(string for string in strings if isinstance(string, str) and " " in string)]


# Comments and strings of other languages.
_WITHOUT_TEXT = re.compile(r"""/\*.*?\*/|(?://|#|<!--)[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`""", re.S)


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def dialect(text: str, suffix: str) -> set[str]:
    """The terms of IN_NAMES and IN_PROSE that stand in a file: terms of names end with `=`."""
    if suffix == ".py":
        names, prose = names_and_prose(text)
    elif suffix in (".md", ".proto"):
        names, prose = set(), [re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)]
    else:
        names, prose = set(re.findall(r"\w+", _WITHOUT_TEXT.sub(" ", text))), [text]
    return {f"{word}=" for word in set().union(*map(words_of, names)) & IN_NAMES.keys()} | {
        term for one in prose for term in in_prose(one)
    }


def in_prose(prose: str) -> Iterator[str]:
    """The phrases of IN_PROSE. Code in back quotes is left out."""
    plain = re.sub(r"`[^`\n]*`", "X", prose)
    plain = re.sub(r"\s+(?://|#)?\s*", " ", plain)
    yield from (term for term, (phrase, _) in IN_PROSE.items() if re.search(rf"\b(?:{phrase})\b", plain, re.I))
    if _HIDDEN_SUBJECT.search(plain):
        yield HIDDEN_SUBJECT


def files() -> Iterator[Path]:
    for place in CODE:
        yield from (path for path in sorted((REPOSITORY / place).rglob("*.py")) if not NOT_OURS & set(path.parts))
    for pattern in (*DOCUMENTS, *OTHERS):
        yield from (
            path
            for path in sorted(REPOSITORY.glob(pattern))
            if path.is_file() and not NOT_OURS & set(path.relative_to(REPOSITORY).parts)
        )


@cache
def found() -> dict[Path, set[str]]:
    """The terms of each file."""
    return {
        path.relative_to(REPOSITORY): dialect(path.read_text("utf-8"), path.suffix)
        for path in files()
        if path.relative_to(REPOSITORY) != THIS
    }


@pytest.mark.parametrize(
    ("suffix", "text", "term"),
    [
        (".py", "heard = decode(audio)", "heard="),
        (".py", "class PieceDecoder: ...", "piece="),
        (".py", "# the text that was heard", "heard"),
        (".py", '"""Watchers are told of each change."""', "told"),
        (".py", "log.warning('the job goes on elsewhere')", "elsewhere"),
        (".md", "Who sets `beam_size` has that instead.", HIDDEN_SUBJECT),
        (".proto", "// The options that the caller\n  // asked for.", "asked for"),
        (".go", "piece := read() // heard", "piece="),
        (".yaml", "# The server that is away.", "away"),
    ],
)
def test_a_term_is_found(suffix: str, text: str, term: str):
    assert term in dialect(text, suffix)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".py", "hearts = asking_price"),
        (".md", "Who may call? `whoever` is code, and so is:\n```sh\nheard\n```\n"),
    ],
    ids=["part of a word", "questions and code"],
)
def test_other_words_are_not_found(suffix: str, text: str):
    assert dialect(text, suffix) == set()


def test_every_idea_has_the_term_of_the_field():
    unwanted = {
        str(path): {term: instead(term) for term in sorted(rest)}
        for path, terms in found().items()
        if (rest := terms - set(ALLOWED.get(str(path), "").split(", ")))
    }
    assert unwanted == {}, "see docs/glossary.md"


def instead(term: str) -> str:
    if term.endswith("="):
        return IN_NAMES[term.removesuffix("=")]
    return "name the subject" if term == HIDDEN_SUBJECT else IN_PROSE[term][1]
