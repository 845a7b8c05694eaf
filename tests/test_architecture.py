"""The shape of the code: imports point inwards, modules are short, names are unique, and tests use what is public."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pytest

from tests.harness import REPOSITORY

ALIASES = {"client_jobs", "client_mic", "client_stream"}  # deprecated
LAYERS = (
    {"cli"},
    {"app"},
    {"console"},
    {
        "config",
        "server",
        "tls",
        "interceptors",
        "servicers",
        "sources",
        "stores",
        "engines",
        "client",
        *ALIASES,
    },
    {"health"},
    {"telemetry", "reflection"},
    {"jobs", "streaming"},
    {"text"},  # works on the results of the engine
    {"engine", "access"},
    {"audio", "disk", "speech"},
    {"errors", "clock", "account", "version", "pb"},
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
# What only these may import; a unit stands for all that is in it.
ONLY = {
    "typeless_grpc.pb": {"pb", "servicers", "engines", "client", "cli", "console"},
    "grpc": {
        *("pb", "console", "servicers", "cli", "server", "health", "reflection", "tls", "interceptors", "client"),
        *("engines", "app.engines", "app.engine_server"),
    },
    "opentelemetry": {"telemetry", "client"},
    "faster_whisper": {"engine.runtime", "engine.hub"},
    "ctranslate2": {"engine.runtime", "engine.device"},
}
# The base install consists of the client: it may need nothing else of ours.
INSIDE = {
    "client": {"pb"},
    "client_jobs": {"client"},
    "client_mic": {"client"},
    "client_stream": {"client"},
    "": set(),
}
MAX_LINES = 400


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


def sources_of_tests() -> dict[str, str]:
    """The text of each module of the tests and the benchmarks, by its path."""
    paths = [path for folder in ("tests", "benchmarks") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return {str(path.relative_to(REPOSITORY)): path.read_text("utf-8") for path in paths}


def private_uses(sources: Mapping[str, str]) -> list[str]:
    """Where a module reaches into what is private to another object or to a module of ours, or spins on sleep(0)."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute | ast.ImportFrom | ast.Call) and _is_private_use(node)
    ]


# The standard library names them with an underscore, and documents them or has nothing else.
_PUBLIC = {"_asdict", "_exit", "_replace"}


def _is_private_use(node: ast.Attribute | ast.ImportFrom | ast.Call) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return False
        case ast.Attribute(attr=name):
            return _is_private(name)
        case ast.ImportFrom(names=names):
            return any(_is_private(alias.name) for alias in names)
        case ast.Call(func=function, args=[ast.Constant(value=0 | 0.0)]):
            return ast.unparse(function).endswith("sleep")
        case ast.Call(func=function, args=args) if ast.unparse(function).endswith("attr"):
            texts = [one.value for one in args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            return any(_is_private(text.rpartition(".")[2]) for text in texts)
    return False


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC


def test_the_page_about_the_architecture_shows_these_layers():
    page = (REPOSITORY / "docs/architecture.md").read_text("utf-8")
    picture = page.split("```text\n")[1].split("```")[0]
    shown = tuple(set(layer.strip(" {}\n").split()) for layer in picture.split(">"))
    assert shown == tuple(layer - ALIASES for layer in LAYERS)
    assert [unit for unit in RANK.keys() - ALIASES if not re.search(rf"^\| `{unit}(/|\.py)` \|", page, re.M)] == []


def circles(sources: Mapping[str, str]) -> list[set[str]]:
    """The sets of modules that import one another. Importing a module of a package does not count as importing it."""
    graph = {module: set(_modules(_names(ast.parse(text)), sources)) - {module} for module, text in sources.items()}
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, rest = set[str](), [module]
        while rest:
            for target in graph[rest.pop()] - seen:
                seen.add(target)
                rest.append(target)
        reached[module] = seen
    found: list[set[str]] = []
    for module in graph:
        circle = {other for other in reached[module] if module in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _names(tree: ast.AST) -> Iterator[str]:
    """What is imported, each name of `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(names: Iterable[str], sources: Mapping[str, str]) -> Iterator[str]:
    for name in names:
        top, _, ours = name.partition(".")
        if top == "typeless_grpc":
            yield ours if ours in sources else ours.rpartition(".")[0]


def classes_twice(sources: Mapping[str, str]) -> set[str]:
    """The classes, as "package.Class", that a package defines in more than one module. A folder of tests is one."""
    n_of = Counter[str]()
    for module, text in sources.items():
        package = module.rpartition("/")[0] or module.partition(".")[0]
        if package != "pb":
            n_of.update({f"{package}.{node.name}" for node in ast.parse(text).body if isinstance(node, ast.ClassDef)})
    return {name for name, n in n_of.items() if n > 1}


def test_no_modules_import_one_another():
    assert not list(circles(modules()))


def test_no_module_is_too_long_to_read():
    written = {name: text for name, text in modules().items() if name.split(".")[0] not in ("pb", "config")}
    assert [name for name, text in (written | sources_of_tests()).items() if text.count("\n") > MAX_LINES] == []


def test_no_package_has_two_classes_of_one_name():
    assert not classes_twice(modules())
    assert not classes_twice(sources_of_tests())


def test_tests_use_what_is_public_and_wait_for_events():
    assert private_uses(sources_of_tests()) == []


@pytest.mark.parametrize(
    ("find", "planted"),
    [
        (circles, {"a.x": "from typeless_grpc.a.y import Y", "a.y": "def late():\n    from typeless_grpc.a import x"}),
        (classes_twice, {"a.x": "class X: ...", "a.b.y": "class X: ..."}),
        (classes_twice, {"tests/a/x.py": "class X: ...", "tests/a/y.py": "class X: ..."}),
        (private_uses, {"tests/x.py": "stream.session._state"}),
        (private_uses, {"tests/x.py": "from typeless_grpc.audio.vad import _STEP"}),
        (private_uses, {"tests/x.py": "monkeypatch.setattr(vad, '_STEP', 7)"}),
        (private_uses, {"tests/x.py": "monkeypatch.setattr('typeless_grpc.audio.vad._STEP', 7)"}),
        (private_uses, {"tests/x.py": "async def wait():\n    while busy():\n        await asyncio.sleep(0)"}),
    ],
    ids=[
        *("a circle", "a class twice", "a class of a test twice", "a private attribute", "a private name"),
        *("a private constant that is set", "the same by its name", "a spin"),
    ],
)
def test_a_planted_fault_is_found(find, planted: dict[str, str]):
    assert find(planted)


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
