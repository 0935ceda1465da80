"""The promises that concern the structure of the project: each is one test that can go red."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "skipalign"

# Each room imports, at run time, only rooms before it. ARCHITECTURE.md holds the same list.
ORDER_TEXT = """
errors files visible progress
rowcount raw_row json_rows csv_rows readers digests
conversation tokens template shortening encoding example_file prepare
laws cuts positions key_bias coverage rope packing costs logit_scale
tiny visits batch bias_attention borders adapters model shapes probe checkpoints
distribution layout chunked_loss arguments engine training
rows preference
generation transformers_engine reuse http_post remote vllm_engine
evaluation.metrics evaluation evaluation.haystack evaluation.records evaluation.prompts
evaluation.longbench_metrics evaluation.longbench_score evaluation.longbench_table
evaluation.longbench_prompts
evaluation.nested evaluation.trial_log
evaluation.rouge_lsum evaluation.published evaluation.suites evaluation.ruler_samples
evaluation.needle evaluation.stretch evaluation.perplexity evaluation.longbench
evaluation.longbench_v2 evaluation.infinitebench evaluation.babilong evaluation.nolima
evaluation.ruler
evaluation.short_check evaluation.lm_eval
evaluation.tasks serving
yaml_tree origin results scores shades downloads figures provenance
comparison ablation parts boards gate page markup report card
tiny.corpus tiny.pretraining tiny.make tiny.stories tiny.larger
watching resolved claim workers evaluating study plan budget
export integrations integrations.trl
grid schema recipe sample terminal preview preview_page doctor survey commented starter
commands commands.options commands.data commands.training commands.evaluation commands.machine
commands.starting cli
"""
ORDER = ORDER_TEXT.split()
LAST_WITHOUT_TORCH = "logit_scale"
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "accelerate")

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 5


# ------------------------------------------------------------------------------ reading the code


def room_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@lru_cache
def files() -> dict[Path, ast.Module]:
    """Every module of the package, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))}


def rooms() -> dict[str, ast.Module]:
    """Modules by room name; the package itself and __main__ are no rooms."""
    named = {room_of(path): tree for path, tree in files().items()}
    return {name: tree for name, tree in named.items() if name not in ("", "__main__")}


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk everything but the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        for kept in child.orelse if typing_only else [child]:
            yield kept
            yield from run_time_nodes(kept)


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Yield every module, or name of a module, that runs when some line of `tree` runs."""
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for module in imported_modules(tree):
        top, *rest = module.split(".")
        if top != "skipalign":
            continue
        names = [".".join(rest[:stop]) for stop in range(len(rest), 0, -1)]
        found |= {next((name for name in names if name in rooms()), "")}
    return found - {""}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    values = [ast.unparse(each.value) for each in call.keywords if each.arg == name]
    return values[0] if values else None


def place(path: Path, node: ast.AST) -> str:
    line = getattr(node, "lineno", None)
    return f"{path.relative_to(ROOT)}" + (f":{line}" if line else "")


def code_block(document: str, heading: str) -> str:
    """Return the first fenced block below a heading."""
    after = (ROOT / document).read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)
    assert len(after) == 2, f"{document} has no heading {heading!r}"
    return after[1].split("```", 2)[1].split("\n", 1)[1]


def tracked() -> list[str]:
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git clone: it compares with the files that git tracks")
    return listed.stdout.splitlines()


def python(code: str) -> str:
    """Run code in a fresh interpreter that sees this checkout; return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ------------------------------------------------------------------------------ the rooms


def test_the_order_holds_every_room_once():
    assert sorted(ORDER) == sorted(rooms())


def test_the_order_is_that_of_architecture_md():
    assert code_block("ARCHITECTURE.md", "Import order").split() == ORDER


def test_rooms_import_only_rooms_before_them():
    wrong: dict[str, list[str]] = {}
    for room, tree in rooms().items():
        before = set(takewhile(lambda name, room=room: name != room, ORDER))
        if late := imported_rooms(tree) - before:
            wrong[room] = sorted(late)
    assert not wrong, "these rooms import rooms that come after them"


def test_tasks_do_not_import_each_other():
    shared = set(ORDER[: ORDER.index("evaluation.needle")])
    for room, tree in rooms().items():
        if room.startswith("evaluation.") and room != "evaluation.tasks":
            others = {name for name in imported_rooms(tree) if name.startswith("evaluation.")}
            assert others <= shared, f"{room} imports {sorted(others - shared)}"


def test_importing_the_package_alone_opens_no_room():
    code = "import sys, skipalign; print(*(m for m in sys.modules if m.startswith('skipalign.')))"
    assert python(code).split() == []


