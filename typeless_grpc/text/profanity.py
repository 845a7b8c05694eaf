"""Words to mask: a list that an operator can replace.

The list is a text file, UTF-8: a word or phrase a line, `#` starts a comment, `[en]` starts the words of one language;
those before any such line are for every language. A `*` at the end of a word stands for any letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from typeless_grpc.errors import InvalidInput
from typeless_grpc.text.edits import Edit
from typeless_grpc.text.matching import WholeWords

_SECTION = re.compile(r"\[([a-z]{2,3})\]")


@dataclass(frozen=True)
class Profanity:
    """The words to mask. words: by language; "" for every language."""

    words: Mapping[str, WholeWords]

    def masked(self, text: str, language: str) -> list[Edit]:
        """Return the edits that write `*` for all characters but the first of each listed word."""
        listed = [self.words[key] for key in ("", language) if key in self.words]
        found = sorted({(start, end) for words in listed for start, end, _ in words.find(text)})
        edits: list[Edit] = []
        for start, end in found:
            if not edits or start >= edits[-1].end:
                hidden = "".join("*" if one.isalnum() else one for one in text[start + 1 : end])
                edits.append(Edit(start, end, text[start] + hidden))
        return edits


def load(path: Path | None = None) -> Profanity:
    """Read a list; None is the list of this package. Raises InvalidInput for a file that is not a list."""
    try:
        source = path or resources.files("typeless_grpc.text").joinpath("profanity.txt")
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("profanity_file", f"{path} cannot be read as UTF-8 text", reason="CONFIG_INVALID") from error
    return parse(lines)


def parse(lines: list[str]) -> Profanity:
    """Return a list from its lines. Raises InvalidInput for an unknown language."""
    words: dict[str, list[str]] = {}
    language = ""
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if entry.startswith("["):
            section = _SECTION.fullmatch(entry)
            if section is None:
                why = f"line {number}: '{entry[:40]}' is no language in brackets"
                raise InvalidInput("profanity_file", why, reason="CONFIG_INVALID")
            language = section[1]
        elif entry:
            words.setdefault(language, []).append(entry)
    return Profanity({language: WholeWords(listed, wildcards=True) for language, listed in words.items()})
