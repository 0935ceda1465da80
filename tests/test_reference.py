"""The reference of the Python interface: whole, of docstrings that say what a caller needs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import skipalign
from made_scripts import script

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs/reference.py"


reference = script("docs/reference.py")
ROOMS = reference.rooms()
TREES = {room: reference.parsed(room) for room in ROOMS}


def named(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield public functions, classes and methods; what a public function holds is its own."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from named(node, f"{prefix}{node.name}.")


PUBLIC = [(room, name, node) for room, tree in TREES.items() for name, node in named(tree)]


def told(room: str, name: str, node: ast.AST) -> str:
    """Return a docstring; a method without one has that of the class above it."""
    own = ast.get_docstring(node)
    if own or "." not in name:
        return own or ""
    owner, _, method = name.rpartition(".")
    try:
        above = getattr(import_module(f"skipalign.{room}"), owner).__mro__[1:]
    except ImportError:
        return ""
    found = (getattr(each.__dict__.get(method), "__doc__", None) for each in above)
    return next((text for text in found if text), "")


def test_the_index_holds_every_name_of_the_package():
    assert list(reference.homes()) == sorted({*skipalign.__all__} - {"__version__"})


def test_no_public_name_is_without_a_docstring():
    silent = [
        f"{room}.{name}"
        for room, name, node in PUBLIC
        if not told(room, name, node) and not is_one_line_of_a_protocol(node)
    ]
    assert not silent
    assert all(ast.get_docstring(tree) for tree in TREES.values())


def is_one_line_of_a_protocol(node: ast.AST) -> bool:
    """Whether it is a property of a protocol, whose class says what it holds."""
    body = node.body  # type: ignore[attr-defined]
    return len(body) == 1 and ast.unparse(body[0]) == "..."


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a function without the functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield child
            yield from own_nodes(child)


def test_docstrings_say_what_is_raised():
    """By its name, by that of all errors for users, or by a reference to where it is said."""
    errors = {name for name, node in named(TREES["errors"]) if isinstance(node, ast.ClassDef)}
    untold = []
    for room, name, node in PUBLIC:
        if not isinstance(node, ast.FunctionDef) or room.startswith("commands"):
            continue  # the docstring of a command is its help
        calls = [
            each.exc.func
            for each in own_nodes(node)
            if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)
        ]
        text = told(room, name, node)
        for error in {ast.unparse(call) for call in calls} & errors:
            if not re.search(rf"\b({error}|SkipalignError)\b|see `|as `", text):
                untold.append(f"{room}.{name}: {error}")
    assert not untold


def test_what_docstrings_refer_to_exists():
    """`room.name` and `skipalign.name` in backticks are names of this package."""
    texts = [(room, ast.get_docstring(tree) or "") for room, tree in TREES.items()]
    texts += [(f"{room}.{name}", ast.get_docstring(node) or "") for room, name, node in PUBLIC]
    lost = []
    found = 0
    for place, text in texts:
        for word in re.findall(r"`(?:skipalign\.)?([\w.]+\.\w+)(?:\(.*?\))?`", text):
            room = next(
                (
                    each
                    for each in sorted(ROOMS, key=len, reverse=True)
                    if word.startswith(f"{each}.")
                ),
                None,
            )
            if word == "model.generate":  # of transformers' models
                continue
            if room is None or word.endswith((".py", ".json", ".jsonl", ".md", ".yaml", ".txt")):
                continue
            found += 1
            if not resolves(room, word.removeprefix(f"{room}.")):
                lost.append(f"{place}: {word}")
    assert not lost
    assert found > 5, "no reference was found"


def resolves(room: str, name: str) -> bool:
    module = import_module(f"skipalign.{room}")
    for part in name.split("."):
        fields = getattr(module, "__dataclass_fields__", {})
        if not hasattr(module, part) and part not in fields:
            return False
        module = getattr(module, part, None)
    return True


@pytest.mark.long
def test_make_docs_writes_a_page_of_every_public_name_without_a_network(tmp_path: Path):
    """With its docstring, and every link leads somewhere."""
    pytest.importorskip("pdoc")
    run = subprocess.run(
        [sys.executable, SCRIPT, "--html", tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "does not resolve" not in run.stderr
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    top = (tmp_path / "skipalign.html").resolve()
    assert {*skipalign.__all__} - {"__version__"} <= anchors[top]
    for room, name, node in PUBLIC:
        path = (tmp_path / "skipalign" / f"{room.replace('.', '/')}.html").resolve()
        if ast.get_docstring(node):
            assert name in anchors[path], f"{room}.{name} has no entry"
    for path, text in pages.items():
        assert not re.search(r'(src|<link[^>]*href)="https?:', text), f"{path} fetches something"
        for link in re.findall(r'href="([^"]+)"', text):
            if link.startswith(("http", "data:")):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target in pages, f"{path}: {link}"
            assert not anchor or anchor in anchors[target], f"{path}: {link}"
