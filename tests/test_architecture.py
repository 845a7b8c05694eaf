"""Which way imports point, as one table: outer layers first, and an import goes inwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import pytest

from tests.harness import REPOSITORY

LAYERS = (
    {"cli"},
    {"app"},
    {
        "config",
        "server",
        "tls",
        "interceptors",
        "servicers",
        "sources",
        "stores",
        "client",
        "client_channel",
        "client_jobs",
        "client_stream",
        "client_ledger",
        "client_continued",
        "client_mic",
    },
    {"health"},
    {"telemetry", "reflection"},
    {"jobs", "streaming"},
    {"text"},  # works on the results of the engine
    {"engine", "access"},
    {"audio", "disk", "speech"},
    {"errors", "clock", "version", "pb"},
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
# What only these may import; a unit stands for all that is in it.
ONLY = {
    "typeless_grpc.pb": {"pb", "servicers", "client", "client_jobs", "client_stream", "client_continued"}
    | {"client_ledger", "cli"},
    "grpc": {
        *("pb", "servicers", "cli", "server", "health", "reflection", "tls", "interceptors"),
        *("client", "client_channel", "client_jobs", "client_stream"),
    },
    "faster_whisper": {"engine.runtime", "engine.hub"},
    "ctranslate2": {"engine.runtime", "engine.device"},
}
# The client is what the base install has: it may need nothing else of ours.
INSIDE = {
    "client": {"pb", "client_channel", "client_jobs", "client_stream"},
    "client_jobs": {"pb", "client"},
    "client_channel": set(),
    "client_stream": {"pb", "client", "client_continued", "client_ledger"},
    "client_ledger": {"pb", "client", "client_continued"},
    "client_continued": {"pb"},
    "client_mic": {"client"},
    "": set(),
}


def wrong_imports(sources: Mapping[str, str]) -> Iterator[str]:
    """sources: the text of each module by its name without the package's own, "engine.whisper", "" for `__init__`."""
    for module, text in sources.items():
        unit = module.partition(".")[0]
        for imported in _imports(ast.parse(text)):
            for package, allowed in ONLY.items():
                if f"{imported}.".startswith(f"{package}.") and not {unit, module} & allowed:
                    yield f"{module} imports {imported}: only {sorted(allowed)} may"
            top, _, ours = imported.partition(".")
            target = ours.partition(".")[0]
            if top == "typeless_grpc" and target != unit:
                allowed_here = INSIDE.get(unit)
                if (target not in allowed_here) if allowed_here is not None else RANK[target] <= RANK[unit]:
                    yield f"{module} imports {imported}: against the layers"


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            module = node.module or ""
            yield from (
                [f"typeless_grpc.{alias.name}" for alias in node.names] if module == "typeless_grpc" else [module]
            )


def modules() -> dict[str, str]:
    root = REPOSITORY / "typeless_grpc"
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(root.rglob("*.py"))}
    return {name.removesuffix("__init__").rstrip("."): path.read_text("utf-8") for path, name in names.items()}


def test_imports_point_inwards():
    assert list(wrong_imports(modules())) == []


def test_every_part_of_the_package_has_a_layer():
    assert {name.partition(".")[0] for name in modules()} - {""} <= set(RANK)


def test_importing_the_package_imports_nothing():
    assert not list(_imports(ast.parse(modules()[""])))


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("audio.vad", "from typeless_grpc.engine.interface import Engine"),
        ("audio.vad", "from typeless_grpc import engine"),
        ("engine.recognizer", "import faster_whisper"),
        ("engine.interface", "def late():\n    from typeless_grpc.text import numbers"),
        ("engine.interface", "import grpc.aio"),
        ("speech.transcript", "from typeless_grpc.audio.formats import Audio"),
        ("errors", "import typeless_grpc.clock"),
        ("servicers.server", "from typeless_grpc.interceptors.status import CODES"),
        ("app", "from typeless_grpc.pb.v1 import audio_pb2"),
        ("client", "from typeless_grpc.errors import TypelessError"),
        ("", "from typeless_grpc import client"),
    ],
)
def test_an_import_against_the_grain_is_found(module: str, planted: str):
    sources = modules()
    assert list(wrong_imports({module: f"{sources[module]}\n{planted}\n"})) != []