def test_rooms_down_to_positions_and_rope_need_no_torch():
    last = ORDER.index(LAST_WITHOUT_TORCH) + 1
    code = (
        "import importlib, sys\n"
        f"for room in {ORDER[:last]!r}:\n"
        "    importlib.import_module(f'skipalign.{room}')\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    if loaded:\n"
        "        print(room, loaded)\n"
        "        break\n"
    )
    assert python(code) == ""


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import json, sys\n"
        "sys.argv = ['skipalign', '--help']\n"
        "from skipalign.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    *text, loaded = python(code).splitlines()
    assert any("preview" in line for line in text), "no help was printed"
    assert json.loads(loaded) == []


def test_every_module_has_its_test_file():
    named = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    modules = {
        f"commands_{path.stem}" if path.parent.name == "commands" else path.stem
        for path in files()
        if path.stem not in ("__init__", "__main__")
    }
    missing = sorted(f"tests/test_{name}.py" for name in modules if f"test_{name}" not in named)
    assert not missing


# ------------------------------------------------------------------------------ size and names


def test_no_room_is_a_drawer():
    for path in files():
        assert path.stem not in ("utils", "util", "common", "helpers", "misc"), path


def test_files_and_functions_stay_short():
    long: list[str] = []
    for path, tree in files().items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long.append(f"{place(path, tree)} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{place(path, node)} {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_functions_take_few_positional_parameters():
    for path, tree in files().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
                names = [name for name in names if name not in ("self", "cls")]
                assert len(names) <= MAX_POSITIONAL, f"{place(path, node)} {node.name}: {names}"


def test_nothing_is_left_undone():
    words = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not words.search(line), f"{path.name} line {number}: {line.strip()}"


# ------------------------------------------------------------------------------ random state

NUMPY_RANDOM = ("Generator", "BitGenerator", "SeedSequence", "Philox", "PCG64", "default_rng")
SEEDS_TORCH = ("training", "tiny.pretraining")
TORCH_DRAWS = (
    "rand",
    "randn",
    "randint",
    "randperm",
    "rand_like",
    "randn_like",
    "normal",
    "bernoulli",
    "multinomial",
)


def test_numpy_and_python_have_no_global_random_state():
    for path, tree in files().items():
        for name in imported_modules(tree):
            _, numpy, drawn = name.rpartition("numpy.random.")
            assert not numpy or drawn in NUMPY_RANDOM, f"{path.name} imports {name}"
            assert name.split(".")[0] != "random", f"{path.name} imports {name}"
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if owner in ("np.random", "numpy.random"):
                assert node.attr in NUMPY_RANDOM, f"{place(path, node)}: np.random.{node.attr}"


def leaves_state_alone(tree: ast.Module) -> set[ast.AST]:
    """Return all nodes inside `with torch.random.fork_rng():`."""
    return {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        and any("fork_rng" in ast.unparse(item.context_expr) for item in block.items)
        for node in ast.walk(block)
    }


def test_torch_is_seeded_where_a_training_begins_and_nowhere_else():
    for path, tree in files().items():
        forked = leaves_state_alone(tree)
        for name, call in calls(tree):
            last = name.split(".")[-1]
            if last in ("manual_seed", "manual_seed_all", "set_seed", "seed_everything"):
                own = "Generator" in name
                allowed = own or room_of(path) in SEEDS_TORCH or call in forked
                assert allowed, f"{place(path, call)}: {name}; put it under torch.random.fork_rng()"
            if name in [f"torch.{draw}" for draw in TORCH_DRAWS] and call not in forked:
                assert keyword(call, "generator"), f"{place(path, call)}: {name} has no generator"


# ------------------------------------------------------------------------------ foreign code


def test_no_pickle_is_loaded():
    unsafe = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path, tree in files().items():
        found = {module.split(".")[0] for module in imported_modules(tree)} & unsafe
        assert not found, f"{path.name} imports {found}"
        for name, call in calls(tree):
            if name in ("torch.load", "load") and "torch" in name:
                assert keyword(call, "weights_only") == "True", place(path, call)
            assert keyword(call, "allow_pickle") in (None, "False"), place(path, call)
            assert keyword(call, "weights_only") in (None, "True"), place(path, call)


def test_no_code_of_a_checkpoint_is_run():
    loads = 0
    for path, tree in files().items():
        for name, call in calls(tree):
            assert keyword(call, "trust_remote_code") in (None, "False"), place(path, call)
            assert name not in ("eval", "exec"), place(path, call)
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                loads += 1
                assert keyword(call, "trust_remote_code") == "False", place(path, call)
                if "Model" in name:
                    assert keyword(call, "use_safetensors") == "True", place(path, call)
    assert loads >= 3, "the calls that load checkpoints were not found"


# ------------------------------------------------------------------------------ papers and pages


def test_recipes_load():
    from skipalign.recipe import load

    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert "tiny.yaml" in [path.name for path in recipes]
    for path in recipes:
        recipe = load(path)
        assert recipe.trainings(), path.name


def test_the_tree_of_the_readme_is_the_tree():
    top, package = set(), set()
    inside = False
    for line in code_block("README.md", "Where things are").splitlines():
        name = line.split()[0]
        indent = len(line) - len(line.lstrip())
        if not indent:
            inside = name == "src/skipalign/"
            top.add(name.split("/")[0])
        elif inside:
            package.add(name.rstrip("/"))
    paths = [Path(name) for name in tracked()]
    prefix = ("src", "skipalign")
    assert top == {p.parts[0] for p in paths if len(p.parts) > 1 and p.parts[0][0] != "."}
    assert package == {p.parts[2] for p in paths if p.parts[:2] == prefix and p.suffix != ".typed"}


def test_the_commands_of_the_readme_are_the_commands():
    code = (
        "import sys\nsys.argv = ['skipalign', '--help']\nfrom skipalign.cli import main\nmain()\n"
    )
    listed = python(code).partition("Commands:")[2]
    existing = set(re.findall(r"^  ([\w-]+)  ", listed, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `skipalign ([\w-]+)", readme, re.MULTILINE)) == existing


def test_the_tables_of_the_readme_hold_what_is_compared():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo-tiny", "study-tiny"):
        block = readme.partition(f"<!-- {name} results")[2]
        block = block.partition(f"<!-- /{name} results -->")[0]
        assert {"normal", "skipalign"} <= set(re.findall(r"^\| ([\w-]+) \|", block, re.MULTILINE))


CODE = (".py", ".toml", ".cff", ".typed", "Makefile", "LICENSE", "NOTICE", "constraints.txt", ".sh")
TOOLS = (".gitignore", ".gitattributes", ".pre-commit-config.yaml", ".ci/run")


def test_what_is_neither_code_nor_documentation_has_a_licence():
    listed = (ROOT / "NOTICE").read_text(encoding="utf-8")
    patterns = re.findall(r"^ {4}(\S+/\S+)$", listed, re.MULTILINE)
    packaged = ("src/skipalign/", "recipes/", "tests/")
    others = [path for path in tracked() if not path.endswith(CODE) and path not in TOOLS]
    data = [path for path in others if path.startswith(packaged) or not path.endswith(".md")]
    assert len(data) > 50
    for path in data:
        known = any(fnmatch(path, pattern) for pattern in patterns)
        spoken = "SPDX-License-Identifier:" in (ROOT / path).read_bytes()[:2000].decode("latin-1")
        assert known or spoken, f"{path}: name it in NOTICE, or give it a licence line"
    for pattern in patterns:
        found = [path for path in tracked() if fnmatch(path, pattern)]
        assert found, f"NOTICE names {pattern}, which no file is"


def test_every_benchmark_of_others_has_its_terms():
    papers = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
    section = papers.partition("\n## Benchmarks of others\n")[2].partition("\n## ")[0]
    named = re.findall(r"^- ([\w ]+?) \(`", section, re.MULTILINE)
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    listed = notice.partition("\nData sets that are named")[2]
    assert len(named) >= 6
    assert {*named} <= {*re.findall(r"^  ([\w ]+): .*\w", listed, re.MULTILINE)}


def test_one_version_everywhere():
    from skipalign import __version__

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [__version__]
    released = re.findall(r"^## \[(\d\S*)\] - (\S+)$", changes, re.MULTILINE)
    dates = re.findall(r"^date-released: (\S+)$", citation, re.MULTILINE)
    assert dates == [date for _, date in released[:1]]
    if released:
        assert released[0][0] == __version__
    else:
        assert f"the first release will be {__version__} " in changes


def defined_tests() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        found |= {f"{path.name}::{name}" for name in names if name.startswith("test_")}
    return found


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "docs/papers.md"])
def test_tests_that_pages_name_exist(document: str):
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / document).read_text(encoding="utf-8"))
    assert named
    missing = {f"{file}::{name}" for file, name in named} - defined_tests()
    assert not missing, f"{document} names {sorted(missing)}"


def test_every_promise_names_a_test():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    promises = text.split("\n## Promises", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (\d) \| .*$", promises, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 9)]
    for line in re.findall(r"^\| \d \| .*$", promises, re.MULTILINE):
        assert "`test_" in line, line


def test_papers_md_holds_every_method_and_no_other():
    from skipalign import key_bias, laws, positions, rope

    registries = {
        "positions": positions.STRATEGIES,
        "laws": {name: type(law) for name, law in laws.LAWS.items()},
        "key_bias": key_bias.KEY_BIASES,
        "rope": rope.ROPE_EXTENSIONS,
    }
    expected = {
        f"{room}.{each.__name__}" for room, known in registries.items() for each in known.values()
    }
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`((?:positions|laws|key_bias|rope)\.[A-Z]\w+)`", text)) == expected
