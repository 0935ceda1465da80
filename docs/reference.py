"""Write docs/api.md from the docstrings: python docs/reference.py [--check] [--html FOLDER]

With --html, pdoc writes every public name with its whole docstring as pages that need no network.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import pages

PACKAGE = pages.ROOT / "src/skipalign"
PAGE = pages.ROOT / "docs/api.md"
TEXT = """\
# Python reference

Every public name by its room, with the first sentence of its docstring; made by
`python docs/reference.py`. `make docs` writes the whole docstrings as pages below build/api, from
build/api/skipalign.html on. Rooms stand in the order of [ARCHITECTURE.md](../ARCHITECTURE.md): each
imports only those before it. Names of `skipalign` itself are imported from their rooms when they
are first used.

"""

# Links to names that begin with _, which have no entry.
_TO_PRIVATE = re.compile(r'<a href="[^"]*#_[^"]*">(.*?)</a>')

Named = ast.FunctionDef | ast.ClassDef


def rooms() -> list[str]:
    """Return every room, in the order of ARCHITECTURE.md."""
    text = (pages.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return text.partition("\n## Import order\n")[2].split("```")[1].split()


def source_of(room: str) -> Path:
    """Return the file of a room; "" is the package."""
    path = PACKAGE.joinpath(*room.split(".")) if room else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parsed(room: str) -> ast.Module:
    """Return the syntax of a room."""
    return ast.parse(source_of(room).read_text(encoding="utf-8"))


def public(tree: ast.Module) -> Iterator[Named]:
    """Yield the functions and classes of a room that are for others."""
    for node in tree.body:
        if isinstance(node, Named) and not node.name.startswith("_"):
            yield node


def first_sentence(node: ast.Module | Named, place: str) -> str:
    """Return the first sentence of a docstring.

    Raises:
        SystemExit: there is no docstring.
    """
    told = ast.get_docstring(node)
    if not told:
        raise SystemExit(f"{place} has no docstring")
    paragraph = " ".join(told.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?]) (?=[A-Z`])", paragraph)[0].replace("|", "\\|")


def homes() -> dict[str, str]:
    """Return the room of each name of `skipalign.__all__`."""
    found: dict[str, str] = {}
    for node in ast.walk(parsed("")):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("skipalign."):
            room = (node.module or "").removeprefix("skipalign.")
            found |= {alias.name: room for alias in node.names}
    return dict(sorted(found.items()))


def page() -> str:
    """Return the whole of docs/api.md."""
    trees = {room: parsed(room) for room in rooms()}
    lines = ["## skipalign", "", first_sentence(parsed(""), "skipalign"), ""]
    for name, room in homes().items():
        node = next(each for each in public(trees[room]) if each.name == name)
        lines.append(f"- `{name}` ({room}): {first_sentence(node, f'{room}.{name}')}")
    for room, tree in trees.items():
        path = source_of(room).relative_to(pages.ROOT).as_posix()
        lines += ["", f"## [skipalign.{room}](../{path})", "", first_sentence(tree, room), ""]
        for node in public(tree):
            lines.append(f"- `{node.name}`: {first_sentence(node, f'{room}.{node.name}')}")
    return re.sub(r"\n{3,}", "\n\n", TEXT + "\n".join(lines)).rstrip() + "\n"


def write_html(folder: Path) -> None:
    """Write the pages of pdoc; nothing is fetched."""
    import pdoc
    import pdoc.render

    import skipalign

    for name in skipalign.__all__:  # pdoc looks for them where they lie once they were used
        setattr(skipalign, name, getattr(skipalign, name))
    pdoc.render.configure(docformat="google", show_source=False, search=False)
    # A package brings the rooms in it.
    outer = [
        f"skipalign.{room}"
        for room in rooms()
        if "." not in room or room.split(".")[0] not in rooms()
    ]
    pdoc.pdoc("skipalign", *outer, output_directory=folder)
    for path in folder.rglob("*.html"):
        shown = path.read_text(encoding="utf-8")
        path.write_text(_TO_PRIVATE.sub(r"\1", shown), encoding="utf-8")


def made() -> dict[Path, str]:
    """Return the page by its path."""
    return {PAGE: page()}


def main() -> None:
    """Write what is asked for, or say that docs/api.md is not what the docstrings are."""
    parser = pages.arguments(__doc__)
    parser.add_argument(
        "--html", type=Path, metavar="FOLDER", help="write the pages of pdoc instead"
    )
    given = parser.parse_args()
    if given.html:
        write_html(given.html)
    else:
        pages.write(made(), check=given.check)


if __name__ == "__main__":
    main()
